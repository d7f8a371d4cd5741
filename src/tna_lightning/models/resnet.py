"""Spiking residual networks with the 3 x 3 stem of CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tna_lightning.models.blocks import BasicBlock, ConvNorm, Network, NeuronFactory, new_neuron, scaled, with_hints
from tna_lightning.models.settings import settings_of


def resnet(
    channels: list[int],
    num_blocks: list[int],
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    time_steps: int = 4,
    width: float = 1.0,
    stem_stride: int = 1,
    num_hidden: int | None = None,
    norm: str = "bn",
    block: Callable[..., nn.Module] = BasicBlock,
) -> Network:
    """Stem, stages of blocks of which each after the first halves the pixels, average pool, linear classifier.

    Args:
        channels: of each stage at width 1; the stem has those of the first.
        num_blocks: of each stage.
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer, see `new_neuron`.
        time_steps: T of a static image; event frames bring their own.
        width: multiplies the channels of every layer, and the hidden neurons.
        stem_stride: 2 halves the pixels in the stem already, which costs a quarter of the operations.
        num_hidden: hidden neurons, fully connected, between the average pool and the classifier.
        norm: `bn`; `tdbn`, starting at the neurons' threshold; or `tebn`, with a learned scale for each step.
        block: called as `BasicBlock` is; one that `gives_currents` begins with neurons, and the last is followed by
            some.

    Raises:
        ValueError: `time_steps` or `stem_stride` below 1, or `width` not above 0.
    """
    if not (isinstance(stem_stride, int) and stem_stride >= 1):
        raise ValueError(f"stem_stride={stem_stride!r}: must be a whole number of at least 1")
    neuron = with_hints(neuron, time_steps=time_steps)
    conv_norm = partial(ConvNorm, norm=norm, time_steps=time_steps)
    num_features = scaled(channels[0], width)
    stem = conv_norm(in_channels, num_features, stride=stem_stride)
    body: list[nn.Module] = []
    adds_currents = getattr(block, "gives_currents", False)
    if not adds_currents:
        body.append(new_neuron(neuron, channels=num_features))
        stem.start(body[0])
    for stage, (stage_channels, stage_blocks) in enumerate(zip(channels, num_blocks, strict=True)):
        for number in range(stage_blocks):
            stride = 2 if stage > 0 and number == 0 else 1
            body.append(block(num_features, scaled(stage_channels, width), stride, neuron, norm, time_steps))
            num_features = scaled(stage_channels, width)
    if adds_currents:
        body.append(new_neuron(neuron, channels=num_features))
        stem.start(body[-1], alpha=0.5**0.5)
    head: list[nn.Module] = []
    if num_hidden is not None:
        hidden = scaled(num_hidden, width)
        fully_connected = conv_norm(num_features, hidden, 1)
        head = [fully_connected, new_neuron(neuron, channels=hidden)]
        fully_connected.start(head[1])
        num_features = hidden
    return Network(stem, body, head, nn.Linear(num_features, num_classes), time_steps)


@settings_of(resnet, "num_hidden", "block")
def resnet8(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """ResNet-8 (arXiv 1512.03385 with n = 1): one block a stage, 16-32-64 channels; settings as for `resnet`."""
    return resnet([16, 32, 64], [1, 1, 1], in_channels, num_classes, neuron, **settings)


@settings_of(resnet, "num_hidden", "block")
def resnet18(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """ResNet-18 (arXiv 1512.03385): stages of 2-2-2-2 blocks, 64-128-256-512 channels; settings as for `resnet`."""
    return resnet([64, 128, 256, 512], [2, 2, 2, 2], in_channels, num_classes, neuron, **settings)


@settings_of(resnet, "num_hidden", "block")
def resnet19(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """ResNet-19 of tdBN (arXiv 2011.05280): stages of 3-3-2 blocks, 128-256-512 channels, then 256 hidden neurons.

    The hidden layer is a 1 x 1 convolution of the one pixel left, with batch norm like all the others: without the norm
    its neurons are silent at first and SGD hardly wakes them. Settings as for `resnet`.
    """
    return resnet([128, 256, 512], [3, 3, 2], in_channels, num_classes, neuron, num_hidden=256, **settings)


@settings_of(resnet, "num_hidden", "block")
def resnet20(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """ResNet-20 (arXiv 1512.03385): stages of 3-3-3 blocks, 16-32-64 channels; settings as for `resnet`."""
    return resnet([16, 32, 64], [3, 3, 3], in_channels, num_classes, neuron, **settings)
