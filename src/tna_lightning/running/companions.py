"""Companions that are not trained along: teachers and pretrained twins, trained once and cached."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from tna_lightning.running.config import companion_nodes, companion_prefix
from tna_lightning.running.identity import folder_name
from tna_lightning.running.record import RECORD, now, read_record

log = logging.getLogger(__name__)

_STARTED = now()  # this process, as near as it matters

Train = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]


def companion_networks(config: Mapping[str, Any], name: str = "companion") -> dict[str, Any]:
    """The config with a companion's own ``model`` and ``neuron``, where it has them, in place of the base's."""
    node = companion_nodes(config)[name]
    return {**config, **{key: node[key] for key in ("model", "neuron") if node.get(key)}}


def pretraining_config(config: Mapping[str, Any], name: str = "companion") -> dict[str, Any]:
    """The config of a run that trains a companion alone: plain, at full precision, with the companion's seed."""
    companion = companion_nodes(config)[name]
    choices = dict(config.get("choices", {}))
    alone = copy.deepcopy(companion_networks(config, name))
    alone |= {
        "seed": companion["seed"],
        "objective": {"_target_": "tna_lightning.objectives.Plain"},
        "companion": None,
        "companions": {},
        "quant": {},
        "init_from": None,
        "extend": None,
        "ckpt_path": None,
        "resume": True,
        "study": None,
        "callbacks": {},  # those are for the network to keep
        "logger": {},
    }
    if (alone["trainer"].get("devices"), alone["trainer"].get("num_nodes")) != (1, 1):
        # one process trains it before the others start, and whoever asks for it on one device finds it too
        alone["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "sync_batchnorm": False}
        choices.pop("trainer", None)
    if alone["data"].get("seed") == config["seed"]:
        alone["data"]["seed"] = companion["seed"]
    kept = ("data", "augment", "optimizer", "trainer", "debug")
    alone["choices"] = {group: choices[group] for group in kept if group in choices}
    for group in ("model", "neuron"):
        places = (f"{group}@{companion_prefix(name)}{group}", f"{group}@companion.{group}", group)
        alone["choices"][group] = next((choices[place] for place in places if place in choices), "custom")
    alone["choices"] |= {"baseline": "plain", "quant": "none"}
    return alone


def pretrained_weights(config: Mapping[str, Any], train: Train, name: str = "companion") -> Path:
    """The run that holds the weights of a companion with ``weights=pretrained``.

    It is trained first, as a run of its own under ``output_dir/pretrained``. The folder's name holds the hash of its
    config, so that every run that asks for the same companion finds it there; of several processes one trains and the
    others wait.

    Raises:
        ValueError: in a further process of a run on several devices, where the first one failed to train it.
    """
    alone = pretraining_config(config, name)
    folder = Path(config["output_dir"]) / "pretrained" / folder_name(alone)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if getattr(rank_zero_only, "rank", 0):
        _wait_for_the_first_process(folder, f"{companion_prefix(name)}weights")
        return folder
    with FileLock(folder.parent / f".{folder.name}.lock"):
        log.info("%s: %s", name, folder)
        train(alone, folder)
    return folder


def _wait_for_the_first_process(folder: Path, key: str) -> None:
    """Until it has trained the companion in this folder.

    Raises:
        ValueError: it failed to.
    """
    # an earlier attempt may have failed too, and its record stand there until the first process begins
    before = _record(folder)
    while (record := _record(folder))["status"] != "done":
        fails_now = record != before or record.get("finished", "") >= _STARTED
        if record["status"] in ("failed", "interrupted") and fails_now:
            error = str(record.get("error", "")).partition("\n")[0]
            raise ValueError(f"{key}='pretrained': the first process did not train {folder} ({error})")
        time.sleep(1)


def _record(folder: Path) -> dict[str, Any]:
    return read_record(folder) if (folder / RECORD).exists() else {"status": "absent"}
