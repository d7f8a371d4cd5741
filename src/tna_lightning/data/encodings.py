"""Static images as spikes over time: rate and latency codes, with snntorch's `spikegen` where it takes a generator."""

from __future__ import annotations

import torch
from torch import Tensor

ENCODINGS = ("direct", "rate", "latency")
DARK = 0.01  # shares of white below it have no spike in a latency code, as `spikegen` has it


def rate(images: Tensor, time_steps: int, generator: torch.Generator) -> Tensor:
    """A spike at each step with the pixel's value as its probability, float32 ``[B, T, C, H, W]``.

    As ``snntorch.spikegen.rate``, which draws from torch's global generator.

    Args:
        images: ``[B, C, H, W]`` in [0, 1].
        time_steps: T.
        generator: of all draws, on the images' device.
    """
    shape = (len(images), time_steps, *images.shape[1:])
    chance = torch.rand(shape, generator=generator, device=images.device)
    return (chance < images[:, None]).float()


def latency(images: Tensor, time_steps: int) -> Tensor:
    """One spike a pixel, the earlier the brighter, float32 ``[B, T, C, H, W]``: white at the first step.

    ``snntorch.spikegen.latency``, linear over the T steps; what is darker than :data:`DARK` has no spike.

    Args:
        images: ``[B, C, H, W]`` in [0, 1].
        time_steps: T, 2 or more.
    """
    from snntorch import spikegen

    spikes: Tensor = spikegen.latency(
        images, num_steps=time_steps, threshold=DARK, normalize=True, linear=True, clip=True
    )
    return spikes.transpose(0, 1).contiguous()
