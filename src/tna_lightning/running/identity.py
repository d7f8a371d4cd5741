"""Which run a config is: the settings that determine its result, their hash, and the folder named by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tna_lightning.running.versions import as_before

# Settings that say where and how to work, not what to compute: two runs that differ in nothing else are the same run.
NOT_IDENTITY = (
    "hydra",
    "choices",
    "logger",
    "output_dir",
    "resume",
    "ckpt_path",
    "study",
    "data.root",
    "data.file",  # by its content, see own.py
    "data.frames_root",
    "data.cache_root",
    "data.download",
    "cost",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that determines a run's result, with dotted keys."""
    return {
        key: "neurons" if (key, value) == ("compile", "auto") else value  # the same bits, without waiting
        for key, value in _flatten(config)
        if not any(key == excluded or key.startswith(excluded + ".") for excluded in NOT_IDENTITY)
    }


def identity(config: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> str:
    """SHA-256 (hex) of :func:`identity_config` in canonical JSON, as version 0.1.0 took it.

    Args:
        config: the resolved config.
        recorded: the config of an earlier record, which may lack settings that were added before 0.1.0: the identity
            that this config would have had then.
    """
    settings = as_before(identity_config(config), None if recorded is None else identity_config(recorded))
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def folder_name(config: Mapping[str, Any]) -> str:
    """Name of a run's folder: its choices, its seed and the first eight digits of its identity."""
    choices = config.get("choices", {})
    words = [choices.get(group) for group in ("data", "model", "neuron", "baseline", "quant", "debug")]
    return "-".join([*(word for word in words if word), f"s{config['seed']}", identity(config)[:8]])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every setting of identity in which two configs differ."""
    recorded = identity_config(old)
    old, new = as_before(recorded), as_before(identity_config(new), recorded)
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def _flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config
