"""What the neurons of a network do in a forward, for whoever looks on: users, export's check, the trial of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tna_lightning.models.neurons import LIF, SpikingNeuron


@dataclass(frozen=True)
class LayerRecord:
    """What one call of a layer of neurons did; all ``[T, B, ...]``.

    Attributes:
        name: of the layer in the network.
        currents: that drove it.
        spikes: that it gave.
        membranes: U[t] as :class:`~tna_lightning.models.LIF` defines it, before the reset; None for other neurons.
    """

    name: str
    currents: Tensor
    spikes: Tensor
    membranes: Tensor | None


@torch.no_grad()
def record(network: nn.Module, x: Tensor) -> tuple[Tensor, list[LayerRecord]]:
    """Logits of a network, and what each of its layers of neurons did, in the order of their calls.

    The network works in the mode it is in; its buffers, batch norm's statistics among them, are what they were before.

    Args:
        network: any; what does not derive from ``SpikingNeuron`` is not recorded.
        x: its input.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with watched(network, lambda *call: calls.append(call), copies=True):
            logits = network(x)
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    layers = [
        LayerRecord(name, currents, spikes, _membranes(network.get_submodule(name), currents))
        for name, currents, spikes in calls
    ]
    return logits, layers


def _membranes(neuron: nn.Module, currents: Tensor) -> Tensor | None:
    if not isinstance(neuron, LIF):
        return None
    states: list[Tensor] = []
    for step in currents.split(1):
        states.append(neuron.chunk(step, states[-1] if states else None)[1])
    return torch.stack(states)


@contextmanager
def watched(network: nn.Module, note: Callable[[str, Tensor, Tensor], None], *, copies: bool = False) -> Iterator[None]:
    """Call ``note(name, currents, spikes)`` after each call of a layer of neurons, in the order of the calls.

    Nothing is kept here: both are ``[T, B, ...]`` of every layer, which a caller may sum up rather than store.

    Args:
        network: any.
        note: is called.
        copies: hand on copies. A layer may write into its currents, and what comes behind it into its spikes
            (``spikes += shortcut``).
    """
    before: list[Tensor] = []  # currents of the calls that have begun

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
        before.append([*inputs, *by_name.values()][0].clone())

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        if copies:
            return lambda module, inputs, by_name, spikes: note(name, before.pop(), spikes.clone())
        return lambda module, inputs, by_name, spikes: note(name, [*inputs, *by_name.values()][0], spikes)

    neurons = {name: module for name, module in network.named_modules() if isinstance(module, SpikingNeuron)}
    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in neurons.items()]
    if copies:
        handles += [module.register_forward_pre_hook(keep, with_kwargs=True) for module in neurons.values()]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not call hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


def spikes_of(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a network, and the spikes of each layer of neurons in order."""
    spikes: list[Tensor] = []
    with watched(network, lambda name, currents, output: spikes.append(output.clone())):
        return network(x), spikes
