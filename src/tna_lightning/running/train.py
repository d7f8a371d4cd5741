"""The composition root: a config becomes data, networks, learner, callbacks and trainer, and ends as a run record.

``python -m tna_lightning.running.start FOLDER`` trains the ``config.yaml`` that stands in a run's folder.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from tna_lightning.callbacks import ChooseCopies, ExactResume, History, LayerCurves, StopOnNonFiniteLoss
from tna_lightning.callbacks.exact_resume import identity_of, refuse_another_run
from tna_lightning.callbacks.inference_cost import InferenceCost
from tna_lightning.data import Batch, BatchedDataModule, Inputs
from tna_lightning.learner import TwinLearner
from tna_lightning.length import Length
from tna_lightning.models.norms import TemporalEffectiveBatchNorm2d
from tna_lightning.packages import require
from tna_lightning.quantization import WeightQuantization
from tna_lightning.quantization.kept import weight_report
from tna_lightning.quantization.packing import save_network
from tna_lightning.running import checkpoints, companions, loggers
from tna_lightning.running.callbacks import build_callbacks, check_monitors
from tna_lightning.running.config import BAD_INPUT, check, companion_nodes, companion_prefix, read_config, write_config
from tna_lightning.running.console import leave, print_record, quiet_lightning
from tna_lightning.running.doors import Lines, enter
from tna_lightning.running.extension import LongerSchedule, extended_record, refuse_fixed_length
from tna_lightning.running.factory import (
    build,
    build_data,
    build_network,
    check_time_steps,
    checkpoint_network,
    compile_network,
    expected_inputs,
    inputs_of,
    network_spec,
    under,
)
from tna_lightning.running.neuron_trial import try_network
from tna_lightning.running.pictures import plot_curves, plot_inspection
from tna_lightning.running.processes import Terminated, end_together, end_with_parent, interrupts_later, was_interrupted
from tna_lightning.running.record import (
    LAST_CHECKPOINT,
    NETWORK,
    Run,
    now,
    reading,
    refuse_damaged_record,
)
from tna_lightning.running.trainer import build_trainer, check_length
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
    if (config["trainer"]["devices"], config["trainer"]["num_nodes"]) == (1, 1):
        # alone, though a RANK of somebody else's may be left in the environment
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    run = Run(folder, config)
    if _rank() != 0:  # a further process of a run on several devices: the first one keeps the records
        return _done_before(run) or _train(run, _prepare(run))
    if previous := _done_before(run):  # nothing is written, and the folder may be one that nobody can write to
        return _done_already(run, previous)
    with run.claimed():
        if previous := _done_before(run):  # by another process, meanwhile
            return _done_already(run, previous)
        prepared = None
        try:
            prepared = _prepare(run)
            _begin(run, prepared)
            return run.write(**_train(run, prepared), status="done", finished=now())
        except BaseException as error:
            if prepared is None:
                if isinstance(error, BAD_INPUT):
                    raise
                _begin(run, None)
            with interrupts_later():  # Ctrl-C twice must not leave a record that says running
                if was_interrupted(error):
                    run.write(status="interrupted", finished=now(), error="KeyboardInterrupt")
                elif isinstance(error, SIGTERMException | Terminated):
                    run.write(status="interrupted", finished=now(), error="SIGTERM")
                else:
                    status = "failed" if isinstance(error, Exception) else "interrupted"
                    run.write(status=status, finished=now(), error=f"{type(error).__name__}: {error}")
            if was_interrupted(error):
                raise KeyboardInterrupt from None
            if isinstance(error, SIGTERMException):
                raise Terminated from None
            raise


def _done_before(run: Run) -> dict[str, Any] | None:
    """The record of a run that is not to be repeated; every process of a run on several devices finds the same."""
    previous = run.previous() if run.config["resume"] else None
    return previous if previous is not None and previous["status"] == "done" else None


def _done_already(run: Run, previous: dict[str, Any]) -> dict[str, Any]:
    with reading(run.folder):
        refuse_damaged_record(run.folder, previous)
        log.info("done already, on %s: %s (resume=false trains it again)", previous["finished"], run.folder)
        for line in _changed_since(previous, run.config):
            log.warning(line)
    return previous


def _sources(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The files that hold a run's first weights, by setting, with their SHA-256."""
    named = {"init_from": config["init_from"]}
    named |= {f"{companion_prefix(name)}weights": node["weights"] for name, node in companion_nodes(config).items()}
    files = {
        key: weights_file(key, source) for key, source in named.items() if source not in (None, "random", "pretrained")
    }
    if config["extend"] is not None:
        files["extend"] = Path(config["extend"]) / LAST_CHECKPOINT
    return {key: {"file": str(path), "sha256": digest(path)} for key, path in files.items() if path.is_file()}


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


