"""Sweeps as a user types them: every job a fresh process, told in one line, done once."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from tna_lightning.report.collect import collect
from tna_lightning.running.progress import Progress, jobs_to_come, progress
from tna_lightning.running.record import LAST_CHECKPOINT, Run, find_runs, is_active, read_record
from tna_lightning.running.sweep import (
    Outcome,
    _forget_killed_sweeps,
    _last_error,
    _Printer,
    claimed_device,
    number_of_jobs,
    visible_devices,
)

# a job of a few steps: nearly all of its time is the start of a process
TINY = ["data.train_subset=100", "data.batch_size=50", "model.width=0.125", "model.time_steps=1", "epochs=2"]
LINE = re.compile(r"^#(\d+) (.+): (?:seed=|quant[.=]|optimizer|digits-)", re.MULTILINE)


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {
        "OMP_NUM_THREADS": "1"
    }


def arguments(*overrides):
    return [sys.executable, "-m", "tna_lightning", "-m", *TINY, *overrides]


def sweep(folder, *overrides):
    return subprocess.run(
        arguments(*overrides), cwd=folder, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )


def told(result):
    """What each job's line says, by its number."""
    return {int(number): text for number, text in LINE.findall(result.stdout)}


def results(folder):
    """Everything that a run computed, by the folder's name; what the clock says is left out."""
    found = {}
    for path in sorted(folder.rglob("run.json")):
        if "pretrained" not in path.parts:
            record = json.loads(path.read_text())
            assert record["status"] == "done", path
            found[path.parent.name] = {key: record[key] for key in ("identity", "results", "history", "split_hash")}
    return found


def test_a_sweep_does_what_is_missing_and_says_so(tmp_path):
    command = ["seed=0,1", "baseline=plain", "quant=none", "neuron.beta=5e-1", "optimizer.lr=1e-3,1e30", "study=s"]
    first = sweep(tmp_path, *command)
    assert first.returncode == 1, first.stdout + first.stderr
    assert re.fullmatch(r"done in \d+ s, test accuracy \d+\.\d\d%", told(first)[0])
    assert re.fullmatch(r"failed in \d+ s \(NonFiniteLoss: .* is not finite .*; see .*output\.log\)", told(first)[1])
    assert re.fullmatch(r"done in \d+ s, test accuracy \d+\.\d\d%", told(first)[2])
    assert "4 jobs: 2 done, 2 failed." in first.stdout
    assert re.search(r"^  1 of 4 ended, about \d+ s left", first.stdout, re.MULTILINE)
    # a line names what its job does not share with the others
    assert [line.rpartition(": ")[2] for line in first.stdout.splitlines() if line.startswith("#")] == [
        f"seed={seed} optimizer.lr={rate}" for seed in (0, 1) for rate in ("0.001", "1e+30")
    ]
    assert "2 of 4 jobs failed" in first.stderr
    folder = tmp_path / "multirun" / "s"
    statuses = sorted(read_record(path)["status"] for path in find_runs(folder))
    assert statuses == ["done", "done", "failed", "failed"]

    # cut off after its first epoch: what a killed process leaves behind
    done = read_record(next(path for path in find_runs(folder) if "-s1-" in path.name and is_done(path)))
    cut = folder / done["name"]
    (cut / "run.json").write_text(
        json.dumps({key: done[key] for key in ("format", "identity", "config")} | {"status": "running"})
    )
    # in the workers of joblib, whose way to start processes no other knows
    again = sweep(tmp_path, *command, "hydra/launcher=parallel", "hydra.launcher.n_jobs=2")
    assert told(again)[0].startswith("skipped, done before, test accuracy")
    assert told(again)[1].startswith("repeated, failed in")
    assert told(again)[2].startswith("resumed, done in")
    assert "4 jobs: 1 done, 1 skipped, 2 failed." in again.stdout
    assert read_record(cut)["results"] == done["results"]
    assert not (folder / ".sweeps").exists()  # the notes are gone


def is_done(folder):
    return read_record(folder)["status"] == "done"


def test_bad_input_stops_a_sweep_before_it_starts(tmp_path):
    result = sweep(tmp_path, "quant=none,tertiary")
    assert result.returncode == 2
    assert "quant=tertiary: allowed are" in result.stderr
    assert not list(tmp_path.rglob("*/*"))  # not a trace of it
    for study in ("../elsewhere", "two words"):
        result = sweep(tmp_path, "seed=0,1", f"study='{study}'")
        assert (result.returncode, result.stderr.splitlines()[-1]) == (
            2, f"error: study={study!r}: must be a name of letters, digits and . _ + -"
        )  # fmt: skip
    assert not list(tmp_path.rglob("*/*"))


