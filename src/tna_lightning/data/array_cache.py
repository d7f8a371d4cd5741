"""Arrays of many samples, built once into a memory-mapped file that several processes may ask for at the same time.

A cache is a folder ``<name>-<key>`` with one file of uint8 arrays, ``frames.npy`` or ``pictures.npy``, and
``header.json``. The key is a hash of everything that shapes an array. A build goes to ``<name>-<key>.building`` under a
file lock and is renamed when it is complete; each opening checks the checksums of both files and what they say, and
builds again what does not match.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tna_lightning.data.words import listed

SECONDS_WORTH_A_POOL = 10.0  # worker processes take seconds to start
SAMPLES_PER_TASK = 16


class Stats(Protocol):
    """What building the array of one sample showed: a dataclass of counts."""

    @property
    def error(self) -> str | None:
        """Why the sample cannot be used, else None."""


class Maker(Protocol):
    """Makes the arrays of a list of samples, in any process: it must be picklable."""

    what: str
    """What the arrays are, as a plural: the name of their file."""
    sample: str
    """What one of them is made from."""
    setting: str
    """The setting that says where the cache goes."""
    stats: Any
    """The class of what :meth:`make` returns."""

    @property
    def names(self) -> Sequence[str]:
        """One unique name a sample."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one array."""

    def make(self, index: int, out: np.ndarray) -> Stats:
        """Write the array, uint8, into ``out``; it stays zero where the sample cannot be used."""


@dataclass(frozen=True)
class ArrayCache:
    """Arrays in memory-mapped storage.

    Attributes:
        arrays: uint8 ``[N, ...]``; all zero for bad samples. Copy-on-write: the file is never changed.
        stats: one per sample, of the maker's kind.
    """

    arrays: np.ndarray
    stats: list[Any]

    @property
    def bad(self) -> list[str]:
        """Why samples cannot be used, one message each."""
        return [stats.error for stats in self.stats if stats.error]

    @property
    def usable(self) -> np.ndarray:
        """The indices of the samples that can be used; int64."""
        return np.flatnonzero([not stats.error for stats in self.stats])


def key_of(shapes: Any) -> str:
    """sha256, in hex, of all that shapes the arrays, as JSON."""
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def open_arrays(
    folder: Path, name: str, key: str, maker: Maker, *, skip_bad: bool = False, workers: int = 0
) -> ArrayCache:
    """Open the arrays of these samples, building them first where they are missing or damaged.

    Args:
        folder: where caches lie; made if absent.
        name: the readable part of the cache's own folder.
        key: sha256 of all that shapes the arrays, see :func:`key_of`.
        maker: makes them.
        skip_bad: warn about bad samples, with their names, rather than stop at one.
        workers: processes that build; 0 takes one per core. Short builds use this process alone.

    Raises:
        BadSample: a sample is bad and ``skip_bad`` is false, or none is good.
        ValueError: nothing can be written to ``folder``, or a file lies where a folder belongs.
    """
    place = folder / f"{name}-{key[:16]}"
    cache = _read(place, key, maker)
    if cache is None:
        with _locked(place, maker):
            cache = _read(place, key, maker)  # another process may have built it meanwhile
            if cache is None:
                if place.exists():
                    warnings.warn(f"{place}: damaged cache of {maker.what}, built again", stacklevel=3)
                _build(place, key, maker, skip_bad, workers)
                cache = _read(place, key, maker)
    assert cache is not None
    if cache.bad and not skip_bad:
        raise BadSample(f"{cache.bad[0]}; data.skip_bad=true leaves {len(cache.bad)} bad {maker.sample}(s) out")
    if not len(cache.usable):
        raise BadSample(f"{cache.bad[0]}; and so on: none of {len(cache.bad)} {maker.sample}s can be used")
    if cache.bad:
        bad = listed(cache.bad, between="; ")
        warnings.warn(f"{len(cache.bad)} bad {maker.sample}(s) left out: {bad}", stacklevel=3)
    return cache


class BadSample(ValueError):
    """A sample that cannot be used; the message starts with its name."""


@contextmanager
def _locked(place: Path, maker: Maker) -> Iterator[None]:
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
        raise ValueError(f"{error.filename}: is a file, where the folder of {maker.what} belongs; move it") from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        reason = f"{place.parent}: {maker.what} cannot be written there ({error.strerror})"
        raise ValueError(f"{reason}; name a folder for them: {maker.setting}=FOLDER") from error
    try:
        yield
    finally:
        lock.release()


