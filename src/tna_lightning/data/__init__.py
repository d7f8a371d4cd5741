"""Data sets as LightningDataModules: images (:mod:`.images`) and event recordings (:mod:`.events`), and in
:mod:`.augment` what is done to their training batches.

The public names load their modules on first use, so that asking for one data set does not import the libraries of all.
Only the data modules know Lightning; batches, splits, augmentation, recordings and frames are plain torch and numpy.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "ArraysDataModule": "arrays",
    "Batch": "batch",
    "BatchedDataModule": "module",
    "CIFAR10DVSDataModule": "cifar10dvs",
    "CIFAR10SimDVSDataModule": "simulated",
    "CIFARDataModule": "cifar",
    "DVSGestureDataModule": "known_events",
    "DigitsDVSDataModule": "simulated",
    "DigitsDataModule": "digits",
    "EventCamera": "camera",
    "EventDataModule": "events",
    "EventFolderDataModule": "event_folder",
    "IDXDataModule": "idx",
    "ImageDataModule": "images",
    "ImageFolderDataModule": "folder",
    "Inputs": "batch",
    "NCaltech101DataModule": "known_events",
    "NMNISTDataModule": "known_events",
    "Normalization": "batch",
    "SVHNDataModule": "svhn",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