def children(pid):
    """The processes that a process has started, by Linux's /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def begun(folder, *overrides):
    """A sweep in a session of its own, of which a job trains; it is killed in the end."""
    # a shell lets what it starts in the background ignore Ctrl-C, and so would the sweep if the tests are that
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        arguments("study=s", "baseline=plain", *overrides), cwd=folder, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, handler)
        try:
            while not any((path / LAST_CHECKPOINT).exists() for path in working(folder)):
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def working(folder):
    return [path for path in find_runs(folder) if is_active(path)]


def test_an_interrupted_sweep_says_so_in_one_line_and_goes_on(tmp_path):
    with begun(tmp_path, "seed=0,1", "epochs=400") as process:
        (folder,) = working(tmp_path)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; the same command goes on from here"
    record = read_record(folder)
    assert (record["status"], record["error"]) == ("interrupted", "KeyboardInterrupt")
    assert not (folder.parent / ".sweeps").exists()
    assert (folder / LAST_CHECKPOINT).exists()


needs_joblib = pytest.mark.skipif(
    not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"), reason="no joblib launcher"
)


@pytest.mark.slow
@needs_joblib
def test_a_launcher_that_breaks_off_is_told_in_one_line(tmp_path):
    with begun(tmp_path, "seed=0,1,2", "epochs=400", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2") as process:
        workers = [worker for worker in children(process.pid) if children(worker)]  # those that train
        os.kill(workers[0], signal.SIGKILL)  # as one that has taken too much memory
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert errors.startswith("error: the launcher broke off (TerminatedWorkerError: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in output


@pytest.mark.skipif(sys.platform != "linux", reason="a process learns of its parent's end on Linux alone")
@pytest.mark.parametrize("launcher", ["basic", pytest.param("parallel", marks=[needs_joblib, pytest.mark.slow])])
def test_a_training_ends_with_the_sweep_that_started_it(launcher, tmp_path):
    with begun(tmp_path, "seed=0,1", "epochs=4000", f"hydra/launcher={launcher}") as process:
        parents = [process.pid] if launcher == "basic" else children(process.pid)
        trainings = [training for parent in parents for training in children(parent)]
        assert trainings
        process.kill()  # it alone, without a chance to tell anyone
        process.wait()
        deadline = time.monotonic() + 600
        while any(Path(f"/proc/{training}").exists() for training in trainings) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{training}").exists() for training in trainings)
    assert not working(tmp_path)


def test_a_job_that_is_refused_at_once_is_a_failed_run_for_the_report_too(tmp_path):
    result = sweep(tmp_path, "seed=-1,-2", "study=s")
    assert result.returncode == 1
    assert re.findall(r"^#\d failed in \d+ s \((.*)\): seed=-\d$", result.stdout, re.MULTILINE) == [
        f"seed={seed}: must be an integer from 0 to 4294967295" for seed in (-1, -2)
    ]
    collection = collect([tmp_path / "multirun" / "s"])
    assert [run.state for run in collection.unfinished] == ["failed", "failed"]
    assert "seed=-1: must be an integer" in collection.unfinished[0].detail
    assert not collection.left_out


def test_a_job_whose_record_is_damaged_is_named_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "multirun" / "unnamed" / run_folder("seed=0")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"format": 1, "stat')
    result = sweep(tmp_path, "seed=0")
    assert result.returncode == 1
    assert "run.json is damaged" in told(result)[0]
    assert (folder / "run.json").read_text() == '{"format": 1, "stat'


def run_folder(*overrides):
    """What the folder of such a run is called."""
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_FOLDER, *TINY, *overrides],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return printed.stdout.strip()


def test_a_job_whose_input_is_refused_is_told_and_recorded(tmp_path):
    result = sweep(tmp_path, "seed=0", "quant=ternary", "quant.start_epoch=2,-1", "study=s")
    assert result.returncode == 1
    reasons = [
        "quant.start_epoch=2: must be at most 1, the last of 2 epochs",
        "quant.start_epoch=-1: must be a whole number of 0 or more",
    ]
    for number, reason in enumerate(reasons):
        assert re.match(rf"failed in \d+ s \({reason}.*; see .*output\.log\)$", told(result)[number]), result.stdout
    records = [read_record(folder) for folder in find_runs(tmp_path / "multirun" / "s")]
    assert [record["status"] for record in records] == ["failed", "failed"]
    assert {record["error"].partition(", ")[0] for record in records} == {
        reason.partition(", ")[0] for reason in reasons
    }


def test_a_job_that_another_process_trains_is_left_to_it(tmp_path):
    command = ["seed=0", "baseline=plain", "quant=none"]
    with Run(tmp_path / "multirun" / "unnamed" / run_folder(*command), {}).claimed():
        result = sweep(tmp_path, *command)
    assert told(result) == {0: "busy, another process trains this run now"}
    assert result.returncode == 0
    assert "1 job: 1 busy." in result.stdout


PRINT_FOLDER = """
import sys
from tna_lightning.running.config import compose
from tna_lightning.running.identity import folder_name
print(folder_name(compose(sys.argv[1:])))
"""


@pytest.mark.slow  # four processes that import everything
def test_a_job_does_the_same_alone_and_last_in_a_sweep(tmp_path):
    assert sweep(tmp_path, "seed=2,1,0", "quant=ternary", "study=three").returncode == 0
    assert sweep(tmp_path, "seed=0", "quant=ternary", "study=one").returncode == 0
    three, one = results(tmp_path / "multirun" / "three"), results(tmp_path / "multirun" / "one")
    assert len(three) == 3
    (name,) = one
    assert three[name] == one[name]


WATCHED = """
import json, resource, sys
from datetime import datetime
from pathlib import Path
from tna_lightning import __main__
from tna_lightning.running import sweep

