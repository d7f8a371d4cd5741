"""Where ``conf/`` and ``experiments/`` are, and what can be chosen there; for ``--help``, with light imports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

GROUPS = (
    *("data", "augment", "model", "neuron", "quant", "baseline"),
    *("optimizer", "trainer", "callbacks", "logger", "experiments", "debug"),
)


def home() -> Path:
    """The folder that holds ``conf/`` and ``experiments/``: the installed package, or the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]


def options(group: str, own: Path | None = None) -> dict[str, str]:
    """The choices of a config group, each with the one-line description at the head of its file.

    Args:
        group: its name.
        own: the user's own folder (``--config-dir``), whose choices follow.
    """
    folders = [home() / group if group == "experiments" else home() / "conf" / group]
    folders += [own / group] if own is not None else []
    return {path.stem: _description(path) for folder in folders for path in sorted(folder.glob("*.yaml"))}


def own_folder(words: Sequence[str]) -> Path | None:
    """The user's own folder that a command line names, as Hydra reads it.

    ``--config-dir DIR``, ``--config-dir=DIR``, ``-cd DIR`` or a beginning such as ``--config-d DIR``; the last counts.
    """
    own = None
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "-cd" or (flag.startswith("--config-d") and "--config-dir".startswith(flag)):
            value = value if equals else "".join(words[index + 1 : index + 2])
            own = Path(value) if value else None
    return own


def searched_folders(words: Sequence[str]) -> list[Path]:
    """The folders that ``hydra.searchpath=[...]`` names; of those that are not there Hydra tells."""
    lists = [word.partition("=")[2] for word in words if word.startswith("hydra.searchpath=")]
    places = [place.removeprefix("file://") for each in lists for place in re.findall(r"[^\[\],'\"]+", each)]
    return [Path(place) for place in places if Path(place).is_dir()]


def refuse_hidden(own: Path, setting: str = "config-dir") -> None:
    """Refuse a choice of the user's own that bears the name of one that comes along, which Hydra would take instead.

    Args:
        own: the user's own folder.
        setting: what named it.

    Raises:
        ValueError: there is one; or there is no such folder.
    """
    if not own.is_dir():
        raise ValueError(f"{setting}={str(own)!r}: there is no such folder")
    for path in sorted(own.rglob("*.yaml")):
        name = path.relative_to(own)
        if (home() / "conf" / name).is_file() or (name.parts[0] == "experiments" and (home() / name).is_file()):
            raise ValueError(
                f"{setting}={str(own)!r}: {name} has the name of a choice that comes along, which would be taken; "
                "give it another (it may inherit: defaults: [NAME, _self_])"
            )


def default_choices() -> dict[str, str]:
    """The choice of each group that ``conf/config.yaml`` makes."""
    entries = yaml.safe_load((home() / "conf" / "config.yaml").read_text())["defaults"]
    return {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items() if choice}


def _description(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@package")), "")
