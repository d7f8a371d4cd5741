"""The same 12 jobs through each launcher for one machine: equal results, and how long each takes.

    python benchmarks/launchers.py                         # all four, one round: about ten minutes on two idle cores
    python benchmarks/launchers.py --only basic parallel   # some now, the others later: rounds add up

Jobs on the digits: plain and TNA, full precision and ternary, three seeds. Every round is the command line as a user
types it, in a fresh folder, from the start of the command to its end, one thread a job. Ray's workers run at normal
priority (RAY_worker_niceness=0). Measurements collect in benchmarks/results/launchers_cpu.json as long as machine,
versions and epochs stay the same; the table is launchers_cpu.md beside it. Leaves with status 1 if any result differs
from those that stand there.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from tna_lightning.files import write_text
from tna_lightning.running.record import environment, find_runs, finished_record, now

LAUNCHERS = {
    "basic": "(none)",
    "parallel": "joblib",
    "submitit": "submitit, local",
    "ray_cluster": "Ray, local cluster",
}
PLUGINS = ("hydra-joblib-launcher", "hydra-submitit-launcher", "hydra-ray-launcher", "joblib", "submitit", "ray")
JOBS = ["seed=0,1,2", "baseline=plain,tna", "quant=none,ternary", "study=launchers"]
NUM_JOBS = 12
RESULTS = Path(__file__).parent / "results" / "launchers_cpu.json"


def sweep(launcher: str, epochs: int) -> tuple[float, str]:
    """Seconds that the sweep took, and the SHA-256 of all that its runs computed."""
    overrides = [*JOBS, f"epochs={epochs}"] + ([] if launcher == "basic" else [f"hydra/launcher={launcher}"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tna_lightning", "-m", *overrides]
        started = time.perf_counter()
        told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if told.returncode or f"{NUM_JOBS} jobs: {NUM_JOBS} done." not in told.stdout:
            sys.exit(f"{launcher}: {told.stdout}{told.stderr}")
        records = [finished_record(path) for path in find_runs(folder)]
    computed = {record["name"]: (record["results"], record["history"]) for record in records}
    return seconds, hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


def setup(epochs: int) -> dict[str, Any]:
    """What must be the same for measurements to be comparable."""
    from importlib.metadata import version

    here = environment()
    versions = here["versions"] | {plugin: version(plugin) for plugin in PLUGINS}
    del versions["tna-lightning"]
    cpu = f"{len(os.sched_getaffinity(0))} cores, {here['cpu']}"
    return {"cpu": cpu, "python": here["python"], "versions": versions, "epochs": epochs}


def table(measured: dict[str, Any]) -> str:
    """The page."""
    about, rounds = measured["setup"], measured["rounds"]
    text = (
        "12 jobs on the digits (plain and TNA, full precision and ternary, three seeds, "
        f"{about['epochs']} epochs each) "
        "through each launcher, as `python benchmarks/launchers.py` starts them: from the start of the command to its "
        "end, start of all processes included; one thread a job. Seconds are the median over the rounds, with their "
        "range. The runs' results are equal to the last digit under every launcher: all results and histories have the "
        f"SHA-256 `{measured['digest'][:16]}...`."
    )
    lines = ["# Launchers on one machine", "", textwrap.fill(text, 120), ""]
    lines += ["| `hydra/launcher=` | by | seconds | speed against basic | rounds |", "|---|---|---|---|---|"]
    basic = statistics.median(r["seconds"] for r in rounds["basic"]) if "basic" in rounds else None
    for launcher, name in LAUNCHERS.items():
        if launcher not in rounds:
            continue
        seconds = sorted(entry["seconds"] for entry in rounds[launcher])
        middle = statistics.median(seconds)
        spread = f" ({seconds[0]:.0f} to {seconds[-1]:.0f})" if len(seconds) > 1 else ""
        ratio = "" if basic is None else f"{basic / middle:.2f}"
        shown = "basic" if launcher == "basic" else f"`{launcher}`"
        lines.append(f"| {shown} | {name} | {middle:.0f}{spread} | {ratio} | {len(seconds)} |")
    entries = [entry for values in rounds.values() for entry in values]
    dates, commits = ({entry[key] for entry in entries} for key in ("date", "commit"))
    text = f"{about['cpu']}; Python {about['python']}, "
    text += ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    text += f"; measured on {', '.join(sorted(dates))} at commit {', '.join(sorted(commits))}."
    lines += ["", textwrap.fill(text, 120)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), metavar="LAUNCHER")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the measurements")
    arguments = parser.parse_args()

    measured: dict[str, Any] = {"setup": setup(arguments.epochs), "digest": None, "rounds": {}}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        measured = before if before["setup"] == measured["setup"] else measured
    for _ in range(arguments.rounds):
        for launcher in arguments.only:
            seconds, digest = sweep(launcher, arguments.epochs)
            print(f"{launcher}: {seconds:.1f} s, results {digest[:16]}", flush=True)
            if measured["digest"] not in (None, digest):
                sys.exit(f"{launcher}: other results than before ({measured['digest'][:16]}); nothing more is written")
            git = environment()["git"] or {"commit": "unknown", "dirty": False}
            commit = git["commit"][:10] + (" with changes" if git["dirty"] else "")
            measured["digest"] = digest
            measured["rounds"].setdefault(launcher, []).append(
                {"seconds": seconds, "date": now()[:10], "commit": commit}
            )
            write_text(arguments.output, json.dumps(measured, indent=1) + "\n")
            write_text(arguments.output.with_suffix(".md"), table(measured))


if __name__ == "__main__":
    main()
