"""Lightning's trainer from the node ``trainer``, with what every run brings; what it refuses is said by setting.

Args:
    accelerator: auto (a GPU where there is one), cpu, gpu, cuda, mps and others.
    strategy: how several devices work together: auto, ddp and others.
    devices: how many, a list of their numbers, or auto for all.
    num_nodes: machines that work on one run, started with torchrun or srun.
    precision: of computation: 32-true, bf16-mixed, 16-mixed, 64-true, ...; weights are kept in float32.
    max_epochs: passes over the training samples; follows epochs.
    min_epochs: at least so many before a callback may end the training.
    max_steps: at most so many optimizer steps; -1 for no limit.
    min_steps: at least so many before a callback may end the training.
    max_time: at most so long, as DD:HH:MM:SS.
    limit_train_batches: at most so many batches of an epoch (a whole number) or such a share of them (0.1).
    limit_val_batches: the same of a validation; 0 for no validation.
    limit_test_batches: the same of the test at the end.
    overfit_batches: train on these few batches again and again, and validate on as few: does it learn at all?
    val_check_interval: validate within an epoch: after so many batches, or such a share of the epoch.
    check_val_every_n_epoch: validate after every so many epochs.
    log_every_n_steps: how often what is logged by step (lr_monitor, device_stats) goes to the logger; null is 50.
    enable_progress_bar: a bar in a terminal, else a line an epoch; false for neither.
    accumulate_grad_batches: batches whose gradients make one optimizer step.
    gradient_clip_val: clip gradients to this norm, or value.
    gradient_clip_algorithm: norm (null means it too) or value.
    deterministic: true refuses operations that may differ from run to run, warn warns of them.
    benchmark: let cuDNN time its algorithms first; null leaves it as it is.
    inference_mode: validate and test in torch.inference_mode rather than no_grad.
    profiler: simple, advanced or pytorch; writes *-profile files into the run's folder.
    detect_anomaly: find the operation that made a gradient NaN; slow.
    sync_batchnorm: batch statistics over all devices, not of each.
    reload_dataloaders_every_n_epochs: ask the data module for its loaders anew after so many epochs; 0 for never.
"""

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
from tna_lightning.data import BatchedDataModule
from tna_lightning.length import Length, planned_length
from tna_lightning.running import checkpoints
from tna_lightning.running.console import quiet_lightning
from tna_lightning.running.factory import build, under
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


def check_length(trainer: Any, datamodule: BatchedDataModule, keep: str) -> Length:
    """How long training will be, now that the samples are known: what does not fit into it is refused.

    Args:
        trainer: of the run.
        datamodule: set up.
        keep: as in the config.

    Raises:
        ValueError: a limit of less than a batch; more steps than there are; a validation in an epoch after which
            training goes on, or none where the best epoch is to be kept.
    """
    datamodule.trainer = trainer  # as the trainer will do: batches are shared by its devices
    with under("data"):
        loaders = datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()
    batches, val_batches, _ = (
        _limited(trainer, stage, len(loader)) for stage, loader in zip(("train", "val", "test"), loaders, strict=True)
    )
    length = planned_length(trainer, batches)
    checkpoints.refuse_more(trainer, length)
    if not val_batches:
        return length
    asked, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    interval = asked if isinstance(asked, int) else max(1, int(batches * asked))
    if every is not None and interval > batches:
        raise ValueError(f"trainer.val_check_interval={asked!r}: must be at most {batches}, the batches of an epoch")
    checkpoints.refuse_rest(asked, interval, batches)
    assert length.steps is not None
    assert length.steps_per_epoch is not None
    whole, rest = divmod(length.steps, length.steps_per_epoch)
    if keep == "best" and whole * batches + rest * trainer.accumulate_grad_batches < interval + batches * (
        (every or 1) - 1
    ):
        raise ValueError("keep='best': training ends before its first validation; keep=last keeps the last epoch")
    return length


def _limited(trainer: Any, stage: str, batches: int) -> int:
    """How many batches are left by ``limit_<stage>_batches``, or ``overfit_batches`` in its place."""
    limit = getattr(trainer, f"limit_{stage}_batches")
    left = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if limit and batches and not left:
        name = "overfit_batches" if trainer.overfit_batches and stage != "test" else f"limit_{stage}_batches"
        there = "the only batch" if batches == 1 else f"one of the {batches} batches"
        raise ValueError(f"trainer.{name}={limit!r}: is less than {there}; a whole number is one of batches")
    return left


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
