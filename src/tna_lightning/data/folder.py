"""Pictures of one's own, a folder a class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.array_cache import ArrayCache, BadSample, key_of, open_arrays
from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.loading import stratified_split
from tna_lightning.data.pictures import SUFFIXES, read_picture

FORMAT = 1  # raise it when pictures of the same key would come out differently
PARTS = ("train", "test")
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
        root: the folder.
        size: pixels of a picture, H and W, or one number for both.
        grey: one channel in place of three.
        skip_bad: leave out files that are no pictures, with a warning that names them, rather than stop.
        build_workers: processes that read; 0 for one per core.
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
        self._found: _Found | None = None

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
        names = [name for name, _ in found.pictures]
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
        labels = torch.tensor([label for _, label in found.pictures])
        test = torch.tensor(found.test) if found.test else stratified_split(labels, fraction=0.2, seed=0)[1]
        test = test[self._usable(len(labels))[test]]
        self._measure(test)
        return torch.from_numpy(self.cache.arrays), labels, test

    def describe(self) -> dict[str, Any]:  # noqa: D102
        assert self.cache is not None
        split = "train and test folders" if self._find().test else "a fifth of each class, seed 0"
        return {**super().describe(), "split": split, "bad_pictures": self.cache.bad}

    def _find(self) -> _Found:
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


@dataclass(frozen=True)
class _Found:
    """What lies below a folder.

    Attributes:
        classes: their names.
        pictures: the path below the folder and the label of each, in order.
        test: the numbers of the test's pictures; empty where a fifth is to be drawn.
    """

    classes: list[str]
    pictures: list[tuple[str, int]]
    test: list[int]


def find_pictures(root: Path) -> _Found:
    """The classes and pictures below ``root``, hidden files and folders left out.

    Raises:
        FileNotFoundError: no such folder, or none in it.
        ValueError: a class has no pictures, there is one alone, or the test has a class that training lacks.
    """
    if not root.is_dir():
        raise FileNotFoundError("is no folder")
    folders = _folders(root)
    if (root / "val" / ANNOTATIONS).is_file() and "train" in folders:
        return _tiny_imagenet(root)
    split = [name for name in PARTS if name in folders]
    if len(split) == 1:
        other = next(name for name in PARTS if name not in split)
        raise ValueError(f"has a folder {split[0]}, and none called {other} beside it")
    parts = split or ["."]
    classes = _folders(root / parts[0])
    if not classes:
        raise FileNotFoundError("holds no folders of classes" + (f" in {parts[0]}" if split else ""))
    if len(classes) == 1:
        raise ValueError(f"holds one class alone ({classes[0]}), there is nothing to tell apart")
    others: list[str] = []
    pictures: list[tuple[str, int]] = []
    test: list[int] = []
    for part in parts:
        unknown = [name for name in _folders(root / part) if name not in classes]
        if unknown:
            raise ValueError(f"{part} has the class {unknown[0]}, which {parts[0]} does not have")
        for label, name in enumerate(classes):
            found = _pictures(root / part / name, others) if (root / part / name).is_dir() else []
            if not found and part == parts[0]:
                raise ValueError(f"{(Path(part) / name).as_posix()}: holds no pictures ({', '.join(SUFFIXES)})")
            start = len(pictures)
            pictures += [((Path(part) / name / each).as_posix(), label) for each in found]
            test += range(start, len(pictures)) if part == "test" else ()
    if split and not test:
        raise ValueError("test: holds no pictures")
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(f"left out, no pictures by their names: {', '.join(others[:3])}{more}", stacklevel=2)
    return _Found(classes, pictures, test)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path, others: list[str]) -> list[str]:
    """The pictures below a folder, relative to it, by name; files that are none by their name are added to others."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            if path.suffix.lower() in SUFFIXES:
                found.append(relative.as_posix())
            else:
                others.append(path.name)
    return found


def _tiny_imagenet(root: Path) -> _Found:
    others: list[str] = []
    classes = _folders(root / "train")
    pictures = [
        (f"train/{name}/{each}", label)
        for label, name in enumerate(classes)
        for each in _pictures(root / "train" / name, others)
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
    return _Found(classes, pictures, list(range(start, len(pictures))))
