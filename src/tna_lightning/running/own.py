"""What of a run is the user's own, by content: the Python files behind its targets, and the files that hold its data.

A config names both by words alone. Their digests make an edited file, or another folder of pictures, another run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

BY_CONTENT = {"ArraysDataModule": "file", "EventFolderDataModule": "root", "ImageFolderDataModule": "root"}
"""The setting that says where data of one's own lie, of the package's data modules that take any."""

SPLIT_FILE = "split_file"
"""The setting, of all the package's event data, that names a file of the user's own."""

PACKAGE = Path(__file__).resolve().parents[1]


def own_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 (hex) of each Python file and of each data file or folder of the user's own, by module or setting.

    Python files are those behind a ``_target_`` outside of this package and of all installed ones, with what of that
    kind they import. Data are the files and folders that the settings of a data set of one's own name, and that of
    :data:`BY_CONTENT`; of a folder the relative names and contents of all files count, hidden ones left out.
    """
    modules: dict[str, Path] = {}
    for target in targets_in(config):
        _collect(target.rpartition(".")[0], modules)
    digests = {f"code.{name}": _digest_of_file(path) for name, path in sorted(modules.items())}
    data = config.get("data") or {}
    target = str(data.get("_target_"))
    names = (
        list(data) if target.rpartition(".")[0] in modules else [BY_CONTENT.get(target.rpartition(".")[2]), SPLIT_FILE]
    )
    for name in filter(None, names):
        value = data.get(name)
        if isinstance(value, str) and not name.startswith("_") and Path(value).exists():
            digests[f"data.{name}"] = digest_of(Path(value))
    return digests


def changed_since(config: Mapping[str, Any]) -> list[str]:
    """What of the user's own a run was trained with and is another now, by module or setting; from the run's config.

    Data that are not where they were are none that have changed: who reads them says that they are not there.
    """
    recorded: Mapping[str, str] = config.get("own", {})
    now = own_digests(config)
    return [
        name
        for name, digest in recorded.items()
        if now.get(name) != digest and (name in now or not name.startswith("data."))
    ]


def with_data_at(config: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """A run's config with its data at another place: the folder, or of arrays the file; as it is where that is None.

    Raises:
        ValueError: these data come from neither.
    """
    if place is None:
        return dict(config)
    key = next((key for key in ("root", "file") if key in config["data"]), None)
    if key is None:
        raise ValueError(f"data-root={place!r}: must be left out, these data come from no folder and no file")
    return {**config, "data": {**config["data"], key: place}}


def digest_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content, or of the relative names and contents of all files below a folder."""
    if path.is_file():
        return _digest_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{_digest_of_file(file)}\n".encode())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    stat = path.stat()
    return _digest_of_content(path.absolute(), stat.st_mtime_ns, stat.st_size)


@cache  # a sweep composes a config for each of its jobs
def _digest_of_content(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def targets_in(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a config node, those of nodes in it too."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)


def _collect(module: str, found: dict[str, Path]) -> None:
    """Add a module of the user's own, and those that it imports, by name."""
    if module in found or not module:
        return
    path = _own_file(module)
    if path is None:  # the target may be an attribute of a class in a module
        _collect(module.rpartition(".")[0], found)
        return
    found[module] = path
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # whoever builds the target says it
        return
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            base = "." * statement.level + (statement.module or "")
            base = importlib.util.resolve_name(base, package) if statement.level else base
            names = [base, *(f"{base}.{alias.name}" for alias in statement.names)]
        else:
            continue
        for name in names:
            if _own_file(name) is not None:
                _collect(name, found)


def _own_file(module: str) -> Path | None:
    """The Python file of a module that is neither installed nor part of this package; None else."""
    top = module.partition(".")[0]
    for name in dict.fromkeys((top, module)):  # the top first: to find a module, Python imports the packages around it
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, AttributeError, ValueError):  # no such module, or a name in one
            return None
        if spec is None:
            return None
        places = [*([spec.origin] if spec.origin else []), *(spec.submodule_search_locations or [])]
        paths = [Path(place).resolve() for place in places]
        if not paths or any(path.is_relative_to(installed) for path in paths for installed in _installed()):
            return None
    return paths[0] if paths[0].suffix == ".py" else None


@cache
def _installed() -> tuple[Path, ...]:
    """Where Python and its packages are installed."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return PACKAGE, *(Path(path).resolve() for path in [*(paths[name] for name in names), *site.getsitepackages()])
