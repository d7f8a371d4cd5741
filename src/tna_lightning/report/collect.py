"""Finding the runs of a study: which are done, which are not, and what had to be left out."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tna_lightning.report.statistics import apart
from tna_lightning.running.archive import RECORDS, find_records
from tna_lightning.running.progress import LOG, jobs_to_come, progress
from tna_lightning.running.record import CONFIG, RECORD, as_record, is_active, refuse_damaged_record


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
        name: of its folder.
        state: ``failed``, ``running``, ``cut off`` (nobody works on it any more), or ``not started``.
        detail: the error, or how far it is and when it began.
        settings: what it does not share with all other runs, ``baseline=tna seed=1``; empty where it has no record.
        folder: where it lies; None where a file of records has it.
    """

    name: str
    state: str
    detail: str = ""
    settings: str = ""
    folder: Path | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        """``failed: NAME (baseline=tna seed=1) ValueError: ...``."""
        settings = f"({self.settings})" if self.settings else ""
        return " ".join(filter(None, [f"{self.state}: {self.name}", settings, self.detail]))

    @property
    def log(self) -> Path | None:
        """What it printed, where that was kept."""
        log = None if self.folder is None else self.folder / LOG
        return log if log is not None and log.exists() else None


@dataclasses.dataclass(frozen=True)
class Collection:
    """What stands in the folders, or files of records, of one or more studies.

    Attributes:
        done: the records of finished runs, one an identity, in the order of their folders.
        unfinished: runs without a result.
        left_out: one line for everything else that was found, with the reason why it does not count.
        folders: by identity, where a finished run lies; those that only a file of records has are not there.
        to_come: how many jobs of a sweep have not begun.
    """

    done: list[dict[str, Any]]
    unfinished: list[Unfinished]
    left_out: list[str]
    folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    to_come: int = 0


def collect(studies: Sequence[Path | str]) -> Collection:
    """Read every run under these folders, and in these files of records.

    A file knows no folder without a record: jobs that never began are not in it.

    Raises:
        FileNotFoundError: a study is not there.
        ValueError: a file of records is damaged.
    """
    left_out: list[str] = []
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    unfinished: list[Unfinished] = []
    for study in map(Path, studies):
        for folder, read in find_records(study):
            try:
                record = as_record(folder, read())
                refuse_damaged_record(folder, record)
            except (ValueError, OSError) as error:
                left_out.append(str(error))
                continue
            if all(folder.resolve() != other.resolve() for other, _ in found[record["identity"]]):
                found[record["identity"]].append((folder, record))
        for folder in _without_record(study):
            if (folder / CONFIG).exists():
                state = "running" if is_active(folder) else "not started"
                unfinished.append(Unfinished(folder.name, state, folder=folder))
            else:
                left_out.append(f"run={str(folder)!r}: no run folder, it has no {RECORD}")

    done: list[dict[str, Any]] = []
    folders: dict[str, Path] = {}
    not_done: list[tuple[Path, dict[str, Any]]] = []
    for copies in found.values():
        # the one that is done, and of these the one that still has its own name
        folder, record = min(
            copies, key=lambda copy: (copy[1]["status"] != "done", not copy[0].name.endswith(copy[1]["identity"][:8]))
        )
        for other, its in copies:
            if other is not folder:
                line = f"run={str(other)!r}: the same run as {folder} (identity {record['identity'][:8]})"
                if its["status"] == "done" and its["results"] != record["results"]:
                    theirs, ours = (f"{100 * each['results']['test/acc']:.2f} %" for each in (its, record))
                    line += f", WITH ANOTHER RESULT: {theirs}, and {ours} there"
                left_out.append(line)
        if record["status"] == "done":
            done.append(record)
            if folder.is_dir():
                folders[record["identity"]] = folder
        else:
            not_done.append((folder, record))
    settings = apart([*(record for _, record in not_done), *done]) if not_done else []
    for (folder, record), words in zip(not_done, settings, strict=False):
        unfinished.append(_unfinished(folder, record, words))
    to_come = sum(jobs_to_come(study) for study in map(Path, studies) if study.is_dir())
    return Collection(done, sorted(unfinished, key=lambda run: (run.state, run.name)), left_out, folders, to_come)


def _without_record(study: Path) -> Iterator[Path]:
    """Folders directly in the study in which there is no record at any depth, but for the report's own and a run's."""
    for folder in sorted(study.iterdir()) if study.is_dir() and not (study / RECORD).exists() else ():
        is_ours = folder.name == "report" or folder.name.startswith(".")
        if folder.is_dir() and not is_ours and not any(next(folder.rglob(name), None) for name in (RECORD, RECORDS)):
            yield folder


def _unfinished(folder: Path, record: dict[str, Any], settings: str) -> Unfinished:
    is_running = record["status"] == "running" and is_active(folder)
    state = "failed" if record["status"] == "failed" else "running" if is_running else "cut off"
    if state == "failed":
        detail = str(record.get("error", "")).partition("\n")[0]
    else:
        detail = f"since {_clock(str(record.get('started', 'unknown')))}"
        if is_running and "started" in record and (far := progress(folder, record)) is not None:
            detail = f"{far}, {detail}"
    return Unfinished(folder.name, state, detail, settings, folder if folder.is_dir() else None)


def _clock(moment: str) -> str:
    """``11:49``, as this machine's clock has it, with the date where that is not today's."""
    try:
        here = datetime.fromisoformat(moment).astimezone()
    except ValueError:
        return moment
    return f"{here:%H:%M}" if here.date() == datetime.now().astimezone().date() else f"{here:%Y-%m-%d %H:%M}"
