"""Files in the exact official CIFAR formats, and a network small enough to train anywhere."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class FileServer:
    """Serves bytes on loopback, and can be told to misbehave.

    Args:
        files: content by path.
        ranges: answer Range requests, as most servers do.
        stop_after: send at most so many bytes an answer, then close the connection.
        status: answer everything with this status and a web page.
    """

    def __init__(self, files: dict[str, bytes], ranges: bool = True, stop_after: int | None = None, status: int = 200):
        self.requests: list[str | None] = []  # their Range headers
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.headers.get("Range"))
                content = files[self.path]
                start = 0
                if status != 200:
                    content = b"<html>Are you human?</html>"
                elif ranges and self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                beyond = start > 0 and start >= len(content)
                self.send_response(416 if beyond else 206 if start else status)
                self.send_header("Content-Type", "text/html" if status != 200 else "application/octet-stream")
                self.send_header("Content-Length", str(0 if beyond else len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][:stop_after])

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FileServer]]:
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(*args: Any, **settings: Any) -> FileServer:
        servers.append(FileServer(*args, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
