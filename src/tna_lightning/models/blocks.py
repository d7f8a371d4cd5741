"""What the backbones are made of: layers applied to every time step at once, residual blocks, and the whole network.

Letters: T time steps, B batch, C channels, H W pixels, K classes. Between layers everything is `[T, B, C, H, W]`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from tna_lightning.models.checkpointing import checkpointed
from tna_lightning.models.chunks import are_causal, in_chunks
from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.norms import new_norm
from tna_lightning.models.over_time import OverTime, has_weights_over_time
from tna_lightning.models.quant_relu import QuantReLU
from tna_lightning.models.settings import parameters_of

NeuronFactory = Callable[..., nn.Module]

LONG = 16  # T of a sequence that evaluation still takes as a whole
CHUNK = 4  # time steps at once of a longer one

_Module = TypeVar("_Module", bound=nn.Module)
_WITHOUT_TIME: set[type[nn.Module]] = {nn.Sequential, nn.Identity}


def sees_no_time(module: type[_Module]) -> type[_Module]:
    """Decorator of a class whose forward gives each step what its parts make of that step: it may see a part of them.

    It says nothing of a class that derives from this one.
    """
    _WITHOUT_TIME.add(module)
    return module


POOLS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


# units without time; PReLU is none of them, since it may have a weight for each entry of the second dimension, here B
_NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "PReLU", "Softmax", "Softmax2d", "Softmin"}
UNITS = (QuantReLU, nn.Identity, *(getattr(nn, name) for name in activation.__all__ if name not in _NOT_ELEMENTWISE))


def new_neuron(neuron: NeuronFactory, **hints: Any) -> nn.Module:
    """A layer of neurons from their factory, which gets those hints that its signature takes.

    Args:
        neuron: the class of a `SpikingNeuron` or of an activation, or whatever else makes one.
        hints: `channels`, `time_steps`, and where a block needs one a `threshold`.

    Raises:
        ValueError: what the factory makes is neither a `SpikingNeuron` nor an elementwise activation of torch.nn.
    """
    layer = with_hints(neuron, **hints)()
    check_unit(layer)
    return layer


def check_unit(layer: nn.Module) -> None:
    """Refuse a module in a neuron's place that would take time for something else.

    Raises:
        ValueError: it is neither a `SpikingNeuron` nor a `QuantReLU` nor an elementwise activation of torch.nn.
    """
    if not isinstance(layer, SpikingNeuron) and type(layer) not in UNITS:
        raise ValueError(
            f"neuron={type(layer).__name__}: must derive from tna_lightning.models.SpikingNeuron, "
            "or be an elementwise activation of torch.nn, or QuantReLU"
        )


def with_hints(neuron: NeuronFactory, **hints: Any) -> NeuronFactory:
    """The factory with those hints that its signature takes."""
    names, takes_all = parameters_of(neuron)
    return partial(neuron, **{name: value for name, value in hints.items() if takes_all or name in names})


@sees_no_time
class PerStep(nn.Sequential):
    """Layers without state, run on `[T*B, ...]`: `[T, B, ...] -> [T, B, ...]` without a copy.

    The one place where weights meet time: a layer whose weight differs by step (`over_time.py`) sees `[T, B, ...]`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layers' output for every time step and image."""
        if any(isinstance(layer, OverTime) for layer in self):
            for layer in self:
                x = layer(x) if isinstance(layer, OverTime) else layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return x
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@sees_no_time
class ConvNorm(PerStep):
    """Convolution without bias (Kaiming normal, fan out), then batch norm over time, batch and pixels.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: of the convolution, odd.
        stride: of the convolution.
        norm: `bn`; `tdbn`, which is `bn` but for where its weight starts (`start`); or `tebn`, a scale for each step.
        time_steps: T, for `tebn`.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        norm: str = "bn",
        time_steps: int | None = None,
    ):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, norm=new_norm(norm, out_channels, time_steps)))
        self.is_threshold_dependent = norm == "tdbn"

    def start(self, neuron: nn.Module, alpha: float = 1.0) -> None:
        """Let the weight of `tdbn` start at alpha times the threshold of the neuron behind it (arXiv 2011.05280)."""
        if self.is_threshold_dependent:
            threshold = torch.as_tensor(getattr(neuron, "threshold", 1.0)).detach()
            self.norm.weight.data.copy_((alpha * threshold).expand_as(self.norm.weight))


def pooling(pool: str) -> PerStep:
    """Pooling "avg" or "max" over 2 x 2 pixels; an odd rest of pixels is a window of its own."""
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    return PerStep(POOLS[pool](2, ceil_mode=True))


def scaled(channels: float, width: float) -> int:
    """Channels of a layer in a network of that width: `round(channels * width)`, at least one."""
    if not width > 0:
        raise ValueError(f"width={width!r}: must be above 0")
    return max(1, round(channels * width))


@sees_no_time
class BasicBlock(nn.Module):
    """Spiking residual block: conv, norm, neuron, conv, norm; plus the shortcut; then a neuron (arXiv 2011.05280).

    The shortcut is the identity, or a 1 x 1 convolution with norm where stride or channels change the shape.
    `[T, B, in_channels, H, W] -> [T, B, out_channels, H / stride, W / stride]`.

    At first the block nearly hands its input on, as in Goyal et al. (arXiv 1706.02677): the second norm starts with a
    weight of 0.1, and with a bias of 0.25, since a spike of 1 alone is not above a threshold of 1. With the usual 1 and
    0 the residual drowns the shortcut, and after some blocks the spikes no longer tell one image from another. The two
    values were the best of seven pairs by validation accuracy on digits (ResNet-20 of half width, T = 2, one seed).
    With `norm="tdbn"` norms start as in its paper: at the threshold, those of the two summands at 1 / sqrt 2 of it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        neuron: NeuronFactory,
        norm: str = "bn",
        time_steps: int | None = None,
    ):
        super().__init__()
        conv_norm = partial(ConvNorm, norm=norm, time_steps=time_steps)
        self.conv1 = conv_norm(in_channels, out_channels, stride=stride)
        self.neuron1 = new_neuron(neuron, channels=out_channels)
        self.conv2 = conv_norm(out_channels, out_channels)
        if norm != "tdbn":
            nn.init.constant_(self.conv2.norm.weight, 0.1)
            nn.init.constant_(self.conv2.norm.bias, 0.25)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)
        self.neuron2 = new_neuron(neuron, channels=out_channels)
        self.conv1.start(self.neuron1)
        for summand in (self.conv2, self.shortcut):
            if isinstance(summand, ConvNorm):
                summand.start(self.neuron2, alpha=0.5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the second neuron."""
        residual = self.conv2(self.neuron1(self.conv1(x)))
        return self.neuron2(residual + self.shortcut(x))


class Network(nn.Module):
    """A backbone, time first: stem, body (a neuron first, perhaps one in a block), average pool, head, classifier.

    `[B, C, H, W]` is a static image: the stem runs once for it, and its output is the current of every one of
    `time_steps` steps; a stem whose weight differs by step runs at each. `[B, T, C, H, W]` are event frames, which
    bring their own T. Gives logits `[T, B, K]`; without spiking neurons a static image is seen once, so T = 1, unless a
    weight differs by step. No state outlives a forward pass.

    Args:
        stem: first convolution and norm.
        body: modules on `[T, B, C, H, W]`, of which the first is a neuron or begins with one.
        head: modules on `[T, B, C, H, W]` between the average pool and the classifier.
        classifier: the last linear layer.
        time_steps: T of a static image, at least 1.
        pool_size: pixels left along each side by the average pool.

    Attributes:
        checkpoint_stages: keep nothing but the input of each of the body's `stages` for the backward pass, and compute
            the rest again there: same gradients, less memory, more time; False at first.

    Raises:
        ValueError: `time_steps` below 1, or an input whose dimensions or channels do not fit, or of whole numbers.
    """

    def __init__(
        self,
        stem: ConvNorm,
        body: list[nn.Module],
        head: list[nn.Module],
        classifier: nn.Linear,
        time_steps: int,
        pool_size: int = 1,
    ):
        super().__init__()
        if not (isinstance(time_steps, int) and time_steps >= 1):
            raise ValueError(f"time_steps={time_steps!r}: must be a whole number of at least 1")
        self.time_steps = time_steps
        self.checkpoint_stages = False
        self.in_channels = stem.conv.in_channels
        self.stem = stem
        self.body = nn.Sequential(*body)
        self.pool = PerStep(nn.AdaptiveAvgPool2d(pool_size))
        self.head = nn.Sequential(*head)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[T, B, K]` for images `[B, C, H, W]` or event frames `[B, T, C, H, W]`."""
        if not x.is_floating_point():
            raise ValueError(
                f"x of {x.dtype}: must be floating-point numbers, normalised as in training, not pixels as they "
                "are stored"
            )
        if x.ndim not in (4, 5) or x.shape[-3] != self.in_channels:
            allowed = f"[B, {self.in_channels}, H, W] or event frames [B, T, {self.in_channels}, H, W]"
            raise ValueError(f"x={list(x.shape)}: must be images {allowed}")
        static = x.ndim == 4
        x = x.unsqueeze(0) if static else x.transpose(0, 1)
        if self._goes_in_chunks(self.time_steps if static else len(x)):
            return self._in_chunks(x, static)
        if static and has_weights_over_time(self.stem):
            x = x.expand(self.time_steps, -1, -1, -1, -1)
        current = self.stem(x)
        if static and (is_spiking(self) or has_weights_over_time(self)):
            current = current.expand(self.time_steps, -1, -1, -1, -1)
        if self.checkpoint_stages and self.training and torch.is_grad_enabled():
            for stage in self.stages():
                current = checkpointed(stage, current)
        else:
            current = self.body(current)
        features = self.head(self.pool(current))
        return self.classifier(features.flatten(2))

    def _goes_in_chunks(self, time_steps: int) -> bool:
        """Whether chunks of time pass one after another, which needs no more memory for more of them."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if time_steps <= LONG or self.training or torch.is_grad_enabled() or is_traced:
            return False
        modules = [module for part in (self.stem, self.body, self.pool) for module in part.modules()]
        inside = {layer for module in modules if isinstance(module, PerStep) for layer in module}
        of_weights = {child for layer in inside for child in layer.modules()} - inside  # which compute these alone
        without_time = {type(layer) for layer in inside if not isinstance(layer, OverTime)}
        return are_causal((module for module in modules if module not in of_weights), without_time | _WITHOUT_TIME)

    def _in_chunks(self, x: Tensor, static: bool) -> Tensor:
        with in_chunks(self.body):
            currents = self.stem(x).expand(self.time_steps, -1, -1, -1, -1) if static else x
            parts = currents.split(CHUNK)
            features = [self.pool(self.body(part if static else self.stem(part))) for part in parts]
        return self.classifier(self.head(torch.cat(features)).flatten(2))

    def stages(self) -> list[list[nn.Module]]:
        """The layers of the body in parts, each of which ends with a residual block or with pooling."""
        stages: list[list[nn.Module]] = [[]]
        for layer in self.body:
            stages[-1].append(layer)
            is_block = not isinstance(layer, PerStep) and any(True for _ in layer.children())
            if is_block or (isinstance(layer, PerStep) and isinstance(layer[-1], tuple(POOLS.values()))):
                stages.append([])
        return [stage for stage in stages if stage]


def is_spiking(network: nn.Module) -> bool:
    """Whether any neuron in `network` spikes; a network of ReLUs is its ANN of the same shape."""
    return any(isinstance(module, SpikingNeuron) for module in network.modules())
