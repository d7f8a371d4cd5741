"""Frames of many recordings, built once into a memory-mapped file that several processes may ask for at the same time.

A cache is a folder ``<name>-<key>`` with ``frames.npy`` (uint8 ``[N, T, 2, H, W]``) and ``header.json``. The key is a
hash of everything that shapes a frame. A build goes to ``<name>-<key>.building`` under a file lock and is renamed when
it is complete; each opening checks the sizes and the checksums of both files, and builds again what does not match.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.recordings import BadRecording, RecordingSource

FORMAT = 1  # raise it when frames of the same key would come out differently
SECONDS_WORTH_A_POOL = 10.0  # worker processes take seconds to start
RECORDINGS_PER_TASK = 16


@dataclass(frozen=True)
class RecordingStats:
    """What building the frames of one recording showed.

    Attributes:
        saturated: cells that counted more than 255 events.
        clipped: events beyond 255 in those cells, lost.
        error: why the recording cannot be used, else None.
    """

    events: int = 0
    on_events: int = 0
    duration_us: int = 0
    saturated: int = 0
    clipped: int = 0
    error: str | None = None


@dataclass(frozen=True)
class FrameCache:
    """Frames in memory-mapped storage.

    Attributes:
        frames: uint8 ``[N, T, 2, H, W]``; all zero for bad recordings. Copy-on-write: the file is never changed.
        stats: one per recording.
    """

    frames: np.ndarray
    stats: list[RecordingStats]

    @property
    def bad(self) -> list[str]:
        """Why recordings cannot be used, one message each."""
        return [stats.error for stats in self.stats if stats.error]

    @property
    def usable(self) -> np.ndarray:
        """The indices of the recordings that can be used; int64."""
        return np.flatnonzero([not stats.error for stats in self.stats])


def cache_key(source: RecordingSource, spec: FrameSpec) -> str:
    """sha256, in hex, of all that shapes the frames: recordings, sensor, slicing, size, versions."""
    shapes = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "sensor": source.sensor,
        "spec": asdict(spec),
        "numpy": np.__version__,
    }
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def open_cache(
    folder: Path, name: str, source: RecordingSource, spec: FrameSpec, *, skip_bad: bool = False, workers: int = 0
) -> FrameCache:
    """Open the frames of these recordings, building them first where they are missing or damaged.

    Args:
        folder: where caches lie; made if absent.
        name: the readable part of the cache's own folder.
        source: the recordings.
        spec: the frames.
        skip_bad: warn about bad recordings, with their names, rather than stop at one.
        workers: processes that build; 0 takes one per core. Short builds use this process alone.

    Raises:
        BadRecording: a recording is bad and ``skip_bad`` is false.
    """
    key = cache_key(source, spec)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{key[:16]}"
    cache = _read(place, key)
    if cache is None:
        with _locked(folder / f"{place.name}.lock"):
            cache = _read(place, key)  # another process may have built it meanwhile
            if cache is None:
                if place.exists():
                    warnings.warn(f"{place}: damaged cache of frames, built again", stacklevel=2)
                _build(place, key, source, spec, skip_bad, workers)
                cache = _read(place, key)
    assert cache is not None
    if cache.bad and not skip_bad:
        raise BadRecording(f"{cache.bad[0]}; skip_bad=true leaves {len(cache.bad)} bad recording(s) out")
    if not len(cache.usable):
        raise BadRecording(f"{cache.bad[0]}; and so on: none of {len(cache.bad)} recordings can be used")
    if cache.bad:
        warnings.warn(f"{len(cache.bad)} bad recording(s) left out:\n  " + "\n  ".join(cache.bad), stacklevel=2)
    saturated = sum(stats.saturated for stats in cache.stats)
    if saturated:
        warnings.warn(
            f"{saturated} of {cache.frames.size} cells counted more than 255 events and were clipped, which lost "
            f"{sum(stats.clipped for stats in cache.stats)} events; more time_steps or a larger size avoids it",
            stacklevel=2,
        )
    return cache


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f"another process is building {path.stem}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(place: Path, key: str) -> FrameCache | None:
    """The cache at ``place``, or None where it is absent, cut short or changed."""
    try:
        sealed = json.loads((place / "header.json").read_text())
        header = sealed["header"]
        if sealed["sha256"] != _digest(header) or header["key"] != key:
            return None
        with (place / "frames.npy").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != header["frames_sha256"]:
                return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    frames = np.load(place / "frames.npy", mmap_mode="c")
    return FrameCache(frames, [RecordingStats(*row) for row in header["stats"]])


def _build(place: Path, key: str, source: RecordingSource, spec: FrameSpec, skip_bad: bool, workers: int) -> None:
    building = place.with_name(f"{place.name}.building")
    for leftover in (building, place):
        if leftover.exists():
            shutil.rmtree(leftover)
    building.mkdir()
    try:
        path = building / "frames.npy"
        shape = (len(source.names), spec.time_steps, 2, *spec.size)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(path)
        stats = _fill(path, source, spec, skip_bad, workers or _cores(), place.name)
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        header = {
            "key": key,
            "frames_sha256": checksum,
            "stats": [list(asdict(result).values()) for result in stats],
        }
        sealed = {"sha256": _digest(header), "header": header}
        (building / "header.json").write_text(json.dumps(sealed, separators=(",", ":")))
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(
    path: Path, source: RecordingSource, spec: FrameSpec, skip_bad: bool, workers: int, title: str
) -> list[RecordingStats]:
    """Write all frames into the file at ``path``.

    Begins in this process, and hands the rest to worker processes if it would take long.
    """
    total = len(source.names)
    stats = [RecordingStats()] * total
    columns = (TextColumn("frames of {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)

        def keep(index: int, result: RecordingStats) -> None:
            if result.error and not skip_bad:
                raise BadRecording(f"{result.error}; skip_bad=true leaves bad recordings out")
            stats[index] = result
            progress.advance(task)

        frames = np.load(path, mmap_mode="r+")
        start = time.perf_counter()
        for index in range(total):
            keep(index, _write_frames(frames, source, spec, index))
            elapsed = time.perf_counter() - start
            if workers > 1 and elapsed > 1 and elapsed * (total / (index + 1) - 1) > SECONDS_WORTH_A_POOL:
                break
        rest = range(index + 1, total)
        if rest:
            context = get_context("spawn")  # forking a process that holds threads (torch, rich) can deadlock
            with ProcessPoolExecutor(workers, context, _start_worker, (path, source, spec)) as pool:
                tasks = [
                    rest[first : first + RECORDINGS_PER_TASK] for first in range(0, len(rest), RECORDINGS_PER_TASK)
                ]
                try:
                    for future in as_completed([pool.submit(_work, indices) for indices in tasks]):
                        for index, result in future.result():
                            keep(index, result)
                except BrokenProcessPool as error:
                    raise RuntimeError(
                        "a process that builds frames died; a script of your own builds them under "
                        "`if __name__ == '__main__':` or with workers=1"
                    ) from error
                finally:
                    pool.shutdown(cancel_futures=True)
    if not console.is_terminal:
        console.print()  # rich ends its last line on terminals alone
    return stats


def _write_frames(frames: np.ndarray, source: RecordingSource, spec: FrameSpec, index: int) -> RecordingStats:
    try:
        recording = source.load(index)
    except BadRecording as error:
        return RecordingStats(error=str(error))
    counts = to_frames(recording, source.sensor, spec)
    frames[index] = np.minimum(counts, 255)
    excess = counts[counts > 255]
    return RecordingStats(
        events=len(recording),
        on_events=int(recording.p.sum()),
        duration_us=recording.duration_us,
        saturated=len(excess),
        clipped=int((excess - 255).sum()),
    )


_worker: dict[str, Any] = {}  # what a worker process got when it started


def _start_worker(path: Path, source: RecordingSource, spec: FrameSpec) -> None:
    _worker.update(frames=np.load(path, mmap_mode="r+"), source=source, spec=spec)


def _work(indices: range) -> list[tuple[int, RecordingStats]]:
    return [(index, _write_frames(**_worker, index=index)) for index in indices]


def _reserve(path: Path) -> None:
    """Claim the file's blocks, so that a full disk is an error here rather than a crash on a write to the mapping."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
