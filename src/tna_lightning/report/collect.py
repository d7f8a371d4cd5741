"""Finding the runs of a study: which are done, which are not, and what had to be left out."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tna_lightning.running.archive import RECORDS, find_records
from tna_lightning.running.record import CONFIG, RECORD, as_record, is_active

# what a record of a finished run must hold to be put in a table
NEEDED = ("results", "weights", "cost", "history", "data", "choices", "config", "seed")

# Of what type it is, as far as the report reads it. A key that ends in ? may be absent or null, * stands for every
# other one; a list holds the type of its items, a tuple those of just so many. Numbers are finite, and no booleans.
_NUMBER = int | float
_AMOUNTS = int | float | list | dict | None
_ANN = ("activation_bits", "operations", "on_nonzero_weights", "energy_uj", "energy_memory_uj")
TYPES: dict[str, Any] = {
    "seed": int,
    "study?": str,
    "wall_time_s?": _NUMBER,
    "choices": dict.fromkeys(("data?", "model?", "neuron?", "baseline?", "quant?", "augment?"), str),
    "config": {
        "data": dict,
        "objective": {"match_weight?": _NUMBER},
        **dict.fromkeys(("trainer?", "augment?", "callbacks?"), dict),
    },
    "data": {"simulated?": bool, "notes?": str | list, "note?": str | list},
    "environment?": {"versions?": dict, "git?": {"commit": str, "dirty": bool}},
    "results": {"test/acc": _NUMBER, "*": _NUMBER | None},
    "history": {"*": [_NUMBER | None]},
    "weights": {
        "layers?": [{"name": str, "scheme": str, "is_quantized": bool, "weights": _NUMBER}],
        "*": _AMOUNTS,
    },
    "cost": {
        "not_counted?": [{"name": str, "operation": str}],
        "memory_model?": {"sram": [(_NUMBER, _NUMBER)], "dram": _NUMBER, "access_bits": _NUMBER},
        "quantized_ann?": dict.fromkeys((f"{key}?" for key in _ANN), _NUMBER),
        "*": _AMOUNTS,
    },
}
_NONE_BELOW_ZERO = ("weights.", "cost.")
_TOGETHER = (("weights", "layers", "quantized_share"), ("cost", "pj_per_mac", "pj_per_ac"))


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
        name: of its folder.
        state: ``failed``, ``running``, ``cut off`` (nobody works on it any more), or ``not started``.
        detail: the error, or when it began.
    """

    name: str
    state: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Collection:
    """What stands in the folders, or files of records, of one or more studies.

    Attributes:
        done: the records of finished runs, one an identity, in the order of their folders.
        unfinished: runs without a result.
        left_out: one line for everything else that was found, with the reason why it does not count.
    """

    done: list[dict[str, Any]]
    unfinished: list[Unfinished]
    left_out: list[str]


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
                _check(folder, record)
            except (ValueError, OSError) as error:
                left_out.append(str(error))
                continue
            if all(folder.resolve() != other.resolve() for other, _ in found[record["identity"]]):
                found[record["identity"]].append((folder, record))
        for folder in _without_record(study):
            if (folder / CONFIG).exists():
                unfinished.append(Unfinished(folder.name, "running" if is_active(folder) else "not started"))
            else:
                left_out.append(f"run={str(folder)!r}: no run folder, it has no {RECORD}")

    done: list[dict[str, Any]] = []
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
        else:
            unfinished.append(_unfinished(folder, record))
    return Collection(done, sorted(unfinished, key=lambda run: (run.state, run.name)), left_out)


def _check(folder: Path, record: dict[str, Any]) -> None:
    if record["status"] != "done":
        return
    absent = [key for key in NEEDED if key not in record]
    if absent:
        raise ValueError(f"run={str(folder)!r}: {RECORD} says done, but has no {', '.join(absent)}")
    accuracy = record["results"].get("test/acc") if isinstance(record["results"], dict) else 0
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise ValueError(f"run={str(folder)!r}: {RECORD} has no test accuracy from 0 to 1, but {accuracy!r}")
    for key, value in _faults("", record, TYPES):
        raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its {key} is {str(value)[:40]!r}")
    for part, key, needed in _TOGETHER:
        if record[part].get(key) is not None and record[part].get(needed) is None:
            raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its {part} has {key}, but no {needed}")


def _faults(path: str, value: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    """What is of another type than :data:`TYPES` says, by dotted key."""
    if isinstance(kind, list | tuple):
        if not isinstance(value, list) or (isinstance(kind, tuple) and len(value) != len(kind)):
            yield path, value
        else:
            for item, its in zip(value, kind * len(value) if isinstance(kind, list) else kind, strict=True):
                yield from _faults(path, item, its)
    elif not isinstance(kind, dict):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_below = is_number and value < 0 and path.startswith(_NONE_BELOW_ZERO)
        is_odd = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or is_odd or is_below or (isinstance(value, float) and not math.isfinite(value)):
            yield path, value
    elif not isinstance(value, dict):
        yield path, value
    else:
        prefix = f"{path}." if path else ""
        named = {key.removesuffix("?"): (its, key.endswith("?")) for key, its in kind.items() if key != "*"}
        for key, (its, is_optional) in named.items():
            if not (is_optional and value.get(key) is None):
                yield from _faults(f"{prefix}{key}", value.get(key), its)
        for key in value.keys() - named.keys() if "*" in kind else ():
            yield from _faults(f"{prefix}{key}", value[key], kind["*"])


def _without_record(study: Path) -> Iterator[Path]:
    """Folders directly in the study in which there is no record at any depth, but for the report's own."""
    for folder in sorted(study.iterdir()) if study.is_dir() else ():
        is_ours = folder.name == "report" or folder.name.startswith(".")
        if folder.is_dir() and not is_ours and not any(next(folder.rglob(name), None) for name in (RECORD, RECORDS)):
            yield folder


def _unfinished(folder: Path, record: dict[str, Any]) -> Unfinished:
    if record["status"] == "failed":
        return Unfinished(folder.name, "failed", str(record.get("error", "")).partition("\n")[0])
    is_running = record["status"] == "running" and is_active(folder)
    return Unfinished(folder.name, "running" if is_running else "cut off", f"since {record.get('started', 'unknown')}")
