"""Where the time of a training step goes, by operation: `python -m benchmarks.speed.profile_step RECORD.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import machine
from benchmarks.speed.comparison import Run, Settings
from benchmarks.speed.training_step import size_for, step

STEPS, WARM_UP, ROWS = 5, 3, 14
COMPILED = "compiled time loops of the neurons"  # in a profile each has its own, meaningless name


def contestants(settings: Settings) -> dict[str, Callable[[], Run]]:
    """Ours and the ReLU network of the same shape."""
    size = size_for(settings)
    return {
        "ours, neurons compiled": lambda: step(size, settings, compiled="neurons"),
        "ReLU": lambda: step(size, settings, neuron=nn.ReLU),
    }


def profiled(run: Run, settings: Settings) -> dict[str, Any]:
    """Milliseconds a step of the operations that take most, each without what it calls."""
    for _ in range(WARM_UP):
        run()
    settings.settle()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.device == "cuda" else [])
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(STEPS):
            run()
        settings.settle()
    field = "self_device_time_total" if settings.device == "cuda" else "self_cpu_time_total"
    times: dict[str, tuple[float, float]] = {}
    for event in profiler.key_averages():
        name = COMPILED if event.key.startswith("## Call CompiledFxGraph") else event.key
        ms, calls = times.get(name, (0.0, 0.0))
        times[name] = ms + getattr(event, field) / STEPS / 1000, calls + event.count / STEPS
    total = sum(ms for ms, _ in times.values())
    longest = sorted(times, key=lambda key: times[key][0], reverse=True)[:ROWS]
    rows = [
        {
            "operation": key,
            "calls": times[key][1],
            "ms": round(times[key][0], 3),
            "share": round(times[key][0] / total, 4),
        }
        for key in longest
    ]
    return {"total_ms": round(total, 3), "rows": rows}


def record(settings: Settings) -> dict[str, Any]:
    """The profiles of all contestants, one after the other."""
    described = machine.describe(settings.device)
    profiles = {name: profiled(build(), settings) for name, build in contestants(settings).items()}
    return {"machine": described, "toy": settings.toy, "sizes": str(size_for(settings)), "profiles": profiles}


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.profile_step")
    parser.add_argument("record", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(machine.cores())
    made = record(Settings(arguments.device, arguments.toy))
    arguments.record.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
