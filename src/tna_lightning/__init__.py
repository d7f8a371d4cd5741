"""Twin Network Augmentation for spiking networks: train twins, keep a ternary SNN.

The names below are imported when they are used, so that a kept network can be loaded without Lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "TwinLearner": "tna_lightning.learner",
    "WeightQuantization": "tna_lightning.quantization",
    "load_c": "tna_lightning.export.c",
    "load_packed": "tna_lightning.quantization.packing",
    "record": "tna_lightning.models.recording",
    "save_network": "tna_lightning.quantization.packing",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:  # for completion, which does not ask for what is imported when it is used
    return sorted({*globals(), *_HOMES})
