"""Augmentation of whole image batches on their device: pure functions of images and a generator.

Letters: B batch, C channels, H W pixels. Images are ``[B, C, H, W]`` of any dtype and keep it; every sample draws its
own numbers, without a loop over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
