"""Kills, faults, damage and hostile input, as long as one likes: `python tests/torture --minutes 10`, `make torture`.

Every case does one trial in turn until the time is up, and a table says how many were right. What was wrong is printed
with the seed that repeats it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import CASES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="those whose name holds one of these words; all if none"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other
    chosen = [name for name in CASES if not arguments.cases or any(word in name for word in arguments.cases)]
    wrong = torture(chosen, arguments.seed, 60 * arguments.minutes)
    sys.exit(1 if wrong else 0)


def torture(names: list[str], seed: int, seconds: float) -> int:
    """Do trials of these cases for so long, at least one of each; print the table and return how many were wrong."""
    tried, right = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, fault in trials(names, seed, seconds, Path(folder)):
                tried[name] += 1
                right[name] += fault is None
                if fault is not None:
                    print(f"{name}, seed {seed}, trial {tried[name]}: {fault}", flush=True)
        finally:  # also after Ctrl-C
            print(f"| case | tried | right |\n|{' --- |' * 3}")
            for name in names:
                print(f"| {name} | {tried[name]} | {right[name]} |", flush=True)
    return sum(tried.values()) - sum(right.values())


def trials(names: list[str], seed: int, seconds: float, folder: Path) -> Iterator[tuple[str, str | None]]:
    """The cases in turn, each for a second and at least one trial; those of which none can be tried here are left."""
    ends = time.monotonic() + seconds
    running = {}
    for number, name in enumerate(names):
        (root := folder / f"case{number}" / "root").mkdir(parents=True)
        running[name] = CASES[name](root, random.Random(f"{seed} {name}"))
    is_first = True
    while running:
        for name, case in list(running.items()):
            if not is_first and time.monotonic() > ends:
                return
            began = time.monotonic()
            for fault in case:
                yield name, fault
                if time.monotonic() - began > 1:
                    break
            else:
                del running[name]
        is_first = False


if __name__ == "__main__":
    main()
