"""How long the C code takes, on the processor that it was compiled for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tna_lightning.export.c.library import CNetwork

MOST_INPUTS, FEWEST_PASSES, SECONDS = 8, 5, 0.2


@dataclass(frozen=True)
class Timing:
    """Milliseconds of an input by the clock, one thread: the median over passes, and the quartiles."""

    ms: float
    quartiles_ms: tuple[float, float]
    passes: int
    frames: int | None

    def __str__(self) -> str:
        from tna_lightning.running.record import cpu_name  # here: who calls load_c needs nothing of runs

        what = "an image" if self.frames is None else f"a recording of {self.frames} frames"
        low, high = self.quartiles_ms
        return (
            f"{self.ms:#.3g} ms {what} (median of {self.passes} passes, quartiles {low:#.3g} to {high:#.3g}), "
            f"one thread of {cpu_name()}"
        )


def time_c(network: CNetwork, pixels: np.ndarray) -> Timing:
    """Time passes over the first few inputs, uint8 ``[B, C, H, W]`` or ``[B, T, C, H, W]``, after one unmeasured."""
    pixels = pixels[:MOST_INPUTS]
    network(pixels, threads=1)
    begin = last = time.perf_counter()
    passes: list[float] = []
    while len(passes) < FEWEST_PASSES or last - begin < SECONDS:
        network(pixels, threads=1)
        now = time.perf_counter()
        passes.append(1000 * (now - last) / len(pixels))
        last = now
    low, median, high = (float(value) for value in np.percentile(passes, [25, 50, 75]))
    return Timing(median, (low, high), len(passes), pixels.shape[1] if network.time_steps is None else None)
