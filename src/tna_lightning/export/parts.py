"""What a network is made of, in the order in which it runs: for the formats that write it down layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tna_lightning.models import Network
from tna_lightning.models.over_time import OverTime


def parts_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each part of a ``Network`` or an ``nn.Sequential``; of any other, none."""
    if isinstance(module, Network):
        yield from (("stem", module.stem), ("body", module.body), ("pool", module.pool), ("head", module.head))
        yield from (("flatten", nn.Flatten()), ("classifier", module.classifier))
    elif isinstance(module, nn.Sequential):
        for name, child in module._modules.items():  # named_children names one that is used twice once
            assert child is not None
            yield name, child


def refuse_weights_over_time(network: nn.Module, why: str) -> None:
    """Refuse weights that differ by time step.

    Raises:
        ValueError: one does; the message names the module, and says ``why``.
    """
    for name, module in network.named_modules():
        if isinstance(module, OverTime):
            raise ValueError(f"network.{name}: {why}")
