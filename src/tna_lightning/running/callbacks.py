"""The callbacks of a config's node ``callbacks``: built, and refused where a run would not be what its config says.

Args:
    min_delta: a smaller change than this is none.
    patience: so many validations without a better value end the training.
    mode: min, smaller is better, or max.
    strict: fail where the metric is missing; false goes on.
    check_finite: stop where the metric is NaN or infinite.
    stopping_threshold: stop as soon as the metric is better than this.
    divergence_threshold: stop as soon as the metric is worse than this.
    check_on_train_epoch_end: look at the end of training epochs rather than of validations; null chooses.
    logging_interval: step or epoch; null is as the schedule goes, by step.
    log_momentum: momentum (betas of Adam) too.
    log_weight_decay: weight decay too.
    cpu_stats: the CPU's too, where a GPU trains; null is the device's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities.seed import isolate_rng

from tna_lightning.callbacks.averaging import WeightAverage
from tna_lightning.data.batch import Batch
from tna_lightning.learner import TwinLearner
from tna_lightning.running.factory import build, under

# what changes a run behind the back of its config, and what to do instead
REFUSED: dict[type[Callback], str] = {
    StochasticWeightAveraging: "replaces the schedule and averages after the last checkpoint; use callbacks=swa",
    ModelPruning: "sets weights to zero unseen by config and quantisation; leave it out, quant=ternary makes zeros",
    LearningRateFinder: "sets another learning rate than the config says; set optimizer.lr",
    BatchSizeFinder: "sets another batch size than the config says; set data.batch_size",
    BaseFinetuning: "changes what the optimizer trains; start from earlier weights with init_from",
    GradientAccumulationScheduler: "is a setting of the trainer; set trainer.accumulate_grad_batches",
}
NEED_LOGGER = (LearningRateMonitor, DeviceStatsMonitor)
AVERAGES = (WeightAverage, WeightAveraging)


def build_callbacks(config: Mapping[str, Any], own: Sequence[Callback]) -> list[Callback]:
    """The callbacks of the node ``callbacks``, in the order in which they stand there.

    Args:
        config: the resolved config.
        own: those that every run has.

    Raises:
        ValueError: an entry is no callback, or one that must not be here, not with this config, or not twice.
    """
    callbacks: dict[str, Callback] = {}
    for name, node in config["callbacks"].items():
        key = f"callbacks.{name}"
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(
                f"{key}={node!r}: must be {{_target_: a callback's class, its settings}}; ~{key} removes it"
            )
        callback = build(key, node)
        _check(key, callback, config)
        callbacks[name] = callback
    averages = [name for name, callback in callbacks.items() if isinstance(callback, AVERAGES)]
    if len(averages) > 1:
        raise ValueError(f"callbacks=[{','.join(averages)}]: a run keeps one average of the weights; choose one")
    states = {callback.state_key for callback in own if callback.state_dict()}
    for name, callback in callbacks.items():
        if callback.state_dict() and callback.state_key in states:
            raise ValueError(f"callbacks.{name}={type(callback).__name__}: the run has one with these settings already")
        states.add(callback.state_key)
    return list(callbacks.values())


def check_monitors(
    config: Mapping[str, Any], callbacks: Sequence[Callback], learner: TwinLearner, num_classes: int
) -> None:
    """Refuse a callback that waits for a metric that this run does not log.

    Args:
        config: the resolved config.
        callbacks: those of the node ``callbacks``, as :func:`build_callbacks` gives them.
        learner: what is trained.
        num_classes: K.

    Raises:
        ValueError: ``callbacks.NAME.monitor=METRIC`` and what there is.
    """
    monitors = [getattr(callback, "monitor", None) for callback in callbacks]
    # what callbacks of one's own log is not known before they do
    are_known = all(type(callback).__module__.startswith(("lightning.", "tna_lightning.")) for callback in callbacks)
    if not are_known or not any(isinstance(monitor, str) for monitor in monitors):
        return
    is_validated = bool(config["data"].get("val_fraction", 1)) and config["trainer"].get("limit_val_batches") != 0
    known = logged_names(learner, num_classes, is_validated=is_validated)
    for name, monitor in zip(config["callbacks"], monitors, strict=True):
        if isinstance(monitor, str) and monitor not in (*known, "epoch", "step"):  # which Lightning adds
            told = ", ".join(metric for metric in known if "/" in metric)
            raise ValueError(f"callbacks.{name}.monitor={monitor!r}: is not logged; there are {told}")


def logged_names(learner: TwinLearner, num_classes: int, *, is_validated: bool) -> list[str]:
    """The metrics that a learner logs in an epoch; its networks are not run."""
    names: list[str] = []
    logits = torch.zeros(1, 2, num_classes)
    batch = Batch(logits[0], torch.tensor([0, 1]))

    def losses(batch: Batch) -> Any:
        by_name = dict.fromkeys(learner.networks, logits)
        return learner.objective(by_name, batch, 0), by_name

    stand_ins = {"losses": losses, "log": lambda name, *_, **__: names.append(name)}
    vars(learner).update(stand_ins)  # in place of its methods
    try:
        with isolate_rng(), torch.no_grad():
            learner.training_step(batch, 0)
            if is_validated:
                learner.validation_step(batch, 0)
    finally:
        for name in stand_ins:
            del vars(learner)[name]
        learner.forget("train")
        learner.forget("val")
    return list(dict.fromkeys(names))


def _check(key: str, callback: Any, config: Mapping[str, Any]) -> None:
    kind = type(callback).__name__
    if not isinstance(callback, Callback):
        raise ValueError(f"{key}={kind}: must be a callback of Lightning's, or derive from lightning.Callback")
    for refused, reason in REFUSED.items():
        if isinstance(callback, refused):
            raise ValueError(f"{key}={kind}: {reason}")
    if getattr(callback, "verbose", False) and type(callback).__module__.startswith("lightning."):
        raise ValueError(
            f"{key}.verbose=True: is not heard, Lightning's notes are left out; the run's table says the end"
        )
    if isinstance(callback, NEED_LOGGER) and not config["logger"]:
        raise ValueError(f"{key}: needs a logger, logger=wandb or tensorboard")
    on_cpu = config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    if isinstance(callback, DeviceStatsMonitor) and on_cpu and find_spec("psutil") is None:
        raise ValueError(f"{key}: needs psutil on a CPU (pip install psutil)")
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str) and monitor.startswith("val/") and not config["data"].get("val_fraction", 1):
        raise ValueError(f"{key}.monitor={monitor!r}: needs validation images (data.val_fraction above 0)")
    if isinstance(callback, WeightAverage):
        with under(key):
            callback.check(config["epochs"])
