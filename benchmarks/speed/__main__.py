"""Measure the comparisons, a process each, and write the page: `python -m benchmarks.speed [COMPARISON ...]`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import machine, page
from benchmarks.speed.registry import COMPARISONS

RESULTS = machine.ROOT / "benchmarks" / "results"


def main() -> None:
    """Run what the command line names; the page takes in the records of earlier commands too."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=f"{', '.join(COMPARISONS)}, profile; all")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the results; benchmarks/results")
    parser.add_argument("--system-malloc", action="store_true", help="leave glibc's memory settings as they are")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--toy", action="store_true", help="sizes that take no time, to try the code; needs --out")
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page from the records")
    arguments = parser.parse_args()
    if arguments.toy and arguments.out is None:
        parser.error("--toy needs --out: its figures do not belong beside the others")
    try:
        names = page.names(arguments.comparisons)
    except ValueError as error:
        parser.error(str(error))
    folder = (arguments.out or RESULTS) / machine.slug(arguments.device)
    folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]  # before our own
    for name in [] if arguments.render else names:
        start = time.monotonic()
        measure(name, folder / f"{name}.json", arguments, load)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for path in page.write(folder):
        print(path)


def measure(name: str, path: Path, arguments: argparse.Namespace, load: float) -> None:
    """One comparison in a process of its own, then the memory of each contestant in one of its own."""
    options = ["--device", arguments.device]
    options += ["--toy"] if arguments.toy else []
    if name == "profile":
        settings = {} if arguments.system_malloc else machine.KEEP_PAGES
        _child(["benchmarks.speed.profile_step", str(path), *options], settings)
        return
    comparison = COMPARISONS[name]
    system_malloc = arguments.system_malloc or comparison.system_malloc
    options += ["--no-peers"] if arguments.no_peers else []
    command = ["benchmarks.speed.measure", name]
    _child(
        [*command, str(path), *options, "--repetitions", str(arguments.repetitions)],
        {} if system_malloc else machine.KEEP_PAGES,
    )
    record: dict[str, Any] = json.loads(path.read_text())
    record["command"] = shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])
    record["load"] = round(load, 2)
    record["malloc"] = "system" if system_malloc else "keep"
    if comparison.memory and not arguments.no_memory:
        for contestant, entry in record["contestants"].items():
            answer = _child([*command, "--memory-of", contestant, *options], machine.RETURN_PAGES)
            entry.update(json.loads(answer.splitlines()[-1]))
    path.write_text(json.dumps(record, indent=1) + "\n")


def _child(module_and_arguments: list[str], malloc: dict[str, str]) -> str:
    """Run a module of ours; its last lines stand in the error if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *module_and_arguments],
        cwd=machine.ROOT,
        env=machine.environment(malloc),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{shlex.join(module_and_arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
