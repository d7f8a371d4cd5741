"""Composing a config from ``conf/`` and ``experiments/``, and checking it before anything is built from it."""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tna_lightning.files import write_text
from tna_lightning.packages import MissingPackage
from tna_lightning.running.home import GROUPS, home, options
from tna_lightning.running.identity import folder_name, identity_config
from tna_lightning.running.own import own_digests
from tna_lightning.running.record import CONFIG
from tna_lightning.running.versions import MOVED

# the nodes and settings of a config; what else stands in one, nothing reads
SETTINGS = (
    *("seed", "epochs", "keep", "compile", "channels_last", "checkpoint_stages", "output_dir", "study", "resume"),
    *("init_from", "ckpt_path"),
    *("data", "augment", "model", "neuron", "quant", "objective", "companion", "companions", "optimizer", "schedule"),
    *("trainer", "callbacks", "logger", "cost"),
)
BY_THE_PROGRAM = ("choices", "own")  # what it adds to a config, see `resolved`
COMPANION = ("model", "neuron", "weights", "freeze", "seed", "device", "precision")
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
    "fast_dev_run": "epochs=1 trainer.limit_train_batches=2 trainer.limit_val_batches=2 trainer.limit_test_batches=2",
    "barebones": "a run needs its records",
    "use_distributed_sampler": "data sets bring their own",
}


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
    return folder_name(resolved(_root_))


def _sweep_folder(study: str | None) -> str:
    _check_study(study)
    return study or "unnamed"


def _check_study(study: Any) -> None:
    if study is not None and not (isinstance(study, str) and re.fullmatch(r"\w[\w.+-]*", study)):
        raise ValueError(f"study={study!r}: must be a name of letters, digits and . _ + -")


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
    """Give a companion's own model the T of event frames, unless the command line says another, which is refused later.

    The data's YAML says it to the base's model, but cannot write into one that only some commands have.
    """
    data, companion = content.get("data"), content.get("companion")
    model = companion.get("model") if companion else None
    is_asked = any(re.match(r"\+*companion\.model\.time_steps=", override) for override in overrides)
    if model and "time_steps" in model and data and "time_steps" in data and not is_asked:
        model["time_steps"] = data["time_steps"]


