"""Composing a config from ``conf/`` and ``experiments/``, and checking it before anything is built from it."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tna_lightning.files import write_text
from tna_lightning.packages import MissingPackage
from tna_lightning.running.home import GROUPS, home, options, own_folder, refuse_hidden
from tna_lightning.running.identity import folder_name, identity_config
from tna_lightning.running.own import own_digests
from tna_lightning.running.record import CONFIG
from tna_lightning.running.versions import MOVED

# the nodes and settings of a config; what else stands in one, nothing reads
SETTINGS = (
    *("seed", "epochs", "keep", "compile", "channels_last", "checkpoint_stages", "output_dir", "study", "resume"),
    *("init_from", "extend", "ckpt_path"),
    *("data", "augment", "model", "neuron", "quant", "objective", "companion", "companions", "optimizer", "schedule"),
    *("trainer", "callbacks", "logger", "cost"),
)
BY_THE_PROGRAM = ("choices", "own")  # what it adds to a config, see `resolved`
COMPANION = ("model", "neuron", "weights", "freeze", "seed", "device", "precision")
NODES = (
    *("data", "augment", "model", "neuron", "objective", "companions", "optimizer", "schedule"),
    *("trainer", "callbacks", "cost"),
)
NODES_OR_NOTHING = ("quant", "companion", "logger")
_NOT_SAID = {"device": None, "precision": "full"}  # of a companion whose node has neither, as those of version 0.1

# arguments of lightning.Trainer that the program gives, and what to set instead
NOT_FOR_TRAINER = {
    "logger": "choose one: logger=wandb, tensorboard or csv",
    "callbacks": "they are a choice of their own: callbacks=[ema,early_stopping]",
    "plugins": "a run brings its own",
    "default_root_dir": "output_dir says where runs' folders are made",
    "enable_checkpointing": "a run is kept by its checkpoints; keep=last or best says which",
    "enable_model_summary": "the table at the end of a run and run.json say what a network has",
    "num_sanity_val_steps": "validation comes after each epoch",
    "fast_dev_run": "debug=smoke runs one epoch of 2 batches of each set",
    "barebones": "a run needs its records",
    "use_distributed_sampler": "data sets bring their own",
}
# what the program itself reads of the trainer's settings: none of them can be left out
READ_OF_TRAINER = ("accelerator", "devices", "max_epochs", "num_nodes", "precision", "sync_batchnorm")
# the least that makes sense where Lightning takes less, and then does something else without a word
_LEAST_OF_TRAINER: dict[str, float] = {
    **{"max_epochs": 1, "min_epochs": 0, "min_steps": 0, "log_every_n_steps": 1, "check_val_every_n_epoch": 1},
    **{"accumulate_grad_batches": 1, "limit_val_batches": 0, "overfit_batches": 0},
    "reload_dataloaders_every_n_epochs": 0,
}
_ABOVE_0_OF_TRAINER = ("limit_train_batches", "limit_test_batches", "gradient_clip_val")
_AT_LEAST_0_OF_OPTIMIZER = ("lr", "weight_decay", "momentum", "eps")  # of torch.optim

_SLURM_TASKS = (
    "Lightning needs SLURM_NTASKS_PER_NODE beside it: --ntasks-per-node=N in place of --ntasks=N; for one process "
    "srun --ntasks=1, or unset SLURM_NTASKS"
)
_OUT_OF_MEMORY = r"(?i)out ?of ?memory|MemoryError|can't allocate memory"

_MOST_ENTRIES, _DEEPEST = 100_000, 50  # of a config that is read; one of ours has some hundred, six deep

# what a user may mend; else it went wrong on the way
BAD_INPUT = (ValueError, FileNotFoundError, HydraException, MissingPackage)


def register_resolvers() -> None:
    """Make ``${tna.home:}`` and ``${tna.run_folder:}`` known to OmegaConf; calling it again changes nothing."""
    OmegaConf.register_new_resolver("tna.home", lambda: str(home()), replace=True)
    OmegaConf.register_new_resolver("tna.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("tna.half", lambda number: int(number) // 2, replace=True)
    OmegaConf.register_new_resolver("tna.twice", lambda number: 2 * int(number), replace=True)
    OmegaConf.register_new_resolver("tna.narrower", _narrower, replace=True)
    OmegaConf.register_new_resolver("tna.sweep_folder", _sweep_folder, replace=True)


def _run_folder(*, _root_: DictConfig) -> str:
    check_output_dir(_root_["output_dir"])  # before Hydra makes a folder there
    return folder_name(resolved(_root_))


def _sweep_folder(study: str | None, output_dir: Any, *, _root_: DictConfig) -> str:
    """``multirun/STUDY``, or a folder where ``output_dir`` says, if it is said."""
    _check_study(study)
    check_output_dir(output_dir)
    words = OmegaConf.select(_root_, "hydra.overrides.task") or []
    is_said = output_dir != "runs" or any(re.match(r"\+*output_dir=", word) for word in words)
    return f"{output_dir if is_said else 'multirun'}/{study or 'unnamed'}"


def _check_study(study: Any) -> None:
    if study is not None and not (isinstance(study, str) and re.fullmatch(r"\w[\w.+-]*", study)):
        raise ValueError(f"study={study!r}: must be a name of letters, digits and . _ + -")


def check_output_dir(output_dir: Any) -> None:
    """Refuse no place: an empty one (``output_dir=$UNSET``) would be the root of the file system.

    Raises:
        ValueError: it is no path.
    """
    if not isinstance(output_dir, str) or not output_dir.strip():
        raise ValueError(f"output_dir={output_dir!r}: must be a folder, in which those of runs are made")


def _narrower(model: DictConfig) -> Any:
    return OmegaConf.merge(model, {"width": model["width"] / 2})


def resolved(config: DictConfig, hydra: Any = None) -> dict[str, Any]:
    """The config as plain containers without Hydra's own part, with ``choices`` naming the option of each group.

    ``own`` has the digests of the user's own code and data, where there are any (:mod:`~tna_lightning.running.own`).

    Args:
        config: as composed.
        hydra: Hydra's own node, where the config does not carry it.
    """
    content: dict[str, Any] = {
        str(key): OmegaConf.to_container(config._get_node(key), resolve=True)
        if OmegaConf.is_config(config._get_node(key))
        else config[key]
        for key in config
        if key != "hydra"
    }
    hydra = config.get("hydra", hydra)
    if hydra is not None:
        content["choices"] = dict(sorted(chosen(hydra["runtime"]["choices"]).items()))
        _tell_companion_time(content, hydra["overrides"]["task"])
    if own := own_digests(content):
        content["own"] = own
    return content


def _tell_companion_time(content: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Give a companion's own model the T of event frames, unless another was asked for, which is refused later.

    The data's YAML says it to the base's model, but cannot write into one that only some commands have. Asked for is
    what the command line says, or a YAML that differs from the model's own default.
    """
    data, companion = content.get("data"), content.get("companion")
    model = companion.get("model") if isinstance(companion, Mapping) else None
    if not (isinstance(model, dict) and "time_steps" in model and isinstance(data, Mapping) and "time_steps" in data):
        return
    is_asked = any(re.match(r"\+*companion\.model\.time_steps=", override) for override in overrides)
    if not is_asked and model["time_steps"] == _default_time_steps(model):
        model["time_steps"] = data["time_steps"]


