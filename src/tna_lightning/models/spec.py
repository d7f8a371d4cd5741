"""A network from its description, for files that are read without Hydra and without trusting them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

PACKAGE = "tna_lightning.models"


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The network that `spec` describes, with new weights.

    Args:
        spec: `{"model": {"_target_": "tna_lightning.models.resnet19", ...}, "neuron": {"_target_": ...}, "in_channels":
            int, "num_classes": int}`, JSON-able. Targets are public names defined in `tna_lightning.models`, and
            `torch.nn.ReLU`; nothing else is imported or called.

    Raises:
        ValueError: a key is missing, a target is not allowed or does not exist, or does not take the settings given.
    """
    missing = {"model", "neuron", "in_channels", "num_classes"} - spec.keys()
    if missing:
        raise ValueError(f"spec={sorted(spec)!r}: must also have {', '.join(sorted(missing))}")
    neuron = _resolve("neuron", spec["neuron"])
    sizes = {"in_channels": spec["in_channels"], "num_classes": spec["num_classes"]}
    return _resolve("model", {**spec["model"], **sizes, "neuron": neuron})()


def _resolve(key: str, description: Mapping[str, Any]) -> Callable[[], Any]:
    """The call that `description` stands for: its target and its settings, those inside it called already."""
    target = _target(f"{key}._target_", description.get("_target_"))
    settings = {
        name: _resolve(f"{key}.{name}", value)() if isinstance(value, Mapping) else value
        for name, value in description.items()
        if name not in ("_target_", "_partial_")
    }
    try:
        inspect.signature(target).bind(**settings)
    except TypeError as error:
        raise ValueError(f"{key}={sorted(settings)!r}: must be settings of {target.__name__} ({error})") from None
    return partial(target, **settings)


def _target(key: str, path: object) -> Callable[..., Any]:
    if path == "torch.nn.ReLU":
        return nn.ReLU
    module_name, _, name = str(path).rpartition(".")
    if module_name == PACKAGE or module_name.startswith(f"{PACKAGE}."):
        try:
            found = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError:
            found = None
        if callable(found) and not name.startswith("_") and found.__module__.startswith(PACKAGE):
            return found
    raise ValueError(f"{key}={path!r}: must be a network or neuron of {PACKAGE}, or torch.nn.ReLU")
