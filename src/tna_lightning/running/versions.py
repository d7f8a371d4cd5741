"""Settings over the versions: what was added and what was moved, so that a run keeps its name, and its record a use.

A run's folder is named by the hash of its settings (:mod:`~tna_lightning.running.identity`). That hash is taken as
version 0.1.0 took it: a setting that came later leaves it as it was while it stands at its neutral value, and one that
has moved is hashed under its old name. A test compares the identities of all committed records.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Added since 0.1.0, with the value that reproduces 0.1.0 (not today's default, which may change). A name stands for the
# settings of the base and of a companion: `neuron.per` for `companion.neuron.per` too.
ADDED: dict[str, Any] = {
    "augment.nda.level": 2,
    "augment.nda.operations": 1,
    "augment.nda.pool": ["roll", "rotation", "shear"],
    "augment.policy.operations": None,
    "schedule.final_share": 0.0,
    "callbacks": {},
    "checkpoint_stages": False,
    "companions": {},
    "extend": None,
    "companion.device": None,
    "companion.precision": "full",
    "data.encode": "direct",
    "data.encode_steps": 4,
    "data.frames_root": None,
    "data.split": None,
    "data.val_subset": None,
    "data.test_subset": None,
    "model.norm": "bn",
    "neuron.per": "layer",
    "objective.class_weights": None,
    "objective.ignore_index": None,
    "objective.rate_weight": 0.0,
    "trainer.min_epochs": None,
    "trainer.max_steps": -1,
    "trainer.min_steps": None,
    "trainer.max_time": None,
    "trainer.limit_train_batches": None,
    "trainer.limit_val_batches": None,
    "trainer.limit_test_batches": None,
    "trainer.overfit_batches": 0.0,
    "trainer.val_check_interval": None,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": None,
    "trainer.gradient_clip_algorithm": None,
    "trainer.inference_mode": True,
    "trainer.profiler": None,
    "trainer.detect_anomaly": False,
    "trainer.reload_dataloaders_every_n_epochs": 0,
}

# Added while 0.1.0 was made, oldest first; they are in its hashes, and not in those of some committed records.
ADDED_BEFORE: dict[str, Any] = {
    "model.stem_stride": 1,
    "channels_last": False,
    "trainer.twin_device": None,
    "trainer.twin_stream": False,
    "quant.layer_quantizers": None,
}

# Where a setting of 0.1.0 stands now: the end of the sentence that begins with it.
MOVED: dict[str, str] = {
    "data.crop_padding": "is augment.crop.padding now (augment=standard has it, ~augment.crop takes it out)",
    "data.flip": "is the operation augment.flip now (augment=standard has it, ~augment.flip takes it out)",
    "data.auto_augment": "is augment.policy.policy now (augment=strong has it)",
    "data.cutout": "is augment.cutout.size now (augment=strong has it)",
    "data.augment": "is a choice of its own now: augment=none, flip_roll, nda or nda_cutmix",
    "data.cutmix": "is augment.cutmix.probability now (augment=cutmix or nda_cutmix has it)",
    "trainer.twin_device": "is companion.device now",
    "trainer.twin_stream": "is gone: no measurement showed that it helps",
    "quant.network": "is said by the companion now: companion.precision=base, full or a quantizer",
    "quant.companion_quantizer": "is companion.precision now",
}

_OPERATIONS = "tna_lightning.data.augment."
Known = Mapping[str, Mapping[str, Any]]  # operations by name, with their settings by dotted key

_IMAGES = ("CIFARDataModule", "DigitsDataModule")
_EVENTS = ("CIFAR10DVSDataModule", "DigitsDVSDataModule", "CIFAR10SimDVSDataModule")


def as_before(flat: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of today, by dotted key, as 0.1.0 named them, without what it did not have and is at its neutral value.

    Args:
        flat: settings by dotted key; those of 0.1.0 come out as they are.
        recorded: the settings of an earlier record: those of :data:`ADDED_BEFORE` that it lacks are left out likewise.
    """
    flat = dict(flat)
    if _has(flat, "companions"):  # of today
        flat = _augmentation_before(_companion_before(flat))
    names = list(dict.fromkeys(key.split(".")[1] for key in flat if key.startswith("callbacks.")))
    flat |= {"callbacks": names} if len(names) > 1 else {}  # their order
    for model in ("model", "companion.model"):  # with events 0.1.0 did not use it, and left it at its default
        if f"{model}.time_steps" in flat and flat[f"{model}.time_steps"] == flat.get("data.time_steps"):
            flat[f"{model}.time_steps"] = 4
    if str(flat.get("data._target_")).rpartition(".")[2] in _EVENTS and flat.get("data.split") == (
        "random" if flat.get("data.split_file") is None else "file"
    ):
        flat["data.split"] = None  # which says the same of these sets
    if str(flat.get("data._target_")).rpartition(".")[2] in _EVENTS and flat.get("data.train_subset", 0) is None:
        del flat["data.train_subset"]  # images had it
    neutral = dict(ADDED)
    if recorded is not None:
        had = as_before(recorded)
        neutral |= {key: value for key, value in ADDED_BEFORE.items() if key not in had}
    return {key: value for key, value in flat.items() if not _is_neutral(key, value, neutral)}


