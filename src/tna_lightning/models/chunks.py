"""Long sequences through layers in chunks of time, neurons going on where the chunk before left them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tna_lightning.models.neurons import SpikingNeuron


@contextmanager
def in_chunks(layers: nn.Module) -> Iterator[None]:
    """In which each call of `layers` is the next chunk of one sequence; all their neurons must have `chunk`."""
    neurons = [module for module in layers.modules() if isinstance(module, SpikingNeuron)]
    for neuron in neurons:
        neuron.forward = _going_on(neuron)
    try:
        yield
    finally:
        for neuron in neurons:
            del neuron.forward


def _going_on(neuron: Any) -> Callable[[Tensor], Tensor]:
    state = None

    def forward(current: Tensor) -> Tensor:
        nonlocal state
        spikes, state = neuron.chunk(current, state)
        return spikes

    return forward


def are_causal(modules: Iterable[nn.Module], without_time: Collection[type[nn.Module]]) -> bool:
    """Whether a chunk of time needs no later one, as far as that is known; a hook among them wants the whole sequence.

    Args:
        modules: all that the sequence passes.
        without_time: classes of those that see no time, or hand it on to others of them.
    """
    return all(
        not (module._forward_hooks or module._forward_pre_hooks)
        and (_goes_on(type(module)) if isinstance(module, SpikingNeuron) else type(module) in without_time)
        for module in modules
    )


def _goes_on(neuron: type[SpikingNeuron]) -> bool:
    """Whether it has a `chunk`, made for its `forward`: one that derives from another may change `forward` alone."""
    owners = [owner for owner in neuron.__mro__ if {"chunk", "forward"} & vars(owner).keys()]
    return "chunk" in vars(owners[0])
