"""Sweeps: each job a fresh process, one line a job, a summary at the end, the same under every Hydra launcher.

A launcher may run a job in another process or on another machine. What became of it stands in a note in the sweep's
folder; the process that started the sweep reads the notes, so that it needs nothing but the file system in between.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import BaseFileLock, FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from tna_lightning.files import write_text
from tna_lightning.running import config as configuration
from tna_lightning.running.config import explain
from tna_lightning.running.console import BUSY, leave
from tna_lightning.running.processes import (
    begin_sweep,
    end_with_sweep,
    environment_of_child,
    training_command,
    was_interrupted,
)
from tna_lightning.running.progress import BEGUN, JOBS, LOG, NOTES, duration, progress
from tna_lightning.running.record import (
    LAST_CHECKPOINT,
    RECORD,
    Busy,
    Run,
    is_active,
    now,
    read_record,
    remove_if_empty,
)
from tna_lightning.running.warm import train_warm

configuration.register_resolvers()  # here, since a launcher's worker imports this module and nothing else of ours


_sweep: SweepSummary | None = None  # of the sweep that this process has started and not ended
_LOCK = ".lock"  # beside a sweep's notes: held as long as its process lives
_notes: Path | None = None  # where this process notes what became of its job
_same_in_all: frozenset[str] = frozenset()  # what the command line sets alike for all jobs of its sweep


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one job of a sweep.

    Attributes:
        number: of the job in this sweep.
        overrides: what it is, as on the command line.
        folder: the run's folder.
        status: ``done``, ``skipped`` (done before), ``failed`` or ``busy`` (another process trains this run now).
        start: ``fresh``, ``resumed`` or ``repeated``.
        seconds: that it took now.
        test_acc: test accuracy of the base, as a share.
        val_acc: validation accuracy of the base in the epoch that is kept.
        error: why it failed.
    """

    number: int
    overrides: str
    folder: str
    status: str
    start: str = "fresh"
    seconds: float = 0.0
    test_acc: float | None = None
    val_acc: float | None = None
    error: str | None = None

    def line(self) -> str:
        """The one line for a person."""
        if self.status == "busy":
            what = "busy, another process trains this run now"
        elif self.status == "skipped":
            what = "skipped, done before"
        else:
            start = {"fresh": "", "resumed": "resumed, ", "repeated": "repeated, "}[self.start]
            what = f"{start}{self.status} in {self.seconds:.0f} s"
        if self.test_acc is not None:
            what += f", test accuracy {self.test_acc:.2%}"
        if self.error:
            what += f" ({self.error})"
        return f"#{self.number} {what}: {self.overrides or Path(self.folder).name}"

    def judged(self, status: str, record: Mapping[str, Any]) -> Outcome:
        """This outcome with a new status and the accuracies of the run's record."""
        results = record["results"]
        accuracies = {"test_acc": results.get("test/acc"), "val_acc": results.get("val/acc")}
        return Outcome(**(dataclasses.asdict(self) | accuracies | {"status": status}))


def sweep_job(config: dict[str, Any], folder: Path) -> float | None:
    """One job of a sweep: train in a fresh process, note what became of it, and return the validation accuracy.

    None if it failed, since a search maximises what it is given.
    """
    hydra_config = HydraConfig.get()
    outcome = _train_in_a_process(config, folder, int(hydra_config.job.num), hydra_config.overrides.task)
    if _notes is not None:
        write_text(_notes / f"{outcome.number}.json", json.dumps(dataclasses.asdict(outcome)))
    return outcome.val_acc


