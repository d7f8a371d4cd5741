"""Augmentation of event frames: pure functions of whole batches on their device and an explicit generator.

Frames are ``[B, T, C, H, W]`` of any dtype and keep it. Every sample draws its own numbers and applies them to all its
time steps and both polarities. Pixels are taken from their nearest source, so that counts stay counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tna_lightning.data import augment

POLICIES = ("none", "flip_roll", "nda")
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

    Rolls go up to 5 of 48 pixels along each axis, angles up to 30 degrees. The paper's flip, cutout and CutMix are
    :func:`flip`, :func:`cutout` and :func:`cutmix`.
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


def flip_roll(frames: Tensor, generator: torch.Generator) -> Tensor:
    """TET's augmentation (arXiv 2202.11946, its authors' code): a flip for every second sample, then a roll for all."""
    height, width = frames.shape[-2:]
    return resample(flip(frames, generator), rolled(height, width, *_shifts(frames, generator)))


def flip(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each sample left to right with probability one half."""
    return augment.random_horizontal_flip(frames.flatten(1, 2), generator).view_as(frames)


def cutout(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Empty one square of ``size`` pixels per sample, centred anywhere in it."""
    stacked = frames.flatten(1, 2)
    return augment.cutout(stacked, size, generator, stacked.new_zeros(stacked.shape[1])).view_as(frames)


def cutmix(
    frames: Tensor, target: Tensor, num_classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """CutMix (arXiv 1905.04899 with alpha 1): put a box of another sample into each, and mix the labels by area.

    The box covers a share of the frame drawn uniformly, around a centre drawn uniformly, and is clipped by the border.

    Args:
        frames: ``[B, T, C, H, W]``.
        target: int64 ``[B]``.
        num_classes: K.
        probability: with which a sample is mixed.
        generator: of all draws.

    Returns:
        The frames, and float32 labels ``[B, K]`` that sum to 1: each class weighs what its pixels cover.
    """
    height, width = frames.shape[-2:]
    count = len(frames)
    share, row, column, mixed = torch.rand(4, count, generator=generator, device=frames.device)
    partner = torch.randperm(count, generator=generator, device=frames.device)
    side = share.sqrt() * (mixed < probability)
    rows = _span(height, row, side)
    columns = _span(width, column, side)
    box = rows[:, :, None] & columns[:, None]
    weight = box.float().mean(dim=(1, 2))[:, None]
    labels = torch.nn.functional.one_hot(target, num_classes).float()
    return (
        torch.where(box[:, None, None], frames[partner], frames),
        (1 - weight) * labels + weight * labels[partner],
    )


def _span(length: int, centre: Tensor, side: Tensor) -> Tensor:
    """Which pixels lie in a span of ``int(side * length)`` of them around the centre; bool ``[B, length]``."""
    size = (side * length).long()[:, None]
    start = (centre * length).long()[:, None] - size // 2
    pixel = torch.arange(length, device=centre.device)
    return (pixel >= start) & (pixel < start + size)


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
