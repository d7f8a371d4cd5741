"""Files in the exact official CIFAR formats, and a network small enough to train anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn


def short_string(text: str) -> bytes:
    """A Python 2 ``str``, as pickle protocol 2 wrote it: SHORT_BINSTRING."""
    return b"U" + bytes([len(text)]) + text.encode("latin1")


def long_string(content: bytes) -> bytes:
    """A longer Python 2 ``str``: BINSTRING."""
    return b"T" + len(content).to_bytes(4, "little") + content


def whole_numbers(numbers: list[int]) -> bytes:
    """A list of small ints: EMPTY_LIST, MARK, BININT1 ..., APPENDS."""
    return b"](" + b"".join(b"K" + bytes([number]) for number in numbers) + b"e"


def python2_array(array: np.ndarray) -> bytes:
    """A uint8 matrix as numpy 1.x under Python 2 pickled it; ``dtype('u1', 0, 1)`` is what new numpy warns about."""
    rows, columns = array.shape
    shape = b"J" + rows.to_bytes(4, "little") + b"J" + columns.to_bytes(4, "little") + b"\x86"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + long_string(array.tobytes()) + b"tb"


def python2_dict(items: dict[str, bytes]) -> bytes:
    """A pickle, protocol 2, of a dict with ``str`` keys and values that are pickled already."""
    return b"\x80\x02}(" + b"".join(short_string(key) + value for key, value in items.items()) + b"u."


def samples(num: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``num`` random images as rows of 3072 bytes (red, green, blue planes), and labels that take turns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)
    return pixels, np.arange(num) % num_classes


class CIFARFiles:
    """Writes small sets in the four official layouts; image ``i`` of file ``f`` is the same in each."""

    files = {"cifar10": (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"), "cifar100": ("train", "test")}
    folders = {
        ("cifar10", "binary"): "cifar-10-batches-bin",
        ("cifar10", "pickle"): "cifar-10-batches-py",
        ("cifar100", "binary"): "cifar-100-binary",
        ("cifar100", "pickle"): "cifar-100-python",
    }

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def content(name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        return samples(20 if name == "cifar10" else 200, 10 if name == "cifar10" else 100, seed=index)

    def write(self, name: str, layout: str) -> Path:
        folder = self.root / self.folders[name, layout]
        folder.mkdir(parents=True)
        for index, file in enumerate(self.files[name]):
            pixels, labels = self.content(name, index)
            if layout == "binary":
                heads = [labels] if name == "cifar10" else [labels // 5, labels]  # coarse, then fine
                records = np.column_stack([*(head.astype(np.uint8) for head in heads), pixels])
                (folder / f"{file}.bin").write_bytes(records.tobytes())
            else:
                items = {"data": python2_array(pixels), "batch_label": long_string(file.encode())}
                if name == "cifar10":
                    items["labels"] = whole_numbers(labels.tolist())
                else:
                    items["fine_labels"] = whole_numbers(labels.tolist())
                    items["coarse_labels"] = whole_numbers((labels // 5).tolist())
                (folder / file).write_bytes(python2_dict(items))
        return folder


@pytest.fixture
def cifar_files(tmp_path: Path) -> CIFARFiles:
    return CIFARFiles(tmp_path)


class Probe(lightning.LightningModule):
    """A linear classifier that keeps every batch it sees, by stage."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)
        self.seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"train": [], "val": [], "test": []}

    def _loss(self, stage: str, batch: Any) -> torch.Tensor:
        x, target = batch
        self.seen[stage].append((x.clone(), target.clone()))
        return nn.functional.cross_entropy(self.linear(x.flatten(1)), target)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._loss("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def probe() -> Callable[[lightning.LightningDataModule], Probe]:
    def make(data: Any) -> Probe:
        features = {"digits": 64}.get(data.name, 3072)
        return Probe(features, data.num_classes)

    return make


@pytest.fixture
def trainer() -> Callable[..., lightning.Trainer]:
    def make(**settings: Any) -> lightning.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False}
        return lightning.Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **settings})

    return make
