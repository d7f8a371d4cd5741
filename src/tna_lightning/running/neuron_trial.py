"""A neuron of the user's own is tried before it is trained: what outlives a forward would mix batches in silence."""

from __future__ import annotations

import copy

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from tna_lightning.data.batch import Inputs
from tna_lightning.models import SpikingNeuron
from tna_lightning.models.recording import watched

STRONG = 3.0  # deviation of the currents, in thresholds of 1: neurons must spike to show what they do
SAMPLES = 32


def try_neurons(network: nn.Module, inputs: Inputs, prefix: str = "") -> None:
    """Refuse a neuron from outside this package that gives no spikes, keeps a state, or draws at random unsaid.

    In a copy of the network in eval mode, two random samples show what shape each neuron's currents have. Then each
    sees the same strong currents three times, others in between. Twice the generators stand alike: one that answers
    otherwise the second time remembers. The third time they stand elsewhere.

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
    trial = copy.deepcopy(network).eval()
    for name, currents in _currents(trial, inputs).items():
        if name in foreign:
            named = f"{prefix}neuron={type(foreign[name]).__name__}"
            _try(named, name, copy.deepcopy(foreign[name]).eval(), currents, foreign[name].is_random)


def _currents(network: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The currents of each neuron's first call, by its name, for two random samples."""
    steps = [] if inputs.time_steps is None else [inputs.time_steps]
    shape = (2, *steps, inputs.channels, inputs.height, inputs.width)
    found: dict[str, Tensor] = {}

    def note(name: str, currents: Tensor, spikes: Tensor) -> None:
        found.setdefault(name, currents)

    try:
        with torch.no_grad(), isolate_rng(), watched(network, note):
            network(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    except Exception:
        if not found:
            raise
        # a layer behind a neuron stumbles over what that gave: the trial of the neuron says it by name
    return found


def _try(named: str, name: str, neuron: nn.Module, currents: Tensor, is_random: bool) -> None:
    time_steps, _, *rest = currents.shape
    generator = torch.Generator().manual_seed(0)
    shape = (2, time_steps, SAMPLES, *rest)
    some, others = (STRONG * torch.randn(shape, generator=generator)).to(currents).unbind(0)
    answers = []
    for seed, strong in ((0, some), (0, others), (0, some), (1, some)):
        with torch.no_grad(), isolate_rng():
            torch.manual_seed(seed)
            spikes = neuron(strong)
        if not isinstance(spikes, Tensor) or spikes.shape != strong.shape or spikes.dtype != strong.dtype:
            raise ValueError(
                f"{named}: must give spikes of the shape [T, B, ...] and the dtype of its currents, "
                f"{list(strong.shape)} and {strong.dtype} ({name})"
            )
        answers.append(spikes.clone())
    first, _, second, elsewhere = answers
    if not torch.equal(first, second):
        raise ValueError(
            f"{named}: the same currents give other spikes in a second forward ({name}); start from a new state in "
            "each, and draw random numbers from torch's generator"
        )
    if not is_random and not torch.equal(first, elsewhere):
        raise ValueError(
            f"{named}: draws random numbers in eval mode ({name}); its class must say so, is_random = True"
        )
