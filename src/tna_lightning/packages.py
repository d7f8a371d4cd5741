"""Other people's packages: those that may be absent, those that talk too much, and those that take long to import."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_PROJECTS = {"sklearn": "scikit-learn", "wandb_workspaces": "wandb-workspaces"}  # where it is not the module's name
_ARGUMENTS = {"spikingjelly": "--no-deps spikingjelly"}  # it asks for torchvision, which its neurons do not use

# torch 2.13 at a class of its own; in Lightning 2.6 at every fit, in the ONNX exporter at every export
LEAF_SPEC = ".*LeafSpec.* is deprecated.*"


class MissingPackage(ImportError):
    """A package that this alone needs is not installed; the message says which, and how to get it."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """For what is imported in here, no garbage collector: for a command that owns its process.

    Importing torch and Lightning makes 670,000 objects that stay. The collector goes through all of them again and
    again meanwhile, a fourth of the time that the imports take, and at each full collection later; so what is there
    at the end is kept from it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def require(*modules: str, extra: str | None = None) -> None:
    """Refuse what needs packages that are not there, before anything has been done.

    Args:
        modules: as they are imported.
        extra: the extra of this package that brings them, if one does.

    Raises:
        MissingPackage: ``needs the package wandb: pip install wandb``; whoever knows the setting puts it in front.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            project = _PROJECTS.get(module, module)
            absent = isinstance(error, ModuleNotFoundError) and error.name == module
            reason = "" if absent else f", which does not import here ({' '.join(str(error).split())})"
            source = f"'tna-lightning[{extra}]'" if extra else _ARGUMENTS.get(project, project)
            raise MissingPackage(f"needs the package {project}{reason}: pip install {source}") from error


@contextmanager
def quiet(logger_name: str, level: int, *messages: str) -> Iterator[None]:
    """Without what a logger says below a level, and without warnings whose message matches one of these patterns."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(before)