def _read(place: Path, key: str, maker: Maker) -> ArrayCache | None:
    """The cache at ``place``, or None where it is absent, cut short or changed, or not what this key and maker mean."""
    path = place / f"{maker.what}.npy"
    try:
        sealed = json.loads((place / "header.json").read_text())
        header = sealed["header"]
        if sealed["sha256"] != key_of(header) or header["key"] != key:
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != header[f"{maker.what}_sha256"]:
                return None
        arrays = np.load(path, mmap_mode="c")
        stats = [maker.stats(*row) for row in header["stats"]]
        are_counts = all(type(value) is int for row in stats for name, value in vars(row).items() if name != "error")
        are_words = all(row.error is None or isinstance(row.error, str) for row in stats)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None
    fits = arrays.dtype == np.uint8 and arrays.shape == _shape(maker) and len(stats) == len(maker.names)
    return ArrayCache(arrays, stats) if fits and are_counts and are_words else None


def _shape(maker: Maker) -> tuple[int, ...]:
    return len(maker.names), *maker.shape


def _build(place: Path, key: str, maker: Maker, skip_bad: bool, workers: int) -> None:
    building = place.with_name(f"{place.name}.building")
    for leftover in (building, place):
        if leftover.is_file():
            raise ValueError(f"{leftover}: is a file, where the folder of {maker.what} belongs; move it")
        if leftover.exists():
            shutil.rmtree(leftover)
    building.mkdir()
    try:
        path = building / f"{maker.what}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=_shape(maker))
        _reserve(path)
        stats = _fill(path, maker, skip_bad, workers or _cores(), place.name)
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        header = {
            "key": key,
            f"{maker.what}_sha256": checksum,
            "stats": [list(vars(result).values()) for result in stats],
        }
        sealed = {"sha256": key_of(header), "header": header}
        (building / "header.json").write_text(json.dumps(sealed, separators=(",", ":")))
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(path: Path, maker: Maker, skip_bad: bool, workers: int, title: str) -> list[Stats]:
    """Write all arrays into the file at ``path``.

    Begins in this process, and hands the rest to worker processes if it would take long.
    """
    total = len(maker.names)
    stats = [maker.stats()] * total
    columns = (
        TextColumn(f"{maker.what} of {{task.description}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)

        def keep(index: int, result: Stats) -> None:
            if result.error and not skip_bad:
                raise BadSample(f"{result.error}; data.skip_bad=true leaves bad {maker.sample}s out")
            stats[index] = result
            progress.advance(task)

        arrays = np.load(path, mmap_mode="r+")
        start = time.perf_counter()
        for index in range(total):
            keep(index, maker.make(index, arrays[index]))
            elapsed = time.perf_counter() - start
            if workers > 1 and elapsed > 1 and elapsed * (total / (index + 1) - 1) > SECONDS_WORTH_A_POOL:
                break
        rest = range(index + 1, total)
        if rest:
            # By a file, since Python before 3.14 holds both ends of the pipe over which a process starts (gh-118981):
            # what is longer than its buffer of 64 kB then waits for ever for one that died while it started.
            handed = path.with_name("maker.pickle")
            handed.write_bytes(pickle.dumps(maker))
            context = get_context("spawn")  # forking a process that holds threads (torch, rich) can deadlock
            with ProcessPoolExecutor(workers, context, _start_worker, (path, handed)) as pool:
                tasks = [rest[first : first + SAMPLES_PER_TASK] for first in range(0, len(rest), SAMPLES_PER_TASK)]
                try:
                    for future in as_completed([pool.submit(_work, indices) for indices in tasks]):
                        for index, result in future.result():
                            keep(index, result)
                except BrokenProcessPool as error:
                    raise ChildProcessError(
                        f"a process that builds {maker.what} died: memory may be short (build_workers=1 needs the "
                        "least), or a script of your own builds them outside of `if __name__ == '__main__':`"
                    ) from error
                finally:
                    pool.shutdown(cancel_futures=True)
            handed.unlink()
    if not console.is_terminal:
        console.print()  # rich ends its last line on terminals alone
    return stats


_worker: dict[str, Any] = {}  # what a worker process got when it started


def _start_worker(path: Path, handed: Path) -> None:
    _worker.update(arrays=np.load(path, mmap_mode="r+"), maker=pickle.loads(handed.read_bytes()))


def _work(indices: range) -> list[tuple[int, Stats]]:
    arrays, maker = _worker["arrays"], _worker["maker"]
    return [(index, maker.make(index, arrays[index])) for index in indices]


def _reserve(path: Path) -> None:
    """Claim the file's blocks, so that a full disk is an error here rather than a crash on a write to the mapping."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
