"""Pictures of one's own, a folder a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.array_cache import ArrayCache, BadSample, key_of, open_arrays
from tna_lightning.data.class_folders import Found, files_in, find_files, folders_in
from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.loading import stratified_split
from tna_lightning.data.pictures import SUFFIXES, read_picture

FORMAT = 1  # raise it when pictures of the same key would come out differently
ANNOTATIONS = "val_annotations.txt"
"""Tiny ImageNet's: which class each picture of its folder ``val`` is of."""


@dataclass(frozen=True)
class PictureStats:
    """Sums over a picture's grey levels, by channel, from which mean and deviation follow exactly."""

    sum_0: int = 0
    sum_1: int = 0
    sum_2: int = 0
    squares_0: int = 0
    squares_1: int = 0
    squares_2: int = 0
    error: str | None = None


@dataclass(frozen=True)
class PictureMaker:
    """Pictures, uint8 ``[C, H, W]``, from files below a folder."""

    root: Path
    names: Sequence[str]
    size: tuple[int, int]
    grey: bool

    what = "pictures"
    sample = "picture"
    setting = "cache_root"
    stats = PictureStats

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return 1 if self.grey else 3, *self.size

    def make(self, index: int, out: np.ndarray) -> PictureStats:  # noqa: D102
        path = self.root / self.names[index]
        try:
            out[:] = read_picture(path, self.size, grey=self.grey)
        except BadSample as error:
            return PictureStats(error=str(error))
        levels = out.reshape(len(out), -1).astype(np.int64)
        sums = [*levels.sum(1).tolist(), 0, 0][:3], [*(levels**2).sum(1).tolist(), 0, 0][:3]
        return PictureStats(*sums[0], *sums[1])


