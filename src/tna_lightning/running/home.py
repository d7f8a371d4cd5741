"""Where ``conf/`` and ``experiments/`` are, and what can be chosen there; for ``--help``, with light imports."""

from __future__ import annotations

from pathlib import Path

import yaml

GROUPS = (
    *("data", "augment", "model", "neuron", "quant", "baseline"),
    *("optimizer", "trainer", "callbacks", "logger", "experiments"),
)


def home() -> Path:
    """The folder that holds ``conf/`` and ``experiments/``: the installed package, or the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]


def options(group: str) -> dict[str, str]:
    """The choices of a config group, each with the one-line description at the head of its file."""
    folder = home() / group if group == "experiments" else home() / "conf" / group
    return {path.stem: _description(path) for path in sorted(folder.glob("*.yaml"))}


def default_choices() -> dict[str, str]:
    """The choice of each group that ``conf/config.yaml`` makes."""
    entries = yaml.safe_load((home() / "conf" / "config.yaml").read_text())["defaults"]
    return {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items() if choice}


def _description(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@package")), "")