def with_neutral(flat: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Settings of today, by dotted key, and at its neutral value each of ``keys`` that an earlier version did not have.

    A setting of what is not there at all, such as one of no companion, stays absent.
    """
    neutral = ADDED | ADDED_BEFORE
    names = {key: key if key in neutral else key.removeprefix("companion.") for key in keys if not _has(flat, key)}
    return dict(flat) | {
        key: neutral[name]
        for key, name in names.items()
        if name in neutral and ("." not in key or _has(flat, key.rpartition(".")[0]))
    }


def _companion_before(flat: dict[str, Any]) -> dict[str, Any]:
    """``companion.device`` and ``companion.precision`` as ``trainer.twin_device`` and settings of ``quant``."""
    flat |= {"trainer.twin_device": flat.pop("companion.device", None), "trainer.twin_stream": False}
    if "quant._target_" not in flat and flat.get("companion.precision") == "base":
        flat["companion.precision"] = "full"  # as the base, which is not quantised
    if "quant._target_" in flat:
        precision = flat.pop("companion.precision", "full")
        own = {key: value for key, value in flat.items() if key.startswith("companion.precision.")}
        flat["quant.network"] = "base" if precision == "full" and not own else "both"
        flat |= {"quant.companion_quantizer": None} if not own else {}
        for key, value in own.items():
            del flat[key]
            flat[key.replace("companion.precision.", "quant.companion_quantizer.")] = value
    return flat


def _augmentation_before(flat: dict[str, Any]) -> dict[str, Any]:
    """The operations of ``augment`` as the flags of 0.1.0's data sets, where these can say them, else as they are."""
    _, _, data = str(flat.get("data._target_")).rpartition(".")
    operations: dict[str, dict[str, Any]] = {}
    for key in [key for key in flat if key.startswith("augment.") and key.count(".") > 1]:
        _, name, setting = key.split(".", 2)
        if _is_neutral(key, flat[key], ADDED):
            continue
        operations.setdefault(name, {})[setting] = flat[key]
    flags = None
    if data in (*_IMAGES, *_EVENTS):
        flags = _flags_of_images(data, operations) if data in _IMAGES else _flags_of_events(operations)
        flat |= flags or (_flags_of_images(data, {}) if data in _IMAGES else _flags_of_events({})) or {}
    if flags is not None or not operations:
        return {key: value for key, value in flat.items() if key != "augment" and not key.startswith("augment.")}
    return flat | {"augment": list(operations)}  # their order


def _flags_of_images(data: str, operations: Known) -> dict[str, Any] | None:
    known: Known = {
        "crop": {"_target_": f"{_OPERATIONS}Crop", "padding": None},
        "flip": {"_target_": f"{_OPERATIONS}Flip"},
        "policy": {"_target_": f"{_OPERATIONS}AutoAugment", "policy": None},
        "cutout": {"_target_": f"{_OPERATIONS}Cutout", "size": None},
    }
    flags = {
        "data.crop_padding": operations.get("crop", {}).get("padding", 0),
        "data.flip": "flip" in operations,
        "data.auto_augment": operations.get("policy", {}).get("policy"),
        "data.cutout": operations.get("cutout", {}).get("size", 0),
    }
    if data == "DigitsDataModule":  # which could be cropped alone
        known, flags = {"crop": known["crop"]}, {"data.crop_padding": flags["data.crop_padding"]}
    return flags if _are(operations, known) else None


def _flags_of_events(operations: Known) -> dict[str, Any] | None:
    flip, roll = ({"_target_": f"{_OPERATIONS}{name}"} for name in ("Flip", "Roll"))
    is_flip_roll = "roll" in operations
    known: Known = {
        **({"flip": flip, "roll": roll} if is_flip_roll else {"nda": {"_target_": f"{_OPERATIONS}NDA"}, "flip": flip}),
        "cutout": {"_target_": f"{_OPERATIONS}Cutout", "size": None},
        "cutmix": {"_target_": f"{_OPERATIONS}CutMix", "probability": None},
    }
    if not _are(operations, known) or (is_flip_roll and "flip" not in operations):
        return None
    return {
        "data.augment": "flip_roll" if is_flip_roll else "nda" if "nda" in operations else "none",
        "data.flip": "flip" in operations and not is_flip_roll,
        "data.cutout": operations.get("cutout", {}).get("size", 0),
        "data.cutmix": operations.get("cutmix", {}).get("probability", 0.0),
    }


def _are(operations: Known, known: Known) -> bool:
    """Whether these are some of the known operations, in their order, with no other settings (None stands for any)."""
    return list(operations) == [name for name in known if name in operations] and all(
        settings.keys() == known[name].keys()
        and all(value == known[name][key] for key, value in settings.items() if known[name][key] is not None)
        for name, settings in operations.items()
    )


def as_now(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an earlier version's record, with its settings where they stand today."""
    config: dict[str, Any] = copy.deepcopy(dict(earlier))
    nodes: list[Any] = [config.get(key) for key in ("data", "model", "trainer", "quant", "companion", "cost")]
    if "companions" in config or not all(isinstance(node, dict | None) for node in nodes):
        return config  # of today; or damaged, which whoever reads it says
    data, model, trainer, quant, companion, cost = nodes
    config.update(companions={}, callbacks={}, augment=_operations(data) if data else {})
    if cost is not None:
        config["cost"] = {"_target_": "tna_lightning.callbacks.inference_cost.InferenceCost", **cost}
    for node in (model, (companion or {}).get("model")):
        if isinstance(node, dict) and data and "time_steps" in data and "time_steps" in node:
            node["time_steps"] = data["time_steps"]
    if trainer:
        device = trainer.pop("twin_device", None)
        trainer.pop("twin_stream", None)
        if companion:
            companion.setdefault("device", device)
    if companion:
        companion.setdefault("precision", "full")
    if quant and "network" in quant:
        network, own = quant.pop("network"), quant.pop("companion_quantizer", None)
        if companion and network != "base":
            companion["precision"] = own or ("base" if network == "both" else quant.get("quantizer"))
        if network == "companion":
            config["quant"] = {}
    return config


def _operations(data: dict[str, Any]) -> dict[str, Any]:
    """The operations that the flags of a data set of 0.1.0 stand for; the flags are taken out."""
    if not str(data.get("_target_")).startswith("tna_lightning."):
        return {}
    crop, policy, size = data.pop("crop_padding", 0), data.pop("auto_augment", None), data.pop("cutout", 0)
    kind, flip, cutmix = data.pop("augment", "none"), data.pop("flip", False), data.pop("cutmix", 0.0)
    operations = {
        "crop": crop and {"_target_": f"{_OPERATIONS}Crop", "padding": crop},
        "nda": kind == "nda" and {"_target_": f"{_OPERATIONS}NDA"},
        "flip": (flip or kind == "flip_roll") and {"_target_": f"{_OPERATIONS}Flip"},
        "roll": kind == "flip_roll" and {"_target_": f"{_OPERATIONS}Roll"},
        "policy": policy and {"_target_": f"{_OPERATIONS}AutoAugment", "policy": policy},
        "cutout": size and {"_target_": f"{_OPERATIONS}Cutout", "size": size},
        "cutmix": cutmix and {"_target_": f"{_OPERATIONS}CutMix", "probability": cutmix},
    }
    return {name: operation for name, operation in operations.items() if operation}


def _has(flat: Mapping[str, Any], name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in flat)


def _is_neutral(key: str, value: Any, neutral: Mapping[str, Any]) -> bool:
    # by JSON, as the hash has it: False is not 0 there, nor 1 the same as 1.0
    names = (key, key.removeprefix("companion."))
    return any(name in neutral and json.dumps(value) == json.dumps(neutral[name]) for name in names)
