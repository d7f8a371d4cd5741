"""A finished run that goes on for more epochs, as a run of its own: ``epochs=40 extend=RUN``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from torch.optim import lr_scheduler

from tna_lightning.running.identity import differences
from tna_lightning.running.record import LAST_CHECKPOINT, finished_record

log = logging.getLogger(__name__)

# what a longer training changes; all else must be as in the run that goes on
OF_LENGTH = ("epochs", "trainer.max_epochs", "extend")
# schedules that are a function of the step, and those that know nothing of a training's length
EXTENDABLE = (
    lr_scheduler.LambdaLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.StepLR,
)


def extended_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the run that ``config["extend"]`` names, which this one can go on from.

    Raises:
        ValueError: ``extend=...``: no finished run, one that differs in more than its length, has as many epochs or
            more, ended early, or has no last checkpoint any more.
    """
    source = config["extend"]
    try:
        record = finished_record(source)
    except ValueError as error:
        raise ValueError(f"extend={source!r}: {str(error).partition(': ')[2]}") from error
    other = [line for line in differences(record["config"], config) if line.partition(": ")[0] not in OF_LENGTH]
    if other:
        raise ValueError(
            f"extend={source!r}: goes on with that run's settings, but for epochs; others are {'; '.join(other[:5])}"
            f"{', ...' if len(other) > 5 else ''}. From its weights with these: "
            f"init_from={source}/{LAST_CHECKPOINT}"
        )
    epochs = record["config"]["epochs"]
    if config["epochs"] <= epochs:
        raise ValueError(f"extend={source!r}: epochs={config['epochs']} must be more than that run's {epochs}, in all")
    if record.get("stopped") is not None or config["trainer"].get("max_steps", -1) != -1:
        why = "it was stopped early" if record.get("stopped") is not None else "trainer.max_steps ends it"
        raise ValueError(f"extend={source!r}: {why}, and would end at once; from its weights: init_from={source}")
    if not (path := Path(source) / LAST_CHECKPOINT).is_file():
        raise ValueError(f"extend={source!r}: has no {LAST_CHECKPOINT} any more; from its weights: init_from={source}")
    log.info("extend: goes on after epoch %d with what %s holds, optimizer included", epochs, path)
    return record


def refuse_fixed_length(scheduler: Any) -> None:
    """Refuse a schedule that would be continued with the length that it was made for.

    Raises:
        ValueError: ``schedule=...`` and which ones can.
    """
    if not isinstance(scheduler, EXTENDABLE):
        raise ValueError(
            f"schedule={type(scheduler).__name__}: keeps the length that it was made for and cannot be extended; "
            f"cosine and {', '.join(each.__name__ for each in EXTENDABLE)} can"
        )


class LongerSchedule(lightning.Callback):
    """Sets learning rates to where the schedule of the longer training stands.

    A checkpoint has those with which the shorter one ended: after its cosine, zero.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            if not isinstance(scheduler, lr_scheduler.LambdaLR):
                continue
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            before = scheduler.optimizer.param_groups[0]["lr"]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates
            log.info("extend: the schedule is that of %s epochs: %.3g -> %.3g", trainer.max_epochs, before, rates[0])
