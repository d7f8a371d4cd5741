"""How far a run is that some process trains now: its epochs, and about how long it still takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

METRICS, LOG = "metrics.csv", "output.log"
# a sweep's notes in its study's folder: how many jobs it has; what a job's note ends in that it has begun (JSON: ended)
NOTES, JOBS, BEGUN = ".sweeps", "jobs", ".begun"
_EPOCH = re.compile(rb"^epoch (\d+) of (\d+): .*?([\d.]+) s$", re.MULTILINE)  # of callbacks/progress.py
_TAIL = 4096  # bytes of a log that hold its last epochs


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs that are done.
        epochs: that it will have.
        seconds_left: about, without test and pictures; None before the first epoch's end.
    """

    epoch: int
    epochs: int
    seconds_left: float | None

    def __str__(self) -> str:
        """``epoch 12 of 100, about 3 min left``."""
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return f"epoch {self.epoch} of {self.epochs}{left}"


def progress(folder: Path, record: Mapping[str, Any]) -> Progress | None:
    """How far the run in this folder is; None where its record does not say how many epochs it will have.

    The time of an epoch is that of the last ones in the log where there is one, else the mean since the run began.
    """
    epochs = (record["config"].get("trainer") or {}).get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        return None
    metrics = folder / METRICS
    done = max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.exists() else 0
    seconds = _seconds_an_epoch(folder / LOG)
    if seconds is None and done:
        began = datetime.fromisoformat(record["started"]).timestamp()
        seconds = max(0.0, metrics.stat().st_mtime - began) / done
    return Progress(done, epochs, None if seconds is None else seconds * (epochs - done))


def jobs_to_come(study: Path) -> int:
    """How many jobs of the last sweep in a study's folder have not begun; 0 where it has ended."""
    notes = max((study / NOTES).glob(f"*/{JOBS}"), key=lambda path: path.stat().st_mtime, default=None)
    if notes is None:
        return 0
    begun = {path.stem for pattern in ("*.json", f"*{BEGUN}") for path in notes.parent.glob(pattern)}
    return max(0, int(notes.read_text()) - len(begun))


def _seconds_an_epoch(log: Path) -> float | None:
    """The mean of the last epochs that a log has lines of."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        times = [float(match[3]) for match in _EPOCH.finditer(file.read())][-5:]
    return sum(times) / len(times) if times else None


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
