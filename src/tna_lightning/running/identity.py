"""Which run a config is: the settings that determine its result, their hash, and the folder named by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

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
    "data.download",
    "cost",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that determines a run's result, with dotted keys."""
    flat = dict(_flatten(config))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == excluded or key.startswith(excluded + ".") for excluded in NOT_IDENTITY)
    }


def identity(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of :func:`identity_config` in canonical JSON."""
    canonical = json.dumps(identity_config(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def folder_name(config: Mapping[str, Any]) -> str:
    """Name of a run's folder: its choices, its seed and the first eight digits of its identity."""
    choices = config.get("choices", {})
    words = [choices.get(group) for group in ("data", "model", "neuron", "baseline", "quant")]
    return "-".join([*(word for word in words if word), f"s{config['seed']}", identity(config)[:8]])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every setting of identity in which two configs differ."""
    old, new = identity_config(old), identity_config(new)
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
