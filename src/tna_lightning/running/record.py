"""A run's folder and its record, and how others find and read it.

A run folder holds ``config.yaml`` (resolved), ``checkpoints/``, ``metrics.csv``, ``curves.png``, the kept network in
``network.safetensors`` and the record in ``run.json``. Everything that reports reads records and nothing else:
``run.json``, or the file that keeps a study's (:mod:`~tna_lightning.running.archive`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tna_lightning.files import write_text
from tna_lightning.running.identity import differences, identity
from tna_lightning.running.record_types import NEEDED, TOGETHER, TYPES, faults
from tna_lightning.running.versions import as_now

RECORD_FORMAT = 1
RECORD = "run.json"
CONFIG = "config.yaml"
NETWORK = "network.safetensors"
C_FOLDER = "network-exported-c"  # of `export --format c`, where no other is named
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def read_record(folder: Path | str) -> dict[str, Any]:
    """The ``run.json`` of a run folder; the settings of an earlier version stand where they stand today.

    Raises:
        ValueError: there is none, or it is no record; the message names the file.
    """
    return as_record(folder, written_record(folder))


def written_record(folder: Path | str) -> Any:
    """What stands in the ``run.json`` of a run folder, whatever it is.

    Raises:
        ValueError: there is none, or it is no JSON; the message names the file.
    """
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"run={str(folder)!r}: no run folder, it has no {RECORD}") from None
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged ({error})") from None


def as_record(folder: Path | str, record: Any) -> dict[str, Any]:
    """What was written for a run, with its settings where they stand today.

    Raises:
        ValueError: it is no record, or one of a later version; the message names the folder.
    """
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise ValueError(f"run={str(folder)!r}: {RECORD} is not the record of a run")
    if record["format"] > RECORD_FORMAT:
        raise ValueError(
            f"run={str(folder)!r}: {RECORD} has format {record['format']}, this version reads up to {RECORD_FORMAT}"
        )
    _refuse_missing(folder, "", record, {"status", "identity", "config"})
    refuse_types(folder, record, {"status": str, "identity": str, "config": dict})
    with reading(folder):
        return record | {"config": as_now(record["config"])}


@contextmanager
def reading(folder: Path | str) -> Iterator[None]:
    """What goes wrong where a record is read deeper than its types are checked, as one line that names the folder.

    Raises:
        ValueError: the record lacks what is looked for, or has something else there.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, or names code that fails ({reason})") from error


