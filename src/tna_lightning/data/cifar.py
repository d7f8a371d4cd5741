"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official files, in the binary or the pickle layout."""

from __future__ import annotations

import logging
import pickle
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
        ),
    ),
}

# mean and deviation over the 50,000 training images as a share of 255, as commonly used
CHANNELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

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
            ``cifar-100-binary``, ``cifar-100-python``) or an official ``.tar.gz``, or is itself such a folder.
        download: fetch the official binary archive (163 MB) to ``root`` if nothing is there.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`; the uint8 set takes 184 MB on the device.

    Raises:
        FileNotFoundError: nothing under ``root``, and it may not or could not be fetched; or a file of it is missing.
        ValueError: a file is cut off, has the wrong checksum, holds a label out of range, or is a pickle of more than
            arrays.
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
            parts = [read(folder / file, layout, len(self.class_names)) for file in layout.files]
            sizes = [len(labels) for _, labels in parts]
            if len(set(sizes[:-1])) > 1:
                held = ", ".join(f"{file} {size}" for file, size in zip(layout.train_files, sizes, strict=False))
                raise ValueError(f"{folder}: its training files must hold equally many images, one is cut off: {held}")
        num_train, num_test = sum(sizes[:-1]), sizes[-1]
        if (num_train, num_test) != (50_000, 10_000):
            log.warning("%s holds %d + %d images; the official set has 50000 + 10000", folder, num_train, num_test)
        images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
        labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
        return images, labels, torch.arange(num_train, num_train + num_test)

    def _find(self) -> tuple[Path, Layout] | None:
        for layout in LAYOUTS[self.name]:
            for folder in (self.root / layout.folder, self.root.absolute()):
                if folder.name == layout.folder and folder.is_dir():
                    return folder, layout
        return None

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
    else:
        content = read_arrays(path)
        if not isinstance(content, dict) or not {"data", layout.label} <= content.keys():
            raise ValueError(f"{path}: must hold a dict with 'data' and {layout.label!r}")
        pixels, labels = content["data"], np.asarray(content[layout.label])
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise ValueError(f"{path}: its {layout.label!r} must be a list of whole numbers")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"{path}: its data must be uint8 [{len(labels)}, {PIXELS}], one row for each label")
    if not len(labels):
        raise ValueError(f"{path}: holds no images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{path}: labels go from {labels.min()} to {labels.max()}, must lie in [0, {num_classes - 1}]")
    return pixels.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)


def read_arrays(path: Path) -> Any:
    """Unpickle numpy arrays and plain Python values, and nothing that runs code.

    Bytes of Python 2 become latin-1 text, as numpy expects them.

    Raises:
        ValueError: the pickle is damaged, or asks for anything else.
    """
    with path.open("rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except _RefusedError as error:
            raise ValueError(
                f"{path}: asks for {error}, and the official file holds arrays only; do not trust it"
            ) from error
        except Exception as error:  # a damaged pickle fails in any way
            raise ValueError(f"{path}: is cut off or damaged ({error})") from error


class _RefusedError(Exception):
    """A pickle names something to call that is not needed for arrays."""


def _dtype(code: str, align: Any = False, copy: Any = False) -> np.dtype:
    # the official files say 0 and 1, which numpy no longer takes for booleans
    return np.dtype(code, align=bool(align), copy=bool(copy))


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # what Python 3 writes for bytes in the old protocols
        raise _RefusedError(f"the codec {encoding!r}")
    return text.encode("latin1")


_array = np.empty(0, np.uint8)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _array.__reduce__()[0]),
            ("numeric", "_frombuffer", _array.__reduce_ex__(5)[0]),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]
