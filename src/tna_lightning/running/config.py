"""Composing a config from ``conf/`` and ``experiments/``, and checking it before anything is built from it."""

from __future__ import annotations

import difflib
import math
import os
import re
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
from tna_lightning.running.home import GROUPS, home, options
from tna_lightning.running.identity import folder_name, identity_config
from tna_lightning.running.record import CONFIG

REQUIRED = (
    *(
        "seed",
        "epochs",
        "keep",
        "compile",
        "channels_last",
        "output_dir",
        "study",
        "resume",
        "cost",
        "init_from",
        "ckpt_path",
    ),
    *(
        "data",
        "model",
        "neuron",
        "quant",
        "objective",
        "companion",
        "optimizer",
        "schedule",
        "trainer",
        "callbacks",
        "logger",
    ),
)


BAD_INPUT = (ValueError, FileNotFoundError, HydraException)  # what a user may mend; else it went wrong on the way


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


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers without Hydra's own part, with ``choices`` naming the option of each group.

    ``choices`` are Hydra's where the config carries them (a config composed with its ``hydra`` node), else its own.
    """
    content: dict[str, Any] = {
        str(key): OmegaConf.to_container(config._get_node(key), resolve=True)
        if OmegaConf.is_config(config._get_node(key))
        else config[key]
        for key in config
        if key != "hydra"
    }
    if "hydra" in config:
        content["choices"] = dict(sorted(chosen(config["hydra"]["runtime"]["choices"]).items()))
    return content


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
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise ValueError(f"{missing[0]}: is missing, and cannot be left out")
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
    if not isinstance(config["channels_last"], bool):
        raise ValueError(f"channels_last={config['channels_last']!r}: allowed are true, false")
    _check_nodes(config["trainer"])
    _check_twin_device(config["trainer"])
    if config["keep"] == "best" and not config["data"].get("val_fraction", 1):
        raise ValueError("keep='best': needs validation images (data.val_fraction above 0); else use keep=last")
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
    if not config["companion"]:
        return
    # set by hand or by model@companion.model, but the baseline has no companion
    if "weights" not in config["companion"]:
        raise ValueError(
            f"companion={config['companion']}: this baseline has no companion; allowed are tna, kd, mutual"
        )
    if not isinstance(config["companion"]["weights"], str):
        raise ValueError(f"companion.weights={config['companion']['weights']!r}: random, pretrained or a run's path")
    if not isinstance(config["companion"]["freeze"], bool):
        raise ValueError(f"companion.freeze={config['companion']['freeze']!r}: allowed are true, false")


def _check_nodes(trainer: Mapping[str, Any]) -> None:
    nodes = trainer.get("num_nodes", 1)
    # torchrun's variable (Lightning's own too) and Slurm's: without either, the first node waits for the others forever
    if nodes != 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise ValueError(f"trainer.num_nodes={nodes!r}: start the command with torchrun or srun; alone allowed is 1")


def _check_twin_device(trainer: Mapping[str, Any]) -> None:
    device, stream = trainer.get("twin_device"), trainer.get("twin_stream", False)
    if not isinstance(stream, bool):
        raise ValueError(f"trainer.twin_stream={stream!r}: allowed are true, false")
    if device is None:
        return
    import torch  # here, because `--help` must not wait for it

    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in there:
        raise ValueError(f"trainer.twin_device={device!r}: here are {', '.join(there)}; null puts it beside the base")
    if trainer["devices"] != 1 or trainer["num_nodes"] != 1:
        raise ValueError(f"trainer.twin_device={device!r}: needs trainer.devices=1; ddp keeps both networks on each")


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
    if isinstance(error, ValueError | FloatingPointError | OSError):
        return str(error)
    return None


def _unknown_key(key: str) -> str:
    if key in GROUPS:
        return f"{key}: takes the name of a choice; its settings are given one by one, {key}.NAME=VALUE"
    if "." not in key.removeprefix("+") and "@" not in key:
        close = difflib.get_close_matches(key, [*GROUPS, "seed", "epochs", "keep", "study", "resume"])
        hint = f"did you mean {' or '.join(close)}?" if close else f"groups are {', '.join(GROUPS)}"
        return f"{key}: no such group or setting; {hint}"
    if key.startswith("hydra."):
        return f"{key}: no such setting of Hydra's; `--cfg hydra` prints all of them"
    return f"{key}: no such setting here; `--cfg job` prints all of them"
