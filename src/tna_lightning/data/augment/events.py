"""What moves event frames as a whole: roll, and NDA's choice of roll, rotation and shear.

Frames are ``[B, T, C, H, W]`` of any dtype and keep it. Every sample draws its own numbers and applies them to all its
time steps and both polarities. Pixels are taken from their nearest source, so that counts stay counts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tna_lightning.data.augment.operation import Samples, need_events
from tna_lightning.data.batch import Batch

SHIFT = 5 / 48  # largest roll, as a share of the side: 5 pixels of 48
DEGREES = 30  # largest rotation and shear

Coordinates = tuple[Tensor, Tensor]


def resample(frames: Tensor, source: Coordinates) -> Tensor:
    """Take pixel (i, j) of sample b from ``(rows[b, i, j], columns[b, i, j])``; zero where that lies outside."""
    height, width = frames.shape[-2:]
    rows, columns = source
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    pixels = frames.flatten(1, 2).flatten(2)
    moved = pixels.gather(2, index[:, None].expand_as(pixels)).view_as(frames)
    return torch.where(inside[:, None, None], moved, 0)


def rolled(height: int, width: int, down: Tensor, right: Tensor) -> Coordinates:
    """Sources of a roll, around the border, by ``down`` and ``right`` pixels, each int64 ``[B]``."""
    rows = (torch.arange(height, device=down.device) - down[:, None]) % height
    columns = (torch.arange(width, device=down.device) - right[:, None]) % width
    return rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)


def sheared(height: int, width: int, angle: Tensor) -> Coordinates:
    """Sources of a shear along x about the centre, by ``angle`` ``[B]`` in radians."""
    y, x = _centred(height, width, angle.device)
    return _to_pixels(y.expand(len(angle), -1, -1), x - angle.tan()[:, None, None] * y)


def rotated(height: int, width: int, angle: Tensor) -> Coordinates:
    """Sources of a rotation about the centre, by ``angle`` ``[B]`` in radians, counter-clockwise as seen."""
    y, x = _centred(height, width, angle.device)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return _to_pixels(sine * x + cosine * y, cosine * x - sine * y)


def nda(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Neuromorphic data augmentation (arXiv 2203.06145, its authors' code): one of roll, rotation and shear along x.

    Rolls go up to 5 of 48 pixels along each axis, angles up to 30 degrees.
    """
    height, width = frames.shape[-2:]
    choice = torch.randint(3, (len(frames), 1, 1), generator=generator, device=frames.device)
    angle = torch.rand(len(frames), generator=generator, device=frames.device).mul(2).sub(1) * math.radians(DEGREES)
    rolls = rolled(height, width, *_shifts(frames, generator))
    rotations, shears = rotated(height, width, angle), sheared(height, width, angle)
    rows, columns = (
        torch.where(choice == 0, roll, torch.where(choice == 1, rotation, shear))
        for roll, rotation, shear in zip(rolls, rotations, shears, strict=True)
    )
    return resample(frames, (rows, columns))


def roll(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Roll each sample around the border by up to 5 of 48 pixels along each axis."""
    height, width = frames.shape[-2:]
    return resample(frames, rolled(height, width, *_shifts(frames, generator)))


def _shifts(frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down, right = (
        torch.randint(-largest, largest + 1, (len(frames),), generator=generator, device=frames.device)
        for largest in (round(SHIFT * side) for side in frames.shape[-2:])
    )
    return down, right


def _centred(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return y[:, None].expand(height, width), x.expand(height, width)


def _to_pixels(y: Tensor, x: Tensor) -> Coordinates:
    height, width = y.shape[-2:]
    return (y + (height - 1) / 2).round().long(), (x + (width - 1) / 2).round().long()


class Roll:
    """Roll each sample of event frames by up to 5 of 48 pixels; after :class:`Flip` it is TET's (arXiv 2202.11946)."""

    def setup(self, data: Samples) -> None:
        """Refuse images."""
        need_events(data)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=roll(batch.x, generator))


class NDA:
    """One of roll, rotation and shear for each sample of event frames (:func:`nda`).

    The paper's flip, cutout and CutMix are :class:`Flip`, :class:`Cutout` and :class:`CutMix` after it.
    """

    def setup(self, data: Samples) -> None:
        """Refuse images."""
        need_events(data)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=nda(batch.x, generator))
