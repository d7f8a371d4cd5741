"""What is taken away: cutout, random erasing.

Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
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


def random_erasing(
    images: Tensor,
    probability: float,
    generator: torch.Generator,
    fill: Tensor,
    area: tuple[float, float],
    ratio: float,
) -> Tensor:
    """Random erasing (arXiv 1708.04896): with some probability one rectangle of an image, which lies within it.

    Its share of the pixels is uniform in ``area``, the logarithm of height over width uniform in ``+-log(ratio)``; a
    side that would be longer than the image's is as long, where the paper draws anew.
    """
    height, width = images.shape[-2:]
    chance, share, shape, down, right = torch.rand(5, len(images), generator=generator, device=images.device)
    share = (area[0] + (area[1] - area[0]) * share) * height * width
    shape = ((2 * shape - 1) * math.log(ratio)).exp()
    rows = (share * shape).sqrt().round().clamp(1, height).long()
    columns = (share / shape).sqrt().round().clamp(1, width).long()
    top, left = (down * (height - rows + 1)).long(), (right * (width - columns + 1)).long()
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    below = (y >= top[:, None]) & (y < (top + rows)[:, None])
    beside = (x >= left[:, None]) & (x < (left + columns)[:, None])
    inside = (below[:, :, None] & beside[:, None])[:, None] & (chance < probability).view(-1, 1, 1, 1)
    return torch.where(inside, fill.to(images)[:, None, None], images)


class RandomErasing:
    """Erase a rectangle of some samples, in all time steps (:func:`random_erasing`), as :class:`Cutout` fills it.

    It covers 2 to 33 % of the pixels, and is up to 3.3 times as high as wide, or as wide as high (timm's figures).

    Args:
        probability: of a sample to be erased.
    """

    area = (0.02, 1 / 3)
    ratio = 1 / 0.3

    def __init__(self, probability: float = 0.25) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability!r}: must lie in (0, 1]")
        self.probability = probability
        self.blank = torch.zeros(1)  # until the data say theirs

    def setup(self, data: Samples) -> None:
        """Read what stands for nothing."""
        self.blank = data.blank

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        x = as_images(batch.x)
        self.blank = self.blank.to(x.device)
        fill = self.blank.repeat(x.shape[1] // len(self.blank))
        x = random_erasing(x, self.probability, generator, fill, self.area, self.ratio)
        return replace(batch, x=x.reshape(batch.x.shape))
