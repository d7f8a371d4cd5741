"""Kills, faults, damage and hostile input, as long as one likes: `python tests/torture --minutes 10`, `make torture`.

Every case does one trial in turn until the time is up, and a table says how many were right. What was wrong is printed
with the seed that repeats it.
"""

import argparse
import random
import sys
import tempfile
import time
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
    ends = time.monotonic() + seconds
    tried, right = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for number, name in enumerate(names):
            (root := Path(folder) / f"case{number}" / "root").mkdir(parents=True)
            running[name] = CASES[name](root, random.Random(f"{seed} {name}"))
        first = True
        while running and (first or time.monotonic() < ends):
            for name in list(running):
                spent = time.monotonic()
                # a quick case does as many trials as take a second
                while name in running and (time.monotonic() - spent < 1 or tried[name] == 0):
                    try:
                        fault = next(running[name])
                    except StopIteration:  # nothing of the kind can be tried here
                        del running[name]
                        break
                    tried[name] += 1
                    right[name] += fault is None
                    if fault is not None:
                        print(f"{name}, seed {seed}, trial {tried[name]}: {fault}", flush=True)
            first = False
    print(f"| case | tried | right |\n|{' --- |' * 3}")
    for name in names:
        print(f"| {name} | {tried[name]} | {right[name]} |")
    return sum(tried.values()) - sum(right.values())


if __name__ == "__main__":
    main()
