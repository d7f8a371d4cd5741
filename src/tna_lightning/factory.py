"""Objects from config nodes, with errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn


def build(key: str, node: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a config node with a ``_target_``.

    Args:
        key: where the node stands in the config.
        node: the node; ``arguments`` are passed on beside what it holds.

    Raises:
        ValueError: the constructor refused a value; the message begins with the key, ``neuron.beta=1.5: must ...``.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | FileNotFoundError):
            inner = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
            raise type(cause)(f"{key}.{inner[1] + '.' if inner else ''}{cause}") from error
        if isinstance(cause, TypeError | ImportError | InstantiationException):
            # a target that does not exist, or a setting that it does not take
            raise ValueError(f"{key}={node.get('_target_')}: {' '.join(str(cause).split())}") from error
        raise cause from None


@contextmanager
def under(key: str) -> Iterator[None]:
    """Put the key before the message of an error: ``quant.skip=...`` where the callback says ``skip=...``."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{key}.{error}") from error


def network_spec(config: Mapping[str, Any], datamodule: Any) -> dict[str, Any]:
    """The JSON-able description from which a network is rebuilt: model, neuron, channels and classes."""
    return {
        "model": config["model"],
        "neuron": config["neuron"],
        "in_channels": datamodule.in_channels,
        "num_classes": datamodule.num_classes,
    }


def build_network(spec: Mapping[str, Any], prefix: str = "") -> nn.Module:
    """The network of a spec (:func:`network_spec`); ``prefix`` is put before the key in errors."""
    neuron = build(f"{prefix}neuron", spec["neuron"])
    with under(f"{prefix}neuron"):
        neuron()  # a refused value is reported under its own key, not as the model's
    return build(
        f"{prefix}model",
        spec["model"],
        neuron=neuron,
        in_channels=spec["in_channels"],
        num_classes=spec["num_classes"],
    )
