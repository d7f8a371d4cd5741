"""What a record's entries are, so that a damaged one is told before anybody computes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# what a record of a finished run must hold to be put in a table
NEEDED = ("results", "weights", "cost", "history", "data", "choices", "config", "seed")

# Of what type it is, as far as the report reads it. A key that ends in ? may be absent or null, * stands for every
# other one; a list holds the type of its items, a tuple those of just so many. Numbers are finite, and no booleans.
_NUMBER = int | float
_AMOUNTS = int | float | list | dict | None
_ANN = ("activation_bits", "operations", "on_nonzero_weights", "energy_uj", "energy_memory_uj")
TYPES: dict[str, Any] = {
    "seed": int,
    "study?": str,
    "wall_time_s?": _NUMBER,
    "choices": dict.fromkeys(("data?", "model?", "neuron?", "baseline?", "quant?", "augment?"), str),
    "config": {
        "data": dict,
        "objective": {"match_weight?": _NUMBER},
        **dict.fromkeys(("trainer?", "augment?", "callbacks?"), dict),
    },
    "data": {"simulated?": bool, "of_samples?": {"*": int}, "notes?": str | list, "note?": str | list},
    "environment?": {"versions?": dict, "git?": {"commit": str, "dirty": bool}},
    "results": {"test/acc": _NUMBER, "*": _NUMBER | None},
    "history": {"*": [_NUMBER | None]},
    "weights": {
        "layers?": [{"name": str, "scheme": str, "is_quantized": bool, "weights": _NUMBER}],
        "*": _AMOUNTS,
    },
    "cost": {
        "not_counted?": [{"name": str, "operation": str}],
        "memory_model?": {"sram": [(_NUMBER, _NUMBER)], "dram": _NUMBER, "access_bits": _NUMBER},
        "quantized_ann?": dict.fromkeys((f"{key}?" for key in _ANN), _NUMBER),
        "*": _AMOUNTS,
    },
}
_NONE_BELOW_ZERO = ("weights.", "cost.")
TOGETHER = (("weights", "layers", "quantized_share"), ("cost", "pj_per_mac", "pj_per_ac"))


def faults(path: str, value: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    """What is of another type than :data:`TYPES` says, by dotted key."""
    if isinstance(kind, list | tuple):
        if not isinstance(value, list) or (isinstance(kind, tuple) and len(value) != len(kind)):
            yield path, value
        else:
            for item, its in zip(value, kind * len(value) if isinstance(kind, list) else kind, strict=True):
                yield from faults(path, item, its)
    elif not isinstance(kind, dict):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_below = is_number and value < 0 and path.startswith(_NONE_BELOW_ZERO)
        is_odd = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or is_odd or is_below or (isinstance(value, float) and not math.isfinite(value)):
            yield path, value
    elif not isinstance(value, dict):
        yield path, value
    else:
        prefix = f"{path}." if path else ""
        named = {key.removesuffix("?"): (its, key.endswith("?")) for key, its in kind.items() if key != "*"}
        for key, (its, is_optional) in named.items():
            if not (is_optional and value.get(key) is None):
                yield from faults(f"{prefix}{key}", value.get(key), its)
        for key in value.keys() - named.keys() if "*" in kind else ():
            yield from faults(f"{prefix}{key}", value[key], kind["*"])