def _default_time_steps(model: Mapping[str, Any]) -> Any:
    """T of a model in its signature; of one of the user's own what stands in its node."""
    path = home() / "conf" / "signatures" / f"{str(model.get('_target_')).rpartition('.')[2]}.yaml"
    signature = yaml.safe_load(path.read_text()) if path.is_file() else model
    return signature["time_steps"] if signature["_target_"] == model["_target_"] else model["time_steps"]


def chosen(hydra_choices: Mapping[str, Any]) -> dict[str, str]:
    """Our own groups among Hydra's choices, without the unset ones."""
    return {
        group: str(option)
        for group, option in hydra_choices.items()
        if option is not None and group.partition("@")[0] in GROUPS
    }


def compose(overrides: Sequence[str] = (), own: Path | str | None = None) -> dict[str, Any]:
    """The resolved config for command-line overrides such as ``["model=resnet19", "quant=none"]``, from Python.

    Args:
        overrides: as on the command line.
        own: the user's own folder of choices, as ``--config-dir`` names it.

    Raises:
        ValueError: an unknown group, choice or key; or a choice of one's own bears the name of one that comes along.
    """
    if own is not None:
        refuse_hidden(Path(own))
        places = ",".join(json.dumps(f"file://{place}") for place in (home(), Path(own).absolute()))
        overrides = [*overrides, f"hydra.searchpath=[{places}]"]
    return resolved(_composed(overrides))