def _began_with(run: Run, datamodule: Any) -> dict[str, Any]:
    """What a training is given from outside of its config, which every checkpoint remembers."""
    # data of one's own are in the identity by their content
    about = datamodule.describe() if isinstance(datamodule, BatchedDataModule) else {}
    data = {key: about[key] for key in ("split_hash", "images_sha256", "frames_key") if key in about}
    return {"sources": _sources(run.config), "data": data, "environments": [run.record["environment"]]}


def _going_on(began_with: Mapping[str, Any], today: dict[str, Any]) -> dict[str, Any]:
    """What a training that goes on was given, and in which environments it has worked; says what has changed.

    Raises:
        ValueError: the data are not those that it began with.
    """
    for key, value in began_with["data"].items():
        if today["data"].get(key, value) == value:
            continue
        if key == "frames_key":  # of the versions that make frames, too
            log.warning("data: the frames are not those that this training began with")
        else:
            raise ValueError(
                f"data: {key} is not what it was when this training began: other samples, or another split; give it "
                "the former ones, or resume=false starts over"
            )
    for key, source in began_with["sources"].items():
        if source["sha256"] != today["sources"].get(key, source)["sha256"]:
            log.warning("%s: %s has changed since this training began, with what was there then", key, source["file"])
    before, here = began_with["environments"], today["environments"]
    changed = [
        f"{key} {before[-1].get(key)} -> {value}"
        for key, value in here[0].items()
        if key in ("threads", "versions", "cpu") and before[-1].get(key) != value
    ]
    if changed:
        log.warning("goes on elsewhere, not to the very same weights: %s", "; ".join(changed))
    sources = {**today["sources"], **began_with["sources"]}
    return {**began_with, "sources": sources, "environments": before if before[-1] == here[0] else [*before, *here]}


def _begin(run: Run, prepared: _Prepared | None) -> None:
    if not run.config["resume"]:
        run.put_aside()
    elif (earlier := run.previous()) is not None and "wandb_id" in earlier:
        run.record["wandb_id"] = earlier["wandb_id"]  # a run that goes on is the same one there
    write_config(run.config, run.folder)
    if prepared is None:
        run.write()
        return
    if prepared.ckpt_path is not None:
        checkpoints.take_up(prepared.ckpt_path, prepared.best_path, run.folder / "checkpoints")
    environments = prepared.began_with["environments"]
    further: dict[str, Any] = {"environments": environments} if len(environments) > 1 else {}
    if run.config["extend"] is not None:
        further["extends"] = {"run": run.config["extend"], "identity": prepared.extended}
    run.write(sources=prepared.began_with["sources"], **further)


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
    best_path: Path | None
    began_with: dict[str, Any]
    extended: str | None


