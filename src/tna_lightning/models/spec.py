"""A network from its description, for files that are read without Hydra and without trusting them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from tna_lightning.data.batch import Inputs
from tna_lightning.models.settings import parameters_of

PACKAGE = "tna_lightning.models"
HINTS = ("channels", "time_steps", "threshold")  # what a backbone says to its neurons, see `SpikingNeuron`


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The network that `spec` describes, with new weights.

    Args:
        spec: `{"model": {"_target_": "tna_lightning.models.resnet19", ...}, "neuron": {"_target_": ...}, "inputs":
            {...}}`, JSON-able; `inputs` has the fields of `tna_lightning.data.Inputs`, in whose place version 0.1 wrote
            `in_channels` and `num_classes`. Targets are public names defined in `tna_lightning.models`, and
            `torch.nn.ReLU`; nothing else is imported or called.

    Raises:
        ValueError: a key is missing, a target is not allowed or does not exist, or does not take the settings given.
    """
    sizes = {"in_channels", "num_classes"} if "in_channels" in spec else {"inputs"}
    missing = {"model", "neuron", *sizes} - spec.keys()
    if missing:
        raise ValueError(f"spec={sorted(spec)!r}: must also have {', '.join(sorted(missing))}")
    neuron = _resolve("neuron", spec["neuron"], by_backbone=HINTS)
    target = own_target("model._target_", spec["model"].get("_target_"))
    backbone = _resolve("model", {**spec["model"], **sizes_for(target, spec), "neuron": neuron})
    try:
        return backbone()
    except TypeError as error:  # of what its `**settings` reach
        raise ValueError(f"model={sorted(spec['model'])!r}: must be settings of {target.__name__} ({error})") from None


def sizes_for(backbone: Callable[..., Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a backbone is called with beside its settings and `neuron`.

    `in_channels` and `num_classes`; or where its signature has `inputs`, the `tna_lightning.data.Inputs`, and of the
    other two what it has beside it.

    Raises:
        ValueError: `spec["inputs"]` is no description of inputs, or missing where the backbone wants it.
    """
    names, _ = parameters_of(backbone)
    if "inputs" not in spec:
        if "inputs" in names:
            raise ValueError(f"spec={sorted(spec)!r}: must also have inputs")
        return {"in_channels": spec["in_channels"], "num_classes": spec["num_classes"]}
    try:
        inputs = Inputs(**spec["inputs"])
    except TypeError as error:
        raise ValueError(f"inputs={spec['inputs']!r}: must be those of tna_lightning.data.Inputs ({error})") from None
    sizes = {"in_channels": inputs.channels, "num_classes": inputs.num_classes}
    if "inputs" not in names:
        return sizes
    return {"inputs": inputs} | {name: size for name, size in sizes.items() if name in names}


def _resolve(key: str, description: Mapping[str, Any], by_backbone: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The call that `description` stands for: its target and its settings, those inside it called already."""
    target = own_target(f"{key}._target_", description.get("_target_"))
    settings = {
        name: _resolve(f"{key}.{name}", value)() if isinstance(value, Mapping) and "_target_" in value else value
        for name, value in description.items()
        if name not in ("_target_", "_partial_")
    }
    names, _ = parameters_of(target)
    try:
        inspect.signature(target).bind(**{name: None for name in by_backbone if name in names} | settings)
    except TypeError as error:
        raise ValueError(f"{key}={sorted(settings)!r}: must be settings of {target.__name__} ({error})") from None
    return partial(target, **settings)


def own_target(key: str, path: object) -> Callable[..., Any]:
    """What a file may name: a public name defined in `tna_lightning.models`, or `torch.nn.ReLU`.

    Raises:
        ValueError: it names something else, which is not imported.
    """
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
