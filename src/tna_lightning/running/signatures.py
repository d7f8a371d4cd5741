"""Writes ``conf/signatures/``: ``python -m tna_lightning.running.signatures``, or ``make conf``.

A default has one home, the signature of what takes it, and its meaning another, the docstring beside it. The files
written here carry both to where Hydra composes configs, so that ``--cfg job`` shows every setting, each can be
overridden, and nothing heavy is imported for it. A choice inherits from them and says what differs:

    defaults:
      - /signatures/LIF@_here_
      - _self_
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tna_lightning.running.home import home

HEAD = "# written by `make conf` from the signature of {source}; change it there"


@dataclass(frozen=True)
class Source:
    """What one file is written from.

    Attributes:
        path: dotted path of a class or function. The ``**settings`` of a class are its base class's.
        settings_of: the function to which this one hands its ``**settings``; a class hands them to its base class.
        is_partial: what is built is a factory.
        without: arguments that are no settings: the program gives them.
    """

    path: str
    settings_of: str | None = None
    is_partial: bool = False
    without: tuple[str, ...] = ()


SOURCES = {
    "LIF": Source("tna_lightning.models.LIF", is_partial=True),
    **{
        name: Source(f"tna_lightning.models.{name}", "tna_lightning.models.resnet.resnet", without=("num_hidden",))
        for name in ("resnet8", "resnet18", "resnet19", "resnet20")
    },
    **{
        name: Source(f"tna_lightning.models.{name}", "tna_lightning.models.vgg.plain_network", without=("pool_size",))
        for name in ("convnet", "vgg11", "vgg16", "vggsnn")
    },
    "WeightQuantization": Source("tna_lightning.quantization.WeightQuantization"),
    "Binary": Source("tna_lightning.quantization.Binary"),
    "Ternary": Source("tna_lightning.quantization.Ternary"),
    "TernaryAbsmean": Source("tna_lightning.quantization.TernaryAbsmean"),
    "TernaryTTQ": Source("tna_lightning.quantization.TernaryTTQ"),
    "Uniform": Source("tna_lightning.quantization.Uniform"),
    "EMA": Source("tna_lightning.callbacks.EMA"),
    "SWA": Source("tna_lightning.callbacks.SWA"),
    **{
        name: Source(f"lightning.pytorch.callbacks.{name}")
        for name in ("EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor")
    },
}


def render(source: Source) -> str:
    """The text of a file."""
    lines = [HEAD.format(source=source.path), f"_target_: {source.path}"]
    if source.is_partial:
        lines.append("_partial_: true")
    takers = list(_takers(source))
    defaults: dict[str, Any] = {}
    meanings: dict[str, str] = {}
    for owner, function in takers:  # what an earlier one takes does not reach the later ones
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in source.without:
                defaults.setdefault(parameter.name, parameter.default)
        meanings = arguments_in(inspect.getdoc(owner) or "") | meanings
    for name, default in defaults.items():
        meaning = f" # {meanings[name]}" if name in meanings else ""
        lines.append(f"{name}: {_as_yaml(default)}{meaning}")
    return "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _takers(source: Source) -> Iterator[tuple[Any, Any]]:
    """Whose arguments a call takes, first to last, and the function of each: with ``**settings`` there are several."""
    target = _get(source.path)
    if not isinstance(target, type):
        yield target, target
        if source.settings_of is not None:
            yield _get(source.settings_of), _get(source.settings_of)
        return
    for owner in target.__mro__:
        if function := vars(owner).get("__init__"):
            yield owner, function
            kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                return


def _get(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments_in(docstring: str) -> dict[str, str]:
    """The section ``Args:`` of a docstring, by name: on one line each."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries: list[tuple[str, str]] = []
    if section is not None:
        entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()).removesuffix(".") for name, text in entries}


def main() -> None:
    """Write them all."""
    folder = home() / "conf" / "signatures"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.yaml"):
        path.unlink()
    for name, source in SOURCES.items():
        Path(folder / f"{name}.yaml").write_text(render(source))


if __name__ == "__main__":
    main()
