"""What a network is made of, in the order in which it runs: for the formats that write it down layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tna_lightning.models import Network, PerStep
from tna_lightning.models.over_time import OverTime
from tna_lightning.quantization.weights import has_hooks


def parts_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each part of a ``Network`` or an ``nn.Sequential``; of any other, none."""
    if isinstance(module, Network):
        yield from (("stem", module.stem), ("body", module.body), ("pool", module.pool), ("head", module.head))
        yield from (("flatten", nn.Flatten()), ("classifier", module.classifier))
    elif isinstance(module, nn.Sequential):
        for name, child in module._modules.items():  # named_children names one that is used twice once
            assert child is not None
            yield name, child


def refuse_what_no_layer_says(network: nn.Module, nothing: str) -> None:
    """Refuse weights that differ by time step, hooks, and flattening of some dimensions alone.

    Args:
        network: to be written.
        nothing: for the message, ``NIR has no node``.

    Raises:
        ValueError: there is one; the message names the module.
    """
    within_steps = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, PerStep))
    for name, module in network.named_modules():
        if isinstance(module, OverTime):
            raise ValueError(f"network.{name}: {nothing} for a weight that differs by time step")
        if has_hooks(module):
            raise ValueError(f"network{'.' * bool(name)}{name}: {nothing} for a forward hook; take it off first")
        if isinstance(module, nn.Flatten):
            firsts = (1,) if name.startswith(within_steps) else (1, 2)  # of [N, ...], and of [T, B, ...]
            if module.start_dim not in firsts or module.end_dim != -1:
                raise ValueError(
                    f"network.{name}: {nothing} for flattening but of a whole sample, here start_dim={firsts[-1]}"
                )
