"""What the neurons of a network do in a forward, for whoever looks on: export's check, curves, the trial of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tna_lightning.models.neurons import SpikingNeuron


@contextmanager
def watched(network: nn.Module, note: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``note(name, currents, spikes)`` after each call of a layer of neurons, in the order of the calls.

    Nothing is kept here: both are ``[T, B, ...]`` of every layer, which a caller may sum up rather than store.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        return lambda module, inputs, by_name, spikes: note(name, [*inputs, *by_name.values()][0], spikes)

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in network.named_modules()
        if isinstance(module, SpikingNeuron)
    ]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not call hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


def spikes_of(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a network, and the spikes of each layer of neurons in order."""
    spikes: list[Tensor] = []
    with watched(network, lambda name, currents, output: spikes.append(output)):
        return network(x), spikes
