"""Spiking transformers behind a convolutional stem: Spike-driven Transformer and Spikingformer, in their CIFAR sizes.

Their names in the literature are blocks-channels: Spike-driven Transformer-2-512, Spikingformer-4-384. The authors'
convolutions behind attention and in the MLP have a bias, which the batch norm behind them subtracts; ours have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from tna_lightning.models.attention import MLP, Position, SpikeDrivenAttention, SpikingSelfAttention
from tna_lightning.models.blocks import ConvNorm, Network, NeuronFactory, new_neuron, scaled, with_hints
from tna_lightning.models.residual import halving_maximum
from tna_lightning.models.settings import settings_of

NUM_HALVINGS = 4  # places in the stem where pixels may be halved


def transformer(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    attention: Callable[..., nn.Module],
    channels: int,
    num_heads: int,
    has_position: bool,
    num_blocks: int = 2,
    halve: Sequence[bool] = (False, False, True, True),
    time_steps: int = 4,
    width: float = 1.0,
    norm: str = "bn",
) -> Network:
    """A stem of five 3 x 3 convolutions, blocks of attention and MLP that add membranes, average over the tokens.

    The stem's channels are D/8, D/4, D/2, D and D.

    Args:
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer, see `new_neuron`.
        attention: called with D, the neurons' factory, `norm` and `time_steps`.
        channels: D at width 1.
        num_heads: D is a multiple of it at every width.
        has_position: the stem's last convolution is a `Position`, and neurons stand before the classifier (the
            Spike-driven Transformer); else it follows neurons, and the classifier sees averages of currents
            (Spikingformer).
        num_blocks: each attention and MLP.
        halve: which of the stem's first four convolutions are followed by the maximum of 3 x 3 at every second pixel.
        time_steps: T of a static image; event frames bring their own.
        width: multiplies the channels of every layer.
        norm: `bn`; `tdbn`, starting at the neurons' threshold; or `tebn`, with a learned scale for each step.

    Raises:
        ValueError: `time_steps`, `channels`, `num_blocks` or `num_heads` below 1, heads that do not divide the
            channels, `width` not above 0, or other than four `halve`.
    """
    for name, value in {"channels": channels, "num_heads": num_heads, "num_blocks": num_blocks}.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    if channels % num_heads:
        raise ValueError(f"num_heads={num_heads!r}: must divide the channels, {channels}")
    if len(halve) != NUM_HALVINGS or not all(isinstance(each, bool) for each in halve):
        raise ValueError(f"halve={list(halve)}: must be {NUM_HALVINGS} times true or false")
    neuron = with_hints(neuron, time_steps=time_steps)
    settings: dict[str, Any] = {"norm": norm, "time_steps": time_steps}
    tokens = num_heads * scaled(channels / num_heads, width)
    widths = [*(scaled(tokens, share) for share in (1 / 8, 1 / 4, 1 / 2, 1)), *([] if has_position else [tokens])]
    layer = stem = ConvNorm(in_channels, widths[0], **settings)
    body: list[nn.Module] = []
    for before, behind, halves in zip(widths, widths[1:], halve, strict=False):
        neurons = new_neuron(neuron, channels=before)
        layer.start(neurons)
        layer = ConvNorm(before, behind, **settings)
        body += [neurons, *([halving_maximum()] if halves else []), layer]
    if has_position:
        body += [*([halving_maximum()] if halve[-1] else []), Position(tokens, neuron, **settings)]
    for _ in range(num_blocks):
        body += [attention(tokens, neuron, **settings), MLP(tokens, neuron, **settings)]
    layer.start(body[-1].neuron1, alpha=0.5**0.5)  # type: ignore[arg-type]  # whose currents are added
    head = [new_neuron(neuron, channels=tokens)] if has_position else []
    return Network(stem, body, head, nn.Linear(tokens, num_classes), time_steps)


@settings_of(transformer)
def sdt(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    channels: int = 512,
    **settings: Any,
) -> Network:
    """Spike-driven Transformer (arXiv 2307.01694): 2-512 for CIFAR.

    Args:
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer.
        channels: D at width 1, the channels of a token.
        settings: as for `transformer`.
    """
    return transformer(in_channels, num_classes, neuron, SpikeDrivenAttention, channels, 1, True, **settings)


@settings_of(transformer)
def spikingformer(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    channels: int = 384,
    num_heads: int = 12,
    num_blocks: int = 4,
    **settings: Any,
) -> Network:
    """Spikingformer (arXiv 2304.11954): 4-384 for CIFAR.

    Args:
        in_channels: channels of the input.
        num_classes: K.
        neuron: gives a new neuron for each layer.
        channels: D at width 1, the channels of a token.
        num_heads: into which attention divides the channels; D is a multiple of it at every width.
        num_blocks: each attention and MLP.
        settings: as for `transformer`.
    """
    attention = partial(SpikingSelfAttention, num_heads=num_heads)
    return transformer(in_channels, num_classes, neuron, attention, channels, num_heads, False, num_blocks, **settings)
