"""The method's neighbours: neurons without a loop, weights that differ by step, transformers. Letters: T time steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.neuron_layer import _compiled, _pass, _shape
from benchmarks.speed.peers import our_neuron
from benchmarks.speed.training_step import Step, size_for, step
from tna_lightning import models
from tna_lightning.models import compile_neurons
from tna_lightning.quantization import TemporalTernary, Ternary, quantize_network

NEURONS: dict[str, Callable[[int], nn.Module]] = {
    "PSN": models.PSN,
    "masked PSN, order 2": lambda time_steps: models.MaskedPSN(time_steps, order=2),
    "sliding PSN, order 2": lambda time_steps: models.SlidingPSN(order=2),
    "PSU": lambda time_steps: models.PSU(),
    "IPSU": models.IPSU,
    "RPSU": models.RPSU,
    "adaptive LIF": lambda time_steps: models.ALIF(),
    "ternary LIF": lambda time_steps: models.TernaryLIF(),
    "integer LIF": lambda time_steps: models.IntegerLIF(),
}


def neurons(settings: Settings) -> dict[str, Callable[[], Run]]:
    """Ours beside LIF."""
    time_steps = _shape(settings)[0]
    return {
        "LIF, compiled": lambda: _pass(_compiled(), settings),
        "LIF, eager": lambda: _pass(our_neuron(), settings),
        **{name: lambda make=make: _pass(make(time_steps), settings) for name, make in NEURONS.items()},
    }


def quantized_step(settings: Settings, temporal: bool | None) -> Step:
    """A training step with weights of full precision (None), TWN's, or TaWQ's."""
    size = size_for(settings)
    built = step(size, settings, compiled="none" if settings.toy else "neurons")
    if temporal is not None:
        quantizer = TemporalTernary(size.time_steps) if temporal else Ternary()
        quantize_network(built.network, quantizer, skip=("stem", "classifier"))
    return Step(built.network, built.x, built.target, settings)


def weights(settings: Settings) -> dict[str, Callable[[], Run]]:
    """The three, which leave stem and classifier at full precision."""
    kinds = {"full precision": None, "TWN": False, "TaWQ": True}
    return {name: partial(quantized_step, settings, temporal) for name, temporal in kinds.items()}


BUILDERS = {
    "ResNet-19": models.resnet19,
    "MS-ResNet-18": models.msresnet18,
    "Spike-driven Transformer-2-512": models.sdt,
    "Spikingformer-4-384": models.spikingformer,
}


def _images(settings: Settings) -> int:
    return 2 if settings.toy else 8 if settings.device == "cpu" else 128


def backbone_step(settings: Settings, name: str) -> Step:
    """A training step of a network of the published size on CIFAR's images, T = 4."""
    torch.manual_seed(0)
    sizes = {"width": 1 / 16, "time_steps": 2} if settings.toy else {"time_steps": 4}
    network = BUILDERS[name](3, 10, our_neuron, **sizes).to(settings.device)
    if not settings.toy:
        compile_neurons(network)
    x = torch.randn(_images(settings), 3, 32, 32).to(settings.device)
    target = torch.randint(10, (len(x),)).to(settings.device)
    return Step(network, x, target, settings)


def _forward(settings: Settings, name: str) -> Run:
    built = backbone_step(settings, name)
    built.network.eval()

    @torch.inference_mode()
    def run() -> object:
        return built.network(built.x)

    return run


def backbones(settings: Settings) -> dict[str, Callable[[], Run]]:
    """A forward pass in eval mode, and a training step, of each."""
    runs: dict[str, Callable[[], Run]] = {}
    for name in BUILDERS:
        runs[f"{name}, forward"] = partial(_forward, settings, name)
        runs[f"{name}, training step"] = partial(backbone_step, settings, name)
    return runs


def _counts(runs: Mapping[str, Run]) -> list[str]:
    steps = {name.removesuffix(", training step"): run for name, run in runs.items() if isinstance(run, Step)}
    return [
        f"{name}: {sum(parameter.numel() for parameter in run.network.parameters()) / 1e6:.2f} M parameters"
        for name, run in steps.items()
    ]


COMPARISONS = {
    "neighbour_neurons": Comparison(
        title="Other neurons",
        sizes=lambda settings: f"{list(_shape(settings))}, forward and backward of one layer",
        contestants=neurons,
        ratios=tuple(Ratio(f"{name} / LIF, compiled", (name,), ("LIF, compiled",)) for name in NEURONS),
        memory=False,
    ),
    "neighbour_weights": Comparison(
        title="Weights that differ by time step",
        sizes=lambda settings: f"training step of {size_for(settings)}; stem and classifier at full precision",
        contestants=weights,
        ratios=(
            Ratio("TWN / full precision", ("TWN",), ("full precision",)),
            Ratio("TaWQ / TWN", ("TaWQ",), ("TWN",)),
        ),
    ),
    "neighbour_backbones": Comparison(
        title="Transformers beside ResNets, at their published sizes",
        sizes=lambda settings: f"32 x 32 images, batch {_images(settings)}, T = 4, neurons compiled",
        contestants=backbones,
        ratios=tuple(
            Ratio(f"{name}, {what} / ResNet-19", (f"{name}, {what}",), (f"ResNet-19, {what}",))
            for name in BUILDERS
            if name != "ResNet-19"
            for what in ("forward", "training step")
        ),
        check=_counts,
        images=lambda settings: {name: _images(settings) for name in backbones(settings)},
        repetitions=10,
    ),
}
