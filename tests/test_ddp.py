"""Two processes on this machine's CPU, joined by gloo: the same training as one process with the whole batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

TINY = ["data.train_subset=128", "epochs=2", "model.width=0.25", "trainer.accelerator=cpu", "logger=csv"]


def command(folder, *overrides):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PL_"))}
    return subprocess.run(
        [sys.executable, "-m", "tna_lightning", *overrides, *TINY, "trainer.enable_progress_bar=false"],
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
