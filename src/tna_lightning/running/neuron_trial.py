"""A neuron of the user's own is tried before it is trained: what outlives a forward would mix batches in silence."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from tna_lightning.data.batch import Inputs
from tna_lightning.models import SpikingNeuron
from tna_lightning.models.recording import watched

_Passes = dict[str, list[tuple[Tensor, Tensor]]]  # currents and spikes of each call, by the neuron's name, as called


def try_neurons(network: nn.Module, inputs: Inputs, prefix: str = "") -> None:
    """Refuse a neuron from outside this package that keeps a state, or draws at random without saying so.

    A copy of the network sees the same two random samples three times in eval mode. Twice the generators stand alike:
    where a neuron answers the same currents with other spikes, it remembers. The third time they stand elsewhere.

    Args:
        network: stays as it is; one without such neurons is not even run.
        inputs: what it is built for.
        prefix: put before the key in errors.

    Raises:
        ValueError: ``neuron=...`` with what is wrong with it.
    """
    foreign = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, SpikingNeuron) and not type(module).__module__.startswith("tna_lightning.")
    }
    if not foreign:
        return
    steps = [] if inputs.time_steps is None else [inputs.time_steps]
    shape = (2, *steps, inputs.channels, inputs.height, inputs.width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    trial = copy.deepcopy(network).eval()
    try:
        first, second, other = (_passes(trial, foreign, x, seed) for seed in (0, 0, 1))
    except _NoSpikes as error:
        raise ValueError(f"{prefix}neuron={error}") from None
    for name in first:
        if _differ(first[name], second[name]):
            raise ValueError(
                f"{prefix}neuron={type(foreign[name]).__name__}: the same currents give other spikes in a second "
                f"forward ({name}); start from a new state in each, and draw random numbers from torch's generator"
            )
    for name in first:
        if not foreign[name].is_random and _differ(first[name], other[name]):
            raise ValueError(
                f"{prefix}neuron={type(foreign[name]).__name__}: draws random numbers in eval mode ({name}); "
                "its class must say so, is_random = True"
            )


def _passes(network: nn.Module, names: Collection[str], x: Tensor, seed: int) -> _Passes:
    passes: _Passes = {}

    def keep(name: str, currents: Tensor, spikes: Tensor) -> None:
        if name in names:
            if not isinstance(spikes, Tensor) or spikes.shape != currents.shape or spikes.dtype != currents.dtype:
                raise _NoSpikes(
                    f"{type(network.get_submodule(name)).__name__}: must give spikes of the shape "
                    f"{list(currents.shape)} and the dtype {currents.dtype} of its currents ({name})"
                )
            passes.setdefault(name, []).append((currents.clone(), spikes.clone()))

    with torch.no_grad(), watched(network, keep), isolate_rng():
        torch.manual_seed(seed)
        network(x)
    return passes


class _NoSpikes(Exception):
    """What a neuron gave is no tensor of spikes."""


def _differ(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether a neuron gave other spikes for the same currents; where those differ, a layer before it is to blame."""
    return any(
        torch.equal(current, same_current) and not torch.equal(spikes, other_spikes)
        for (current, spikes), (same_current, other_spikes) in zip(one, other, strict=True)
    )
