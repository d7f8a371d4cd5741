"""A network or neuron of the user's own is tried before it is trained: what is wrong with it is said by name."""

from __future__ import annotations

import copy

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from tna_lightning.data.batch import Inputs
from tna_lightning.models import SpikingNeuron
from tna_lightning.models.recording import watched
from tna_lightning.shapes import refuse_batch_first, time_first

STRONG = 3.0  # deviation of the currents, in thresholds of 1: neurons must spike to show what they do
SAMPLES = 32


def try_network(network: nn.Module, inputs: Inputs, prefix: str = "") -> None:
    """Refuse a network or neuron from outside this package that does not keep its contract.

    In a copy of the network, random samples show its logits and what shape each neuron's currents have. A network sees
    two batches in turn, the first of them twice, in eval and in training mode; a neuron strong currents likewise. One
    that answers otherwise the second time, though the random generators stand alike, remembers. A neuron sees them once
    more with generators that stand elsewhere.

    Args:
        network: stays as it is; one of this package with its neurons is not even run.
        inputs: what it is built for.
        prefix: put before the key in errors.

    Raises:
        ValueError: ``neuron=...`` or ``model=...`` with what is wrong: a neuron gives no spikes, keeps a state, or
            draws at random unsaid; a network fails, keeps a state, or gives no logits ``[T, B, K]`` of these classes.
    """
    foreign = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, SpikingNeuron) and _is_foreign(module)
    }
    if not foreign and not _is_foreign(network):
        return
    named = f"{prefix}model={type(network).__name__}"
    steps = [] if inputs.time_steps is None else [inputs.time_steps]
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, *steps, inputs.channels, inputs.height, inputs.width)
    some, others = torch.randn(shape, generator=generator).unbind(0)
    trial = copy.deepcopy(network).eval()
    logits, currents, failure = _run(trial, some)
    for name in foreign.keys() & currents.keys():
        neuron = f"{prefix}neuron={type(foreign[name]).__name__}"
        for is_training in (False, True):
            tried = copy.deepcopy(foreign[name]).train(is_training)
            _try_neuron(neuron, name, tried, currents[name], foreign[name].is_random or is_training)
    if failure is not None:
        reason = str(failure).partition("\n")[0]
        raise ValueError(
            f"{named}: fails for inputs {list(some.shape)} ({type(failure).__name__}: {reason})"
        ) from failure
    logits_TBK = time_first(logits, named, len(some), inputs.num_classes)
    if len(logits_TBK) == len(some):
        refuse_batch_first(trial, named, some, logits_TBK)
    if _is_foreign(network):
        for is_training in (False, True):
            _refuse_state(named, copy.deepcopy(network).train(is_training), some, others)


def _is_foreign(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("tna_lightning.")


def _run(trial: nn.Module, x: Tensor) -> tuple[object, dict[str, Tensor], Exception | None]:
    """Logits, the currents of each neuron's first call by its name, and what it stumbled over, if it did."""
    found: dict[str, Tensor] = {}

    def note(name: str, currents: Tensor, spikes: Tensor) -> None:
        found.setdefault(name, currents)

    try:
        with torch.no_grad(), isolate_rng(), watched(trial, note):
            return trial(x), found, None
    except Exception as error:  # a layer behind a neuron stumbles over what that gave: its own trial says it by name
        return None, found, error


def _refuse_state(named: str, network: nn.Module, some: Tensor, others: Tensor) -> None:
    answers = []
    for x in (some, others, some):
        with torch.no_grad(), isolate_rng():
            torch.manual_seed(0)
            answers.append(network(x).clone())
    if not torch.equal(answers[0], answers[2]):
        raise ValueError(
            f"{named}: the same inputs give other logits in a second forward; each must start from a new state "
            "(snntorch.utils.reset, spikingjelly's functional.reset_net)"
        )


def _try_neuron(named: str, name: str, neuron: nn.Module, currents: Tensor, may_draw: bool) -> None:
    time_steps, _, *rest = currents.shape
    generator = torch.Generator().manual_seed(0)
    shape = (2, time_steps, SAMPLES, *rest)
    some, others = (STRONG * torch.randn(shape, generator=generator)).to(currents).unbind(0)
    answers = []
    for seed, strong in ((0, some), (0, others), (0, some), (1, some)):
        with torch.no_grad(), isolate_rng():
            torch.manual_seed(seed)
            given = strong.clone()
            spikes = neuron(given)
        if not torch.equal(given, strong):
            raise ValueError(f"{named}: writes into the currents that it is given ({name}); they are others' too")
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
    if not may_draw and not torch.equal(first, elsewhere):
        raise ValueError(
            f"{named}: draws random numbers in eval mode ({name}); its class must say so, is_random = True"
        )
