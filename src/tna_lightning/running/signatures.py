"""Writes ``conf/signatures/``: ``python -m tna_lightning.running.signatures``, or ``make conf``.

A default has one home, the signature of what takes it, and its meaning another, the docstring beside it. The files
written here carry both to where Hydra composes configs, so that ``--cfg job`` shows every setting, each can be
overridden, and nothing heavy is imported for it. A choice inherits from them and says what differs:

    defaults:
      - /signatures/LIF@_here_
      - _self_
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tna_lightning.models.settings import takers
from tna_lightning.running.config import NOT_FOR_TRAINER
from tna_lightning.running.home import home

HEAD = "# written by `make conf` from the signature of {source}; change it there"


@dataclass(frozen=True)
class Source:
    """What one file is written from.

    Attributes:
        path: dotted path of a class or function. The ``**settings`` of a class are its base class's.
        is_partial: what is built is a factory.
        without: arguments that are no settings: the program gives them, or they have no effect here.
        told_in: our module whose docstring says what the settings of somebody else's class mean.
    """

    path: str
    is_partial: bool = False
    without: tuple[str, ...] = ()
    told_in: str | None = None


SOURCES = {
    "LIF": Source("tna_lightning.models.LIF", is_partial=True, without=("channels",)),
    **{
        name: Source(f"tna_lightning.models.{name}", is_partial=True)
        for name in ("PSN", "MaskedPSN", "SlidingPSN", "PSU", "IPSU", "RPSU", "ALIF", "TernaryLIF", "IntegerLIF")
    },
    "QuantReLU": Source("tna_lightning.models.QuantReLU", is_partial=True),
    "snntorch_neuron": Source("tna_lightning.models.snntorch_neuron", is_partial=True, without=("channels",)),
    "spikingjelly_neuron": Source("tna_lightning.models.spikingjelly_neuron", is_partial=True),
    **{name: Source(f"tna_lightning.models.{name}") for name in ("resnet8", "resnet18", "resnet19", "resnet20")},
    **{name: Source(f"tna_lightning.models.{name}") for name in ("convnet", "vgg11", "vgg16", "vggsnn")},
    **{name: Source(f"tna_lightning.models.{name}") for name in ("msresnet18", "maxresnet18", "sewresnet18")},
    **{name: Source(f"tna_lightning.models.{name}") for name in ("sdt", "spikingformer")},
    **{
        name: Source(f"tna_lightning.objectives.{name}")
        for name in ("Plain", "TwinAugmentation", "Distillation", "MutualLearning", "Cohort")
    },
    **{
        name: Source(f"tna_lightning.data.{name}", without=("augment",))
        for name in ("ArraysDataModule", "CIFARDataModule", "DigitsDataModule", "IDXDataModule", "CIFAR10DVSDataModule")
    },
    "ImageFolderDataModule": Source("tna_lightning.data.ImageFolderDataModule", without=("augment",)),
    **{
        name: Source(f"tna_lightning.data.{name}", without=("augment",))
        for name in ("NMNISTDataModule", "DVSGestureDataModule", "NCaltech101DataModule")
    },
    # its base class has a default for the root
    "EventFolderDataModule": Source("tna_lightning.data.EventFolderDataModule", without=("augment", "root")),
    "SVHNDataModule": Source("tna_lightning.data.SVHNDataModule", without=("augment",)),
    **{  # what they leave out, a blank picture, is no choice
        name: Source(f"tna_lightning.data.{name}", without=("augment", "camera", "skip_bad"))
        for name in ("DigitsDVSDataModule", "CIFAR10SimDVSDataModule")
    },
    "EventCamera": Source("tna_lightning.data.EventCamera"),
    **{
        name: Source(f"tna_lightning.data.augment.{name}")
        for name in (
            "AutoAugment",
            "Crop",
            "CutMix",
            "Cutout",
            "EventDrop",
            "Flip",
            "MixUp",
            "NDA",
            "RandomErasing",
            "Roll",
        )
    },
    "Chosen": Source("tna_lightning.data.augment.Chosen"),
    "RandomErasing": Source("tna_lightning.data.augment.RandomErasing"),
    "Trainer": Source(
        "lightning.Trainer",
        without=(*NOT_FOR_TRAINER, "limit_predict_batches", "enable_autolog_hparams", "model_registry"),
        told_in="tna_lightning.running.trainer",
    ),
    "InferenceCost": Source("tna_lightning.callbacks.inference_cost.InferenceCost"),
    "MemoryModel": Source("tna_lightning.cost.MemoryModel"),
    "cosine": Source("tna_lightning.learner.cosine", is_partial=True),
    "wandb_logger": Source("tna_lightning.running.loggers.wandb_logger", is_partial=True),
    "WeightQuantization": Source(
        "tna_lightning.quantization.WeightQuantization", without=("network", "companion_quantizer")
    ),
    "Binary": Source("tna_lightning.quantization.Binary"),
    "TemporalTernary": Source("tna_lightning.quantization.TemporalTernary"),
    "Ternary": Source("tna_lightning.quantization.Ternary"),
    "TernaryAbsmean": Source("tna_lightning.quantization.TernaryAbsmean"),
    "TernaryTTQ": Source("tna_lightning.quantization.TernaryTTQ"),
    "Uniform": Source("tna_lightning.quantization.Uniform"),
    "EMA": Source("tna_lightning.callbacks.EMA"),
    "SWA": Source("tna_lightning.callbacks.SWA"),
    **{
        name: Source(
            f"lightning.pytorch.callbacks.{name}",
            without=("verbose", "log_rank_zero_only"),
            told_in="tna_lightning.running.callbacks",
        )
        for name in ("EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor")
    },
}


def render(source: Source) -> str:
    """The text of a file."""
    lines = [HEAD.format(source=source.path), f"_target_: {source.path}"]
    if source.is_partial:
        lines.append("_partial_: true")
    defaults: dict[str, Any] = {}
    meanings = meanings_of(source)
    for _, function in takers(locate(source.path)):  # what an earlier one takes does not reach the later ones
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in source.without:
                defaults.setdefault(parameter.name, parameter.default)
    for name, default in defaults.items():
        meaning = f" # {meanings[name]}" if name in meanings else ""
        lines.append(f"{name}: {_as_yaml(default)}{meaning}")
    return "\n".join(lines) + "\n"


def meanings_of(source: Source) -> dict[str, str]:
    """What the arguments mean, by name, as docstrings say it."""
    if source.told_in is not None:
        return arguments_in(inspect.getdoc(importlib.import_module(source.told_in)) or "")
    return meanings_in(locate(source.path))


def meanings_in(target: Any) -> dict[str, str]:
    """What the arguments of a class and its bases, or of a function and what it hands its own to, mean, by name."""
    meanings: dict[str, str] = {}
    for owner in target.__mro__ if isinstance(target, type) else (target, getattr(target, "builder", None)):
        meanings = arguments_in(inspect.getdoc(owner) or "") | meanings
    return meanings


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def locate(path: str) -> Any:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments_in(docstring: str) -> dict[str, str]:
    """The section ``Args:`` of a docstring, by name: on one line each."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries: list[tuple[str, str]] = []
    if section is not None:
        entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()).removesuffix(".") for name, text in entries}


def main() -> None:
    """Write them all."""
    folder = home() / "conf" / "signatures"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.yaml"):
        path.unlink()
    for name, source in SOURCES.items():
        Path(folder / f"{name}.yaml").write_text(render(source))


if __name__ == "__main__":
    main()