def swept_by(study: str) -> dict[str, Any]:
    """What a study sweeps, key by key, as Hydra merges its file with those that it stands on.

    Raises:
        ValueError: there is no such study.
    """
    return dict(OmegaConf.select(_composed([f"experiments={study}"]), "hydra.sweeper.params") or {})


def _composed(overrides: Sequence[str]) -> DictConfig:
    """With Hydra's own settings, of which a sweep is one."""
    register_resolvers()
    try:
        with initialize_config_dir(str(home() / "conf"), version_base="1.3", job_name="tna_lightning"):
            return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise ValueError(explain(error, overrides)) from error


def check(config: Mapping[str, Any]) -> None:
    """Check what no constructor can check alone.

    Raises:
        ValueError: ``key=value: what is allowed``.
    """
    read = {name: node for name, node in config.items() if name in SETTINGS}
    for key in config:
        refuse_unknown("", key, [*SETTINGS, *BY_THE_PROGRAM], leaves(read))
    _refuse_missing("", config, SETTINGS)
    for key in (*NODES, *NODES_OR_NOTHING, *(key for key in BY_THE_PROGRAM if key in config)):
        if not isinstance(config[key], Mapping) and not (config[key] is None and key in NODES_OR_NOTHING):
            raise ValueError(f"{key}={config[key]!r}: must be a node of settings")
    _check_plain_settings(config)
    check_output_dir(config["output_dir"])
    _check_study(config["study"])
    for key, named, others in (("quant", "none", "a scheme"), ("logger", "csv", "wandb or tensorboard")):
        if config[key] and "_target_" not in config[key]:
            raise ValueError(f"{key}={dict(config[key])}: {key}={named} has no settings; choose {others}")
    for key in ("optimizer", "schedule"):
        if config[key].get("_partial_") is not True:
            raise ValueError(f"{key}={config[key].get('_target_')}: its YAML must say `_partial_: true`")
    _check_optimizer(config["optimizer"])
    _check_trainer(config)
    if "augment" in config["data"]:
        raise ValueError(f"data.augment: {MOVED['data.augment']}")
    for name, node in config["augment"].items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(f"augment.{name}={node!r}: must be an operation; ~augment.{name} takes it out")
    for key, value in identity_config(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value!r}: must be finite")
    if config["companion"] and not {"weights", "freeze", "seed"} & config["companion"].keys():
        # set by hand or by model@companion.model, but the baseline has no companion
        raise ValueError(
            f"companion={config['companion']}: this baseline has no companion; allowed are tna, kd, mutual, cohort"
        )
    further = config["companions"]
    if not all(isinstance(node, Mapping | None) for node in further.values()):
        raise ValueError(f"companions={further}: must map names to nodes, companions.third={{}}")
    if "companion" in further or (further and not config["companion"]):
        raise ValueError(f"companions={further}: stand beside `companion`, by names of their own; see baseline=cohort")
    for name, node in companion_nodes(config).items():
        _check_companion(companion_prefix(name), node, config)


