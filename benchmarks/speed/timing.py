"""Interleaved timing: contestants take turns, in another order every round, so that a change in load meets them all."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float


def interleave(
    runs: Mapping[str, Callable[[], object]],
    repetitions: int,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every run, round by round.

    Args:
        runs: what to time; warm already.
        repetitions: rounds; in each, every run is timed once.
        seed: of the order within the rounds, drawn anew for each.
        clock: seconds since some moment.
        settle: waits for the device, before a run starts and before it counts as done.
    """
    order, draw = list(runs), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()  # a collection would fall to whoever happens to run
    try:
        for _ in range(repetitions):
            draw.shuffle(order)
            for name in order:
                settle()
                start = clock()
                runs[name]()
                settle()
                seconds[name].append(clock() - start)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of the values, the quartiles interpolated as numpy does; one value is all three."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Median and quartiles of the ratios within each round, so that a slow minute of the machine's counts for both."""
    return spread([above / below for above, below in zip(numerator, denominator, strict=True)])


def fastest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str | None:
    """Which of the names has the smallest median; None where none of them was measured."""
    measured = [name for name in names if name in seconds]
    return min(measured, key=lambda name: statistics.median(seconds[name]), default=None)
