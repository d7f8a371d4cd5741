"""What an evaluation may change of a run: settings that leave its weights alone, other time steps, other data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from tna_lightning.data.module import BatchedDataModule
from tna_lightning.evaluation.answers import Samples
from tna_lightning.models import is_spiking
from tna_lightning.quantization.codes import Codes
from tna_lightning.quantization.packing import read_packed
from tna_lightning.running.checkpoints import open_checkpoint
from tna_lightning.running.companions import companion_networks
from tna_lightning.running.config import companion_nodes, companion_prefix, compose
from tna_lightning.running.factory import build, build_network, network_spec, under
from tna_lightning.running.own import with_data_at
from tna_lightning.running.record import NETWORK, finished_record, reading
from tna_lightning.running.train import build_quantization
from tna_lightning.running.trust import kept_network, refuse_foreign

if TYPE_CHECKING:
    from tna_lightning.quantization.inputs import KeptNetwork

MAY_CHANGE = (
    *("model.time_steps", "data.time_steps", "data.slicing", "data.eval_batch_size", "data.test_subset"),
    *("data.file", "data.frames_root", "data.cache_root", "data.skip_bad", "data.build_workers", "data.download"),
    *("data.device_resident", "trainer.accelerator", "trainer.precision", "trainer.limit_test_batches"),
    "channels_last",
)
# with these other samples are asked about
_SAMPLES = ("data.test_subset", "data.skip_bad", "trainer.limit_test_batches")
# with these results are as recorded, but for where the data lie
_NO_MATTER = ("data.file", "data.frames_root", "data.cache_root", "data.build_workers", "data.download")


def parsed(words: Sequence[str], other_data: bool = False) -> dict[str, Any]:
    """Settings from ``KEY=VALUE``, by dotted key.

    Args:
        words: as typed.
        other_data: whether they go with other data than the run's, of which any setting may be given.

    Raises:
        ValueError: one is no such word, or a setting that an evaluation cannot change.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"set={word!r}: must be KEY=VALUE")
        if key not in MAY_CHANGE and not (other_data and key.startswith("data.")):
            raise ValueError(
                f"set={key}: cannot be changed once a network is trained; what can be is {', '.join(MAY_CHANGE)}"
            )
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"set={word!r}: {value!r} cannot be read") from error
    return settings


def matters(settings: Mapping[str, Any]) -> bool:
    """Whether results may be others than the recorded ones because of these settings."""
    return any(key not in _NO_MATTER for key in settings)


def of_other_samples(settings: Mapping[str, Any]) -> bool:
    """Whether figures are of other samples than the recorded ones because of these settings."""
    return any(key in _SAMPLES for key in settings)