def _check_plain_settings(config: Mapping[str, Any]) -> None:
    """The settings that are no nodes."""
    seed, epochs = config["seed"], config["epochs"]
    if not _is_seed(seed):
        raise ValueError(f"seed={seed!r}: must be an integer from 0 to 4294967295")
    if not _is_int(epochs) or epochs < 1:
        raise ValueError(f"epochs={epochs!r}: must be an integer of at least 1")
    for key, allowed in (("keep", ("best", "last")), ("compile", ("none", "auto", "neurons", "network"))):
        if config[key] not in allowed:
            raise ValueError(f"{key}={config[key]!r}: allowed are {', '.join(allowed)}")
    for key in ("channels_last", "checkpoint_stages", "resume"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]!r}: allowed are true, false")
    if config["checkpoint_stages"] and config["compile"] == "network":
        raise ValueError("checkpoint_stages=true: not with compile=network, which chooses itself what is kept")
    for key, what in (
        ("init_from", "the path of a run, of its .safetensors or of a .ckpt"),
        ("extend", "the folder of a finished run"),
        ("ckpt_path", "the path of a checkpoint, or last"),
    ):
        if config[key] is not None and not isinstance(config[key], str):
            raise ValueError(f"{key}={config[key]!r}: must be {what}")
    if config["extend"] is not None and config["ckpt_path"] not in (None, "last"):
        raise ValueError(f"ckpt_path={config['ckpt_path']!r}: must be left out with extend, which names the checkpoint")


def _check_optimizer(optimizer: Mapping[str, Any]) -> None:
    """What torch's own optimizers refuse without the setting's name; those of others have their own bounds."""
    if not str(optimizer.get("_target_")).startswith("torch.optim."):
        return
    for key, value in optimizer.items():
        if key in _AT_LEAST_0_OF_OPTIMIZER and isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"optimizer.{key}={value!r}: must be at least 0")
        shares = value if key == "betas" and isinstance(value, list) else [value] if key == "alpha" else []
        if any(isinstance(share, int | float) and not 0 <= share < 1 for share in shares):
            raise ValueError(f"optimizer.{key}={value!r}: must be at least 0 and below 1")
    has_momentum = optimizer.get("momentum", 0) and not optimizer.get("dampening", 0)
    if optimizer.get("_target_") == "torch.optim.SGD" and optimizer.get("nesterov") is True and not has_momentum:
        raise ValueError("optimizer.nesterov=True: needs optimizer.momentum above 0 and no optimizer.dampening")


