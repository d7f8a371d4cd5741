"""One training step: forward, loss, backward, step of SGD. Letters: T time steps, B batch, K classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.peers import PEERS, OverTime, SnntorchStep, our_neuron
from tna_lightning.models import NeuronFactory, compile_neurons, resnet8, resnet18, resnet19

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative differences of logits and gradients, as lengths of the vectors. Where convolutions add up in another order
(channels last), a membrane close to its threshold may fall on its other side, or meet it (there spikingjelly fires and
we do not), and that spike changes all layers after it; so whoever differs by more in float32 must agree in float64."""


@dataclass(frozen=True)
class Size:
    """A network and its batch; `width` multiplies the channels."""

    model: str
    width: float
    batch: int
    time_steps: int = 4

    def __str__(self) -> str:
        return f"{self.model}, width {self.width:g}, batch {self.batch}, T={self.time_steps}"


def size_for(settings: Settings) -> Size:
    """The size of the contest on a device."""
    if settings.toy:
        return Size("resnet18", 0.25, 2, 2)  # narrower ones crash channels-last, see factory.unsafe_channels_last
    return Size("resnet18", 0.25, 32) if settings.device == "cpu" else Size("resnet19", 1.0, 128)


def mixed_precision(settings: Settings) -> contextlib.AbstractContextManager[object]:
    """bf16 where matrices are multiplied, on CUDA."""
    return torch.autocast("cuda", torch.bfloat16) if settings.device == "cuda" else contextlib.nullcontext()


@dataclass
class Step:
    """One training step of a network on one batch, which stays the same."""

    network: nn.Module
    x: Tensor
    target: Tensor
    settings: Settings

    mixed: bool = True
    """Whether the precision is the device's; a check wants that of the weights."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def forward_backward(self) -> Tensor:
        """Logits averaged over the time steps, `[B, K]`; gradients are left at the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.settings) if self.mixed else contextlib.nullcontext():
            logits = self.network(self.x)
        averaged = logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(0)
        nn.functional.cross_entropy(averaged, self.target).backward()
        return averaged.detach()

    def __call__(self) -> None:
        self.forward_backward()
        self.optimizer.step()


def network(size: Size, neuron: NeuronFactory, seed: int = 0) -> nn.Module:
    """A network whose weights depend on its size and the seed, not on its neurons."""
    builder = {"resnet8": resnet8, "resnet18": resnet18, "resnet19": resnet19}[size.model]
    torch.manual_seed(seed)
    weights = builder(3, 10, our_neuron, time_steps=size.time_steps, width=size.width)
    built = builder(3, 10, neuron, time_steps=size.time_steps, width=size.width)
    with torch.no_grad():
        for mine, theirs in zip(built.parameters(), weights.parameters(), strict=True):
            mine.copy_(theirs)
    return built


def step(
    size: Size,
    settings: Settings,
    neuron: NeuronFactory = our_neuron,
    compiled: str = "none",
    channels_last: bool = False,
    checkpointed: bool = False,
) -> Step:
    """A training step.

    Args:
        size: of network and batch; a network of ReLUs gets T * B images instead, which is the same work.
        settings: where.
        neuron: our neuron, another library's or `nn.ReLU`.
        compiled: "none", "neurons" or "network".
        channels_last: memory format of images and weights.
        checkpointed: whether activations are computed again in the backward pass, stage by stage.
    """
    images = size.batch * (size.time_steps if neuron is nn.ReLU else 1)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, 32, 32, generator=generator).to(settings.device)
    target = torch.randint(10, (images,), generator=generator).to(settings.device)
    built = network(size, neuron).to(settings.device)
    built.checkpoint_stages = checkpointed
    if channels_last:
        x, built = x.contiguous(memory_format=torch.channels_last), built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if neuron is SnntorchStep:
        built = OverTime(built)
    if compiled == "neurons":
        compile_neurons(built)
    elif compiled == "network":
        # a network trained alone has one shape; here others before it would make torch leave the batch size open
        built.compile(dynamic=False)
    return Step(built, x, target, settings)


OURS = (
    "ours, neurons compiled",
    "ours, network compiled",
    "ours, neurons compiled, channels last",
    "ours, network compiled, channels last",
)
RELUS = ("ReLU", "ReLU, network compiled", "ReLU, channels last", "ReLU, network compiled, channels last")
SPIKINGJELLY = ("spikingjelly", "spikingjelly, network compiled", "spikingjelly, channels last")
SNNTORCH = ("snntorch, loop in each layer", "snntorch, loop around the network")