def change(settings: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes of a run's config the one with these settings."""

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        config = copy.deepcopy(config)
        are_events = "time_steps" in config["data"]
        for key, value in settings.items():
            node, _, name = key.rpartition(".")
            if key == "data.time_steps" and not are_events:
                raise ValueError(f"set={key}: these are static images, shown model.time_steps times; set that")
            if key == "model.time_steps" and are_events:
                raise ValueError(f"set={key}: event frames bring their own T; set data.time_steps")
            if key == "model.time_steps" and name not in config["model"]:
                raise ValueError(f"set={key}: this network has no such setting")
            (config[node] if node else config)[name] = value
        if not isinstance(config.get("channels_last", False), bool):
            raise ValueError(f"set=channels_last={config['channels_last']!r}: allowed are true, false")
        return config

    return changed


def time_steps_key(config: Mapping[str, Any]) -> str:
    """The setting that says T: of event frames that of the data."""
    return "data.time_steps" if "time_steps" in config["data"] else "model.time_steps"


def network_of(
    folder: Path | str, spec: Mapping[str, Any], config: Mapping[str, Any], settings: Mapping[str, Any]
) -> KeptNetwork:
    """The kept network of a run, for this evaluation.

    Raises:
        ValueError: as :func:`~tna_lightning.running.trust.kept_network`; or other time steps are asked of a network
            whose weights are made for T, or which has no time.
    """
    steps = next((settings[key] for key in ("model.time_steps", "data.time_steps") if key in settings), None)
    channels_last = bool(config.get("channels_last", False))
    if steps is None:
        return kept_network(folder, spec, channels_last=channels_last)
    try:
        network = kept_network(folder, spec, channels_last=channels_last)
    except ValueError as error:
        shape = re.search(r"size mismatch for (\S+):", str(error))
        what = f"the shape of {shape[1]}" if shape else str(error).partition(": ")[2]
        raise ValueError(f"time_steps={steps}: {_made_for_T(folder, what)}") from error
    if not is_spiking(network):
        raise ValueError(f"time_steps={steps}: this network does not spike, and sees an image once")
    kept = [getattr(module, "kept", None) for module in network.modules()]
    if any(isinstance(codes, Codes) and codes.time_steps not in (None, steps) for codes in kept):
        raise ValueError(f"time_steps={steps}: {_made_for_T(folder, 'weights differ by time step')}")
    return network


def _made_for_T(folder: Path | str, what: str) -> str:
    steps = read_packed(Path(folder) / NETWORK)[1]["inputs"]["time_steps"]
    return f"what it has learned is for T = {steps or 'its own'} alone ({what}); LIF, IF and the like take any"


@dataclass(frozen=True)
class Others:
    """Other data than a run's, and its network for them.

    Attributes:
        network: the run's.
        samples: prepared as the run's were.
        config: of the run, as changed.
        class_names: of the network.
        part: which samples they are.
        missing: classes of the network that the data do not have.
    """

    network: nn.Module
    samples: Samples
    config: dict[str, Any]
    class_names: list[str]
    part: str
    missing: list[str]


def other_data(
    folder: Path | str,
    choice: str,
    data_root: str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    whole: bool = False,
    trust: bool = False,
) -> Others:
    """A run's kept network, and samples of another data set, prepared as the run's were.

    Images are normalised with the mean and deviation of the run; size, T, slicing and sensor are those of the network
    where the data set can be told. Classes go by their names, and each must be one of the network's.

    Args:
        folder: the run's.
        choice: of the data, as in training: ``image_folder``.
        data_root: where they are.
        settings: for this evaluation, with those of ``data``.
        whole: all samples, not the test set alone.
        trust: as for :func:`~tna_lightning.running.trust.rebuilt`.

    Raises:
        ValueError: the run's file does not know what its network expects, or the data do not fit it.
    """
    settings = settings or {}
    of_run = {key: value for key, value in settings.items() if not key.startswith("data.")}
    config = change(of_run)(finished_record(folder)["config"])
    header = read_packed(Path(folder) / NETWORK)[1]
    inputs, spec = header["inputs"], header["spec"]
    if inputs["shape"] is None or spec is None or "inputs" not in spec:
        raise ValueError(f"run={str(folder)!r}: its {NETWORK} does not know what the network expects")
    if not trust:
        refuse_foreign(folder, spec, ("model", "neuron"))
    channels, height, width = inputs["shape"]
    steps = settings.get("data.time_steps" if inputs["kind"] == "events" else "model.time_steps", inputs["time_steps"])
    told: dict[str, Any] = {"size": height if height == width else [height, width]}
    if inputs["kind"] == "events":
        spec["inputs"]["time_steps"] = steps
        told |= {"time_steps": steps, **(inputs["framing"] or {})}  # sensor, slicing and the unit of times
    else:
        told["grey"] = channels == 1
    if "time_steps" in spec["model"]:
        spec["model"]["time_steps"] = steps
    network = network_of(folder, spec, config, settings)
    datamodule = _other(choice, told, data_root, settings)
    sets = [datamodule.test_set, *([datamodule.train_set, datamodule.val_set] if whole else [])]
    subset = torch.cat([each.subset for each in sets]).sort().values
    x, labels = sets[0].inputs.cpu()[subset], sets[0].targets.cpu()[subset]
    are_events = datamodule.time_steps is not None
    if are_events != (inputs["kind"] == "events") or list(x.shape[-3:]) != inputs["shape"]:
        raise ValueError(
            f"data={choice}: its samples are {'events' if are_events else 'images'} {list(x.shape[-3:])}, the network "
            f"takes {inputs['kind']} {inputs['shape']}"
        )
    names = inputs["class_names"] or [str(number) for number in range(spec["inputs"]["num_classes"])]
    here = [str(name) for name in datamodule.class_names]
    if unknown := [name for name in here if name not in names]:
        raise ValueError(
            f"data={choice}: has the class {unknown[0]!r}, which the network does not know; its classes are "
            f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        )
    number_of = torch.tensor([names.index(name) for name in here])
    prepare = datamodule.prepare if are_events else network.preprocess
    samples = Samples(x, number_of[labels], prepare, len(names), datamodule.eval_batch_size)
    missing = [name for name in names if name not in here]
    return Others(network, samples, config, names, "all of them" if whole else "its test set", missing)


def _other(
    choice: str, told: Mapping[str, Any], data_root: str | None, settings: Mapping[str, Any]
) -> BatchedDataModule:
    """The data module of another choice, ready for its test."""
    data = compose([f"data={choice}"])["data"]
    data |= {key: value for key, value in told.items() if key in data}
    for key, value in settings.items():
        if key.startswith("data."):
            *nodes, name = key.split(".")[1:]
            reduce(lambda node, each: node.setdefault(each, {}), nodes, data)[name] = value
    datamodule = build("data", with_data_at({"data": data}, data_root)["data"])
    if not isinstance(datamodule, BatchedDataModule):
        raise ValueError(f"data={choice}: must be a data set of tna_lightning")
    with under("data"):
        datamodule.prepare_data()
        datamodule.setup("test")
    return datamodule


def networks_of_checkpoint(
    folder: Path | str, datamodule: Any, config: Mapping[str, Any], trust: bool
) -> dict[str, nn.Module]:
    """All networks of a run as its checkpoint has them, by name, in eval mode, quantised as they were tested.

    Raises:
        ValueError: the run has no companion, no such checkpoint is left, or it is damaged or of other networks; or
            the record names code that is not trusted.
    """
    nodes = companion_nodes(config)
    if not nodes:
        raise ValueError(f"run={str(folder)!r}: has no companion, that was trained along or is kept")
    if not trust:
        refuse_foreign(folder, config, ("companion", "companions", "quant"))
    path = Path(folder) / "checkpoints" / f"{config['keep']}.ckpt"
    if not path.is_file():
        raise ValueError(f"run={str(folder)!r}: has no {path.name} any more, which has the companion's weights")
    state: dict[str, Tensor] = open_checkpoint(path)["state_dict"]
    holder = nn.Module()
    with reading(folder):
        channels_last = bool(config.get("channels_last", False))
        holder.base = build_network(network_spec(config, datamodule), channels_last=channels_last)
        for name in nodes:
            of_companion = companion_networks(config, name)
            spec = network_spec(of_companion, datamodule)
            setattr(holder, name, build_network(spec, companion_prefix(name), channels_last=channels_last))
        if (quantization := build_quantization(config)) is not None:
            quantization.setup(None, holder, "test")
    names = ("base", *nodes)
    try:
        holder.load_state_dict({key: value for key, value in state.items() if key.partition(".")[0] in names})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"run={str(folder)!r}: {path.name} fits other networks ({reason})") from error
    return {name: getattr(holder, name).eval() for name in names}