def _check_trainer(config: Mapping[str, Any]) -> None:
    """What Lightning takes, though nothing, or something else than it says, would come of it."""
    trainer = config["trainer"]
    for key in trainer:
        if key in NOT_FOR_TRAINER:
            raise ValueError(f"trainer.{key}: is not for you to set; {NOT_FOR_TRAINER[key]}")
    _refuse_missing("trainer.", trainer, READ_OF_TRAINER)
    if re.search("spawn|fork|notebook", str(strategy := trainer.get("strategy"))):
        raise ValueError(f"trainer.strategy={strategy!r}: must be ddp, whose processes keep what they trained")
    if trainer["max_epochs"] is None:
        raise ValueError(
            "trainer.max_epochs=None: must be a number, epochs=N sets it; max_steps and max_time end sooner"
        )
    numbers = {key: value for key, value in trainer.items() if isinstance(value, int | float)}
    for key, value in numbers.items():
        if value < _LEAST_OF_TRAINER.get(key, value):
            raise ValueError(f"trainer.{key}={value!r}: must be at least {_LEAST_OF_TRAINER[key]}")
        if key in _ABOVE_0_OF_TRAINER and value <= 0:
            raise ValueError(f"trainer.{key}={value!r}: must be above 0")
    max_epochs, max_steps = numbers.get("max_epochs", 1), numbers.get("max_steps", -1)
    if max_steps < 1 and max_steps != -1:
        raise ValueError(f"trainer.max_steps={max_steps!r}: must be at least 1, or -1 for no limit")
    if numbers.get("min_epochs", 0) > max_epochs:
        raise ValueError(f"trainer.min_epochs={trainer['min_epochs']!r}: must be at most the epochs ({max_epochs})")
    if max_steps != -1 and numbers.get("min_steps", 0) > max_steps:
        raise ValueError(f"trainer.min_steps={trainer['min_steps']!r}: must be at most trainer.max_steps ({max_steps})")
    if isinstance(interval := trainer.get("val_check_interval"), str | Mapping):  # Lightning's time between validations
        raise ValueError(
            f"trainer.val_check_interval={interval!r}: must be a number; what a clock chooses comes out differently "
            "each time"
        )
    if numbers.get("overfit_batches"):
        for key in ("limit_train_batches", "limit_val_batches"):
            if trainer.get(key) not in (None, 1.0) or isinstance(trainer.get(key), int):
                raise ValueError(f"trainer.{key}={trainer[key]!r}: leave it out, trainer.overfit_batches says it")
    if trainer.get("gradient_clip_algorithm") is not None and trainer.get("gradient_clip_val") is None:
        raise ValueError(
            "trainer.gradient_clip_algorithm: needs trainer.gradient_clip_val, without which nothing is clipped"
        )
    if trainer.get("log_every_n_steps") is not None and not config["logger"]:
        raise ValueError("trainer.log_every_n_steps: needs a logger, logger=wandb or tensorboard")
    limit = trainer.get("max_time")
    if limit is not None and not (any(limit.values()) if isinstance(limit, Mapping) else str(limit).strip("0:")):
        raise ValueError(f"trainer.max_time={limit!r}: must be above 0")
    nodes = trainer["num_nodes"]
    # torchrun's variable (Lightning's own too) and Slurm's: without either, the first node waits for the others forever
    if nodes != 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise ValueError(f"trainer.num_nodes={nodes!r}: start the command with torchrun or srun; alone allowed is 1")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # where Lightning leaves Slurm alone
    if tasks != "1" and "SLURM_NTASKS_PER_NODE" not in os.environ and not is_interactive:
        raise ValueError(f"SLURM_NTASKS={tasks!r}: {_SLURM_TASKS}")
    if config["keep"] == "best":
        if not config["data"].get("val_fraction", 1):
            raise ValueError("keep='best': needs validation images (data.val_fraction above 0); else use keep=last")
        if numbers.get("limit_val_batches", 1) == 0:
            raise ValueError("keep='best': needs a validation (trainer.limit_val_batches above 0); else use keep=last")
        if numbers.get("check_val_every_n_epoch", 1) > max_epochs:
            raise ValueError(
                f"keep='best': no epoch is validated (trainer.check_val_every_n_epoch="
                f"{trainer['check_val_every_n_epoch']!r} of {max_epochs}); else use keep=last"
            )


def _refuse_missing(prefix: str, node: Mapping[str, Any], needed: Sequence[str]) -> None:
    for key in needed:
        if key not in node:
            raise ValueError(f"{prefix}{key}: is missing, and cannot be left out")


def companion_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each companion's node by network's name, in the order in which they are drawn.

    What a node of ``companions`` does not say is as in ``companion``.
    """
    if not config["companion"]:
        return {}
    first = _NOT_SAID | dict(config["companion"])
    return {"companion": first} | {name: first | (node or {}) for name, node in config["companions"].items()}


def companion_prefix(name: str) -> str:
    """Where a companion's node stands, for the errors of its settings: ``companion.`` or ``companions.third.``."""
    return "companion." if name == "companion" else f"companions.{name}."


