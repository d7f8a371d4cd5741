"""The command that trains a row's runs again, from their records."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tna_lightning.report.statistics import QUESTION, Record
from tna_lightning.running.config import compose, swept_by
from tna_lightning.running.home import default_choices
from tna_lightning.running.identity import identity_config
from tna_lightning.running.versions import as_before, with_neutral

_EACH_SEED = ("seed", "data.seed", "companion.seed")  # of which `seed` is the one that a command gives


def command(records: Sequence[Record]) -> str:
    """``python -m tna_lightning -m experiments=evidence baseline=tna seed=0,1,2``: choices, seeds, further settings.

    Runs whose data or companion had a seed of their own, ``data.seed=5 seed=105``, have a line for each such seed. A
    choice of the user's own needs the folder that has it, of which a record does not know: its place is left open.
    """
    by_seeds: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        settings = identity_config(record["config"])
        own = tuple(
            _word(key, settings[key], True) for key in _EACH_SEED if settings.get(key) not in (None, record["seed"])
        )
        by_seeds.setdefault(own, []).append(record)
    return "\n".join(_command(members, own) for own, members in by_seeds.items())


def _command(records: Sequence[Record], seeds_apart: Sequence[str]) -> str:
    """The line for runs that differ in `seed` alone, with the words for seeds that do not follow it."""
    first = records[0]
    defaults, has_study = default_choices(), first["choices"].get("experiments")
    choices = {
        group: choice
        for group, choice in first["choices"].items()
        if choice and (defaults.get(group) != choice or (has_study and group in QUESTION))
    }
    words = [f"{group}={choices[group]}" for group in sorted(choices, key=lambda group: group != "experiments")]
    own: list[str] = []
    try:
        study = _composed(tuple(words))["study"]
        words += [f"study={first['study']}"] if first.get("study") not in (None, study) else []
        for depth in (0, 9):  # first what stands at the top, since others follow it: trainer.max_epochs the epochs
            words += [_word(*setting) for setting in _further(first, tuple(words)) if setting[0].count(".") <= depth]
        said, settings = {word.partition("=")[0] for word in words}, identity_config(first["config"])
        words += [_word(key, value, True) for key, value in _places(first).items()]
        varied = [key for key in _varied(has_study) if key in settings and key not in said and key not in _EACH_SEED]
        words += [_word(key, settings[key], True) for key in varied]
    except ValueError:  # no such choice comes along
        own = ["--config-dir", "DIR"]
    seeds = ",".join(str(record["seed"]) for record in records)
    sweep = ["-m"] if len(records) > 1 and not has_study else []
    return shlex.join(["python", "-m", "tna_lightning", *sweep, *own, *words, *seeds_apart, f"seed={seeds}"])


def _places(record: Record) -> dict[str, Any]:
    """Where data of the user's own lay, which are in a run's identity by their content alone."""
    named = [
        f"data.{name.removeprefix('data.')}" for name in record["config"].get("own", {}) if name.startswith("data.")
    ]
    settings = identity_config(record["config"])
    return {key: record["config"]["data"][key.partition(".")[2]] for key in named if key not in settings}


@lru_cache(maxsize=64)
def _varied(study: str | None) -> list[str]:
    """What a study varies, and a command must say, if it is to be one row alone."""
    if study is None:
        return []
    return list(swept_by(study))


def _further(record: Record, words: tuple[str, ...]) -> list[tuple[str, Any, bool]]:
    """The settings that the words alone do not give: name, value, and whether the words give another one.

    Raises:
        ValueError: a choice is unknown.
    """
    recorded, composed = identity_config(record["config"]), identity_config(_composed(words))
    if _compared(recorded) == _compared(composed):
        return []
    settings = with_neutral(recorded, composed)
    return [
        (key, value, key in composed)
        for key, value in settings.items()
        if key not in _EACH_SEED and not key.startswith("own.") and composed.get(key, ...) != value
    ]


@lru_cache(maxsize=256)
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return compose(words)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    before = as_before(settings, {})
    return {key: value for key, value in before.items() if key not in _EACH_SEED and not key.startswith("own.")}


def _word(key: str, value: Any, is_there: bool) -> str:
    """A setting as Hydra reads it."""
    if (key, value) == ("augment", {}):
        return "augment=none"
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    return f"{'' if is_there else '+'}{key}={value if is_plain else json.dumps(value)}"
