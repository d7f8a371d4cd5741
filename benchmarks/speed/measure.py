"""One comparison in this process: build, check, warm up, time in turns. Or the peak memory of one contestant.

python -m benchmarks.speed.measure COMPARISON RECORD.json     # times
python -m benchmarks.speed.measure COMPARISON --memory-of CONTESTANT   # prints bytes
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import machine
from benchmarks.speed.comparison import Comparison, Run, Settings
from benchmarks.speed.registry import COMPARISONS
from benchmarks.speed.timing import interleave


def measure(comparison: Comparison, settings: Settings, repetitions: int) -> dict[str, Any]:
    """The record of a comparison, without its memory."""
    described = machine.describe(settings.device)
    repetitions = min(repetitions, comparison.repetitions or repetitions)
    runs: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for name, build in comparison.contestants(settings).items():
        try:
            runs[name] = build()
        except ImportError as error:
            left_out[name] = str(error)
    checks = comparison.check(runs)
    for run in reversed(runs.values()):  # the largest first: inductor chooses its threads by the first size it sees
        for _ in range(comparison.warm_up):
            run()
    seconds = interleave(runs, repetitions, settle=settings.settle)
    images = comparison.images(settings)
    return {
        "machine": described,
        "toy": settings.toy,
        "sizes": comparison.sizes(settings),
        "repetitions": repetitions,
        "checks": checks,
        "left_out": left_out,
        "contestants": {
            name: {"seconds": [round_off(value) for value in values]}
            | ({"images": images[name]} if name in images else {})
            for name, values in seconds.items()
        },
    }


def round_off(value: float) -> float:
    """Five significant digits: more than any clock here is good for."""
    return round(value, 4 - math.floor(math.log10(value))) if value > 0 else 0.0


def peak_memory(build: Callable[[], Run], settings: Settings) -> int | None:
    """Bytes that a repetition takes at its peak beyond what stays: weights, optimizer, inputs, compiled code.

    None where the system does not tell (the peak of a CPU process can be reset on Linux alone).
    """
    run = build()
    for _ in range(2):
        run()
    _drop_gradients(run)
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident now
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _drop_gradients(run: Run) -> None:
    optimizer = getattr(run, "optimizer", None)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {key}")


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.measure")
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("--memory-of")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(machine.cores())
    torch._dynamo.config.recompile_limit = 64  # several networks of one class in a process: after eight, torch gives up
    settings = Settings(arguments.device, arguments.toy, not arguments.no_peers)
    comparison: Comparison = COMPARISONS[arguments.comparison]
    if arguments.memory_of is not None:
        contestants: Mapping[str, Callable[[], Run]] = comparison.contestants(settings)
        print(json.dumps({"peak_bytes": peak_memory(contestants[arguments.memory_of], settings)}))
    else:
        record = measure(comparison, settings, arguments.repetitions)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
