"""Networks of plain convolutions: VGG (arXiv 1409.1556) in its CIFAR form, and the VGGSNN of event cameras."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tna_lightning.models.blocks import ConvNorm, Network, NeuronFactory, new_neuron, pooling, scaled, with_hints
from tna_lightning.models.settings import settings_of

POOL = "pool"


def plain_network(
    plan: list[int | str],
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    time_steps: int = 4,
    width: float = 1.0,
    pool: str = "max",
    pool_size: int = 1,
    norm: str = "bn",
) -> Network:
    """3 x 3 convolutions with norm and neuron in the order of `plan`, average pool, linear classifier.

    Args:
        plan: channels of each convolution at width 1, and `POOL` where pixels are halved; a convolution first.
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer, see `new_neuron`.
        time_steps: T of a static image; event frames bring their own.
        width: multiplies the channels of every layer.
        pool: `avg` or `max`.
        pool_size: pixels along each side that reach the classifier.
        norm: `bn`; `tdbn`, starting at the neurons' threshold; or `tebn`, with a learned scale for each step.

    Raises:
        ValueError: `time_steps` below 1, `width` not above 0, or an unknown `pool`.
    """
    neuron = with_hints(neuron, time_steps=time_steps)
    conv_norm = partial(ConvNorm, norm=norm, time_steps=time_steps)
    first, *rest = plan
    channels = scaled(int(first), width)
    stem = conv_norm(in_channels, channels)
    body: list[nn.Module] = [new_neuron(neuron, channels=channels)]
    stem.start(body[0])
    for entry in rest:
        if entry == POOL:
            body.append(pooling(pool))
        else:
            wide = scaled(int(entry), width)
            layer = conv_norm(channels, wide)
            body += [layer, new_neuron(neuron, channels=wide)]
            layer.start(body[-1])
            channels = wide
    classifier = nn.Linear(channels * pool_size**2, num_classes)
    return Network(stem, body, [], classifier, time_steps, pool_size)


@settings_of(plain_network, "pool_size")
def vgg11(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """VGG-11: 8 convolutions 64-128-256-256-512-512-512-512 and one linear layer; settings as for `plain_network`."""
    plan: list[int | str] = [64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL]
    return plain_network(plan, in_channels, num_classes, neuron, **settings)


@settings_of(plain_network, "pool_size")
def vgg16(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    **settings: Any,
) -> Network:
    """VGG-16: 13 convolutions of 64 to 512 channels and one linear layer; settings as for `plain_network`."""
    plan: list[int | str] = [
        64,
        64,
        POOL,
        128,
        128,
        POOL,
        256,
        256,
        256,
        POOL,
        512,
        512,
        512,
        POOL,
        512,
        512,
        512,
        POOL,
    ]
    return plain_network(plan, in_channels, num_classes, neuron, **settings)


@settings_of(plain_network, "pool_size")
def vggsnn(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    pool: str = "avg",
    **settings: Any,
) -> Network:
    """VGGSNN of TET (arXiv 2202.11946): 64-128, 256-256, 512-512, 512-512, each pair followed by pooling.

    Meant for event frames of 2 x 48 x 48, of which 512 x 3 x 3 features reach the linear layer, as in the paper's code;
    other sizes are pooled to 3 x 3. Settings as for `plain_network`; events bring their own T.
    """
    plan: list[int | str] = [64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL]
    return plain_network(plan, in_channels, num_classes, neuron, pool=pool, pool_size=3, **settings)
