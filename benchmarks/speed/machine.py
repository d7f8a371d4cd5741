"""What a record says about the machine, and how child processes are started on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]

KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
"""glibc then reuses freed memory. By itself it asks the kernel for every large tensor anew, and on some virtual
machines the faults of fresh pages take longer than the work on them."""

RETURN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For measuring memory: what is freed leaves the resident set at once, so that its peak is what was in use."""


def environment(malloc: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these memory settings of glibc, and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | dict(malloc)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def slug(device: str) -> str:
    """Name of the device, for files: `cpu-2-cores` or that of the CUDA device."""
    if device == "cpu":
        return f"cpu-{cores()}-cores"
    return "cuda-" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def describe(device: str) -> dict[str, Any]:
    """Device, versions and date."""
    names = ("torch", "lightning", "snntorch", "spikingjelly", "triton", "cupy")
    installed = {name: version for name in names if (version := _version(name))}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "kind": device,
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "cores": cores(),
        "versions": {"python": platform.python_version(), **installed},
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()