def chosen(hydra_choices: Mapping[str, Any]) -> dict[str, str]:
    """Our own groups among Hydra's choices, without the unset ones."""
    return {
        group: str(option)
        for group, option in hydra_choices.items()
        if option is not None and group.partition("@")[0] in GROUPS
    }


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config for command-line overrides such as ``["model=resnet19", "quant=none"]``, from Python.

    Raises:
        ValueError: an unknown group, choice or key.
    """
    register_resolvers()
    try:
        with initialize_config_dir(str(home() / "conf"), version_base="1.3", job_name="tna_lightning"):
            return resolved(hydra_compose("config", overrides=list(overrides), return_hydra_config=True))
    except HydraException as error:
        raise ValueError(explain(error)) from error


def check(config: Mapping[str, Any]) -> None:
    """Check what no constructor can check alone.

    Raises:
        ValueError: ``key=value: what is allowed``.
    """
    missing = [key for key in SETTINGS if key not in config]
    if missing:
        raise ValueError(f"{missing[0]}: is missing, and cannot be left out")
    for key in config:
        refuse_unknown("", key, [*SETTINGS, *BY_THE_PROGRAM])
    seed, epochs = config["seed"], config["epochs"]
    if not _is_int(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: must be an integer from 0 to 4294967295")
    if not _is_int(epochs) or epochs < 1:
        raise ValueError(f"epochs={epochs!r}: must be an integer of at least 1")
    _check_study(config["study"])
    if config["keep"] not in ("best", "last"):
        raise ValueError(f"keep={config['keep']!r}: allowed are best, last")
    if config["compile"] not in ("none", "neurons", "network"):
        raise ValueError(f"compile={config['compile']!r}: allowed are none, neurons, network")
    for key in ("channels_last", "checkpoint_stages"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]!r}: allowed are true, false")
    if config["checkpoint_stages"] and config["compile"] == "network":
        raise ValueError("checkpoint_stages=true: not with compile=network, which chooses itself what is kept")
    for key in config["trainer"]:
        if key in NOT_FOR_TRAINER:
            raise ValueError(f"trainer.{key}: is not for you to set; {NOT_FOR_TRAINER[key]}")
    if config["logger"] and "_target_" not in config["logger"]:
        raise ValueError(f"logger={dict(config['logger'])}: logger=csv has no settings; choose wandb or tensorboard")
    _check_nodes(config["trainer"])
    if config["keep"] == "best" and not config["data"].get("val_fraction", 1):
        raise ValueError("keep='best': needs validation images (data.val_fraction above 0); else use keep=last")
    if "augment" in config["data"]:
        raise ValueError(f"data.augment: {MOVED['data.augment']}")
    for name, node in config["augment"].items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(f"augment.{name}={node!r}: must be an operation; ~augment.{name} takes it out")
    init_from, quant = config["init_from"], config["quant"]
    if init_from is not None and not isinstance(init_from, str):
        raise ValueError(f"init_from={init_from!r}: must be the path of a run, of its .safetensors or of a .ckpt")
    if quant and "_target_" not in quant:
        raise ValueError(f"quant={dict(quant)}: quant=none has no settings; choose a scheme")
    for key, value in identity_config(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value!r}: must be finite")
    if not isinstance(config["resume"], bool):
        raise ValueError(f"resume={config['resume']!r}: allowed are true, false")
    if config["companion"] and "weights" not in config["companion"]:
        # set by hand or by model@companion.model, but the baseline has no companion
        raise ValueError(
            f"companion={config['companion']}: this baseline has no companion; allowed are tna, kd, mutual, cohort"
        )
    further = config["companions"]
    if not isinstance(further, Mapping) or not all(isinstance(node, Mapping | None) for node in further.values()):
        raise ValueError(f"companions={further}: must map names to nodes, companions.third={{}}")
    if "companion" in further or (further and not config["companion"]):
        raise ValueError(f"companions={further}: stand beside `companion`, by names of their own; see baseline=cohort")
    for name, node in companion_nodes(config).items():
        _check_companion(companion_prefix(name), node, config["trainer"])


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


def _check_companion(prefix: str, node: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    for key in node:
        refuse_unknown(prefix.removesuffix("."), key, COMPANION)
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


def refuse_unknown(key: str, name: str, known: Sequence[str]) -> None:
    """Refuse a setting that nothing reads, with where it has moved to, or the nearest one that is read.

    Raises:
        ValueError: ``name`` is not among ``known``, the settings of the node ``key``.
    """
    if name in known:
        return
    path = f"{key}.{name}" if key else name
    if path in MOVED:
        raise ValueError(f"{path}: {MOVED[path]}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise ValueError(f"{path}: nothing reads such a setting; {hint}")


def _check_nodes(trainer: Mapping[str, Any]) -> None:
    nodes = trainer.get("num_nodes", 1)
    # torchrun's variable (Lightning's own too) and Slurm's: without either, the first node waits for the others forever
    if nodes != 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise ValueError(f"trainer.num_nodes={nodes!r}: start the command with torchrun or srun; alone allowed is 1")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
    except yaml.YAMLError as error:
        raise ValueError(f"run={str(folder)!r}: {CONFIG} is damaged ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise ValueError(f"run={str(folder)!r}: {CONFIG} is no config")
    return config


def explain(error: BaseException) -> str | None:
    """The one line that tells a user what was wrong with the input; None for an error that is ours."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        allowed = error.options or (options(group) if group in GROUPS else None)  # none for one of several choices
        if allowed:
            return f"{group}={choice}: allowed are {', '.join(sorted(allowed))}"
    if isinstance(error, ConfigCompositionException):
        lines = [line for line in str(error).splitlines() if line.strip()]
        if match := re.match(r"Could not override '(.+?)'", lines[0]):
            return _unknown_key(match[1])
        if match := re.match(r"Ambiguous value for argument '(.+?)'", lines[0]):
            return f"{match[1]}: several values make a sweep; put -m before the settings"
        return lines[0]
    if isinstance(error, HydraException | OmegaConfBaseException):
        return str(error).splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
    if type(error).__name__ == "RuntimeError" and 'Could not detect "srun"' in str(error):
        return "hydra/launcher=slurm: there is no srun on this machine; allowed where Slurm is"
    if isinstance(error, RuntimeError) and str(error).startswith("Unknown plugin class"):
        plugin = str(error).partition("hydra_plugins.")[2].partition(".")[0]
        return f"{plugin}: not installed; launchers and search are extras: [joblib], [submitit], [ray], [optuna]"
    if isinstance(error, ValueError | FloatingPointError | OSError | MissingPackage):
        return str(error)
    return None


def _unknown_key(key: str) -> str:
    if key in MOVED:
        return f"{key}: {MOVED[key]}"
    if key.removeprefix("trainer.") in NOT_FOR_TRAINER and key.startswith("trainer."):
        return f"{key}: is not for you to set; {NOT_FOR_TRAINER[key.removeprefix('trainer.')]}"
    if key in GROUPS:
        return f"{key}: takes the name of a choice; its settings are given one by one, {key}.NAME=VALUE"
    if "." not in key.removeprefix("+") and "@" not in key:
        close = difflib.get_close_matches(key, [*GROUPS, *SETTINGS], n=1)
        hint = f"did you mean {close[0]}?" if close else f"groups are {', '.join(GROUPS)}"
        return f"{key}: no such group or setting; {hint}"
    if key.startswith("companions."):
        return f"{key}: not said there yet, so that it is as in companion; +{key}=VALUE says it"
    if key.startswith("hydra."):
        return f"{key}: no such setting of Hydra's; `--cfg hydra` prints all of them"
    if key == "data.time_steps":
        return f"{key}: these are static images, shown for as many steps as model.time_steps says; set that"
    return f"{key}: no such setting here; {_near(key)}`--cfg job` prints all of them"


def _near(key: str) -> str:
    """A hint at the setting that stands in the same node by nearly the same name, in the config of this command."""
    path, _, name = key.lstrip("+~").rpartition(".")
    others = [word for word in sys.argv[1:] if "=" in word and not word.startswith(("-", "hydra")) and key not in word]
    try:
        node: Any = compose(others)
        for part in path.split("."):
            node = node[part]
        close = difflib.get_close_matches(name, node, n=1)
    except (ValueError, KeyError, TypeError):  # more than one thing is wrong, or it is a sweep
        return ""
    return f"did you mean {close[0]}? " if close else ""
