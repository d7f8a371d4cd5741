"""Residual networks that add elsewhere than `BasicBlock`: membranes (MS), or spikes behind the neuron (SEW)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from tna_lightning.models.blocks import ConvNorm, Network, NeuronFactory, PerStep, new_neuron, sees_no_time
from tna_lightning.models.resnet import resnet
from tna_lightning.models.settings import settings_of

CONNECT = ("add", "and", "iand")
CHANNELS, NUM_BLOCKS = [64, 128, 256, 512], [2, 2, 2, 2]


def halving_maximum() -> PerStep:
    """The maximum of 3 x 3 pixels at every second one, a border of nothing around them."""
    return PerStep(nn.MaxPool2d(3, 2, padding=1))


@sees_no_time
class MSBlock(nn.Module):
    """Residual block that adds membranes (MS-ResNet, arXiv 2112.08954): neuron, conv, norm, twice; plus the shortcut.

    Each convolution sees spikes, and what blocks hand on is a sum of currents. The shortcut is the identity, or a 1 x 1
    convolution with norm, without a neuron. The last norm starts with a weight of 0, so that the block is its shortcut
    at first; with `tdbn` as that says. `[T, B, in_channels, H, W] -> [T, B, out_channels, H / stride, W / stride]`.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        stride: 2 halves the pixels.
        neuron: gives a new neuron for each layer.
        norm: of the convolutions, see `ConvNorm`.
        time_steps: T, for norms that want it.
    """

    gives_currents: ClassVar[bool] = True
    takes_maximum: ClassVar[bool] = False

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
        same_shape = stride == 1 and in_channels == out_channels
        self.neuron1 = new_neuron(neuron, channels=in_channels)
        self.pool: nn.Module = nn.Identity()
        if self.takes_maximum and stride == 2:
            self.pool, stride = halving_maximum(), 1
        self.conv1 = conv_norm(in_channels, out_channels, stride=stride)
        self.neuron2 = new_neuron(neuron, channels=out_channels)
        self.conv2 = conv_norm(out_channels, out_channels)
        self.shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)
        self.conv1.start(self.neuron2)
        if norm != "tdbn":
            nn.init.zeros_(self.conv2.norm.weight)
        for summand in (self.conv2, self.shortcut):
            if isinstance(summand, ConvNorm):
                summand.start(self.neuron2, alpha=0.5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Currents for the neurons of the next block."""
        residual = self.conv2(self.neuron2(self.conv1(self.pool(self.neuron1(x)))))
        return residual + self.shortcut(self.pool(x))


@sees_no_time
class MaxBlock(MSBlock):
    """`MSBlock` that halves pixels by the maximum of 3 x 3 before its convolutions, which then have no stride."""

    takes_maximum = True


@sees_no_time
class SEWBlock(nn.Module):
    """Residual block that joins spikes with spikes (SEW ResNet, arXiv 2102.04159): conv, norm, neuron, twice; then g.

    With S the spikes of the branch and x those of the shortcut, the identity or a 1 x 1 convolution with norm and
    neuron: `add` S + x, whole numbers; `and` S x; `iand` (1 - S) x. The last norm starts with a weight of 0, and for
    `and` with a bias of 1.5 thresholds, so that S is 0, and for `and` 1, and the block its shortcut at first.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        stride: 2 halves the pixels.
        neuron: gives a new neuron for each layer.
        norm: of the convolutions, see `ConvNorm`.
        time_steps: T, for norms that want it.
        connect: g: `add`, `and` or `iand`.

    Raises:
        ValueError: an unknown `connect`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        neuron: NeuronFactory,
        norm: str = "bn",
        time_steps: int | None = None,
        connect: str = "add",
    ):
        super().__init__()
        if connect not in CONNECT:
            raise ValueError(f"connect={connect!r}: must be one of {', '.join(CONNECT)}")
        conv_norm = partial(ConvNorm, norm=norm, time_steps=time_steps)
        self.connect = connect
        self.conv1 = conv_norm(in_channels, out_channels, stride=stride)
        self.neuron1 = new_neuron(neuron, channels=out_channels)
        self.conv2 = conv_norm(out_channels, out_channels)
        self.neuron2 = new_neuron(neuron, channels=out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            shortcut = conv_norm(in_channels, out_channels, 1, stride)
            self.shortcut = nn.Sequential(shortcut, new_neuron(neuron, channels=out_channels))
            shortcut.start(self.shortcut[1])
        self.conv1.start(self.neuron1)
        if norm == "tdbn":
            self.conv2.start(self.neuron2)
        else:
            nn.init.zeros_(self.conv2.norm.weight)
            if connect == "and":
                threshold = getattr(self.neuron2, "threshold", None)
                highest = 1.0 if threshold is None else float(threshold.max())
                nn.init.constant_(self.conv2.norm.bias, 1.5 * highest)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with `add` sums of them."""
        spikes = self.neuron2(self.conv2(self.neuron1(self.conv1(x))))
        shortcut = self.shortcut(x)
        if self.connect == "add":
            return spikes + shortcut
        return (spikes if self.connect == "and" else 1 - spikes) * shortcut


@settings_of(resnet, "num_hidden", "block")
def msresnet18(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """MS-ResNet-18 (arXiv 2112.08954): ResNet-18 of `MSBlock`, which add membranes; settings as for `resnet`.

    Neurons stand behind the last block too, so that the average pool sees spikes.
    """
    return resnet(CHANNELS, NUM_BLOCKS, in_channels, num_classes, neuron, block=MSBlock, **settings)


@settings_of(resnet, "num_hidden", "block")
def maxresnet18(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """Max-ResNet-18: `msresnet18` of `MaxBlock`, which halve pixels by the maximum; settings as for `resnet`."""
    return resnet(CHANNELS, NUM_BLOCKS, in_channels, num_classes, neuron, block=MaxBlock, **settings)


@settings_of(resnet, "num_hidden", "block")
def sewresnet18(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    connect: str = "add",
    **settings: Any,
) -> Network:
    """SEW ResNet-18 (arXiv 2102.04159): ResNet-18 of `SEWBlock`, which join spikes; settings as for `resnet`.

    Args:
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer.
        connect: how a block joins its spikes with its shortcut's: add, and, or iand.
        settings: as for `resnet`.
    """
    block = partial(SEWBlock, connect=connect)
    return resnet(CHANNELS, NUM_BLOCKS, in_channels, num_classes, neuron, block=block, **settings)