sweep.train_warm = lambda *arguments: 0  # the jobs' own processes are none of the question
write, seen = sweep.write_text, []

def write_and_look(path, text):
    if path.suffix == ".json":  # a job has ended
        seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    write(path, text)

sweep.write_text = write_and_look
try:
    __main__.main()
finally:
    Path("seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow  # sixty jobs
def test_memory_does_not_grow_from_job_to_job(tmp_path):
    command = [sys.executable, "-c", WATCHED, "-m", f"seed={','.join(map(str, range(60)))}"]
    subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=False)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen) == 60
    # Hydra keeps every job's config, some 0.2 MB; a job's tensors, or its modules, would be many
    assert (seen[59] - seen[19]) / 40 < 0.5e6


def killed_and_restarted(folder, kills, generator, *overrides):
    """Run a sweep to its end although its whole process group is killed ``kills`` times, each after some epochs more.

    Returns:
        how many kills hit a run in the middle of its epochs, and the last call.
    """
    cut = 0
    for _ in range(kills):
        with subprocess.Popen(
            arguments(*overrides), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:  # fmt: skip
            enough = epochs_done(folder) + generator.randint(3, 60)
            while epochs_done(folder) < enough:
                assert process.poll() is None, "the sweep has ended before it was killed"
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            cut += any(is_cut_off(path) for path in find_runs(folder))
    return cut, sweep(folder, *overrides)


def epochs_done(folder):
    """How many epochs all runs of a sweep have behind them."""
    return sum(len(path.read_text().splitlines()) - 1 for path in folder.rglob("metrics.csv"))


def is_cut_off(folder):
    return read_record(folder)["status"] == "running" and (folder / LAST_CHECKPOINT).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "command"),
    [(2, ["seed=0,1", "quant=ternary"]), (5, ["seed=0,1,2", "baseline=plain,tna", "quant=none,ternary"])],
)
def test_a_killed_and_restarted_sweep_equals_an_undisturbed_one(tmp_path, kills, command):
    command = [*command, "epochs=100"]  # so that no sweep ends before it is killed
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    disturbed.mkdir()
    undisturbed.mkdir()
    cut, last = killed_and_restarted(disturbed, kills, random.Random(kills), *command)
    assert last.returncode == 0, last.stdout + last.stderr
    assert not list((disturbed / "multirun").glob("*/.sweeps"))  # or a report would wait for jobs of the killed ones
    assert cut >= 1  # there was work to resume, not only to repeat
    assert sweep(undisturbed, *command).returncode == 0
    expected = results(undisturbed)
    assert len(expected) == {2: 2, 5: 12}[kills]
    assert results(disturbed) == expected