def contestants(settings: Settings) -> dict[str, Callable[[], Run]]:
    """Ours in all ways, the ReLU network likewise, and the other libraries."""
    size = size_for(settings)
    ways: dict[str, dict] = {
        OURS[0]: {"compiled": "neurons"},
        OURS[1]: {"compiled": "network"},
        OURS[2]: {"compiled": "neurons", "channels_last": True},
        OURS[3]: {"compiled": "network", "channels_last": True},
        "ours, eager": {},
        RELUS[0]: {"neuron": nn.ReLU},
        RELUS[1]: {"neuron": nn.ReLU, "compiled": "network"},
        RELUS[2]: {"neuron": nn.ReLU, "channels_last": True},
        RELUS[3]: {"neuron": nn.ReLU, "compiled": "network", "channels_last": True},
    }
    if settings.peers:
        ways[SPIKINGJELLY[0]] = {"neuron": PEERS["spikingjelly"]}
        ways[SPIKINGJELLY[1]] = {"neuron": PEERS["spikingjelly"], "compiled": "network"}
        ways[SPIKINGJELLY[2]] = {"neuron": PEERS["spikingjelly"], "channels_last": True}
        ways[SNNTORCH[0]] = {"neuron": PEERS["snntorch"]}
        ways[SNNTORCH[1]] = {"neuron": SnntorchStep}
    return {name: lambda way=way: step(size, settings, **way) for name, way in ways.items()}


def check(runs: Mapping[str, Step]) -> list[str]:
    """Logits and gradients of the first step against ours, eager."""
    ours, found = runs["ours, eager"], []
    for name, run in runs.items():
        if "ReLU" in name or run is ours:
            continue
        step_by_step = isinstance(run.network, OverTime)
        where = ", batch norm in eval mode" if step_by_step else ""  # it sees other batches than ours in training
        for dtype, tolerance in TOLERANCES.items():
            expected, theirs = (_outcome(each, dtype, training=not step_by_step) for each in (ours, run))
            logits, gradients = (((a - b).norm() / a.norm()).item() for a, b in zip(expected, theirs, strict=True))
            numbers = f"logits differ from ours, eager, by {logits:.1e}, gradients by {gradients:.1e}"
            found.append(f"{name}: {numbers} ({str(dtype).removeprefix('torch.')}{where})")
            if max(logits, gradients) <= tolerance:
                break
        else:
            raise AssertionError("; ".join(found))
    return found


def _outcome(run: Step, dtype: torch.dtype, training: bool) -> tuple[Tensor, Tensor]:
    """Averaged logits and the gradients of all parameters, each as one vector; the network is left as it was."""
    state = {name: value.clone() for name, value in run.network.state_dict().items()}
    x, run.x, run.mixed = run.x, run.x.to(dtype), False
    run.network.to(dtype).train(training)
    logits = run.forward_backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in run.network.parameters()])
    run.optimizer.zero_grad(set_to_none=True)
    run.x, run.mixed = x, True
    run.network.to(x.dtype).train()
    run.network.load_state_dict(state)
    return logits.to(dtype), gradients


def sizes(settings: Settings) -> str:
    """What is measured, in words."""
    precision = "bf16 autocast" if settings.device == "cuda" else "float32"
    return (
        f"{size_for(settings)}, {precision}, images of 32x32, 10 classes, SGD with momentum; equal weights. The ReLU "
        "network gets T times as many images, so that both do the same convolutions (it runs the stem on all of them, "
        "ours once an image)."
    )


COMPARISONS = {
    "training_step": Comparison(
        title="One training step",
        sizes=sizes,
        contestants=contestants,
        check=check,
        ratios=(
            Ratio("ours over ReLU, both with the network compiled", OURS[1:2], RELUS[1:2]),
            Ratio("ours over ReLU, neurons compiled", OURS[:1], RELUS[:1]),
            Ratio("ours over ReLU, both with the network compiled, channels last", OURS[3:], RELUS[3:]),
            Ratio("ours over ReLU, neurons compiled, channels last", OURS[2:3], RELUS[2:3]),
            Ratio("ours over ReLU, fastest over fastest", OURS, RELUS),
            Ratio("spikingjelly over ours", SPIKINGJELLY[:1], OURS[:1]),
            Ratio("spikingjelly over ours, ours with the network compiled", SPIKINGJELLY[:1], OURS[1:2]),
            Ratio("spikingjelly over ours, both with the network compiled", SPIKINGJELLY[1:2], OURS[1:2]),
            Ratio("spikingjelly over ours, both channels last", SPIKINGJELLY[2:], OURS[2:3]),
            Ratio("spikingjelly over ours, fastest over fastest", SPIKINGJELLY, OURS),
            Ratio("snntorch over ours", SNNTORCH, OURS[:1]),
            Ratio("snntorch over ours, fastest over fastest", SNNTORCH, OURS),
        ),
    )
}