def _train_in_a_process(config: dict[str, Any], folder: Path, number: int, overrides: list[str]) -> Outcome:
    """Train in a fresh process if the run is not done yet. Errors end up in the outcome: no job can stop the others."""
    told = " ".join(word for word in overrides if _key(word) not in _same_in_all)
    outcome = Outcome(number, told, str(folder), "failed")
    started = time.monotonic()
    try:
        _check(config, folder)
        before = Run(folder, config).previous() if config["resume"] else None
        if before is not None and before["status"] == "done":
            return outcome.judged("skipped", before)
        if is_active(folder):
            return dataclasses.replace(outcome, status="busy")
        outcome = dataclasses.replace(outcome, start=_start(config, folder, before))
        configuration.write_config(config, folder)
        if _notes is not None:
            write_text(_notes / f"{number}{BEGUN}", json.dumps({"overrides": told, "folder": str(folder)}))
        with _device(config) as device:
            status = _process(config, folder, _environment(device))
        outcome = dataclasses.replace(outcome, seconds=time.monotonic() - started)
        if status == BUSY:
            return dataclasses.replace(outcome, status="busy")
        after = read_record(folder) if (folder / RECORD).exists() else {"status": "failed"}
        if status == 0 and after["status"] == "done":
            return outcome.judged("done", after)
        if status == 2:
            reason = _last_error((folder / LOG).read_text(errors="replace"))
            _note_refusal(config, folder, reason)
        elif status < 0:
            reason = f"killed by {signal.Signals(-status).name}"
        else:
            reason = str(after.get("error") or f"exit status {status}").splitlines()[0]
        return dataclasses.replace(outcome, error=f"{reason}; see {folder / LOG}")
    except Busy:
        return dataclasses.replace(outcome, status="busy")
    except (ValueError, OSError) as error:
        return dataclasses.replace(outcome, seconds=time.monotonic() - started, error=str(error).splitlines()[0])
    finally:
        remove_if_empty(folder)


