"""A finished run rebuilt from its record: a record is a file, and must not choose what is imported and called."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning

from tna_lightning.models.spec import own_target
from tna_lightning.quantization.packing import load_packed
from tna_lightning.running.factory import build_network, data_to_test, network_spec, under
from tna_lightning.running.record import NETWORK, finished_record, reading

if TYPE_CHECKING:
    from tna_lightning.quantization.inputs import KeptNetwork

_DATA = "tna_lightning.data"


def rebuilt(
    folder: Path | str,
    data_root: str | None = None,
    trust: bool = False,
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The data module of a finished run, ready for its test, and the spec of its network.

    Args:
        folder: the run's folder.
        data_root: where the data are, if not where they were in training; of arrays the file.
        trust: also import and call what the record names that is no part of this package.
        change: what is made of its config before, where something else is asked than was trained.

    Raises:
        ValueError: no finished run, a record that is damaged or names what is not to be trusted, or no such data.
    """
    config = finished_record(folder)["config"]
    if not trust:
        refuse_foreign(folder, config)
    if change is not None:
        config = change(config)
    with reading(folder), _pointing_to_data_root():
        datamodule = data_to_test(config, data_root)
        with under("data"):
            datamodule.prepare_data()  # images of the user's own may have to be read before their size is known
            datamodule.setup("test")
        return datamodule, network_spec(config, datamodule)


@contextmanager
def _pointing_to_data_root() -> Iterator[None]:
    """Of data that are not there, how to say where they are: a run remembers the path that it was given."""
    try:
        yield
    except FileNotFoundError as error:
        if re.match(r"(data\.)?(root|file)=", str(error)):
            raise FileNotFoundError(f"{error}; --data-root says where they are now") from error
        raise


def kept_network(folder: Path | str, spec: Mapping[str, Any], channels_last: bool = False) -> KeptNetwork:
    """The kept network of a finished run, in eval mode.

    Raises:
        ValueError: none can be built from its record, or the file is damaged or holds another one.
    """
    with reading(folder):
        network = build_network(spec, channels_last=channels_last)
    return load_packed(Path(folder) / NETWORK, network)


def refuse_foreign(
    folder: Path | str, config: Mapping[str, Any], keys: Sequence[str] = ("data", "model", "neuron")
) -> None:
    """Refuse a record whose data, model or neuron are not this package's own, before anything is imported.

    Args:
        folder: the run's folder.
        config: its config.
        keys: the nodes that will be built; of others than these three all targets must be in this package.

    Raises:
        ValueError: ``run=...`` and what it names.
    """
    with reading(folder):
        named = [each for key in keys for each in _targets(key, config[key])]
    for key, target in named:
        try:
            _check_target(key, target)
        except ValueError:
            raise ValueError(
                f"run={str(folder)!r}: its record names {key}={target!r}, which is no part of tna_lightning and would "
                "be imported and called; if you know where the record comes from: --trust"
            ) from None


def _targets(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield f"{key}._target_", node["_target_"]
        for name, value in node.items():
            yield from _targets(f"{key}.{name}", value)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _targets(f"{key}[{number}]", value)


def _check_target(key: str, target: Any) -> None:
    words = key.split(".")
    if words[0] == "data":
        _data_target(key, target)
    elif {"model", "neuron"} & {*words}:
        own_target(key, target)
    elif not str(target).startswith("tna_lightning.quantization."):
        raise ValueError(f"{key}={target!r}: must be a quantizer of tna_lightning")


def _data_target(key: str, path: Any) -> None:
    """Refuse what is no data module defined in :mod:`tna_lightning.data`, or within one no class defined there."""
    module, _, name = str(path).rpartition(".")
    found: Any = None
    if module == _DATA or module.startswith(f"{_DATA}."):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            found = None
    kind = lightning.LightningDataModule if key == "data._target_" else object
    if not (inspect.isclass(found) and issubclass(found, kind) and found.__module__.startswith(f"{_DATA}.")):
        raise ValueError(f"{key}={path!r}: must be a data module of {_DATA}")