def _prepare(run: Run) -> _Prepared:
    config = run.config
    require("matplotlib")  # for the pictures at the end
    ckpt_path, checkpoint, extended = _checkpoint(run)
    with under("ckpt_path"):
        best_path = None if ckpt_path is None else checkpoints.best_beside(ckpt_path, checkpoint)
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build_data(config)
    if _rank() == 0:
        with under("data"):  # the trainer asks for both again
            datamodule.prepare_data()
            datamodule.setup("fit")
            if isinstance(datamodule, BatchedDataModule):
                datamodule.check_subsets()
        if isinstance(datamodule, BatchedDataModule):
            with isolate_rng():  # which an operation of one's own may draw from
                datamodule.try_augmentation()
    learner = build_learner(config, datamodule)
    began_with: dict[str, Any] = {}
    if _rank() == 0:  # who writes the checkpoints
        began_with = _began_with(run, datamodule)
        if before := checkpoint.get(ExactResume.KEY, {}).get("began_with"):  # version 0.1 did not save it
            began_with = _going_on(before, began_with)

    kept, savers = checkpoints.savers(run.folder / "checkpoints", config["keep"])
    history = History(run.folder / "metrics.csv")
    cost: InferenceCost = build("cost", config["cost"])
    callbacks: list[Callback] = [
        history,
        StopOnNonFiniteLoss(),
        ExactResume(run.identity, began_with, extended),
        cost,
        *savers,
    ]
    if extended is not None and identity_of(checkpoint) == extended:
        callbacks.append(LongerSchedule())
    if config["logger"]:
        callbacks.append(LayerCurves())
    if isinstance(datamodule, BatchedDataModule) and datamodule.chosen is not None:
        callbacks.append(ChooseCopies())
    # the user's first: what they log at the end of an epoch is history, what they draw when a run goes on is undone
    users = build_callbacks(config, callbacks)
    check_monitors(config, users, learner, datamodule.num_classes)
    callbacks = [*users, *callbacks]
    quantization = build_quantization(config)
    if quantization is not None:
        callbacks.insert(0, quantization)

    trainer = build_trainer(config, run.folder, callbacks)
    epochs = trainer.max_epochs
    if _rank() == 0 and isinstance(datamodule, BatchedDataModule):  # others tell their length when they are trained on
        length = check_length(trainer, datamodule, config["keep"])
        epochs = length.epochs
        with under("objective"):
            learner.objective.check_epochs(epochs)
        with under("schedule"):
            _try_schedule(learner, length)
    if quantization is not None:
        with under("quant"):
            quantization.check(learner, epochs)
    logger = None
    if config["logger"]:
        logger = build("logger", config["logger"])
        with under(f"logger={run.record['choices'].get('logger', 'custom')}"):
            loggers.check(logger)
    return _Prepared(
        datamodule, learner, trainer, history, cost, kept, logger, ckpt_path, best_path, dict(began_with), extended
    )


