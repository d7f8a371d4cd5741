"""Two processes on this machine's CPU, joined by gloo: the same training as one process with the whole batch."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from tna_lightning.running import train
from tna_lightning.running.config import compose
from tna_lightning.running.record import Run, is_active

TINY = ["data.train_subset=128", "epochs=2", "model.width=0.25", "trainer.accelerator=cpu", "logger=csv"]


def command(folder, *overrides, launcher=()):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PL_"))}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "tna_lightning", *overrides, *TINY, "trainer.enable_progress_bar=false"],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def records(folder):
    paths = [path for path in folder.rglob("run.json") if "pretrained" not in path.parts]
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda record: record["seed"])


def test_a_further_process_does_nothing_where_the_run_is_done(tmp_path, monkeypatch):
    config = compose(["trainer=ddp", *TINY])
    done = Run(tmp_path, config).write(status="done")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(train, "_prepare", lambda run: None)
    monkeypatch.setattr(train, "_train", lambda run, prepared: {"trained": run.folder})
    assert train.train(config, tmp_path) == done
    assert train.train(config | {"resume": False}, tmp_path) == {"trained": tmp_path}


def test_bad_input_to_a_run_on_several_devices_gets_one_clear_line(tmp_path):
    result = command(tmp_path, "trainer=ddp", "neuron.beta=1.5")
    assert result.returncode == 2
    assert result.stderr == "error: neuron.beta=1.5: must lie in [0, 1]\n"


@pytest.mark.slow  # four processes that import everything
def test_a_sweep_on_two_processes_equals_one_process_with_the_whole_batch(tmp_path):
    several = command(tmp_path, "-m", "seed=0,1", "trainer=ddp", "data.batch_size=16", "study=ddp")
    assert several.returncode == 0, several.stdout + several.stderr
    assert "2 jobs: 2 done" in several.stdout
    alone = command(tmp_path, "-m", "seed=0,1", "data.batch_size=32", "study=one")
    assert alone.returncode == 0, alone.stdout + alone.stderr

    ours, theirs = records(tmp_path / "multirun" / "ddp"), records(tmp_path / "multirun" / "one")
    assert [record["seed"] for record in ours] == [0, 1]
    for two, one in zip(ours, theirs, strict=True):
        assert two["device"] == "2 x cpu"
        assert two["status"] == "done"
        assert two["history"]["epoch"] == one["history"]["epoch"] == [0, 1]
        for name in ("train/loss", "train/match", "val/loss"):
            np.testing.assert_allclose(two["history"][name], one["history"][name], rtol=1e-4, err_msg=name)
        # the first epoch's accuracies count the same images, each once
        assert two["data"]["split_hash"] == one["data"]["split_hash"]
        np.testing.assert_allclose(two["history"]["train/acc"][0], one["history"]["train/acc"][0], atol=1.5 / 128)
        assert two["results"]["kept_epoch"] == one["results"]["kept_epoch"]
        assert abs(two["results"]["test/acc"] - one["results"]["test/acc"]) < 0.03


@pytest.mark.slow
def test_the_teacher_of_a_run_on_two_processes_is_trained_once_by_one(tmp_path):
    result = command(tmp_path, "trainer=ddp", "data.batch_size=16", "baseline=kd")
    assert result.returncode == 0, result.stdout + result.stderr
    (teacher,) = [json.loads(path.read_text()) for path in tmp_path.glob("runs/pretrained/*/run.json")]
    (run,) = records(tmp_path / "runs")
    assert (teacher["device"], run["device"]) == ("cpu", "2 x cpu")
    assert result.stdout.count("base, test accuracy") == 1


def on_two_nodes(folder, *overrides):
    """What ``torchrun`` on each of two nodes prints, that of the first process first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    launcher.append(f"--rdzv-endpoint=127.0.0.1:{port}")
    overrides = ("trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1", *overrides)
    with ThreadPoolExecutor(2) as nodes:
        results = list(nodes.map(lambda _: command(folder, *overrides, launcher=launcher), range(2)))
    assert [result.returncode for result in results] == [0, 0], [result.stdout + result.stderr for result in results]
    return sorted((result.stdout for result in results), key=len, reverse=True)


@pytest.mark.slow
def test_two_nodes_train_the_teacher_first_and_do_nothing_when_done(tmp_path):
    run = ["data.batch_size=16", "baseline=kd"]
    first, second = on_two_nodes(tmp_path, *run)
    assert (first + second).count("companion: runs/pretrained/") == 1
    assert (first + second).count("base, test accuracy") == 1
    (record,) = records(tmp_path / "runs")
    assert (record["status"], record["device"]) == ("done", "2 x cpu")
    first, second = on_two_nodes(tmp_path, *run)  # the second process must not wait for the first to train
    assert first.startswith("done already, on ")
    assert second == ""

    # the launcher's variables make no difference to the teacher: the one of a run on one device is the same
    alone = tmp_path / "alone"
    alone.mkdir()
    assert command(alone, *run).returncode == 0
    teachers = [next(folder.glob("runs/pretrained/*/run.json")) for folder in (tmp_path, alone)]
    assert teachers[0].parent.name == teachers[1].parent.name
    one, other = (json.loads(path.read_text()) for path in teachers)
    assert one["device"] == "cpu"
    for key in ("identity", "results", "history"):
        assert one[key] == other[key], key


def members(session):
    """The processes of a session that have not ended, by Linux's /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process learns of its parent's end on Linux alone")
@pytest.mark.parametrize("how", ["the parent is killed", "SIGTERM to all", "the first process is killed"])
def test_both_processes_end_whatever_they_wait_for(how, tmp_path):
    overrides = [
        *TINY[:1],
        *TINY[2:],
        "epochs=4000",
        "trainer=ddp",
        "trainer.devices=2",
        "data.batch_size=16",
        "hydra.run.dir=run",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PL_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "tna_lightning", *overrides, "trainer.enable_progress_bar=false"], cwd=tmp_path,
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            metrics = tmp_path / "run" / "metrics.csv"
            while not metrics.exists() or metrics.read_text().count("\n") < 4:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            first, _ = sorted(set(members(process.pid)) - {process.pid})
            if how == "SIGTERM to all":
                os.killpg(process.pid, signal.SIGTERM)
            else:
                os.kill(process.pid if "parent" in how else first, signal.SIGKILL)
            _, errors = process.communicate(timeout=300)  # ends when nobody holds the other end any more
            assert not members(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not is_active(tmp_path / "run")
    if "first" not in how:
        assert (record["status"], record["error"]) == ("interrupted", "SIGTERM")
        assert errors.endswith("terminated; the same command goes on from here\n")


@pytest.mark.slow  # two trainings
def test_two_processes_have_the_copies_that_one_chooses(tmp_path):
    chosen = ["augment=chosen", "~augment.chosen.strong.policy", "augment.chosen.strong.cutout.size=3", "epochs=1"]
    choices = []
    for words in (["trainer=ddp", "data.batch_size=16"], ["data.batch_size=32"]):
        folder = tmp_path / words[0]
        folder.mkdir()
        result = command(folder, *words, *chosen)
        assert result.returncode == 0, result.stdout + result.stderr
        (path,) = folder.rglob("last.ckpt")
        state = torch.load(path, weights_only=True)["callbacks"]["ChooseCopies"]
        choices.append((state["epoch"], state["samples"].tolist()))
    assert choices[0] == choices[1]
    assert len(set(choices[0][1])) == 40  # ceil(0.3 * 128 / 10) of each class
