"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official files, in the binary or the pickle layout."""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.download import check, download, unpack
from tna_lightning.data.images import ImageDataModule

HOST = "https://www.cs.toronto.edu/~kriz"
IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
NUM_COARSE = 20  # classes that CIFAR-100's coarse labels tell apart

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """One official way in which one of the data sets comes."""

    folder: str
    archive: str
    md5: str
    train_files: tuple[str, ...]
    test_file: str
    label: int | str
    """Where the label of a class stands: the byte of a binary record, or the key of a pickled dict."""
    label_bytes: int = 1
    """Bytes before the pixels of a binary record."""
    md5s: tuple[str, ...] = ()
    """Of :attr:`files`, in order, where they are known (torchvision's ``datasets/cifar.py``)."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files with images, the test images last."""
        return (*self.train_files, self.test_file)


# the binary layout first: it is the one that is fetched
LAYOUTS = {
    "cifar10": (
        Layout(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test_file="test_batch.bin",
            label=0,
        ),
        Layout(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test_file="test_batch",
            label="labels",
            md5s=(
                "c99cafc152244af753f735de768cd75f",
                "d4bba439e000b95fd0a9bffe97cbabec",
                "54ebc095f3ab1f0389bbae665268c751",
                "634d18415352ddfa80567beed471001a",
                "482c414d41f54cd18b22e5b47cb7c3cb",
                "40351d587109b95175f43aff81a1287e",
            ),
        ),
    ),
    "cifar100": (
        Layout(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            train_files=("train.bin",),
            test_file="test.bin",
            label=1,  # the coarse label comes first
            label_bytes=2,
        ),
        Layout(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            train_files=("train",),
            test_file="test",
            label="fine_labels",
            md5s=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
    ),
}

# mean and deviation over the 50,000 training images as a share of 255, as commonly used
CHANNELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

# the first labels of CIFAR-10's test images tell their file in both layouts; of the binary files no MD5 is published
CIFAR10_TEST_BEGINS = (3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6)

_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CLASSES = {"cifar10": _CIFAR10_CLASSES.split(), "cifar100": _CIFAR100_CLASSES.split()}


class CIFARDataModule(ImageDataModule):
    """CIFAR-10 or CIFAR-100 (fine labels), 32x32 colour; the official 10,000 test images are the test set.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: folder that holds an official folder (``cifar-10-batches-bin``, ``cifar-10-batches-py``,
            ``cifar-100-binary``, ``cifar-100-python``) or an official ``.tar.gz``, or is itself such a folder; what was
            unpacked into a folder called like the archive is found too.
        download: fetch the official binary archive (163 MB) to ``root`` if nothing is there.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`; the uint8 set takes 184 MB on the device.

    Raises:
        FileNotFoundError: nothing under ``root``, and it may not or could not be fetched; or a file of it is missing.
        ValueError: a file is cut off, has the wrong checksum, holds a label out of range, is a pickle of more than
            arrays, or holds what another file does, or should.
    """

    size = (32, 32)

    def __init__(
        self,
        name: str = "cifar10",
        root: str | Path = ".data",
        *,
        download: bool = True,
        **settings: Any,
    ) -> None:
        if name not in LAYOUTS:
            raise ValueError(f"name={name!r}: must be {' or '.join(LAYOUTS)}")
        self.name = name
        self.mean, self.std = CHANNELS[name]
        super().__init__(**settings)
        self.root = Path(root)
        self.download = download

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return CLASSES[self.name]

    def prepare_data(self) -> None:
        """Make sure that an official folder is there: unpack an archive, or fetch one."""
        if self._find() is not None:
            return
        layouts = LAYOUTS[self.name]
        fetched = layouts[0]
        layout = next((layout for layout in layouts if (self.root / layout.archive).is_file()), None)
        if layout is None:
            layout = next((layout for layout in layouts if (self.root / layout.archive).exists()), None)
        with self._naming_root():
            if layout is not None:
                check(self.root / layout.archive, f"md5:{layout.md5}")
            elif self.download:
                layout = fetched
                download(f"{HOST}/{layout.archive}", self.root / layout.archive, f"md5:{layout.md5}")
            else:
                raise FileNotFoundError(
                    f"holds no {' or '.join(layout.folder for layout in layouts)}; set download=true, "
                    f"or fetch {HOST}/{fetched.archive} and put it at {self.root / fetched.archive}"
                )
            unpack(self.root / layout.archive, self.root / layout.folder)

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        self.prepare_data()
        found = self._find()
        assert found is not None
        folder, layout = found
        with self._naming_root():
            self._check_files(folder, layout)
            parts = [read(folder / file, layout, len(self.class_names)) for file in layout.files]
            sizes = [len(labels) for _, labels in parts]
            if len(set(sizes[:-1])) > 1:
                held = ", ".join(f"{file} {size}" for file, size in zip(layout.train_files, sizes, strict=False))
                raise ValueError(f"{folder}: its training files must hold equally many images, one is cut off: {held}")
            for file, (_, its) in zip(layout.train_files, parts, strict=False):
                if self.name == "cifar10" and tuple(its[: len(CIFAR10_TEST_BEGINS)]) == CIFAR10_TEST_BEGINS:
                    raise ValueError(f"{folder}: {file} holds the official test images; get {layout.archive} again")
        num_train, num_test = sum(sizes[:-1]), sizes[-1]
        if (num_train, num_test) != (50_000, 10_000):
            log.warning("%s holds %d + %d images; the official set has 50000 + 10000", folder, num_train, num_test)
        images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
        labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
        return images, labels, torch.arange(num_train, num_train + num_test)

    def _find(self) -> tuple[Path, Layout] | None:
        """The first whole folder, or else the first that is not empty, unless its archive is there."""
        partly = None
        for layout in LAYOUTS[self.name]:
            archive = self.root / layout.archive  # may be a folder into which it was unpacked
            for folder in (self.root / layout.folder, self.root.absolute(), archive / layout.folder, archive):
                there = [(folder / file).is_file() for file in layout.files]
                if all(there):
                    return folder, layout
                is_called_so = folder.name == layout.folder and folder.is_dir() and any(folder.iterdir())
                if partly is None and (is_called_so or any(there)):
                    partly = folder, layout
        return partly

    @staticmethod
    def _check_files(folder: Path, layout: Layout) -> None:
        """Refuse files that are copies of each other or stand in each other's place; say that one is no official one.

        Raises:
            ValueError: they are or do; a missing file is left to who reads it.
        """
        found: dict[str, str] = {}
        official = dict(zip(layout.md5s, layout.files, strict=False))
        unknown = []
        for file in layout.files:
            if not (folder / file).is_file():
                return
            with (folder / file).open("rb") as opened:
                digest = hashlib.file_digest(opened, "md5").hexdigest()
            if digest in found:
                raise ValueError(f"{folder}: {file} is a copy of {found[digest]}; get {layout.archive} again")
            if official.get(digest, file) != file:
                raise ValueError(f"{folder}: {file} is the official {official[digest]}; get {layout.archive} again")
            found[digest] = file
            if digest not in official:
                unknown.append(file)
        if unknown and layout.md5s:
            log.warning("%s: of %s the MD5 is not that of the official file", folder, ", ".join(unknown))

    @contextmanager
    def _naming_root(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"root={str(self.root)!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"root={str(self.root)!r}: {error}") from error


def read(path: Path, layout: Layout, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one official file: images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put it back, or remove its folder and get {layout.archive} again")
    if isinstance(layout.label, int):
        records = np.fromfile(path, np.uint8)
        record_bytes = layout.label_bytes + PIXELS
        if len(records) % record_bytes:
            raise ValueError(f"{path}: is cut off, {len(records)} bytes are not whole records of {record_bytes} bytes")
        records = records.reshape(-1, record_bytes)
        pixels, labels = records[:, layout.label_bytes :], records[:, layout.label]
        if layout.label_bytes == 2 and len(records) and records[:, 0].max() >= NUM_COARSE:
            raise ValueError(
                f"{path}: the coarse labels, which come first, go up to {records[:, 0].max()}, must lie in "
                f"[0, {NUM_COARSE - 1}]; are coarse and fine ones swapped?"
            )
    else:
        content = read_arrays(path)
        if not isinstance(content, dict) or not {"data", layout.label} <= content.keys():
            raise ValueError(f"{path}: must hold a dict with 'data' and {layout.label!r}")
        pixels, labels = content["data"], content[layout.label]
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            labels = np.array(labels)
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise ValueError(f"{path}: its {layout.label!r} must be a list of whole numbers")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"{path}: its data must be uint8 [{len(labels)}, {PIXELS}], one row for each label")
    if not len(labels):
        raise ValueError(f"{path}: holds no images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{path}: labels go from {labels.min()} to {labels.max()}, must lie in [0, {num_classes - 1}]")
    return pixels.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)


def read_arrays(path: Path) -> Any:
    """Unpickle plain Python values and, as values of a dict, numpy arrays of numbers; nothing runs code.

    Bytes of Python 2 become latin-1 text, as numpy expects them.

    Raises:
        ValueError: the pickle is damaged, or asks for anything else.
    """
    with path.open("rb") as file:
        try:
            content = _ArrayUnpickler(file, encoding="latin1").load()
            if isinstance(content, dict):
                content = {key: _as_numpy(value) for key, value in content.items()}
            return content
        except _RefusedError as error:
            raise ValueError(
                f"{path}: asks for {error}, and the official file holds arrays only; do not trust it"
            ) from error
        except Exception as error:  # a damaged pickle fails in any way
            raise ValueError(f"{path}: is cut off or damaged ({error})") from error


class _RefusedError(Exception):
    """A pickle names something to call that is not needed for arrays, or sets what it should not."""


# A pickle calls what it is handed and sets its attributes, with values that the file chooses. So numpy's own types,
# which believe what they are told, are not handed out: these stand for them, and what they got is checked afterwards.
class _Dtype:
    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    __slots__ = ("content", "dtype", "is_fortran", "shape")

    def __init__(self, *parts: Any) -> None:
        self.shape, self.dtype, self.is_fortran, self.content = parts or (None,) * 4

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.content = state


class _Handed:
    """A function as a pickle gets it: it may be called, and nothing of it may be set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a change of what it was handed")


def _as_numpy(value: Any) -> Any:
    """The numpy array that an :class:`_Array` stands for; anything else as it is."""
    if not isinstance(value, _Array):
        return value
    kind, shape, content = value.dtype, value.shape, value.content
    if not isinstance(kind, _Dtype) or not isinstance(kind.code, str) or not re.fullmatch("[iuf][1248]", kind.code):
        raise _RefusedError(f"an array of {getattr(kind, 'code', kind)!r}")
    dtype = np.dtype(kind.code).newbyteorder(">" if kind.order == ">" else "<")
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise _RefusedError(f"an array made of {type(content).__name__}")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _RefusedError(f"an array of the shape {shape!r}")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {list(shape)} is not made of {len(content)} bytes")
    is_fortran = value.is_fortran in (True, "F")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, dtype, order, content)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # what Python 3 writes for bytes in the old protocols
        raise _RefusedError(f"the codec {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Handed(lambda *_: _Array()),
    ("numpy", "dtype"): _Handed(_Dtype),
    ("_codecs", "encode"): _Handed(_encode),
    **{
        (f"numpy.{core}.{module}", name): _Handed(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", lambda *_: _Array()),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]
