"""What moves event frames as a whole: roll, and NDA's choice of roll, rotation, shear and cutout.

Frames are ``[B, T, C, H, W]`` of any dtype and keep it. Every sample draws its own numbers and applies them to all its
time steps and both polarities. Pixels are taken from their nearest source, so that counts stay counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tna_lightning.data.augment.erasing import cutout
from tna_lightning.data.augment.geometry import as_images
from tna_lightning.data.augment.operation import Samples, need_events
from tna_lightning.data.batch import Batch


@dataclass(frozen=True)
class Limits:
    """How far an operation of NDA goes.

    Attributes:
        shift: largest roll, as a share of the side.
        degrees: largest rotation and shear.
        hole: side of the square that is erased, as a share of the frame's.
    """

    shift: float
    degrees: float
    hole: float


# Rolls and angles of levels 1 and 2 are those of the authors' code, for N-Caltech101 and for CIFAR10-DVS; the others,
# and the squares, come from a third party's table of the paper's.
LEVELS = {1: Limits(3 / 48, 15, 8 / 48), 2: Limits(5 / 48, 30, 16 / 48), 3: Limits(7 / 48, 45, 24 / 48)}
POOL = ("roll", "rotation", "shear")

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


def nda(frames: Tensor, generator: torch.Generator, level: int = 2, pool: Sequence[str] = POOL) -> Tensor:
    """Neuromorphic data augmentation (arXiv 2203.06145, its authors' code): one of ``pool`` for each sample.

    ``level`` says how far: a roll goes up to so many pixels of 48 along each axis, an angle up to so many degrees
    (:data:`LEVELS`); ``cutout`` erases a square. The authors' code has roll, rotation and shear along x.
    """
    choice = torch.randint(len(pool), (len(frames), 1, 1), generator=generator, device=frames.device)
    return _moved(frames, choice, generator, level, pool)


def nda_of_several(
    frames: Tensor, generator: torch.Generator, level: int, operations: int, pool: Sequence[str] = POOL
) -> Tensor:
    """So many of ``pool`` for each sample, drawn without replacement, one after another in the order drawn."""
    order = torch.rand(len(frames), len(pool), generator=generator, device=frames.device).argsort(1)
    for choice in order[:, :operations].T:
        frames = _moved(frames, choice[:, None, None], generator, level, pool)
    return frames


def _moved(frames: Tensor, choice: Tensor, generator: torch.Generator, level: int, pool: Sequence[str]) -> Tensor:
    """``choice`` is the place in ``pool`` of what is done to each sample, int64 ``[B, 1, 1]``."""
    height, width = frames.shape[-2:]
    limits = LEVELS[level]
    angle = torch.rand(len(frames), generator=generator, device=frames.device)
    angle = angle.mul(2).sub(1) * math.radians(limits.degrees)
    sources = {
        "roll": rolled(height, width, *_shifts(frames, generator, limits.shift)),
        "rotation": rotated(height, width, angle),
        "shear": sheared(height, width, angle),
    }
    rows, columns = (
        each.clone() for each in rolled(height, width, *torch.zeros_like(choice.view(1, -1)).expand(2, -1))
    )
    for place, name in enumerate(pool):
        if name in sources:
            for kept, moved in zip((rows, columns), sources[name], strict=True):
                torch.where(choice == place, moved, kept, out=kept)
    frames = resample(frames, (rows, columns))
    if "cutout" in pool:
        x = as_images(frames)
        size = round(limits.hole * height)
        erased = cutout(x, size, generator, torch.zeros(x.shape[1], device=x.device)).view_as(frames)
        frames = torch.where((choice == pool.index("cutout"))[..., None, None], erased, frames)
    return frames


def roll(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Roll each sample around the border by up to 5 of 48 pixels along each axis."""
    height, width = frames.shape[-2:]
    return resample(frames, rolled(height, width, *_shifts(frames, generator, LEVELS[2].shift)))


def _shifts(frames: Tensor, generator: torch.Generator, share: float) -> tuple[Tensor, Tensor]:
    down, right = (
        torch.randint(-largest, largest + 1, (len(frames),), generator=generator, device=frames.device)
        for largest in (round(share * side) for side in frames.shape[-2:])
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
    """Some of roll, rotation, shear and cutout for each sample of event frames (:func:`nda`, arXiv 2203.06145).

    As it stands, the authors' code for CIFAR10-DVS; ``level=1`` is that for N-Caltech101. Flip comes before or after
    it, and CutMix, as :class:`Flip` and :class:`CutMix`.

    Args:
        level: how far, 1 to 3: rolls of 3, 5 or 7 pixels of 48, 15, 30 or 45 degrees, squares of 8, 16 or 24 pixels.
        operations: how many of the pool for each sample, without replacement.
        pool: what may be done: roll, rotation, shear, cutout.
    """

    def __init__(self, level: int = 2, operations: int = 1, pool: Sequence[str] = POOL) -> None:
        if level not in LEVELS:
            raise ValueError(f"level={level!r}: must be one of {', '.join(map(str, LEVELS))}")
        known = (*POOL, "cutout")
        if not pool or len(set(pool)) < len(pool) or any(name not in known for name in pool):
            raise ValueError(f"pool={list(pool)}: must be some of {', '.join(known)}, each once")
        if not 1 <= operations <= len(pool):
            raise ValueError(f"operations={operations!r}: must be 1 to {len(pool)}, the pool's size")
        self.level, self.operations, self.pool = level, operations, tuple(pool)

    def setup(self, data: Samples) -> None:
        """Refuse images."""
        need_events(data)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        if self.operations == 1:
            return replace(batch, x=nda(batch.x, generator, self.level, self.pool))
        return replace(batch, x=nda_of_several(batch.x, generator, self.level, self.operations, self.pool))