class ImageFolderDataModule(ImageDataModule):
    """Pictures below ``root``: in ``train/CLASS`` and ``test/CLASS``, or in ``CLASS`` alone.

    Without ``train`` and ``test`` a fifth of each class is the test set, the same for every seed: drawn over the
    pictures in the order of their names (:func:`~tna_lightning.data.loading.stratified_split`, seed 0). Tiny ImageNet's
    own layout is known: its ``val``, the pictures of which have public labels, is the test set. A picture may lie in
    folders below its class. PNG, JPEG, BMP, GIF (its first frame), WebP, TIFF and PNM are read, by Pillow: turned as
    their EXIF says, cut to the shape of ``size`` around the middle, scaled (bicubic), in grey or colour.

    All are read once, into a memory-mapped file in ``root/.pictures``, by several processes where that takes long.
    Mean and deviation are those of the training pictures, as scaled.

    Args:
        root: the folder, which holds a folder of pictures for each class, or ``train`` and ``test`` of such.
        size: pixels of a picture, H and W, or one number for both.
        grey: one channel in place of three.
        skip_bad: leave out files that are no pictures, with a warning that names them, rather than stop.
        build_workers: processes that read pictures, once; 0 for one per core. Training has no ``num_workers``.
        cache_root: folder of the memory-mapped file, where ``root`` cannot be written.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`.

    Raises:
        FileNotFoundError: no such folder, or no classes in it.
        ValueError: a class without pictures, one class alone, classes of the test that training does not have; a file
            that is no picture.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int | tuple[int, int] = 32,
        grey: bool = False,
        skip_bad: bool = False,
        build_workers: int = 0,
        cache_root: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.root = Path(root)
        self.name = self.root.name
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size={size!r}: must be at least 1")
        if build_workers < 0:
            raise ValueError(f"build_workers={build_workers!r}: must not be negative")
        super().__init__(**settings)
        self.size = height, width
        self.grey = grey
        self.skip_bad = skip_bad
        self.build_workers = build_workers
        self.cache_root = self.root / ".pictures" if cache_root is None else Path(cache_root)
        self.cache: ArrayCache | None = None
        self._found: Found | None = None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes' folders, in alphabetical order."""
        return self._find().classes

    @property
    def in_channels(self) -> int:
        """One or three."""
        return 1 if self.grey else 3

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        found = self._find()
        names = [name for name, _ in found.files]
        stats = [(self.root / name).stat() for name in names]
        maker = PictureMaker(self.root, names, self.size or (0, 0), self.grey)
        key = key_of(
            {
                "format": FORMAT,
                "files": [[name, each.st_size, each.st_mtime_ns] for name, each in zip(names, stats, strict=True)],
                "shape": maker.shape,
                "versions": {name: version(name) for name in ("numpy", "pillow")},
            }
        )
        try:
            self.cache = open_arrays(
                self.cache_root, self.name, key, maker, skip_bad=self.skip_bad, workers=self.build_workers
            )
        except ValueError as error:
            raise type(error)(f"root={str(self.root)!r}: {error}") from error
        labels = torch.tensor([label for _, label in found.files])
        test = torch.tensor(found.test) if found.test else stratified_split(labels, fraction=0.2, seed=0)[1]
        test = test[self._usable(len(labels))[test]]
        self._measure(test)
        return torch.from_numpy(self.cache.arrays), labels, test

    def describe(self) -> dict[str, Any]:  # noqa: D102
        assert self.cache is not None
        split = "train and test folders" if self._find().test else "a fifth of each class, seed 0"
        return {**super().describe(), "split": split, "bad_pictures": self.cache.bad}

    def _find(self) -> Found:
        if self._found is None:
            try:
                self._found = find_pictures(self.root)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"root={str(self.root)!r}: {error}") from error
        return self._found

    def _usable(self, number: int) -> Tensor:
        assert self.cache is not None
        usable = torch.zeros(number, dtype=torch.bool)
        usable[torch.from_numpy(self.cache.usable)] = True
        return usable

    def _split(self, labels: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        usable = self._usable(len(labels))
        train, val = super()._split(labels, torch.cat([test, (~usable).nonzero().squeeze(1)]))
        return train, val

    def _measure(self, test: Tensor) -> None:
        """Mean and deviation from the sums of the cache, which are whole numbers: in any order the same."""
        assert self.cache is not None
        of_training = self._usable(len(self.cache.stats))
        of_training[test] = False
        stats = [self.cache.stats[index] for index in of_training.nonzero().squeeze(1).tolist()]
        number = len(stats) * math.prod(self.size or (0, 0)) * 255
        mean, std = [], []
        for channel in range(self.in_channels):
            mean.append(sum(getattr(each, f"sum_{channel}") for each in stats) / number)
            squares = sum(getattr(each, f"squares_{channel}") for each in stats) / (number * 255)
            std.append(math.sqrt(max(0.0, squares - mean[-1] ** 2)) or 1.0)
        self.mean, self.std = tuple(mean), tuple(std)


def find_pictures(root: Path) -> Found:
    """The classes and pictures below ``root``: in folders of classes, or as Tiny ImageNet comes."""
    if (root / "val" / ANNOTATIONS).is_file() and (root / "train").is_dir():
        return _tiny_imagenet(root)
    return find_files(root, SUFFIXES, "pictures")


def _tiny_imagenet(root: Path) -> Found:
    others: list[str] = []
    classes = folders_in(root / "train")
    pictures = [
        (f"train/{name}/{each}", label)
        for label, name in enumerate(classes)
        for each in files_in(root / "train" / name, SUFFIXES, others)
        if not each.endswith(".txt")
    ]
    start = len(pictures)
    label_of = {name: label for label, name in enumerate(classes)}
    for line in (root / "val" / ANNOTATIONS).read_text().splitlines():
        name, of_class, *_ = [*line.split("\t"), ""]
        if of_class not in label_of:
            raise ValueError(f"val/{ANNOTATIONS}: {line[:80]!r} names no class of train")
        pictures.append((f"val/images/{name}", label_of[of_class]))
    missing = next((name for name, _ in pictures[start:] if not (root / name).is_file()), None)
    if missing or len(pictures) == start:
        raise FileNotFoundError(f"{missing or 'val'}: is not there")
    return Found(classes, pictures, list(range(start, len(pictures))))
