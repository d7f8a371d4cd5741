"""SVHN, digits on house fronts (Netzer et al. 2011), from its two ``.mat`` files of cropped digits."""

from __future__ import annotations

import hashlib
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.download import download
from tna_lightning.data.images import ImageDataModule

HOST = "http://ufldl.stanford.edu/housenumbers"
FILES = {  # md5 as torchvision's ``datasets/svhn.py`` has them
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}

log = logging.getLogger(__name__)


class SVHNDataModule(ImageDataModule):
    """SVHN's cropped digits, 32x32 colour: 73,257 images to train on and the official 26,032 to test.

    The files call the digit 0 a 10; it is class 0 here. The 531,131 easier images of ``extra_32x32.mat`` are not used.

    Args:
        root: folder that holds ``train_32x32.mat`` and ``test_32x32.mat``, itself or in ``svhn`` or ``SVHN``.
        download: fetch what is not there (182 and 64 MB) into ``root/svhn``.
        **settings: see :class:`~tna_lightning.data.ImageDataModule`.

    Raises:
        FileNotFoundError: a file is not there, and may not or could not be fetched.
        ValueError: a file is damaged, or holds something else.
    """

    name = "svhn"
    size = (32, 32)

    def __init__(self, root: str | Path = ".data", *, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.download = download

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return [str(digit) for digit in range(10)]

    @property
    def in_channels(self) -> int:
        """Colour."""
        return 3

    def prepare_data(self) -> None:
        """Make sure that both files are there."""
        for file, md5 in FILES.items():
            if self._find(file) is None:
                if not self.download:
                    raise FileNotFoundError(
                        f"root={str(self.root)!r}: holds no {file}; set download=true, or fetch {HOST}/{file} and put "
                        f"it into {self.root / 'svhn'}"
                    )
                download(f"{HOST}/{file}", self.root / "svhn" / file, f"md5:{md5}")

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        self.prepare_data()
        parts = []
        for file, md5 in FILES.items():
            path = self._find(file)
            assert path is not None
            with path.open("rb") as content:
                if (found := hashlib.file_digest(content, "md5").hexdigest()) != md5:
                    log.warning("%s is not the official file: its md5 is %s", path, found)
            try:
                parts.append(read_svhn(path))
            except ValueError as error:
                raise ValueError(f"root={str(self.root)!r}: {error}") from error
        images, labels = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
        return torch.from_numpy(images), torch.from_numpy(labels), torch.arange(len(parts[0][0]), len(images))

    def _find(self, file: str) -> Path | None:
        places = (self.root / folder / file for folder in ("svhn", "SVHN", "."))
        return next((path for path in places if path.is_file()), None)


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]``, 0 to 9.

    The file has ``X``, uint8 ``[32, 32, 3, N]``, and ``y``, ``[N, 1]``, from 1 to 10.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        held = loadmat(path, variable_names=("X", "y"))
    except (ValueError, TypeError, OSError, EOFError, NotImplementedError, MatReadError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: is damaged or no .mat file of version 5 ({reason}); fetch the file again") from error
    images, labels = (np.asarray(held.get(name)) for name in "Xy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: its X is {images.dtype} {list(images.shape)}, must be uint8 [32, 32, 3, N]")
    if labels.size != images.shape[3] or labels.dtype.kind not in "iu":
        what = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"{path}: its y is {what}, must be {images.shape[3]} whole numbers, one for each image")
    if not labels.size or labels.min() < 0 or labels.max() > 10:
        raise ValueError(f"{path}: its y must hold whole numbers from 1 to 10, where 10 is the digit 0")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.reshape(-1).astype(np.int64) % 10
