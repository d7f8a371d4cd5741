"""Seconds of whole runs, from the command to its end, for each way to compile: `python -m benchmarks.whole_runs`.

Runs of each kind take turns, in an order drawn anew every round. "cold" has an empty cache for compiled code, all
others one that an earlier run has filled. The accuracies of one kind must be equal, however it was compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import machine

FASHION = [
    "data=fashion_mnist",
    "data.val_fraction=0.1",
    "data.test_subset=1000",
    "trainer.check_val_every_n_epoch=100",
]
NETWORKS = {
    "digits-convnet": [],
    "fashion_mnist-5000-resnet8": [*FASHION, "data.train_subset=5000", "model=resnet8"],
    "fashion_mnist-1000-resnet18-0.25": [
        *FASHION,
        *("data.train_subset=1000", "model=resnet18", "model.width=0.25"),
    ],
}
Seconds = dict[str, dict[str, dict[str, list[float]]]]  # by network, epochs and way to compile
WAYS = {"none": "none", "auto, cold": "auto", "auto": "auto", "neurons, cold": "neurons", "neurons": "neurons"}


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_runs", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--data-root", default=".data", help="holds fashion_mnist")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--most-minutes", type=float, default=3, help="leave out what takes longer than this eagerly")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON file of the record; what it has of others stays"
    )
    arguments = parser.parse_args()
    output: Path = arguments.output
    seconds: Seconds = json.loads(output.read_text())["seconds"] if output.exists() else {}
    with tempfile.TemporaryDirectory() as warm:
        for network in arguments.only:
            words = NETWORKS[network]
            run(words, "neurons", 1, warm, arguments.data_root)  # fills the cache
            for epochs in arguments.epochs:
                times: dict[str, list[float]] = {way: [] for way in WAYS}
                results = set()
                for number in range(arguments.rounds):
                    for way in random.Random(number).sample(list(WAYS), len(WAYS)):
                        with tempfile.TemporaryDirectory() as cold:
                            cache = cold if way.endswith("cold") else warm
                            took, accuracy = run(words, WAYS[way], epochs, cache, arguments.data_root)
                        times[way].append(round(took, 2))
                        results.add(accuracy)
                assert len(results) == 1, results
                seconds.setdefault(network, {})[str(epochs)] = times
                record = {"machine": machine.describe("cpu"), "python": platform.python_version(), "seconds": seconds}
                output.write_text(json.dumps(record, indent=1) + "\n")
                medians = {way: statistics.median(values) for way, values in times.items()}
                print(f"{network}, {epochs} epochs: {medians}", flush=True)
                if medians["none"] > 60 * arguments.most_minutes / 3:
                    break
    print(table(seconds))


def run(words: list[str], way: str, epochs: int, cache: str, data_root: str) -> tuple[float, float]:
    """Seconds of one run, and its test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        root = [f"data.root={data_root}"] if "data=fashion_mnist" in words else []
        command = [sys.executable, "-m", "tna_lightning", *words, *root, f"compile={way}", f"epochs={epochs}"]
        command += [f"hydra.run.dir={folder}/run", "baseline=plain", "quant=ternary"]
        environment = os.environ | {"XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        start = time.monotonic()
        subprocess.run(command, cwd=machine.ROOT, env=environment, check=True, capture_output=True)
        took = time.monotonic() - start
        return took, json.loads(Path(folder, "run", "run.json").read_text())["results"]["test/acc"]


def table(seconds: Seconds) -> str:
    """Medians as markdown."""
    lines = [f"| | epochs | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 2) + "|"]
    for network, by_epochs in seconds.items():
        for epochs, times in by_epochs.items():
            cells = " | ".join(f"{statistics.median(values):.1f}" for values in times.values())
            lines.append(f"| {network} | {epochs} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
