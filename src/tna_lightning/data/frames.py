"""From events to frames: tonic's ``ToFrame`` with a fixed number of frames, and a coarser grid, in whole counts.

T frames, 2 polarities (OFF first), H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.recordings import BadRecording, Recording, check

SLICINGS = ("time", "count")


@dataclass(frozen=True)
class FrameSpec:
    """How recordings become frames.

    Args:
        time_steps: T.
        slicing: ``time`` for T windows of equal length, ``count`` for T windows of equally many events.
        size: ``(H, W)`` of a frame, at most the sensor's.
    """

    time_steps: int
    slicing: str
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.time_steps < 1:
            raise ValueError(f"time_steps={self.time_steps!r}: must be at least 1")
        if self.slicing not in SLICINGS:
            raise ValueError(f"slicing={self.slicing!r}: must be one of {', '.join(SLICINGS)}")
        if min(self.size) < 1:
            raise ValueError(f"size={self.size!r}: must be at least 1")


def frame_edges(t: np.ndarray, time_steps: int, slicing: str) -> np.ndarray:
    """Which events make up which frame: frame i is ``events[edges[i]:edges[i + 1]]``; int64 ``[T + 1]``.

    As tonic slices: by ``time`` into half-open windows of ``(t[-1] - t[0]) // T`` microseconds from the first event
    on, by ``count`` into ``N // T`` events each. The remainder is left out: at least the last event by time where T
    divides the duration, up to ``T - 1`` microseconds or events otherwise. A recording shorter than T microseconds
    (or events) gives empty frames.
    """
    if slicing == "time":
        window = (t[-1] - t[0]) // time_steps
        return np.searchsorted(t, t[0] + window * np.arange(time_steps + 1))
    return len(t) // time_steps * np.arange(time_steps + 1)


def to_frames(recording: Recording, sensor: tuple[int, int], spec: FrameSpec) -> np.ndarray:
    """Count the events of each frame, polarity and cell; int64 ``[T, 2, H, W]``.

    A pixel belongs to the cell ``floor(coordinate * size / sensor)`` and the events of a cell are summed, which is
    what ``tonic.transforms.Downsample`` before ``ToFrame`` gives. Others resize frames of the full sensor instead
    (TET: bilinear on 8-bit pictures; NDA: nearest, which drops six of seven pixels from 128 to 48). Summing loses no
    event and stays in whole counts; cells may then cover unequally many pixels (see :func:`pixels_per_cell`).
    """
    height, width = spec.size
    edges = frame_edges(recording.t, spec.time_steps, spec.slicing)
    kept = slice(edges[0], edges[-1])
    frame = np.repeat(np.arange(spec.time_steps), np.diff(edges))
    rows = cell_of_pixel(sensor[0], height)[recording.y[kept]]
    columns = cell_of_pixel(sensor[1], width)[recording.x[kept]]
    cell = ((frame * 2 + recording.p[kept]) * height + rows) * width + columns
    shape = (spec.time_steps, 2, height, width)
    return np.bincount(cell, minlength=np.prod(shape)).reshape(shape)


def frames_of(recording: Recording, name: str, sensor: tuple[int, int], spec: FrameSpec) -> np.ndarray:
    """The frames of one recording as a network is given them, uint8 ``[T, 2, H, W]``; counts above 255 are 255.

    Raises:
        BadRecording: it is empty, off the sensor, or so short that no frame has an event; the message starts with its
            name.
    """
    counts = to_frames(check(recording, name, sensor), sensor, spec)
    if not counts.any():
        what = f"{len(recording)} event(s) in {recording.duration_us} us give {len(counts)} frames without any"
        raise BadRecording(f"{name}: too short, its {what}{recording.unit_hint}")
    return np.minimum(counts, 255).astype(np.uint8)


def cell_of_pixel(pixels: int, cells: int) -> np.ndarray:
    """The cell of each pixel along one axis; int64 ``[pixels]``."""
    return np.arange(pixels) * cells // pixels


def pixels_per_cell(sensor: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """How many pixels of the sensor each cell of a frame covers; int64 ``[H, W]``. From 128 to 48: 4, 6 or 9."""
    rows, columns = (
        np.bincount(cell_of_pixel(pixels, cells), minlength=cells) for pixels, cells in zip(sensor, size, strict=True)
    )
    return np.outer(rows, columns)


def gain_of_cells(sensor: tuple[int, int], size: tuple[int, int]) -> Tensor | None:
    """What a count of each cell is multiplied by, so that evenly spread events look even; float32 ``[H, W]``.

    The mean number of pixels of a cell over its own; None where all cover equally many.
    """
    pixels = torch.from_numpy(pixels_per_cell(sensor, size)).float()
    return None if pixels.unique().numel() == 1 else pixels.mean() / pixels
