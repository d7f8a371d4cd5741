"""The composition root: a config becomes data, networks, learner, callbacks and trainer, and ends as a run record.

``python -m tna_lightning.running.train FOLDER`` trains the ``config.yaml`` that stands in a run's folder.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from tna_lightning.callbacks import ExactResume, History, LayerCurves, StopOnNonFiniteLoss
from tna_lightning.callbacks.exact_resume import refuse_another_run
from tna_lightning.callbacks.inference_cost import InferenceCost
from tna_lightning.data import BatchedDataModule
from tna_lightning.learner import TwinLearner
from tna_lightning.models.norms import TemporalEffectiveBatchNorm2d
from tna_lightning.packages import require
from tna_lightning.quantization import WeightQuantization
from tna_lightning.quantization.kept import weight_report
from tna_lightning.quantization.packing import save_network
from tna_lightning.running import checkpoints, companions, loggers
from tna_lightning.running.callbacks import build_callbacks
from tna_lightning.running.config import BAD_INPUT, check, companion_nodes, companion_prefix, read_config, write_config
from tna_lightning.running.console import leave, print_record, quiet_lightning, was_interrupted
from tna_lightning.running.factory import (
    build,
    build_data,
    build_network,
    check_time_steps,
    compile_network,
    inputs_of,
    network_spec,
    under,
)
from tna_lightning.running.neuron_trial import try_neurons
from tna_lightning.running.pictures import plot_curves, plot_inspection
from tna_lightning.running.processes import end_with_parent
from tna_lightning.running.record import LAST_CHECKPOINT, NETWORK, Run, now
from tna_lightning.running.sync_batchnorm import SyncBatchNorm
from tna_lightning.running.weights import digest, load_weights, weights_file

log = logging.getLogger(__name__)


def train(config: Mapping[str, Any], folder: Path | str) -> dict[str, Any]:
    """Train what the resolved config says, in this folder, and return the run's record.

    A run that is done is not repeated and one that was cut off is continued, unless ``config["resume"]`` is false.
    Bad input is refused before anything is written; a run that fails on the way says so in its record.

    Raises:
        ValueError: a setting is not allowed; ``key=value: what is allowed``.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    check(config)
    build("cost", config["cost"])  # here, since what is wrong there shall be said of a run that is done, too
    run = Run(folder, config)
    if _rank() != 0:  # a further process of a run on several devices: the first one keeps the records
        return _done_before(run) or _train(run, _prepare(run))
    with run.claimed():
        if previous := _done_before(run):
            log.info("done already, on %s: %s (resume=false trains it again)", previous["finished"], run.folder)
            for line in _changed_since(previous, config):
                log.warning(line)
            return previous
        prepared = None
        try:
            prepared = _prepare(run)
            _begin(run)
            return run.write(**_train(run, prepared), status="done", finished=now())
        except BaseException as error:
            if prepared is None:
                if isinstance(error, BAD_INPUT):
                    raise
                _begin(run)
            if was_interrupted(error):
                run.write(status="interrupted", finished=now(), error="KeyboardInterrupt")
                raise KeyboardInterrupt from None
            status = "failed" if isinstance(error, Exception) else "interrupted"
            run.write(status=status, finished=now(), error=f"{type(error).__name__}: {error}")
            raise


def _done_before(run: Run) -> dict[str, Any] | None:
    """The record of a run that is not to be repeated; every process of a run on several devices finds the same."""
    previous = run.previous() if run.config["resume"] else None
    return previous if previous is not None and previous["status"] == "done" else None


