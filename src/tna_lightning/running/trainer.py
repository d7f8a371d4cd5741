"""Lightning's trainer from the node ``trainer``, with what every run brings; what it refuses is said by setting."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from tna_lightning.callbacks.progress import EpochBar, EpochLines
from tna_lightning.running import checkpoints
from tna_lightning.running.console import quiet_lightning
from tna_lightning.running.factory import build
from tna_lightning.running.sync_batchnorm import SyncBatchNorm

PROFILERS: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(config: Mapping[str, Any], folder: Path, callbacks: Sequence[Callback]) -> lightning.Trainer:
    """The trainer of a run.

    Args:
        config: the resolved config.
        folder: the run's.
        callbacks: all of the run's, in their order.

    Raises:
        ValueError: a setting is refused; the message names it.
    """
    node = dict(config["trainer"])
    on_cpu = node["accelerator"] == "cpu" or not torch.cuda.is_available()
    _check_cores(node["devices"], on_cpu)
    syncs_on_cpu = node["sync_batchnorm"] and on_cpu
    given: dict[str, Any] = {
        "callbacks": [*callbacks, *_told(node)],
        "logger": False,
        "plugins": [checkpoints.AtomicCheckpointIO(), *([SyncBatchNorm()] if syncs_on_cpu else [])],
        "sync_batchnorm": node["sync_batchnorm"] and not syncs_on_cpu,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    profiler = node.get("profiler")
    if isinstance(profiler, str) and profiler in PROFILERS:  # what Lightning's own writes to a log, nobody would see
        given["profiler"] = PROFILERS[profiler](dirpath=folder, filename="profile")
    if not config["data"].get("val_fraction", 1):
        given["limit_val_batches"] = 0
    with quiet_lightning():
        try:
            trainer: lightning.Trainer = build("trainer", node, **given)
        except ValueError as error:
            if re.match(r"trainer\.\w+(\[\d+\])?[=:]", str(error)):
                raise
            name = _to_blame(node, given)
            if name is None:
                raise
            words = str(error).removeprefix("trainer=lightning.Trainer: ").removeprefix("trainer.")
            raise ValueError(f"trainer.{name}={node[name]!r}: {words}") from error
    return trainer


def _told(node: dict[str, Any]) -> list[Callback]:
    """The callback that tells how training goes: a bar where somebody watches, else lines; none if none is wanted."""
    if node.get("enable_progress_bar") is False:
        return []
    is_watched = sys.stdout.isatty()
    node["enable_progress_bar"] = is_watched
    return [EpochBar() if is_watched else EpochLines()]


def _check_cores(devices: Any, on_cpu: bool) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if on_cpu and isinstance(devices, int) and devices > cores:
        raise ValueError(f"trainer.devices={devices!r}: on a CPU each is a process; this machine has {cores} cores")


def _to_blame(node: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The setting without which there would be a trainer: Lightning's errors seldom name it, or in other words."""
    defaults = {name: each.default for name, each in inspect.signature(lightning.Trainer).parameters.items()}
    for name in [name for name, value in node.items() if name in defaults and value != defaults[name]]:
        try:
            build("trainer", {**node, name: defaults[name]}, **{k: v for k, v in given.items() if k != name})
        except (ValueError, TypeError):
            continue
        return name
    return None