@pytest.mark.slow  # two sweeps
def test_a_sweep_that_is_started_twice_at_once_fails_in_neither(tmp_path):
    command = arguments("seed=0,1", "baseline=plain", "quant=none", "study=s")
    sweeps = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [each.communicate()[0] for each in sweeps]
    assert [each.returncode for each in sweeps] == [0, 0], outputs
    assert not any("failed" in output for output in outputs), outputs
    assert [read_record(path)["status"] for path in find_runs(tmp_path / "multirun" / "s")] == ["done", "done"]


def test_the_reason_of_a_refusal_is_not_what_another_process_wrote_behind_it():
    assert _last_error("warning: x\nerror: seed=-1: must be\n└────┘\n") == "seed=-1: must be"
    assert _last_error("Killed\n") == "Killed"


def test_outcomes_read_as_one_line():
    outcome = Outcome(3, "seed=1", "/x/run", "failed", "repeated", 4.2, error="boom; see log")
    assert outcome.line() == "#3 repeated, failed in 4 s (boom; see log): seed=1"
    record = {"results": {"test/acc": 0.5, "val/acc": 0.25}}
    assert outcome.judged("skipped", record).val_acc == 0.25
    assert Outcome(0, "", "/x/run", "busy").line() == "#0 busy, another process trains this run now: run"


def test_each_job_holds_a_device_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    held, most, lock = [], [], threading.Lock()

    def work():
        with claimed_device(["0", "1"], wait_seconds=0.01) as device:
            with lock:
                held.append(device)
                most.append(sorted(held))
            time.sleep(0.05)
            with lock:
                held.remove(device)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 6
    assert max(map(len, most)) == 2
    assert all(len(set(devices)) == len(devices) for devices in most)


@pytest.mark.parametrize(("value", "devices"), [("0,3", ["0", "3"]), ("", []), ("GPU-1f", ["GPU-1f"])])
def test_devices_are_those_that_the_environment_leaves(monkeypatch, value, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_devices() == devices


def test_how_far_a_run_and_its_sweep_are(tmp_path):
    config = {"trainer": {"max_epochs": 10}}
    record = {"config": config, "started": "2026-01-01T00:00:00+00:00"}
    assert str(progress(tmp_path, record)) == "epoch 0 of 10"
    (tmp_path / "metrics.csv").write_text("epoch,val/acc\n0,0.5\n1,0.6\n")
    began = datetime.fromisoformat(record["started"]).timestamp()
    os.utime(tmp_path / "metrics.csv", (began + 60, began + 60))
    assert progress(tmp_path, record) == Progress(2, 10, 240.0)
    (tmp_path / "output.log").write_text("epoch 1 of 10: loss 2, 9.0 s\nepoch 2 of 10: loss 1, 7.0 s\n")
    assert str(progress(tmp_path, record)) == "epoch 2 of 10, about 64 s left"
    assert progress(tmp_path, {"config": {}}) is None

    notes = tmp_path / ".sweeps" / "x"
    notes.mkdir(parents=True)
    (notes / "jobs").write_text("5")
    assert jobs_to_come(tmp_path) == 5
    (notes / "1.begun").write_text(json.dumps({"overrides": "seed=1", "folder": str(tmp_path)}))
    done = Outcome(0, "seed=0", "/x", "done", seconds=4.0)
    (notes / "0.json").write_text(json.dumps(dataclasses.asdict(done)))
    assert jobs_to_come(tmp_path) == 3
    printer = _Printer(notes, 5)
    assert printer._print_new()
    assert re.fullmatch(r"1 of 5 ended, about 0 s left; running: #1 seed=1", printer.status())
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "identity": "x", "status": "running"} | record))
    assert printer.status().endswith("running: #1 seed=1 (epoch 2 of 10, about 64 s left)")

    with FileLock(notes / ".lock"):  # its sweep still goes on
        _forget_killed_sweeps(tmp_path)
        assert jobs_to_come(tmp_path) == 3
    _forget_killed_sweeps(tmp_path)
    assert jobs_to_come(tmp_path) == 0
    assert not notes.parent.exists()


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["seed=0,1", "baseline=plain"], 8),
        (["quant=none"], 4),
        (["seed=range(3)"], 12),
        (["neuron.beta=interval(0,1)"], None),
    ],
)
def test_the_number_of_jobs_is_of_study_and_command_line(words, jobs):
    params = {"quant": "none,ternary", "data.seed": "1,2,3,4", "seed": "0"}
    if "quant=none" not in words:
        params["data.seed"] = "1,2"
    config = OmegaConf.create({"hydra": {"sweeper": {"params": params}, "overrides": {"task": words}}})
    assert number_of_jobs(config) == jobs