def _sources(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The files that hold a run's first weights, by setting, with their SHA-256."""
    named = {"init_from": config["init_from"]}
    named |= {f"{companion_prefix(name)}weights": node["weights"] for name, node in companion_nodes(config).items()}
    files = {
        key: weights_file(key, source) for key, source in named.items() if source not in (None, "random", "pretrained")
    }
    return {key: {"file": str(path), "sha256": digest(path)} for key, path in files.items()}


def _changed_since(previous: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """What a run that is done was given, and is no more so, though its identity does not show it."""
    for key, source in previous.get("sources", {}).items():
        path = Path(source["file"])
        if not path.is_file() or digest(path) != source["sha256"]:
            yield f"{key}: {path} has changed since; the run above had other weights from there"
    given = [
        {key: value for key, value in (cost or {}).items() if value is not None}  # earlier records lack what is null
        for cost in (previous["config"].get("cost"), config["cost"])
    ]
    if given[0] != given[1]:
        yield f"cost={config['cost']}: the energies above were counted with {previous['config'].get('cost')}"


def _begin(run: Run) -> None:
    if not run.config["resume"]:
        run.put_aside()
    write_config(run.config, run.folder)
    run.write(sources=_sources(run.config))


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """What a run is made of; all that a setting may get wrong has been tried."""

    datamodule: Any
    learner: TwinLearner
    trainer: lightning.Trainer
    history: History
    cost: InferenceCost
    kept: ModelCheckpoint
    logger: Any
    ckpt_path: Path | None


def _prepare(run: Run) -> _Prepared:
    config = run.config
    require("matplotlib")  # for the pictures at the end
    ckpt_path = _checkpoint(run)
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build_data(config)
    if _rank() == 0:
        with under("data"):  # the trainer asks for both again
            datamodule.prepare_data()
            datamodule.setup("fit")
        if isinstance(datamodule, BatchedDataModule):
            with isolate_rng():  # which an operation of one's own may draw from
                datamodule.try_augmentation()
    learner = build_learner(config, datamodule)

    kept, savers = checkpoints.savers(run.folder / "checkpoints", config["keep"])
    history = History(run.folder / "metrics.csv")
    cost: InferenceCost = build("cost", config["cost"])
    callbacks: list[Callback] = [history, StopOnNonFiniteLoss(), ExactResume(run.identity), cost, *savers]
    if config["logger"]:
        callbacks.append(LayerCurves())
    # the user's first: what they log at the end of an epoch is history, what they draw when a run goes on is undone
    callbacks = [*build_callbacks(config, callbacks), *callbacks]
    quantization = build_quantization(config)
    if quantization is not None:
        callbacks.insert(0, quantization)

    unless_validated = {} if config["data"].get("val_fraction", 1) else {"limit_val_batches": 0}
    on_cpu = config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    syncs_on_cpu = config["trainer"]["sync_batchnorm"] and on_cpu
    with quiet_lightning():
        trainer = build(
            "trainer",
            config["trainer"],
            callbacks=callbacks,
            logger=False,
            plugins=[checkpoints.AtomicCheckpointIO(), *([SyncBatchNorm()] if syncs_on_cpu else [])],
            sync_batchnorm=config["trainer"]["sync_batchnorm"] and not syncs_on_cpu,
            num_sanity_val_steps=0,
            **unless_validated,
            enable_model_summary=False,
            default_root_dir=run.folder,
        )
    if quantization is not None:
        with under("quant"):
            quantization.check(learner, trainer.max_epochs)
    logger = None
    if config["logger"]:
        logger = build("logger", config["logger"])
        with under(f"logger={run.record['choices'].get('logger', 'custom')}"):
            loggers.check(logger)
    return _Prepared(datamodule, learner, trainer, history, cost, kept, logger, ckpt_path)


def _train(run: Run, prepared: _Prepared) -> dict[str, Any]:
    config, datamodule, learner, trainer = run.config, prepared.datamodule, prepared.learner, prepared.trainer
    history = prepared.history
    nodes = companion_nodes(config)
    for name in (name for name, node in nodes.items() if node["weights"] == "pretrained"):
        with isolate_rng():  # this run draws the same whether its companion is trained here and now or was before
            weights = companions.pretrained_weights(config, train, name)
            lightning.seed_everything(config["seed"], workers=True, verbose=False)  # in the environment, too
        load_weights(f"{companion_prefix(name)}weights", learner.networks[name], weights, neurons="same")
    with loggers.opened(run, prepared.logger) as logger, quiet_lightning():
        trainer.logger = logger
        trainer.fit(learner, datamodule=datamodule, ckpt_path=prepared.ckpt_path, weights_only=True)
        training = {  # before the test, which restores the callbacks of the kept epoch with its weights
            "epochs": len(history.rows),
            "stopped": _stopped_early(trainer, len(history.rows) - 1),
            "wall_time_s": history.wall_seconds,
            "train_images_per_s": history.train_samples / history.train_seconds,
            "history": history.columns(),
        }
        results = _kept_epoch(history, prepared.kept)
        kept_path = prepared.kept.best_model_path
        trainer.test(learner, datamodule=datamodule, ckpt_path=kept_path, weights_only=True, verbose=False)
        if not trainer.is_global_zero:
            return {}

        results |= {name: float(value) for name, value in trainer.callback_metrics.items() if "test/" in name}
        save_network(run.folder / NETWORK, learner.base, network_spec(config, datamodule))
        record = {
            "device": device_name(trainer),
            "data": datamodule.describe(),
            "split_hash": datamodule.split_hash,
            "results": results,
            "weights": weight_report(learner.base) | {"bytes_file": (run.folder / NETWORK).stat().st_size},
            "cost": prepared.cost.result,
            **training,
        }
        record |= {f"{name}_weights": _by_scheme(weight_report(learner.networks[name])) for name in nodes}
        plot_curves(record["history"], run.folder / "curves.png", title=run.folder.name)
        plot_inspection(
            learner.base, record["cost"]["neuron_layers"], run.folder / "weights.png", title=run.folder.name
        )
        loggers.log_summary(
            logger,
            record["results"] | {"weights": record["weights"], "cost": record["cost"]},
            [run.folder / "curves.png", run.folder / "weights.png"],
        )
        return record


def build_learner(config: Mapping[str, Any], datamodule: Any) -> TwinLearner:
    """The networks with their first weights; a companion that has to be pretrained has random ones.

    The base is drawn first, so that it is the same in all baselines, then the companions in the order of the config.
    """
    inputs = inputs_of(datamodule)
    check_time_steps("model", config["model"], inputs)
    base = build_network(network_spec(config, datamodule), channels_last=config["channels_last"])
    try_neurons(base, inputs)
    if config["init_from"] is not None:
        load_weights("init_from", base, config["init_from"])
    nodes = companion_nodes(config)
    networks: dict[str, nn.Module] = {}
    for name, node in nodes.items():
        prefix, of_companion = companion_prefix(name), companions.companion_networks(config, name)
        check_time_steps(f"{prefix}model", of_companion["model"], inputs)
        spec = network_spec(of_companion, datamodule)
        networks[name] = build_network(spec, prefix=prefix, channels_last=config["channels_last"])
        try_neurons(networks[name], inputs, prefix=prefix)
        if node["weights"] not in ("random", "pretrained"):
            load_weights(f"{prefix}weights", networks[name], node["weights"], neurons="same")
    modules = (module for network in (base, *networks.values()) for module in network.modules())
    if config["trainer"]["sync_batchnorm"] and any(isinstance(each, TemporalEffectiveBatchNorm2d) for each in modules):
        raise ValueError("trainer.sync_batchnorm=True: must be false with model.norm=tebn, whose scale it would drop")
    if config["compile"] == "network" and config["objective"].get("rate_weight"):
        raise ValueError(
            f"objective.rate_weight={config['objective']['rate_weight']!r}: needs compile=none or neurons, since code "
            "for a whole network does not show its spikes"
        )
    for network in (base, *networks.values()):
        compile_network(network, config["compile"])
    optimizer, schedule = build("optimizer", config["optimizer"]), build("schedule", config["schedule"])
    with under("optimizer"):  # both are called when training starts: their errors are wanted now
        tried = optimizer([{"name": "tried", "params": [nn.Parameter(torch.zeros(1))]}])
    with under("schedule"):
        schedule(tried, max(1, config["epochs"]), 1)
    return TwinLearner(
        base,
        networks,
        build("objective", config["objective"]),
        num_classes=datamodule.num_classes,
        freeze_companion={name for name, node in nodes.items() if node["freeze"]},
        companion_device={name: node["device"] for name, node in nodes.items() if node["device"] is not None},
        optimizer=optimizer,
        schedule=schedule,
    )


def build_quantization(config: Mapping[str, Any]) -> Any:
    """The callback that quantises what ``quant`` and the companions' ``precision`` say; None where nothing is."""
    precisions = {name: node["precision"] for name, node in companion_nodes(config).items()}
    own = {
        name: build(f"{companion_prefix(name)}precision", node)
        for name, node in precisions.items()
        if isinstance(node, Mapping)
    }
    if config["quant"]:
        names = [name for name, precision in precisions.items() if precision != "full"]
        further = {"network": ["base", *names], "companion_quantizer": own} if names else {}
        return build("quant", config["quant"], **further)
    return WeightQuantization(next(iter(own.values())), list(own), own) if own else None


def _checkpoint(run: Run) -> Path | None:
    """Where training goes on from: what ``ckpt_path`` says, else the folder's last checkpoint, if there is one."""
    asked, resume = run.config["ckpt_path"], run.config["resume"]
    if asked in (None, "last"):
        last = run.folder / LAST_CHECKPOINT
        path = last if resume and last.is_file() else None  # else what is there is put aside
    else:
        path = Path(asked)
    if asked is not None and not (path and path.is_file()):
        raise ValueError(f"ckpt_path={asked!r}: there is no checkpoint {path or ''}".rstrip())
    if path is None:
        return None
    if not zipfile.is_zipfile(path):
        raise ValueError(f"ckpt_path={str(path)!r}: cut short or no checkpoint; resume=false starts over")
    refuse_another_run(torch.load(path, map_location="meta", weights_only=True), path, run.identity)
    return path


def _by_scheme(report: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of a weight report: totals, and the names of the layers at each precision."""
    schemes: dict[str, list[str]] = {}
    for layer in report["layers"]:
        schemes.setdefault(layer["scheme"], []).append(layer["name"])
    return {key: report[key] for key in ("weights", "quantized_share")} | {"schemes": schemes}


def _kept_epoch(history: History, kept: ModelCheckpoint) -> dict[str, Any]:
    """Validation results of the epoch whose weights are kept, and its number."""
    row = history.rows[-1]
    if kept.monitor is not None:  # max takes the first of several equals, as ModelCheckpoint does
        row = max(history.rows, key=lambda row: row["val/acc"] or 0.0)
    return {name: value for name, value in row.items() if name.startswith("val/")} | {"kept_epoch": row["epoch"]}


def _stopped_early(trainer: lightning.Trainer, epoch: int) -> dict[str, Any] | None:
    """Where and why the training ended before its last epoch, as a callback asked for; None if none did."""
    for callback in trainer.early_stopping_callbacks if trainer.should_stop else []:
        if callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            best = float(callback.best_score)
            return {
                "epoch": epoch,
                "monitor": callback.monitor,
                "mode": callback.mode,
                "best": best if math.isfinite(best) else None,
                "patience": callback.patience,
                "reason": callback.stopping_reason.name.lower(),
                "message": str(callback.stopping_reason_message).removesuffix(" Signaling Trainer to stop."),
            }
    unknown = dict.fromkeys(("monitor", "mode", "best", "patience"))
    message = "A callback asked for the end of training."
    return {"epoch": epoch, **unknown, "reason": "asked_for", "message": message} if trainer.should_stop else None


def _rank() -> int:
    """This process's number among those of a run on several devices."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def device_name(trainer: lightning.Trainer) -> str:
    """Number and name of the devices that a trainer works on."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def run_and_report(config: Mapping[str, Any], folder: Path) -> None:
    """Train and print the table at the end."""
    record = train(config, folder)
    if _rank() == 0:
        print_record(record, folder)


def main(arguments: Sequence[str]) -> None:
    """Train the config that stands in a run's folder."""
    if len(arguments) != 1:
        sys.exit("usage: python -m tna_lightning.running.train FOLDER   (a run's folder, with its config.yaml)")
    end_with_parent()
    folder = Path(arguments[0])
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("tna_lightning").setLevel(logging.INFO)
    try:
        run_and_report(read_config(folder), folder)
    except (Exception, KeyboardInterrupt) as error:
        leave(error)


if __name__ == "__main__":
    main(sys.argv[1:])