def refuse_types(folder: Path | str, record: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse a record whose entries, where they are there, are not of these types (:mod:`.record_types`).

    Raises:
        ValueError: one is not; the message names the folder and the entry.
    """
    with reading(folder):
        for key, value in faults("", record, {key: kind for key, kind in types.items() if key in record}):
            raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its {key} is {str(value)[:40]!r}")


def refuse_damaged_record(folder: Path | str, record: Mapping[str, Any]) -> None:
    """Refuse the record of a run that says that it is done, and lacks what belongs to that or has something else there.

    Raises:
        ValueError: it is so; the message names the folder and the entry.
    """
    if record["status"] != "done":
        return
    absent = [key for key in NEEDED if key not in record]
    if absent:
        raise ValueError(f"run={str(folder)!r}: {RECORD} says done, but has no {', '.join(absent)}")
    accuracy = record["results"].get("test/acc") if isinstance(record["results"], dict) else 0
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise ValueError(f"run={str(folder)!r}: {RECORD} has no test accuracy from 0 to 1, but {accuracy!r}")
    for key, value in faults("", record, TYPES):
        raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its {key} is {str(value)[:40]!r}")
    _refuse_another_seed(folder, record)
    for part, key, needed in TOGETHER:
        if record[part].get(key) is not None and record[part].get(needed) is None:
            raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its {part} has {key}, but no {needed}")


def _refuse_another_seed(folder: Path | str, record: Mapping[str, Any]) -> None:
    if record["config"].get("seed", record["seed"]) != record["seed"]:
        raise ValueError(f"run={str(folder)!r}: {RECORD} is damaged, its seed is not that of its config")


def _refuse_missing(folder: Path | str, prefix: str, found: Any, wanted: set[str]) -> None:
    missing = sorted(wanted - found.keys() if isinstance(found, Mapping) else wanted)
    if missing:
        raise ValueError(
            f"run={str(folder)!r}: {RECORD} is damaged or not the record of a run, it has no {prefix}{missing[0]}"
        )


def finished_record(folder: Path | str) -> dict[str, Any]:
    """The record of a run that is done.

    Raises:
        ValueError: as :func:`read_record`, or the run is not done.
    """
    record = read_record(folder)
    if record["status"] != "done":
        raise ValueError(f"run={str(folder)!r}: the run is {record['status']}, not done")
    _refuse_missing(folder, "", record, {"seed", "results"})
    _refuse_missing(folder, "config.", record["config"], {"data", "model", "neuron", "trainer"})
    # less than a report asks for: who rebuilds the network needs no more
    refuse_types(folder, record, {"seed": int, "results": {"*": int | float | None}, "choices": TYPES["choices"]})
    _refuse_another_seed(folder, record)
    return record


def precision_words(weights: Mapping[str, Any]) -> str:
    """What of a network is quantised, from its record's ``weights``, by name and by share of the weights.

    ``all``, ``none`` or ``all but stem, classifier (99.8 %)``: the modules that hold no quantised layer. Where schemes
    differ, those of the fewer weights follow: ``all; stem: int8``.
    """
    schemes = {layer["name"]: layer["scheme"] if layer["is_quantized"] else None for layer in weights["layers"]}
    quantized = [scheme for scheme in schemes.values() if scheme is not None]
    if not quantized:
        return "none"
    words = "all"
    if len(quantized) < len(schemes):
        words += f" but {_modules(schemes, None)} ({100 * weights['quantized_share']:.1f} %)"
    sizes = dict.fromkeys(quantized, 0)
    for layer in weights["layers"]:
        if layer["is_quantized"]:
            sizes[layer["scheme"]] += layer["weights"]
    others = sorted(sizes, key=lambda scheme: -sizes[scheme])[1:]
    return "; ".join([words, *(f"{_modules(schemes, scheme)}: {scheme}" for scheme in others)])


def measured_words(folder: Path | str) -> str | None:
    """What the header of exported C code says of its speed; None where there is none, or it was not measured."""
    header = Path(folder) / "network.h"
    found = re.search(r"^   Measured: (.*)\.$", header.read_text(), re.MULTILINE) if header.is_file() else None
    return found and found.group(1)


def operations_words(cost: Mapping[str, Any]) -> str:
    """Accumulates that spikes trigger, and multiply-accumulates, in words."""
    return f"{cost['synaptic_operations']:,.0f} AC, {cost['macs']:,.0f} MAC"


def not_counted_words(cost: Mapping[str, Any]) -> str:
    """What of a network multiplies and is not in its counts, from its record's ``cost``: ``aten.mul (lstm)``.

    Empty where all is counted, and where the record is older.
    """
    where: dict[str, list[str]] = {}
    for entry in cost.get("not_counted") or ():
        where.setdefault(entry["operation"], []).append(entry["name"] or "the network")
    return "; ".join(f"{operation} ({', '.join(names)})" for operation, names in where.items())


def limits_words(config: Mapping[str, Any]) -> str:
    """Which settings kept samples from the trainer, ``trainer.limit_test_batches=2``; empty where none did."""
    data = config.get("data") or {}
    subsets = [f"data.{part}_subset" for part in ("train", "val", "test") if data.get(f"{part}_subset") is not None]
    trainer = config.get("trainer") or {}
    limits = {f"limit_{stage}_batches": (None, 1.0) for stage in ("train", "val", "test")} | {"overfit_batches": (0,)}
    limited = [
        f"trainer.{name}={value!r}"
        for name, all_of_them in limits.items()
        # 1.0 is all of them, 1 is one
        if (value := trainer.get(name, all_of_them[0])) not in all_of_them or (value == 1 and isinstance(value, int))
    ]
    return " ".join([*(f"{key}={data[key.removeprefix('data.')]!r}" for key in subsets), *limited])


def part_of_test(record: Mapping[str, Any]) -> str:
    """How much of the test set a record's figures are of, ``50 of 360 test samples``; empty where they are of all."""
    data, config = record.get("data") or {}, record["config"]
    if whole := data.get("of_samples", {}).get("test"):
        return f"{data['test_samples']} of {whole} test samples"
    limited = {"trainer": {"limit_test_batches": (config.get("trainer") or {}).get("limit_test_batches")}}
    return "part of the test set" if limits_words(limited) else ""


def _modules(schemes: Mapping[str, str | None], scheme: str | None) -> str:
    """The modules whose layers are all of this scheme, each as large as it can be."""
    others = [name for name, each in schemes.items() if each != scheme]
    return ", ".join(dict.fromkeys(_outermost(name, others) for name, each in schemes.items() if each == scheme))


def _outermost(layer: str, others: Sequence[str]) -> str:
    """The largest module around a layer that holds none of the others."""
    parts = layer.split(".")
    around = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next(name for name in around if not any(f"{other}.".startswith(f"{name}.") for other in others))


def find_runs(root: Path | str) -> Iterator[Path]:
    """Folders under ``root`` (itself included) that hold a ``run.json``, in order; hidden folders are left out."""
    for path in sorted(Path(root).rglob(RECORD)):
        if visible(path, root):
            yield path.parent


def visible(path: Path, root: Path | str) -> bool:
    """Whether no folder from ``root`` down to ``path`` is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def remove_if_empty(folder: Path, and_above: bool = True) -> None:
    """What Hydra made for a run that was refused before anything was written: its folder, and the one around it."""
    for path in (folder, folder.parent) if and_above else (folder,):
        if path.absolute() != Path.cwd():
            with suppress(OSError):  # it is not empty, or gone
                path.rmdir()


def is_active(folder: Path | str) -> bool:
    """Whether some process is working in this run folder now."""
    path = Path(folder) / ".lock"
    if not path.exists() or not os.access(path, os.W_OK):  # nobody works here, or nobody can
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True


class Busy(ValueError):
    """Another process is training this run now."""


class Run:
    """One run's folder and record, while it is being written.

    Args:
        folder: where the run lives; made if absent.
        config: the resolved config as plain containers.
    """

    def __init__(self, folder: Path | str, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.config = dict(config)
        self.identity = identity(config)
        self.record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "status": "running",
            "name": self.folder.name,
            "identity": self.identity,
            "study": config.get("study"),
            "choices": config.get("choices", {}),
            "seed": config.get("seed"),
            "started": now(),
            "config": self.config,
            "environment": environment(),
        }

    def previous(self) -> dict[str, Any] | None:
        """The record that stands in the folder, or None.

        Raises:
            ValueError: it belongs to another config; the message names the settings that differ.
        """
        if not (self.folder / RECORD).exists():
            return None
        try:
            written = written_record(self.folder)
            record = as_record(self.folder, written)
        except ValueError as error:
            raise ValueError(f"{error}; move it away, or resume=false puts the folder aside and starts over") from None
        with reading(self.folder):
            is_ours = record["identity"] in (self.identity, identity(self.config, written["config"]))
            changed = [] if is_ours else differences(written["config"], self.config)
        if not is_ours:
            raise ValueError(
                f"resume=true: {self.folder} holds a run of another config ({'; '.join(changed[:5])}"
                f"{', ...' if len(changed) > 5 else ''}); choose another folder or resume=false. "
                f"More epochs for its network: another run, epochs=N extend={self.folder}; "
                f"with other settings init_from={self.folder}"
            )
        return record

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder's lock, so that no two processes train the same run at once.

        Without a record it leaves no lock, and no folder that holds nothing else.

        Raises:
            Busy: another process holds it.
        """
        with self._lock():
            try:
                yield
            finally:
                if not (self.folder / RECORD).exists():
                    (self.folder / ".lock").unlink(missing_ok=True)
                    remove_if_empty(self.folder, and_above=False)

    def _lock(self) -> AbstractContextManager[Any]:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # not at once: is_active holds the lock for a moment to see whether it is free
                return FileLock(self.folder / ".lock").acquire(timeout=2)
            except FileNotFoundError:  # a command that was refused has taken its empty folder away meanwhile
                continue
            except Timeout:
                raise Busy(f"run={str(self.folder)!r}: another process is training this run now") from None

    def put_aside(self) -> None:
        """Move what the folder holds to ``.replaced/`` beside it: a run is only ever replaced, never lost."""
        if not any((self.folder / name).exists() for name in (RECORD, LAST_CHECKPOINT)):
            return
        aside = self.folder.parent / ".replaced"
        number = 1
        while (target := aside / f"{self.folder.name}.{number}").exists():
            number += 1
        target.mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.name != ".lock":
                path.rename(target / path.name)

    def write(self, **entries: Any) -> dict[str, Any]:
        """Add entries to the record, write it atomically and return it."""
        record = self.record | entries
        # first the text: entries that cannot be written must not stay in the record and spoil the next one
        text = json.dumps(record, indent=1, allow_nan=False)
        write_text(self.folder / RECORD, text + "\n")
        self.record = record
        return record


def now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions, git commit and host of this process, for the record."""
    from importlib.metadata import version  # here, since --help is to be quick

    import torch

    packages = ("tna-lightning", "torch", "lightning", "torchmetrics", "hydra-core", "numpy")
    return {
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages} | {"torch": str(torch.__version__)},
        "git": _git_state(),
        "platform": platform.platform(terse=True),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the code that runs, and whether the tree differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # an installed package may lie inside some other project's checkout: only a tracked file is ours
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