def _check_companion(prefix: str, node: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    trainer = config["trainer"]
    for key in node:
        refuse_unknown(prefix.removesuffix("."), key, COMPANION)
    _refuse_missing(prefix, node, ("weights", "freeze", "seed"))
    for key in ("model", "neuron"):
        if not isinstance(node.get(key), Mapping | None):
            raise ValueError(f"{prefix}{key}={node[key]!r}: must be a node of settings; {key}@{prefix}{key}=CHOICE")
    if not _is_seed(node["seed"]):
        raise ValueError(f"{prefix}seed={node['seed']!r}: must be an integer from 0 to 4294967295")
    if node["weights"] != "pretrained" and node["seed"] != config["seed"]:
        raise ValueError(f"{prefix}seed={node['seed']!r}: is that of {prefix}weights=pretrained alone; leave it out")
    if not isinstance(node["weights"], str):
        raise ValueError(f"{prefix}weights={node['weights']!r}: random, pretrained or a run's path")
    if not isinstance(node["freeze"], bool):
        raise ValueError(f"{prefix}freeze={node['freeze']!r}: allowed are true, false")
    precision = node["precision"]
    if precision not in ("full", "base") and not (isinstance(precision, Mapping) and "_target_" in precision):
        raise ValueError(f"{prefix}precision={precision!r}: allowed are full, base and a quantizer with a _target_")
    if node["freeze"] and precision != "full":
        words = precision if isinstance(precision, str) else dict(precision)
        raise ValueError(
            f"{prefix}precision={words!r}: a frozen companion keeps the weights that it was trained to; "
            "use full, or train it quantised and take its weights from there"
        )
    if node["device"] is None:
        return
    import torch  # here, because `--help` must not wait for it

    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if node["device"] not in there:
        raise ValueError(f"{prefix}device={node['device']!r}: here are {', '.join(there)}; null is the base's")
    if trainer["devices"] != 1 or trainer["num_nodes"] != 1:
        raise ValueError(f"{prefix}device={node['device']!r}: needs trainer.devices=1; ddp keeps all networks on each")


def refuse_unknown(key: str, name: str, known: Sequence[str], elsewhere: Iterable[str] = ()) -> None:
    """Refuse a setting that nothing reads, with where it has moved to, or the nearest one that is read.

    Args:
        key: the node; empty at the top.
        name: the setting.
        known: the settings of the node.
        elsewhere: dotted keys of other settings, which may be the ones that are meant.

    Raises:
        ValueError: ``name`` is not among ``known``.
    """
    if name in known:
        return
    path = f"{key}.{name}" if key else name
    if path in MOVED:
        raise ValueError(f"{path}: {MOVED[path]}")
    meant = nearest(path, [*(f"{key}.{each}" if key else each for each in known), *elsewhere])
    raise ValueError(f"{path}: nothing reads such a setting; {_did_you_mean(meant) or 'there are ' + ', '.join(known)}")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings of a config, without Hydra's own (``_target_``)."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        elif not str(name).startswith("_"):
            yield f"{prefix}{name}"


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """Those of the known dotted keys, at most three, that are likely meant by one that is not known, best first.

    Their last parts are compared first, then where they stand: ``lr`` is ``optimizer.lr``, and ``objective.weight`` is
    ``objective.match_weight`` rather than ``optimizer.weight_decay``.
    """
    place, _, name = key.rpartition(".")
    likeness: dict[str, float] = {}
    for each in known:
        there, _, last = each.rpartition(".")
        by_name = _likeness(name, last)
        is_below = f"{there}.".startswith(f"{place}.")
        by_place = 0.3 * (is_below or difflib.SequenceMatcher(None, place, there).ratio()) if place else 0.0
        if by_name >= 0.6 and by_name + by_place >= 0.75:
            likeness[each] = by_name + by_place
    ranked = sorted(likeness, key=lambda each: -likeness[each])
    return [each for each in ranked if likeness[each] >= likeness[ranked[0]] - 0.1][:3]


def _likeness(name: str, other: str) -> float:
    """From 0 to 1: by letters; 0.8 and more for words of the other, its beginning or its initials (``lr``)."""
    name, other = sorted((name.lower(), other.lower()), key=len)
    if name == other:
        return 1.0
    words, others = name.split("_"), other.split("_")
    is_part = set(words) <= set(others) or (len(name) > 2 and other.startswith(name))
    is_initials = len(name) > 1 and name == "".join(word[:1] for word in others)
    alike = difflib.SequenceMatcher(None, name, other).ratio()
    return max(alike, 0.8) if is_part or is_initials else alike


def _did_you_mean(meant: Sequence[str]) -> str:
    return f"did you mean {', '.join(meant[:-1])}{' or ' if meant[1:] else ''}{meant[-1]}?" if meant else ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seed(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2**32


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Put the resolved config into a run's folder, as ``config.yaml``."""
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def read_config(folder: Path | str) -> dict[str, Any]:
    """The resolved config of a run's folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"run={str(folder)!r}: no run folder, it has no {CONFIG}")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are no text, no such date
        raise ValueError(f"run={str(folder)!r}: {CONFIG} is damaged ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict) or not _is_plain(config):
        raise ValueError(f"run={str(folder)!r}: {CONFIG} is no config")
    return config


def _is_plain(config: Any) -> bool:
    """Whether it is made of mappings by name, lists, numbers, words and null; of a few, and not deep.

    YAML has more kinds, and a few of its lines may stand for billions of entries: an alias of aliases.
    """
    nodes = [(config, 0)]
    for number, (node, depth) in enumerate(nodes):  # which grows
        if number > _MOST_ENTRIES or depth > _DEEPEST:
            return False
        if isinstance(node, dict):
            if not all(isinstance(key, str) for key in node):
                return False
            nodes += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list):
            nodes += [(value, depth + 1) for value in node]
        elif not isinstance(node, str | int | float | None):
            return False
    return True


def explain(error: BaseException, overrides: Sequence[str] | None = None) -> str | None:
    """The one line that tells a user what was wrong with the input; None for an error that is ours.

    Args:
        error: what went wrong.
        overrides: what was composed, if it was not the command line.
    """
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        allowed = error.options or (options(group) if group in GROUPS else None)  # none for one of several choices
        if allowed:
            close = difflib.get_close_matches(choice, allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"{group}={choice}: allowed are {', '.join(sorted(allowed))}{hint}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, ConfigCompositionException):
        line = _first_line(error)
        no_group = r"Override (.+?)=.* looks like a config group override"
        if match := re.match(r"Could not override '(.+?)'", line) or re.match(no_group, line):
            return _unknown_key(match[1], sys.argv[1:] if overrides is None else overrides)
        if match := re.match(r"Ambiguous value for argument '(.+?)'", line):
            return f"{match[1]}: several values make a sweep; put -m before the settings"
        if "only supported from the primary config" in line:
            return "config-name: must be config; settings of your own go into DIR/experiments/NAME.yaml, which " + (
                "begins with `# @package _global_`: --config-dir DIR experiments=NAME"
            )
        return line
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _first_line(error).removeprefix("ValueError raised while resolving interpolation: ")
    if type(error).__name__ == "RuntimeError" and 'Could not detect "srun"' in str(error):
        return "hydra/launcher=slurm: there is no srun on this machine; allowed where Slurm is"
    if isinstance(error, RuntimeError) and str(error).startswith("You set `--ntasks="):  # Lightning's
        return f"SLURM_NTASKS={os.environ.get('SLURM_NTASKS')!r}: {_SLURM_TASKS}"
    if isinstance(error, RuntimeError) and str(error).startswith("Unknown plugin class"):
        plugin = str(error).partition("hydra_plugins.")[2].partition(".")[0]
        return f"{plugin}: not installed; launchers and search are extras: [joblib], [submitit], [ray], [optuna]"
    if isinstance(error, RuntimeError | MemoryError) and re.search(_OUT_OF_MEMORY, f"{type(error).__name__} {error}"):
        return f"out of memory ({_first_line(error)}); a smaller data.batch_size, model.width or T needs less"
    if isinstance(error, ValueError | FloatingPointError | OSError | MissingPackage):
        return _first_line(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not imported for this
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _unreadable(override: str) -> str:
    """What to write for a word of the command line that Hydra's grammar cannot read."""
    key, equals, value = override.partition("=")
    if not equals or key != key.strip() or not key:
        return f"{override}: must be KEY=VALUE or GROUP=CHOICE, without blanks around the ="
    if "'" in value or '"' in value:
        return f"{key}: {value} cannot be read: a quotation mark, bracket or brace in it has no partner"
    return f"{key}: {value} has characters that must be quoted, twice because of the shell: '{key}=\"{value}\"'"


def _unknown_key(key: str, words: Sequence[str]) -> str:
    """What to write instead of a key that a config has not, for the words of the command line that it is one of."""
    if key in MOVED:
        return f"{key}: {MOVED[key]}"
    if key.removeprefix("trainer.") in NOT_FOR_TRAINER and key.startswith("trainer."):
        return f"{key}: is not for you to set; {NOT_FOR_TRAINER[key.removeprefix('trainer.')]}"
    if key in GROUPS:
        return f"{key}: takes the name of a choice; its settings are given one by one, {key}.NAME=VALUE"
    group, at, place = key.partition("@")
    if at:
        meant = [f"{each}@{place}" for each in nearest(group, GROUPS)]
        return f"{key}: no such group; {_did_you_mean(meant) or 'groups are ' + ', '.join(GROUPS)}"
    if key.startswith("companions."):
        return f"{key}: not said there yet, so that it is as in companion; +{key}=VALUE says it"
    if key.startswith("hydra."):
        return f"{key}: no such setting of Hydra's; `--cfg hydra` prints all of them"
    if key == "data.time_steps":
        return f"{key}: these are static images, shown for as many steps as model.time_steps says; set that"
    configs = _with_choices(words)
    known = [[*leaves({name: each[name] for name in each if name in SETTINGS})] for each in configs]
    if any(key in each for each in known):
        return f"{key}: not every job of the sweep has this setting; sweep the choices that have it apart"
    path, _, name = key.rpartition(".")
    node: Any = configs[0]
    for part in path.split(".") if path else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    if path and isinstance(node, Mapping) and _is_left_out(name, node):
        return f"{key}: no such setting here; +{key}=VALUE adds it, which the YAML leaves out"
    meant = nearest(key, [*known[0], *GROUPS])
    if not path:
        return f"{key}: no such group or setting; {_did_you_mean(meant) or 'groups are ' + ', '.join(GROUPS)}"
    others = [str(each) for each in node or () if not str(each).startswith("_")]
    hint = f"{_did_you_mean(meant)} " if meant else f"there are {', '.join(others)}; " if others else ""
    return f"{key}: no such setting here; {hint}`--cfg job` prints all of them"


def _with_choices(words: Sequence[str]) -> list[Mapping[str, Any]]:
    """The configs with the choices of a command alone, which say what settings there are.

    Of a sweep the first choices, then every other choice of a group beside the first of the others.
    """
    choices: dict[str, list[str]] = {}
    for word in words:
        if (group := word.partition("=")[0]).partition("@")[0] in GROUPS:
            (override,) = OverridesParser.create().parse_overrides([word])
            swept = override.is_sweep_override()
            choices[group] = [f"{group}={value}" for value in override.sweep_string_iterator()] if swept else [word]
    first = {group: among[0] for group, among in choices.items()}
    own = own_folder(words)
    try:
        return [
            compose(list(first.values()), own),
            *(compose([*(first | {group: other}).values()], own) for group in choices for other in choices[group][1:]),
        ]
    except ValueError:  # more than one thing is wrong
        return [compose()]


def _is_left_out(name: str, node: Mapping[str, Any]) -> bool:
    """Whether what a node builds takes a setting that its YAML leaves out; of our own all stand there."""
    path = str(node.get("_target_", "tna_lightning"))
    if path.startswith(("tna_lightning.", "lightning.")):
        return False
    from tna_lightning.models.settings import parameters_of  # here, because of torch, which the target imports too

    try:
        target = locate(path)
        names, takes_any = parameters_of(target) if callable(target) else ([], False)
    except (ErrorDuringImport, ValueError):  # a module of one's own that fails; what has no signature
        return False
    return takes_any or name in names
