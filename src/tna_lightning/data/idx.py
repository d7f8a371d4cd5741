"""MNIST and the sets that took its place: four IDX files, as they are or packed with gzip."""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.download import download
from tna_lightning.data.images import ImageDataModule

UNSIGNED_BYTES = 8
"""The only type of IDX that these sets use."""

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DIGITS = tuple("0123456789")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SMALL = tuple("abcdefghijklmnopqrstuvwxyz")
MERGED = (*DIGITS, *CAPITALS, *"abdefghnqrt")  # the other small letters look like their capitals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IDXSet:
    """One of the sets.

    Attributes:
        classes: names in the order of the labels.
        folder: where torchvision keeps it, under the root.
        host: where its files lie; None where they come in one archive.
        md5: of the four packed files there, in the order of :data:`FILES`.
        content: of the four files unpacked, which tells the official images however they are packed.
        prefix: of its files' names.
        first_label: what the files call the first class.
        transposed: whether the pixels run down the columns.
    """

    classes: tuple[str, ...]
    folder: str
    host: str | None = None
    md5: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    prefix: str = ""
    first_label: int = 0
    transposed: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The four names, unpacked."""
        # EMNIST names them by split, and says `test`
        return tuple(self.prefix + (file.replace("t10k", "test") if self.prefix else file) for file in FILES)


def _emnist(split: str, classes: tuple[str, ...], first_label: int = 0) -> IDXSet:
    return IDXSet(classes, "EMNIST", prefix=f"emnist-{split}-", first_label=first_label, transposed=True)


EMNIST_ARCHIVE = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
EMNIST_MD5 = "58c8d27c78d21e728a6bc7b3cc06412e"

SETS = {
    "mnist": IDXSet(
        DIGITS,
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": IDXSet(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    "kmnist": IDXSet(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        "KMNIST",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "emnist_balanced": _emnist("balanced", MERGED),
    "emnist_bymerge": _emnist("bymerge", MERGED),
    "emnist_byclass": _emnist("byclass", (*DIGITS, *CAPITALS, *SMALL)),
    "emnist_letters": _emnist("letters", CAPITALS, first_label=1),
    "emnist_digits": _emnist("digits", DIGITS),
}


class IDXDataModule(ImageDataModule):
    """MNIST (LeCun et al. 1998), Fashion-MNIST (1708.07747), KMNIST (1812.01718), EMNIST (1702.05373): 28x28 grey.

    The official test images are the test set. Files of MNIST and Fashion-MNIST whose content is not the official one
    are taken with a warning.

    Args:
        name: ``mnist``, ``fashion_mnist``, ``kmnist``, or ``emnist_`` and ``balanced``, ``bymerge``, ``byclass``,
            ``letters`` or ``digits``.
        root: folder that holds the four files, plain or ``.gz``; or their folder, called like the set here or in
            torchvision.
        download: fetch what is missing (30 MB; EMNIST 562 MB) to a folder of ``root`` called like the set.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`.

    Raises:
        FileNotFoundError: a file is missing, and may not or could not be fetched.
        ValueError: a file is cut off, damaged, or of another form, or a label is out of range.
    """

    size = (28, 28)

    def __init__(
        self, name: str = "mnist", root: str | Path = ".data", *, download: bool = True, **settings: Any
    ) -> None:
        if name not in SETS:
            raise ValueError(f"name={name!r}: must be one of {', '.join(SETS)}")
        self.name = name
        super().__init__(**settings)
        self.root = Path(root)
        self.download = download

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return list(SETS[self.name].classes)

    @property
    def in_channels(self) -> int:
        """Grey."""
        return 1

    def prepare_data(self) -> None:
        """Make sure that the four files are there."""
        known = SETS[self.name]
        missing = [file for file in known.files if self._find(file) is None]
        if not missing:
            return
        folder = self.root / self.name
        if not self.download:
            wanted = f"{folder} as {', '.join(f'{file}.gz' for file in missing)}"
            raise FileNotFoundError(
                f"root={str(self.root)!r}: holds no {missing[0]}, plain or .gz; set download=true, or fetch "
                f"{known.host or EMNIST_ARCHIVE} and put it into {wanted}"
            )
        if known.host is None:
            archive = download(EMNIST_ARCHIVE, self.root / "emnist.zip", f"md5:{EMNIST_MD5}")
            _take_out(archive, [f"{file}.gz" for file in missing], folder)
            return
        for file, md5 in zip(known.files, known.md5, strict=True):
            if file in missing:
                download(f"{known.host}/{file}.gz", folder / f"{file}.gz", f"md5:{md5}")

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        self.prepare_data()
        known = SETS[self.name]
        parts = []
        for position, file in enumerate(known.files):
            path = self._find(file)
            assert path is not None
            try:
                array, md5 = read_idx(path, num_dimensions=3 if "images" in file else 1)
            except ValueError as error:
                raise ValueError(f"root={str(self.root)!r}: {error}") from error
            if known.content and md5 != known.content[position]:
                log.warning("%s is not the official file: the md5 of its content is %s", path, md5)
            parts.append((path, array))
        for (path, images), (labels_path, labels) in (parts[:2], parts[2:]):
            if len(images) != len(labels):
                raise ValueError(f"{path} holds {len(images)} images, and {labels_path} {len(labels)} labels")
        (_, train), (_, train_labels), (_, test), (_, test_labels) = parts
        for (path, images), _ in (parts[:2], parts[2:]):
            if images.shape[1:] != self.size:
                raise ValueError(f"{path}: its images are {images.shape[1:]}, must be {self.size}")
        targets = torch.from_numpy(np.concatenate([train_labels, test_labels]).astype(np.int64)) - known.first_label
        if targets.min() < 0 or targets.max() >= len(known.classes):
            least, last = known.first_label, known.first_label + len(known.classes) - 1
            raise ValueError(f"root={str(self.root)!r}: its labels must lie in [{least}, {last}] for {self.name}")
        pixels = torch.from_numpy(np.concatenate([train, test])).unsqueeze(1)
        if known.transposed:
            pixels = pixels.mT.contiguous()
        return pixels, targets, torch.arange(len(train), len(pixels))

    def _find(self, file: str) -> Path | None:
        folders = (self.root / self.name, self.root / SETS[self.name].folder / "raw", self.root)
        # some unpackers write the second dash as a dot
        names = [name + ending for name in (file, file.replace("-idx", ".idx")) for ending in ("", ".gz")]
        return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def read_idx(path: Path, num_dimensions: int) -> tuple[np.ndarray, str]:
    """Read an IDX file of unsigned bytes, plain or packed with gzip.

    Two zero bytes, the type, the number of dimensions, each dimension as a big-endian 32-bit number, the values in C
    order (LeCun, "The MNIST database").

    Returns:
        The array, and the md5 of the whole content unpacked.

    Raises:
        ValueError: the file is damaged, of another type, or not as long as it says.
    """
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with cast(BinaryIO, gzip.open(raw)) if is_packed else raw as file:
                head = file.read(4)
                if len(head) < 4 or head[:2] != b"\0\0":
                    raise ValueError(f"{path}: is no IDX file")
                if (head[2], head[3]) != (UNSIGNED_BYTES, num_dimensions):
                    raise ValueError(f"{path}: must hold unsigned bytes (8) in {num_dimensions} dimensions, "
                                     f"not type {head[2]} in {head[3]}")  # fmt: skip
                sizes = file.read(4 * num_dimensions)
                shape = [int(size) for size in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4")]
                content = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: is cut off or damaged ({error}); fetch the file again") from error
    if len(shape) != num_dimensions or len(content) != math.prod(shape):
        raise ValueError(f"{path}: is cut off, or longer than it says; it holds {len(content)} values of {shape}")
    if not content:
        raise ValueError(f"{path}: holds nothing")
    md5 = hashlib.md5(head + sizes + content, usedforsecurity=False).hexdigest()
    return np.frombuffer(content, np.uint8).reshape(shape), md5


def _take_out(archive: Path, files: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as packed:
        members = {Path(name).name: name for name in packed.namelist()}
        for file in files:
            part = folder / f"{file}.part"
            part.write_bytes(packed.read(members[file]))
            part.replace(folder / file)
