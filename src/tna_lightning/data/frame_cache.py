"""Frames of event recordings as a cache of arrays, see :mod:`~tna_lightning.data.array_cache`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tna_lightning.data.array_cache import ArrayCache, key_of, open_arrays
from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.recordings import BadRecording, RecordingSource
from tna_lightning.data.words import listed

FORMAT = 1  # raise it when frames of the same key would come out differently


@dataclass(frozen=True)
class RecordingStats:
    """What building the frames of one recording showed.

    Attributes:
        saturated: cells that counted more than 255 events.
        clipped: events beyond 255 in those cells, lost.
        error: why the recording cannot be used, else None.
        empty: frames without an event.
    """

    events: int = 0
    on_events: int = 0
    duration_us: int = 0
    saturated: int = 0
    clipped: int = 0
    error: str | None = None
    empty: int = 0


@dataclass(frozen=True)
class FrameMaker:
    """Frames, uint8 ``[T, 2, H, W]``, of the recordings of a source."""

    source: RecordingSource
    spec: FrameSpec

    what = "frames"
    sample = "recording"
    setting = "frames_root"
    stats = RecordingStats

    @property
    def names(self) -> Sequence[str]:  # noqa: D102
        return self.source.names

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.spec.time_steps, 2, *self.spec.size

    def make(self, index: int, out: np.ndarray) -> RecordingStats:  # noqa: D102
        try:
            recording = self.source.load(index)
        except BadRecording as error:
            return RecordingStats(error=str(error))
        counts = to_frames(recording, self.source.sensor, self.spec)
        empty = int((counts.sum((1, 2, 3)) == 0).sum())
        if empty == len(counts):
            what = f"{len(recording)} event(s) in {recording.duration_us} us give {len(counts)} frames without any"
            return RecordingStats(error=f"{self.names[index]}: too short, its {what}{recording.unit_hint}")
        out[:] = np.minimum(counts, 255)
        excess = counts[counts > 255]
        return RecordingStats(
            events=len(recording),
            on_events=int(recording.p.sum()),
            duration_us=recording.duration_us,
            saturated=len(excess),
            clipped=int((excess - 255).sum()),
            empty=empty,
        )


def cache_key(source: RecordingSource, spec: FrameSpec) -> str:
    """sha256, in hex, of all that shapes the frames: recordings, sensor, slicing, size, versions."""
    return key_of(
        {
            "format": FORMAT,
            "source": source.fingerprint(),
            "sensor": source.sensor,
            "spec": asdict(spec),
            "numpy": np.__version__,
        }
    )


def open_cache(
    folder: Path, name: str, source: RecordingSource, spec: FrameSpec, *, skip_bad: bool = False, workers: int = 0
) -> ArrayCache:
    """Open the frames of these recordings, building them first where they are missing or damaged.

    Args:
        folder: where caches lie; made if absent.
        name: the readable part of the cache's own folder.
        source: the recordings.
        spec: the frames.
        skip_bad: warn about bad recordings, with their names, rather than stop at one.
        workers: processes that build; 0 takes one per core. Short builds use this process alone.

    Raises:
        BadSample: a recording is bad and ``skip_bad`` is false.
        ValueError: frames cannot be written to ``folder``, or a file lies where a folder belongs.
    """
    maker = FrameMaker(source, spec)
    cache = open_arrays(folder, name, cache_key(source, spec), maker, skip_bad=skip_bad, workers=workers)
    saturated = sum(stats.saturated for stats in cache.stats)
    if saturated:
        warnings.warn(
            f"{saturated} of {cache.arrays.size} cells counted more than 255 events and were clipped, which lost "
            f"{sum(stats.clipped for stats in cache.stats)} events; more time_steps or a larger size avoids it",
            stacklevel=2,
        )
    lopsided = [
        name
        for name, stats in zip(source.names, cache.stats, strict=True)
        if spec.time_steps > 1 and stats.empty == spec.time_steps - 1
    ]
    if lopsided:
        warnings.warn(
            f"{len(lopsided)} recording(s) have all their events in one of {spec.time_steps} frames; a wrong time "
            f"stamp does that, which slicing=count forgives: {listed(lopsided)}",
            stacklevel=2,
        )
    return cache
