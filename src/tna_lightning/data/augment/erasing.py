"""What is taken away: cutout.

Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tna_lightning.data.augment.geometry import as_images
from tna_lightning.data.augment.operation import Samples
from tna_lightning.data.batch import Batch


def erase(images: Tensor, size: int, row: Tensor, column: Tensor, fill: Tensor) -> Tensor:
    """Fill the square of ``size`` pixels around (row, column), int64 ``[B]``, with ``fill``, ``[C]``.

    The square covers ``row - size // 2`` up to, not including, ``row - size // 2 + size``; the border clips it.
    """
    height, width = images.shape[-2:]
    below = torch.arange(height, device=images.device) - (row - size // 2)[:, None]
    beside = torch.arange(width, device=images.device) - (column - size // 2)[:, None]
    inside = ((below >= 0) & (below < size))[:, None, :, None] & ((beside >= 0) & (beside < size))[:, None, None, :]
    return torch.where(inside, fill.to(images)[:, None, None], images)


def cutout(images: Tensor, size: int, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Cutout (arXiv 1708.04552): one square per image, centred anywhere in it, so that the border may clip it."""
    height, width = images.shape[-2:]
    row = torch.randint(height, (len(images),), generator=generator, device=images.device)
    column = torch.randint(width, (len(images),), generator=generator, device=images.device)
    return erase(images, size, row, column, fill)


class Cutout:
    """Erase one square of each sample, in all time steps: images get their mean there, event frames no events.

    Args:
        size: side of the square, in pixels.
    """

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"size={size!r}: must be at least 1 pixel")
        self.size = size
        self.blank = torch.zeros(1)  # until the data say theirs

    def setup(self, data: Samples) -> None:
        """Read what stands for nothing."""
        self.blank = data.blank

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        x = as_images(batch.x)
        self.blank = self.blank.to(x.device)
        fill = self.blank.repeat(x.shape[1] // len(self.blank))
        return replace(batch, x=cutout(x, self.size, generator, fill).reshape(batch.x.shape))