def _process(config: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> int:
    """Train in a process of its own; its exit status, negative for the signal that ended it."""
    if sys.platform == "linux" and config["trainer"].get("devices") == 1 and not _devices(config):
        return train_warm(folder, folder / LOG, environment)
    with (
        (folder / LOG).open("ab") as log,
        subprocess.Popen(training_command(folder), stdout=log, stderr=subprocess.STDOUT, env=environment) as child,
    ):
        return child.wait()


def _key(word: str) -> str:
    return word.partition("=")[0]


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Check the config; what is refused stands in the folder as a failed run, so that a report lists it as one."""
    try:
        configuration.check(config)
    except ValueError as error:
        _note_refusal(config, folder, f"{type(error).__name__}: {error}")
        raise


def _note_refusal(config: Mapping[str, Any], folder: Path, reason: str) -> None:
    """Where a run was refused before it began, and has no record: the report shall know of it.

    Raises:
        Busy: another process is beginning this run.
    """
    run = Run(folder, config)
    with run.claimed():
        if not (folder / RECORD).exists():
            run.write(status="failed", finished=now(), error=reason)


def _last_error(output: str) -> str:
    """The reason in a job's output, to which another process that was given the same job may have added its own."""
    lines = output.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it says nothing"])[-1]


def _start(config: Mapping[str, Any], folder: Path, before: Mapping[str, Any] | None) -> str:
    if before is None or not config["resume"]:
        return "fresh"
    if before["status"] == "failed":
        return "repeated"
    return "resumed" if (folder / LAST_CHECKPOINT).exists() else "repeated"


def _environment(device: str | None) -> dict[str, str]:
    """The environment of a job's process."""
    environment = environment_of_child()
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    if "SLURM_NTASKS" in environment:
        # a job is one task of Slurm's that starts its own processes; else Lightning waits for Slurm to start them
        environment["SLURM_JOB_NAME"] = "interactive"
    return environment


@contextmanager
def _device(config: Mapping[str, Any]) -> Iterator[str | None]:
    """A GPU that no other job on this machine holds, where there are several and the job wants one; waits for it."""
    devices = _devices(config) if config["trainer"].get("devices") == 1 else []
    if len(devices) < 2:
        yield None
        return
    with claimed_device(devices) as device:
        yield device


def _devices(config: Mapping[str, Any]) -> list[str]:
    """The GPUs that a job may work on."""
    return [] if config["trainer"].get("accelerator") == "cpu" else visible_devices()


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` would name them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def claimed_device(devices: list[str], wait_seconds: float = 1.0) -> Iterator[str]:
    """The first of these devices that no other process of this user holds; it is held until the context ends."""
    folder = Path(tempfile.gettempdir()) / f"tna_lightning-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for device in devices:
            lock = FileLock(folder / f"{device}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield device
            finally:
                lock.release()
            return
        time.sleep(wait_seconds)


def _remove_notes(notes: Path) -> None:
    for path in [*notes.glob("*.json"), *notes.glob(f"*{BEGUN}"), notes / JOBS, notes / _LOCK]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # jobs that go on without the launcher still write theirs
        notes.rmdir()
        notes.parent.rmdir()


def _forget_killed_sweeps(study: Path) -> None:
    """Remove what killed sweeps left in a study, now that a later one has ended: nothing is to come of them."""
    for notes in (study / NOTES).glob("*"):
        with suppress(OSError), FileLock(notes / _LOCK).acquire(blocking=False):  # not held, and still there
            _remove_notes(notes)


class SweepSummary(Callback):
    """Prints a line for each job as it ends, and the sweep's summary; leaves with status 1 if any job failed.

    Lives in the process that starts the sweep. Launchers send a copy along with each job.
    """

    def __init__(self) -> None:
        self.notes: Path | None = None
        self.same_in_all: frozenset[str] = frozenset()
        self._printer: _Printer | None = None
        self._lock: BaseFileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"notes": self.notes, "same_in_all": self.same_in_all, "_printer": None, "_lock": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: D102
        global _sweep
        try:
            _refuse_minimization(config)
            folder = Path(OmegaConf.select(config, "hydra.sweep.dir"))
            notes = (folder / NOTES / uuid.uuid4().hex[:12]).absolute()
            notes.mkdir(parents=True)
            self._lock = FileLock(notes / _LOCK)
            self._lock.acquire()
        except (ValueError, OSError) as error:  # here, since Hydra makes a warning of any error in a callback
            leave(error)
        _sweep = self
        begin_sweep()
        self.notes = notes
        words = OverridesParser.create().parse_overrides(OmegaConf.select(config, "hydra.overrides.task"))
        self.same_in_all = frozenset(_key(word.input_line or "") for word in words if not word.is_sweep_override())
        print(f"sweep {folder}: a line for each job when it ends; until then its output is in RUN/{LOG}", flush=True)
        jobs = number_of_jobs(config)
        if jobs is not None:
            write_text(notes / JOBS, str(jobs))
        self._printer = _Printer(self.notes, jobs)
        self._printer.start()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: D102
        global _notes, _same_in_all
        _notes, _same_in_all = self.notes, self.same_in_all
        end_with_sweep()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: D102
        global _sweep
        _sweep = None
        folder = OmegaConf.select(config, "hydra.sweep.dir")
        counts, jobs = self._told(folder)
        _forget_killed_sweeps(Path(folder))
        if counts["failed"]:
            sys.exit(f"{counts['failed']} of {jobs} failed; the same command repeats them")

    def broken_off(self, error: BaseException) -> NoReturn:
        """Leave after an error of the launcher or sweeper, or Ctrl-C: what is done is told, nothing stays behind."""
        assert self.notes is not None
        folder = self.notes.parent.parent
        counts, _ = self._told(os.path.relpath(folder))
        line = explain(error)
        if not counts and line is not None:  # refused
            _remove_traces(folder)
        elif not was_interrupted(error):
            line = " ".join((line or f"{type(error).__name__}: {error}").partition("\n")[0].split())
            sys.exit(
                f"error: the launcher broke off ({line}); jobs without a line above were killed, or not begun, "
                "or go on where they run. The same command does what is missing"
            )
        leave(error)

    def _told(self, folder: str) -> tuple[Counter[str], str]:
        """Print the summary, and return how many jobs ended in which way, and of how many in words."""
        assert self._printer is not None
        outcomes = self._printer.finish()
        counts = Counter(outcome.status for outcome in outcomes)
        words = [f"{counts[status]} {status}" for status in ("done", "skipped", "busy", "failed") if counts[status]]
        jobs = "1 job" if len(outcomes) == 1 else f"{len(outcomes)} jobs"
        if counts:
            report = f"python -m tna_lightning.report {shlex.quote(folder)}"
            print(f"{jobs}: {', '.join(words)}. Tables and plots: {report}", flush=True)
        return counts, jobs


def _refuse_minimization(config: DictConfig) -> None:
    """A search must not minimise what jobs return, the validation accuracy; the plugin's own default does."""
    direction = OmegaConf.select(config, "hydra.sweeper.direction")
    if str(getattr(direction, "name", direction)) == "minimize":
        raise ValueError(
            "hydra.sweeper.direction=minimize: must be maximize, a job returns its validation accuracy; "
            "hydra/sweeper=search says so"
        )


def running_sweep() -> SweepSummary | None:
    """The sweep that this process has started and that has not ended."""
    return _sweep


def _remove_traces(folder: Path) -> None:
    """What a sweep of which no job began leaves in its folder."""
    if {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
        (folder / "multirun.yaml").unlink(missing_ok=True)
        folder.rmdir()


def number_of_jobs(config: DictConfig) -> int | None:
    """How many jobs a sweep has; None where its sweeper does not say."""
    if (trials := OmegaConf.select(config, "hydra.sweeper.n_trials")) is not None:
        return int(trials)
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = {key: f"{key}={value}" for key, value in params.items()}
    words |= {_key(word): word for word in OmegaConf.select(config, "hydra.overrides.task")}  # the command line's count
    jobs = 1
    for word in OverridesParser.create().parse_overrides(list(words.values())):
        if word.is_sweep_override():
            try:
                jobs *= len(list(word.sweep_iterator()))
            except (HydraException, ValueError, TypeError):  # an interval
                return None
    return jobs


class _Printer(threading.Thread):
    """Prints the notes of a folder as they come, each once, and removes them at the end.

    What runs stands in a line of its own: in a terminal the last one, which is written anew; in a file after the lines
    of jobs that have ended.
    """

    def __init__(self, notes: Path, jobs: int | None) -> None:
        super().__init__(daemon=True)
        self.notes = notes
        self.jobs = jobs
        self._outcomes: dict[Path, Outcome] = {}
        self._began = time.monotonic()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.3):
            if (is_news := self._print_new()) or sys.stdout.isatty():
                self._print_status(is_news)

    def finish(self) -> list[Outcome]:
        """Stop, print what is left, and return all outcomes."""
        self._ended.set()
        self.join()
        self._clear()
        self._print_new()
        _remove_notes(self.notes)
        return list(self._outcomes.values())

    def _print_new(self) -> bool:
        is_news = False
        for path in sorted(self.notes.glob("*.json"), key=lambda path: int(path.stem)):
            if path not in self._outcomes:
                self._outcomes[path] = Outcome(**json.loads(path.read_text()))
                self._clear()
                print(self._outcomes[path].line(), flush=True)
                is_news = True
        return is_news

    def _clear(self) -> None:
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)

    def _print_status(self, is_news: bool) -> None:
        text = self.status()
        if sys.stdout.isatty():
            room = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text if len(text) <= room else text[: room - 3] + '...'}", end="", flush=True)
        elif is_news and text:
            print(f"  {text}", flush=True)

    def status(self) -> str:
        """``4 of 18 ended, about 12 min left; running: #4 seed=1 baseline=tna (epoch 12 of 100, about 2 min left)``."""
        jobs, ended = self.jobs, len(self._outcomes)
        if jobs is not None and ended >= jobs:
            return ""
        text = f"{ended} ended" if jobs is None else f"{ended} of {jobs} ended"
        trained = sum(outcome.seconds > 0 for outcome in self._outcomes.values())
        if jobs is not None and trained:
            text += f", about {duration((time.monotonic() - self._began) / trained * (jobs - ended))} left"
        running = []
        for path in sorted(self.notes.glob(f"*{BEGUN}"), key=lambda path: int(path.stem)):
            if path.with_suffix(".json") not in self._outcomes:
                job = json.loads(path.read_text())
                running.append(f"#{path.stem} {job['overrides']}{_how_far(Path(job['folder']))}")
        return f"{text}; running: {', '.join(running)}" if running else text


def _how_far(folder: Path) -> str:
    """`` (epoch 12 of 100, about 2 min left)``; nothing before its process has begun to train."""
    with suppress(ValueError, OSError):  # it has not written its record yet, or writes it now
        if (record := read_record(folder))["status"] == "running" and (far := progress(folder, record)) is not None:
            return f" ({far})"
    return ""
