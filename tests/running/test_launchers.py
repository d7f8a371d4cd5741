"""Every launcher runs the same jobs to the same results; Slurm's commands have stand-ins that run its script."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TINY = ["data.train_subset=100", "data.batch_size=50", "model.width=0.125", "model.time_steps=1", "epochs=2"]
JOBS = ["seed=0,1", "quant=ternary", "baseline=plain"]


def sweep(folder, *overrides, path=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "tna_lightning", "-m", *TINY, *JOBS, *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def results(folder):
    records = [json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))]
    return {record["name"]: (record["status"], record["results"], record["history"]) for record in records}


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basic")
    result = sweep(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return results(folder)


def needs(plugin):
    found = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin}")
    return pytest.mark.skipif(not found, reason=f"{plugin} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [  # our choices, and the plugins' own
        *(pytest.param(name, marks=needs("hydra_joblib_launcher")) for name in ("parallel", "joblib")),
        *(pytest.param(name, marks=needs("hydra_submitit_launcher")) for name in ("submitit", "submitit_local")),
        *(pytest.param(name, marks=needs("hydra_ray_launcher")) for name in ("ray_cluster", "ray")),
    ],
)
def test_launcher_gives_the_results_of_the_basic_one(tmp_path, basic, launcher):
    result = sweep(tmp_path, f"hydra/launcher={launcher}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 jobs: 2 done." in result.stdout
    assert results(tmp_path) == basic
    again = sweep(tmp_path, f"hydra/launcher={launcher}", "seed=0,1,-1")
    assert again.returncode == 1
    assert "3 jobs: 2 skipped, 1 failed." in again.stdout


SBATCH = """#!/bin/sh
# a stand-in for Slurm's: keeps the script, starts each task of its array here and leaves
cp "$1" "{folder}/script.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=1
export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_JOB_NODELIST=localhost SLURM_JOB_NAME=tna_lightning SLURM_ARRAY_JOB_ID=77
for task in $(seq 0 "$last"); do
    export SLURM_JOB_ID=77_$task SLURM_ARRAY_TASK_ID=$task
    sh "{folder}/script.sh" > "{folder}/task_$task.log" 2>&1 < /dev/null &
done
echo "Submitted batch job 77"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2 ;; *) shift ;; esac; done
exec "$@"
"""


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_slurm_gets_a_script_that_asks_for_what_the_choice_says(tmp_path, basic):
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH.replace("{folder}", str(tmp_path))), ("srun", SRUN), ("sacct", "#!/bin/sh\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    result = sweep(tmp_path, "hydra/launcher=slurm", "hydra.launcher.partition=gpu", path=commands)
    assert result.returncode == 0, result.stdout + result.stderr
    script = (tmp_path / "script.sh").read_text()
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--time=720",
        "--requeue",
        "--signal=USR2@120",
        "--array=0-1%2",
        "--cpus-per-task=4",
        "--mem=16GB",
        "--nodes=1",
        "--ntasks-per-node=1",
    ):
        assert f"#SBATCH {line}\n" in script, line
    assert "2 jobs: 2 done." in result.stdout
    assert results(tmp_path) == basic  # the script really ran, in a task of Slurm's as far as Lightning can see


SEARCH = re.search(r"## Search\n\n((?:    .*\n)+)", (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text())


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_the_documented_search_maximises_validation_accuracy(tmp_path):
    python, *documented = shlex.split(SEARCH.group(1).replace("\\\n", " "))
    assert (python, documented[:3]) == ("python", ["-m", "tna_lightning", "-m"])
    documented[documented.index("hydra.sweeper.n_trials=30")] = "hydra.sweeper.n_trials=3"
    result = subprocess.run(
        [sys.executable, *documented, *TINY],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 jobs: 3 done." in result.stdout
    records = [json.loads(path.read_text()) for path in (tmp_path / "multirun" / "search").glob("*/run.json")]
    for name in ("objective.match_weight", "optimizer.lr", "neuron.beta"):
        group, key = name.split(".")
        assert len({record["config"][group][key] for record in records}) == 3, name
    best = yaml.safe_load((tmp_path / "multirun" / "search" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(record["results"]["val/acc"] for record in records)
    assert set(best["best_params"]) == {"objective.match_weight", "optimizer.lr", "neuron.beta"}


def test_a_launcher_that_is_not_installed_is_named(tmp_path):
    result = sweep(tmp_path, "hydra.launcher._target_=hydra_plugins.hydra_moon_launcher.MoonLauncher")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: hydra_moon_launcher: not installed; launchers and search are extras: [joblib]"
    )
