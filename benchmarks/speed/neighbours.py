"""The method's neighbours: neurons without a loop, weights that differ by step, transformers. Letters: T time steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    "snntorch's Leaky as Stepwise": lambda time_steps: models.snntorch_neuron(settings={"beta": 0.5}),
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


class ConvolutionOverTime:
    """Forward and backward of one convolution whose ternary weights differ by time step, in one of three ways.

    Each step by its own weight, one after the other; all steps as the groups of one convolution; or by period: the
    weights of period k, at the steps that are multiples of k, for each k, and the scale of a step afterwards.
    """

    def __init__(self, settings: Settings, way: str) -> None:
        time_steps, batch, channels, *size = (2, 2, 4, 4, 4) if settings.toy else (4, 32, 32, 16, 16)
        generator = torch.Generator().manual_seed(0)
        spikes = torch.rand(time_steps, batch, channels, *size, generator=generator) < 0.2
        weight = torch.randn(channels, channels, 3, 3, generator=generator)
        codes = TemporalTernary(time_steps).encode(weight)
        values = codes.values.float()
        self.way = way
        self.x = spikes.float().to(settings.device).requires_grad_()
        self.scale = codes.scale.flatten(1)[..., None, None].to(settings.device)  # [T, C, 1, 1]
        self.weights = values * codes.scale  # [T, C, C, 3, 3]
        if way == "by period":
            period = (values != 0).int().argmax(0)  # of the first step that is not 0
            self.weights = torch.stack([values[k] * (period == k) for k in range(time_steps)])
        self.weights = self.weights.to(settings.device).requires_grad_()

    def currents(self) -> Tensor:
        """`[T, B, C, H, W]`."""
        if self.way == "a loop over steps":
            return torch.stack([F.conv2d(x, w, padding=1) for x, w in zip(self.x, self.weights, strict=True)])
        if self.way == "groups":
            groups = self.x.transpose(0, 1).flatten(1, 2)
            found = F.conv2d(groups, self.weights.flatten(0, 1), padding=1, groups=len(self.x))
            return found.unflatten(1, self.x.shape[0:3:2]).transpose(0, 1)
        currents = [torch.zeros_like(x) for x in self.x]
        for k, weight in enumerate(self.weights, start=1):
            due = self.x[k - 1 :: k]
            parts = F.conv2d(due.flatten(0, 1), weight, padding=1).unflatten(0, due.shape[:2])
            for t, part in zip(range(k - 1, len(self.x), k), parts, strict=True):
                currents[t] = currents[t] + part
        return torch.stack(currents) * self.scale[:, None]

    def __call__(self) -> None:
        """A forward and a backward pass."""
        self.x.grad = self.weights.grad = None
        self.currents().sum().backward()


def _agreement(runs: Mapping[str, Run]) -> list[str]:
    loop, *others = (run.currents().detach() for run in runs.values() if isinstance(run, ConvolutionOverTime))
    differences = [float((other - loop).abs().max() / loop.abs().max()) for other in others]
    assert max(differences) < 1e-5, differences
    return [f"currents of the three agree to {max(differences):.1e} of the largest"]


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
    "neighbour_convolutions": Comparison(
        title="A convolution whose weights differ by time step",
        sizes=lambda settings: (
            "spikes [4, 32, 32, 16, 16], a fifth of them 1, 3 x 3, 32 to 32 channels, TaWQ's weights"
        ),
        contestants=lambda settings: {
            way: partial(ConvolutionOverTime, settings, way) for way in ("a loop over steps", "groups", "by period")
        },
        ratios=tuple(
            Ratio(f"{way} / a loop over steps", (way,), ("a loop over steps",)) for way in ("groups", "by period")
        ),
        check=_agreement,
        memory=False,
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