def _train(run: Run, prepared: _Prepared) -> dict[str, Any]:
    config, datamodule, learner, trainer = run.config, prepared.datamodule, prepared.learner, prepared.trainer
    history = prepared.history
    nodes = companion_nodes(config)
    pretrained = [name for name, node in nodes.items() if node["weights"] == "pretrained"]
    for name in pretrained if config["extend"] is None else []:  # else they are in the checkpoint
        with isolate_rng():  # this run draws the same whether its companion is trained here and now or was before
            weights = companions.pretrained_weights(config, train, name)
            lightning.seed_everything(config["seed"], workers=True, verbose=False)  # in the environment, too
        load_weights(f"{companion_prefix(name)}weights", learner.networks[name], weights, neurons="same")
    if config["compile"] == "network":
        log.info("compile=network: the first steps wait for torch.compile, a minute or so unless its cache has it")
    with loggers.opened(run, prepared.logger) as logger, quiet_lightning():
        trainer.logger = logger
        end_together(trainer)
        with _restored_from(prepared.ckpt_path):
            trainer.fit(learner, datamodule=datamodule, ckpt_path=prepared.ckpt_path, weights_only=True)
        training = {  # before the test, which restores the callbacks of the kept epoch with its weights
            "epochs": len(history.rows),
            "stopped": _stopped_early(trainer, len(history.rows) - 1),
            "wall_time_s": history.wall_seconds,
            "train_images_per_s": history.train_samples / history.train_seconds,
            "history": history.columns(),
        }
        kept_path = prepared.kept.best_model_path
        if not kept_path:
            raise ValueError("keep='best': training ended before its first validation; keep=last keeps the last epoch")
        trainer.test(learner, datamodule=datamodule, ckpt_path=kept_path, weights_only=True, verbose=False)
        if not trainer.is_global_zero:
            return {}

        results = _kept_epoch(history.rows[-1])  # as of the checkpoint whose weights are kept
        results |= {name: float(value) for name, value in trainer.callback_metrics.items() if "test/" in name}
        expected = expected_inputs(learner.base, datamodule)
        save_network(run.folder / NETWORK, learner.base, network_spec(config, datamodule), inputs=expected)
        class_accuracy = dict(zip(datamodule.class_names, learner.class_accuracy(), strict=True))
        record = {
            "device": device_name(trainer),
            "data": datamodule.describe(),
            "inputs": expected,
            "split_hash": datamodule.split_hash,
            "results": results,
            "class_accuracy": class_accuracy,
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
    try_network(base, inputs)
    if config["init_from"] is not None:
        load_weights("init_from", base, config["init_from"])
    nodes = companion_nodes(config)
    networks: dict[str, nn.Module] = {}
    for name, node in nodes.items():
        prefix, of_companion = companion_prefix(name), companions.companion_networks(config, name)
        check_time_steps(f"{prefix}model", of_companion["model"], inputs)
        spec = network_spec(of_companion, datamodule)
        networks[name] = build_network(spec, prefix=prefix, channels_last=config["channels_last"])
        try_network(networks[name], inputs, prefix=prefix)
        if node["weights"] not in ("random", "pretrained"):
            load_weights(f"{prefix}weights", networks[name], node["weights"], neurons="same")
    modules = (module for network in (base, *networks.values()) for module in network.modules())
    if config["trainer"]["sync_batchnorm"] and any(isinstance(each, TemporalEffectiveBatchNorm2d) for each in modules):
        raise ValueError("trainer.sync_batchnorm=True: must be false with model.norm=tebn, whose scale it would drop")
    if config["compile"] == "network" and config["objective"].get("rate_weight"):
        raise ValueError(
            f"objective.rate_weight={config['objective']['rate_weight']!r}: needs compile=none, auto or neurons, since "
            "code for a whole network does not show its spikes"
        )
    if config["compile"] == "network" and config["objective"].get("features"):
        raise ValueError(
            f"objective.features={config['objective']['features']}: needs compile=none, auto or neurons, since "
            "code for a whole network does not show its layers"
        )
    for name, network in {"base": base, **networks}.items():
        compile_network(network, config["compile"])
        if config["checkpoint_stages"]:
            checkpoint_network(network, "" if name == "base" else companion_prefix(name))
    optimizer, schedule = build("optimizer", config["optimizer"]), build("schedule", config["schedule"])
    with under("optimizer"):  # both are called when training starts: their errors are wanted now
        tried = optimizer([{"name": "tried", "params": [nn.Parameter(torch.zeros(1))]}])
    with under("schedule"):
        scheduler = schedule(tried, max(1, config["epochs"]), 1)
        if config["extend"] is not None:
            refuse_fixed_length(scheduler["scheduler"] if isinstance(scheduler, Mapping) else scheduler)
    objective = build("objective", config["objective"])
    with under("objective"):
        objective.check_classes(inputs.num_classes)
        objective.check_epochs(config["epochs"])
    learner = TwinLearner(
        base,
        networks,
        objective,
        num_classes=datamodule.num_classes,
        freeze_companion={name for name, node in nodes.items() if node["freeze"]},
        companion_device={name: node["device"] for name, node in nodes.items() if node["device"] is not None},
        optimizer=optimizer,
        schedule=schedule,
    )
    if learner.feature_names and not learner.companion_devices:
        _try_features(learner, inputs)
    return learner


def _try_features(learner: TwinLearner, inputs: Inputs) -> None:
    """Match the layers of two samples, so that those that cannot be matched are refused before training."""
    steps = [] if inputs.time_steps is None else [inputs.time_steps]
    x = torch.zeros(2, *steps, inputs.channels, inputs.height, inputs.width)
    learner.eval()
    with isolate_rng(), torch.no_grad(), under("objective"):
        learner.losses(Batch(x, torch.tensor([0, 1])))
    learner.train()


def _try_schedule(learner: TwinLearner, length: Length) -> None:
    """Call the schedule as training will: its errors are wanted now."""
    if learner.schedule_factory is not None:
        tried = learner.optimizer_factory([{"name": "tried", "params": [nn.Parameter(torch.zeros(1))]}])
        learner.schedule_factory(tried, length.steps, length.steps_per_epoch)


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


def _checkpoint(run: Run) -> tuple[Path | None, dict[str, Any], str | None]:
    """Where training goes on from, and what it holds: what ``ckpt_path`` says, else the folder's last.

    Where neither is and ``extend`` names a run, that one's last; its identity comes third, None without ``extend``.
    """
    asked, resume = run.config["ckpt_path"], run.config["resume"]
    if asked in (None, "last"):
        last = run.folder / LAST_CHECKPOINT
        path = last if resume and last.is_file() else None  # else what is there is put aside
    else:
        path = Path(asked)
    if asked is not None and not (path and path.is_file()):
        raise ValueError(f"ckpt_path={asked!r}: there is no checkpoint {path or ''}".rstrip())
    extended = None
    if (source := run.config["extend"]) is not None:
        # a run that was begun no longer needs the one that it goes on from
        extended = _begun(run) if path is not None else None
        if extended is None:
            extended = extended_record(run.config)["identity"]
            path = path or Path(source) / LAST_CHECKPOINT
    if path is None:
        return None, {}, None
    if not resume and path.resolve().is_relative_to(run.folder.resolve()):
        raise ValueError(f"ckpt_path={asked!r}: resume=false puts it aside with all that is in {run.folder}")
    try:
        content = checkpoints.read_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"ckpt_path={error}; resume=false starts over") from error
    if ExactResume.KEY not in content or History().state_key not in content["callbacks"]:
        raise ValueError(f"ckpt_path={str(path)!r}: is no checkpoint of a run")
    refuse_another_run(content, path, run.identity, extended)
    return path, content, extended


