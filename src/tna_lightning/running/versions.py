"""Settings over the versions: what was added and what was moved, so that a run keeps its name, and its record a use.

A run's folder is named by the hash of its settings (:mod:`~tna_lightning.running.identity`). That hash is taken as
version 0.1.0 took it: a setting that came later leaves it as it was while it stands at its neutral value, and one that
has moved is hashed under its old name. A test compares the identities of all committed records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Added since 0.1.0, with the value that reproduces 0.1.0 (not today's default, which may change). A name stands for the
# settings of the base and of a companion: `neuron.per` for `companion.neuron.per` too.
ADDED: dict[str, Any] = {
    "callbacks": {},
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

# Where a setting of 0.1.0 stands now, as the end of the sentence "KEY: ...".
MOVED: dict[str, str] = {}


def as_before(flat: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of today, by dotted key, as 0.1.0 named them, without what it did not have and is at its neutral value.

    Args:
        flat: settings by dotted key; those of 0.1.0 come out as they are.
        recorded: the settings of an earlier record: those of :data:`ADDED_BEFORE` that it lacks are left out likewise.
    """
    neutral = dict(ADDED)
    if recorded is not None:
        neutral |= {key: value for key, value in ADDED_BEFORE.items() if not _has(recorded, key)}
    return {key: value for key, value in flat.items() if not _is_neutral(key, value, neutral)}


def as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an earlier version's record, with its settings where they stand today."""
    config = dict(config)
    if isinstance(cost := config.get("cost") or {}, Mapping):
        config["cost"] = {"_target_": "tna_lightning.callbacks.inference_cost.InferenceCost", **cost}
    return config


def _has(flat: Mapping[str, Any], name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in flat)


def _is_neutral(key: str, value: Any, neutral: Mapping[str, Any]) -> bool:
    # by JSON, as the hash has it: False is not 0 there, nor 1 the same as 1.0
    name = key.removeprefix("companion.")
    return name in neutral and json.dumps(value) == json.dumps(neutral[name])
