"""Images of one's own that lie as named arrays in one ``.npz`` file."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.loading import stratified_split
from tna_lightning.data.words import listed

# what the arrays of a whole set, and of its parts, are called: Keras' sets, MedMNIST, scikit-learn
IMAGES, LABELS = ("images", "x", "data"), ("labels", "y", "targets", "target")
BEGINS = (b"PK\x03\x04", b"\x93NUM")  # of .npz and .npy; numpy takes all else for a pickle
PARTS = tuple(
    [
        (images.format(part), labels.format(part))
        for images, labels in (("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_x", "{}_y"))
    ]
    for part in ("train", "test")
)

log = logging.getLogger(__name__)


class ArraysDataModule(ImageDataModule):
    """Images and labels from the named arrays of a ``.npz`` file.

    The arrays are called ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``train_images``, ``train_labels``, ...
    (``train_x`` and ``X_train`` too); or ``images`` (``x``, ``data``) and ``labels`` (``y``, ``targets``, ``target``),
    of which a fifth of each class becomes the test set, the same for every seed. Images are grey levels from 0 to 255,
    or shares of 255 as whole levels give them, ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` with C = 1 or 3;
    labels are whole numbers ``[N]`` or ``[N, 1]`` from 0. Others, as MedMNIST's ``val_images``, are left out.

    Args:
        file: the ``.npz``, with x_train, y_train, x_test, y_test, or images and labels.
        classes: names of the classes in the order of the labels; None: the labels' numbers.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``file=...`` and what of it is not as said above.
    """

    def __init__(self, file: str | Path, *, classes: Sequence[str] | None = None, **settings: Any) -> None:
        self.file = Path(file)
        self.name = self.file.stem
        self.classes = None if classes is None else [str(name) for name in classes]
        super().__init__(**settings)

    @property
    def class_names(self) -> list[str]:
        """The given names, or the labels' numbers, for which the file is read."""
        if self.classes is None:
            self.setup("fit")
        assert self.classes is not None  # load has filled it
        return self.classes

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        if not self.file.is_file():
            raise FileNotFoundError(f"file={str(self.file)!r}: is not there")
        try:
            return self._load()
        except ValueError as error:
            raise ValueError(f"file={str(self.file)!r}: {error}") from error

    def _load(self) -> tuple[Tensor, Tensor, Tensor]:
        try:
            with self.file.open("rb") as file:  # numpy would leave a damaged one open
                if file.read(4) not in BEGINS:
                    raise ValueError("is no .npz of named arrays")
                file.seek(0)
                parts = _parts(np.load(file))
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"is damaged or no .npz of named arrays ({error})") from error
        for images, labels in parts:
            if len(images) != len(labels):
                raise ValueError(f"holds {len(images)} images and {len(labels)} labels for them")
        shapes = {tuple(images.shape[1:]) for images, _ in parts}
        if len(shapes) > 1:
            raise ValueError(f"training and test images differ in shape: {sorted(shapes)}")
        images, labels = (torch.cat([part[index] for part in parts]) for index in (0, 1))
        if self.classes is None:
            if labels.max() >= len(labels):
                raise ValueError(
                    f"labels go up to {labels.max()} for {len(labels)} images; number classes from 0, without gaps"
                )
            self.classes = [str(label) for label in range(int(labels.max()) + 1)]
        if labels.max() >= len(self.classes):
            raise ValueError(f"labels go up to {labels.max()}, and classes names {len(self.classes)}")
        if len(labels.unique()) < 2:
            raise ValueError("all labels are the same, there is nothing to tell apart")
        missing = sorted({*range(len(self.classes))} - {*labels.tolist()})
        if missing:
            shown = listed([str(label) for label in missing])
            log.warning("data.file=%r: no image has the label %s; labels count from 0", str(self.file), shown)
        if len(parts) == 2:
            return images, labels, torch.arange(len(parts[0][0]), len(images))
        _, test = stratified_split(labels, fraction=0.2, seed=0)
        return images, labels, test


def _parts(held: Any) -> list[tuple[Tensor, Tensor]]:
    """Images and labels for training and for the test, or of the whole set."""
    if isinstance(held, np.ndarray):
        raise ValueError("is one array without a name; numpy.savez writes several with names")
    names = held.files
    found = [[pair for pair in part if {*pair} <= set(names)] for part in PARTS]
    pairs = [*chain.from_iterable(found)]
    whole = [(image, label) for image in IMAGES for label in LABELS if {image, label} <= set(names)]
    if [len(part) for part in found] == [1, 1] or (whole and not pairs):
        return [(_images(name, held[name]), _labels(other, held[other])) for name, other in pairs or whole[:1]]
    raise ValueError(
        f"holds {', '.join(names)}; must hold x_train, y_train, x_test, y_test, or train_images, train_labels, "
        "test_images, test_labels, or images and labels"
    )


def _images(name: str, array: np.ndarray) -> Tensor:
    """Uint8 ``[N, C, H, W]``."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"{name} is {list(array.shape)}; must be [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1 or 3")
    if not array.size:
        raise ValueError(f"{name} is empty")
    if array.dtype != np.uint8:
        levels = array * 255.0 if array.dtype.kind == "f" and array.max() <= 1 else array
        whole = np.rint(levels) if array.dtype.kind in "fiu" else None
        if whole is None or not (abs(levels - whole).max() < 1e-3 and whole.min() >= 0 and whole.max() <= 255):
            raise ValueError(f"{name} is {array.dtype}; must hold whole grey levels from 0 to 255, or those over 255")
        array = whole
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))


def _labels(name: str, array: np.ndarray) -> Tensor:
    """Int64 ``[N]``."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}; must hold whole numbers, [N]")
    if len(array) and (array.min() < 0 or array.max() >= 2**31):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} holds {wrong}; labels are whole numbers from 0")
    return torch.from_numpy(array.astype(np.int64))