def _begun(run: Run) -> str | None:
    """The identity of the run that this one has begun to extend; None where it has not."""
    previous = run.previous()
    return None if previous is None else (previous.get("extends") or {}).get("identity")


@contextmanager
def _restored_from(path: Path | None) -> Iterator[None]:
    """What fails while a checkpoint's entries are given to their owners, as one line: they are not what they should be.

    Raises:
        ValueError: it is so.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
        restores = any(
            code.co_filename == checkpoint_connector.__file__ and code.co_name.lstrip("_").startswith("restore")
            for code in codes
        )
        if path is None or not restores:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"ckpt_path={str(path)!r}: training cannot go on from there ({reason})") from error


def _by_scheme(report: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of a weight report: totals, and the names of the layers at each precision."""
    schemes: dict[str, list[str]] = {}
    for layer in report["layers"]:
        schemes.setdefault(layer["scheme"], []).append(layer["name"])
    return {key: report[key] for key in ("weights", "quantized_share")} | {"schemes": schemes}


def _kept_epoch(row: Mapping[str, Any]) -> dict[str, Any]:
    """Validation results of the epoch whose weights are kept, and its number."""
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
    if not trainer.should_stop:
        return None
    remaining = [each.time_remaining() for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        reason, message = "max_time", "trainer.max_time has come."
    else:
        reason, message = "asked_for", "A callback asked for the end of training."
    unknown = dict.fromkeys(("monitor", "mode", "best", "patience"))
    return {"epoch": epoch, **unknown, "reason": reason, "message": message}


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
        sys.exit("usage: python -m tna_lightning.running.start FOLDER   (a run's folder, with its config.yaml)")
    enter()
    end_with_parent()
    folder = Path(arguments[0])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("tna_lightning").setLevel(logging.INFO)
    try:
        run_and_report(read_config(folder), folder)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        leave(error)
