"""Self-attention of spikes, and what stands beside it in spiking transformers; membranes are added between blocks.

A token is a pixel of the map that the stem leaves. Every block starts with neurons, so that convolutions see spikes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tna_lightning.models.blocks import ConvNorm, NeuronFactory, new_neuron, sees_no_time

SCALE = 0.125  # of spiking self-attention, whatever the size of a head, as the authors have it
MLP_RATIO = 4  # hidden channels of an MLP over those of its input


def half_as_high(neuron: NeuronFactory, channels: int) -> nn.Module:
    """A layer of neurons whose threshold is half of the others', where it is a setting of theirs.

    The authors' neurons of attention fire at 0.5, all others at 1.
    """
    layer = new_neuron(neuron, channels=channels)
    threshold = getattr(layer, "threshold", None)
    if threshold is None:
        return layer
    half = 0.5 * (threshold.detach() if isinstance(threshold, Tensor) else threshold)
    return new_neuron(neuron, channels=channels, threshold=half)


class Attention(nn.Module):
    """What both kinds share: neurons, then query, key and value by 1 x 1 convolution, norm and neurons; the output's.

    Args:
        channels: D.
        neuron: gives a new neuron for each layer.
        norm: of the convolutions, see `ConvNorm`.
        time_steps: T, for norms that want it.
    """

    query: nn.Sequential
    key: nn.Sequential
    value: nn.Sequential

    def __init__(self, channels: int, neuron: NeuronFactory, norm: str = "bn", time_steps: int | None = None):
        super().__init__()
        conv_norm = partial(ConvNorm, channels, channels, 1, norm=norm, time_steps=time_steps)
        self.neuron = new_neuron(neuron, channels=channels)
        for name in ("query", "key", "value"):
            conv, fires = conv_norm(), new_neuron(neuron, channels=channels)
            conv.start(fires)
            setattr(self, name, nn.Sequential(conv, fires))
        self.attention_neuron = half_as_high(neuron, channels)
        self.project = conv_norm()
        self.project.start(self.neuron, alpha=0.5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[T, B, D, H, W]`, those of the input added."""
        spikes = self.neuron(x)
        attended = self.attend(self.query(spikes), self.key(spikes), self.value(spikes))
        return x + self.project(attended)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Spikes `[T, B, D, H, W]` of three of that shape."""
        raise NotImplementedError


@sees_no_time
class SpikeDrivenAttention(Attention):
    """Spike-driven self-attention (arXiv 2307.01694): masks and additions, linear in the tokens.

        attend(q, k, v) = q * neuron(sum over tokens of k * v)

    by channel, so that heads make no difference; no product of matrices, no scale, no softmax.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        # one product for each channel, which is how cost counts what is added
        summed = torch.einsum("tbcn,tbcn->tbc", key.flatten(3), value.flatten(3))
        return query * self.attention_neuron(summed[..., None, None])


@sees_no_time
class SpikingSelfAttention(Attention):
    """Spiking self-attention (arXiv 2209.15425, 2304.11954): `neuron((q k^T) v * 0.125)` in each head, no softmax.

    Args:
        channels: D.
        neuron: gives a new neuron for each layer.
        num_heads: into which the channels are divided.
        norm: of the convolutions, see `ConvNorm`.
        time_steps: T, for norms that want it.
    """

    def __init__(
        self,
        channels: int,
        neuron: NeuronFactory,
        num_heads: int,
        norm: str = "bn",
        time_steps: int | None = None,
    ):
        super().__init__(channels, neuron, norm, time_steps)
        self.num_heads = num_heads

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        # [T, B, heads, D / heads, tokens]: transposed, so that channels stay where convolutions want them
        q, k, v = (each.flatten(3).unflatten(2, (self.num_heads, -1)) for each in (query, key, value))
        attended = v @ (k.mT @ q)
        return self.attention_neuron((attended * SCALE).flatten(2, 3).view_as(query))


@sees_no_time
class MLP(nn.Module):
    """Neuron, 1 x 1 convolution to four times the channels, norm; neuron, convolution back, norm; plus the input.

    Args:
        channels: D.
        neuron: gives a new neuron for each layer.
        norm: of the convolutions, see `ConvNorm`.
        time_steps: T, for norms that want it.
    """

    def __init__(self, channels: int, neuron: NeuronFactory, norm: str = "bn", time_steps: int | None = None):
        super().__init__()
        conv_norm = partial(ConvNorm, kernel_size=1, norm=norm, time_steps=time_steps)
        hidden = MLP_RATIO * channels
        self.neuron1 = new_neuron(neuron, channels=channels)
        self.conv1 = conv_norm(channels, hidden)
        self.neuron2 = new_neuron(neuron, channels=hidden)
        self.conv2 = conv_norm(hidden, channels)
        self.conv1.start(self.neuron2)
        self.conv2.start(self.neuron1, alpha=0.5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[T, B, D, H, W]`, those of the input added."""
        return x + self.conv2(self.neuron2(self.conv1(self.neuron1(x))))


@sees_no_time
class Position(nn.Module):
    """What tells tokens where they stand: neuron, 3 x 3 convolution and norm of the map, added to it.

    Args:
        channels: D.
        neuron: gives a new neuron for each layer.
        norm: of the convolution, see `ConvNorm`.
        time_steps: T, for norms that want it.
    """

    def __init__(self, channels: int, neuron: NeuronFactory, norm: str = "bn", time_steps: int | None = None):
        super().__init__()
        self.neuron = new_neuron(neuron, channels=channels)
        self.conv = ConvNorm(channels, channels, norm=norm, time_steps=time_steps)
        self.conv.start(self.neuron, alpha=0.5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[T, B, D, H, W]`, those of the input added."""
        return x + self.conv(self.neuron(x))
