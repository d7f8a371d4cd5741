"""Where pixels go: crop and flip.

Letters: B batch, C channels, H W pixels. The functions take images ``[B, C, H, W]`` of any dtype and keep it; every
sample draws its own numbers, without a loop over the batch. The operations take event frames too: all time steps and
both polarities of a sample move together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tna_lightning.data.batch import Batch


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with zeros on all sides, then cut the original size out at ``top`` and ``left``.

    Both are int64 ``[B]`` and lie between 0 and ``2 * padding``; at ``padding`` an image comes out as it went in.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, C, top, left, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels along both axes; what comes in from outside is zero (black)."""
    top, left = torch.randint(2 * padding + 1, (2, len(images)), generator=generator, device=images.device)
    return crop(images, padding, top, left)


def random_horizontal_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def as_images(x: Tensor) -> Tensor:
    """Event frames ``[B, T, C, H, W]`` as images of ``T * C`` channels; images as they are."""
    return x.flatten(1, -3)


@dataclass(frozen=True)
class Crop:
    """Shift each sample along both axes; what comes in from outside is zero.

    Args:
        padding: largest shift, in pixels.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ValueError(f"padding={self.padding!r}: must be at least 1 pixel")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=random_crop(as_images(batch.x), self.padding, generator).reshape(batch.x.shape))


class Flip:
    """Mirror each sample left to right with probability one half."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=random_horizontal_flip(as_images(batch.x), generator).reshape(batch.x.shape))
