"""Frames of many recordings, built once into a memory-mapped file that several processes may ask for at the same time.

A cache is a folder ``<name>-<key>`` with ``frames.npy`` (uint8 ``[N, T, 2, H, W]``) and ``header.json``. The key is a
hash of everything that shapes a frame. A build goes to ``<name>-<key>.building`` under a file lock and is renamed when
it is complete; each opening checks the checksums of both files and what they say, and builds again what does not match.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
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
        ValueError: frames cannot be written to ``folder``, or a file lies where a folder belongs.
    """
    key = cache_key(source, spec)
    shape = (len(source.names), spec.time_steps, 2, *spec.size)
    place = folder / f"{name}-{key[:16]}"
    cache = _read(place, key, shape)
    if cache is None:
        with _locked(place):
            cache = _read(place, key, shape)  # another process may have built it meanwhile
            if cache is None:
                if place.exists():
                    warnings.warn(f"{place}: damaged cache of frames, built again", stacklevel=2)
                _build(place, key, source, spec, shape, skip_bad, workers)
                cache = _read(place, key, shape)
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
    lopsided = [
        name
        for name, stats in zip(source.names, cache.stats, strict=True)
        if spec.time_steps > 1 and stats.empty == spec.time_steps - 1
    ]
    if lopsided:
        warnings.warn(
            f"{len(lopsided)} recording(s) have all their events in one of {spec.time_steps} frames; a wrong time "
            f"stamp does that, which slicing=count forgives:\n  " + "\n  ".join(lopsided),
            stacklevel=2,
        )
    return cache


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock beside ``place``; its folder is made if absent.

    Raises:
        ValueError: nothing can be written there.
    """
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f"another process is building {place.name}: waiting for it")
        lock.acquire()
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{error.filename}: is a file, where the folder of frames belongs; move it") from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        reason = f"{place.parent}: frames cannot be written there ({error.strerror})"
        raise ValueError(f"{reason}; name a folder for them: frames_root=FOLDER") from error
    try:
        yield
    finally:
        lock.release()


def _read(place: Path, key: str, shape: tuple[int, ...]) -> FrameCache | None:
    """The cache at ``place``, or None where it is absent, cut short or changed, or not what this key and shape mean."""
    try:
        sealed = json.loads((place / "header.json").read_text())
        header = sealed["header"]
        if sealed["sha256"] != _digest(header) or header["key"] != key:
            return None
        with (place / "frames.npy").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != header["frames_sha256"]:
                return None
        frames = np.load(place / "frames.npy", mmap_mode="c")
        stats = [RecordingStats(*row) for row in header["stats"]]
        are_counts = all(type(value) is int for row in stats for name, value in vars(row).items() if name != "error")
        are_words = all(row.error is None or isinstance(row.error, str) for row in stats)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None
    fits = frames.dtype == np.uint8 and frames.shape == shape and len(stats) == shape[0]
    return FrameCache(frames, stats) if fits and are_counts and are_words else None


def _build(
    place: Path,
    key: str,
    source: RecordingSource,
    spec: FrameSpec,
    shape: tuple[int, ...],
    skip_bad: bool,
    workers: int,
) -> None:
    building = place.with_name(f"{place.name}.building")
    for leftover in (building, place):
        if leftover.is_file():
            raise ValueError(f"{leftover}: is a file, where the folder of frames belongs; move it")
        if leftover.exists():
            shutil.rmtree(leftover)
    building.mkdir()
    try:
        path = building / "frames.npy"
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
            # By a file, since Python before 3.14 holds both ends of the pipe over which a process starts (gh-118981):
            # what is longer than its buffer of 64 kB then waits for ever for one that died while it started.
            handed = path.with_name("source.pickle")
            handed.write_bytes(pickle.dumps((source, spec)))
            context = get_context("spawn")  # forking a process that holds threads (torch, rich) can deadlock
            with ProcessPoolExecutor(workers, context, _start_worker, (path, handed)) as pool:
                tasks = [
                    rest[first : first + RECORDINGS_PER_TASK] for first in range(0, len(rest), RECORDINGS_PER_TASK)
                ]
                try:
                    for future in as_completed([pool.submit(_work, indices) for indices in tasks]):
                        for index, result in future.result():
                            keep(index, result)
                except BrokenProcessPool as error:
                    raise ChildProcessError(
                        "a process that builds frames died: memory may be short (build_workers=1 needs the least), or "
                        "a script of your own builds them outside of `if __name__ == '__main__':`"
                    ) from error
                finally:
                    pool.shutdown(cancel_futures=True)
            handed.unlink()
    if not console.is_terminal:
        console.print()  # rich ends its last line on terminals alone
    return stats


def _write_frames(frames: np.ndarray, source: RecordingSource, spec: FrameSpec, index: int) -> RecordingStats:
    try:
        recording = source.load(index)
    except BadRecording as error:
        return RecordingStats(error=str(error))
    counts = to_frames(recording, source.sensor, spec)
    empty = int((counts.sum((1, 2, 3)) == 0).sum())
    if empty == len(counts):
        what = f"{len(recording)} event(s) in {recording.duration_us} us give {len(counts)} frames without any"
        return RecordingStats(error=f"{source.names[index]}: too short, its {what}")
    frames[index] = np.minimum(counts, 255)
    excess = counts[counts > 255]
    return RecordingStats(
        events=len(recording),
        on_events=int(recording.p.sum()),
        duration_us=recording.duration_us,
        saturated=len(excess),
        clipped=int((excess - 255).sum()),
        empty=empty,
    )


_worker: dict[str, Any] = {}  # what a worker process got when it started


def _start_worker(path: Path, handed: Path) -> None:
    source, spec = pickle.loads(handed.read_bytes())
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
