"""Files of one's own, a folder a class: which there are, and which of them are the test's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tna_lightning.data.words import listed

PARTS = ("train", "test")

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        classes: their names.
        files: the path below the folder and the label of each, in order.
        test: the numbers of the test's files; empty where there are no folders of train and test.
    """

    classes: list[str]
    files: list[tuple[str, int]]
    test: list[int]


def by_path(path: Path) -> Any:
    """Orders names as Python does."""
    return path


def by_number(path: Path) -> Any:
    """Orders names so that 2 comes before 10."""
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(path.as_posix())]


def find_files(root: Path, suffixes: Sequence[str], what: str, order: Callable[[Path], Any] = by_path) -> Found:
    """The classes below ``root`` and their files: ``CLASS/*``, or ``train/CLASS/*`` and ``test/CLASS/*``.

    A file may lie in folders below its class. ``Train`` and ``Test`` do as well. Hidden files and folders are left out.

    Args:
        root: the folder.
        suffixes: of the files, in small letters.
        what: they are, as a plural.
        order: the key by which they are sorted.

    Raises:
        FileNotFoundError: no such folder, or none in it.
        ValueError: a class has no files, there is one alone, or the test has a class that training lacks.
    """
    if not root.is_dir():
        raise FileNotFoundError("is no folder")
    folders = folders_in(root)
    split = [name for part in PARTS for name in folders if name.lower() == part]
    if len(split) == 1:
        other = next(part for part in PARTS if part != split[0].lower())
        raise ValueError(f"has a folder {split[0]}, and none called {other} beside it")
    parts = split or ["."]
    classes = folders_in(root / parts[0])
    if not classes:
        raise FileNotFoundError("holds no folders of classes" + (f" in {parts[0]}" if split else ""))
    if len(classes) == 1:
        raise ValueError(f"holds one class alone ({classes[0]}), there is nothing to tell apart")
    others: list[str] = []
    files: list[tuple[str, int]] = []
    test: list[int] = []
    for part in parts:
        unknown = [name for name in folders_in(root / part) if name not in classes]
        if unknown:
            raise ValueError(f"{part} has the class {unknown[0]}, which {parts[0]} does not have")
        for label, name in enumerate(classes):
            found = files_in(root / part / name, suffixes, others, order) if (root / part / name).is_dir() else []
            if not found and part == parts[0]:
                raise ValueError(f"{(Path(part) / name).as_posix()}: holds no {what} ({', '.join(suffixes)})")
            start = len(files)
            files += [((Path(part) / name / each).as_posix(), label) for each in found]
            test += range(start, len(files)) if part != parts[0] else ()
    if split and not test:
        raise ValueError(f"{parts[1]}: holds no {what}")
    beside = [name for name in folders if split and name not in split]
    if beside:
        warnings.warn(f"left out, neither {' nor '.join(split)}: the folder {listed(beside)}", stacklevel=2)
    if others:
        warnings.warn(f"left out, no {what} by their names: {listed(others)}", stacklevel=2)
    return Found(classes, files, test)


def folders_in(folder: Path) -> list[str]:
    """Their names, in order, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_in(
    folder: Path, suffixes: Sequence[str], others: list[str], order: Callable[[Path], Any] = by_path
) -> list[str]:
    """The files below a folder, relative to it; those of another suffix are added to ``others``."""
    found = []
    for path in sorted(folder.rglob("*"), key=order):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            if path.suffix.lower() in suffixes:
                found.append(relative.as_posix())
            else:
                others.append(path.name)
    return found
