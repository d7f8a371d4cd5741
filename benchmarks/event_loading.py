"""How fast cached frames reach a network, against how fast networks train on them.

    python benchmarks/event_loading.py

Frames of T=10, 48x48, batches of 64 from a memory-mapped cache of 2,000 recordings (184 MB, in the page cache), in
shuffled order. `gather` is the loader alone; `prepare` also makes float32 frames and evens them out; the augmentations
come on top. Networks do a plain training step (forward, backward, AdamW). One process, one thread; processor time, so
that other load on the machine counts less; in turns, median of 7 rounds with the spread. Figures:
benchmarks/results/events_cpu.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tna_lightning.data import EventDataModule
from tna_lightning.data.augment import NDA, CutMix, Flip, Operation, Roll
from tna_lightning.data.recordings import Recording
from tna_lightning.models import LIF, convnet, vggsnn

ROUNDS = 7
RECORDINGS = 2000
BATCH = 64


class RandomRecordings:
    """20,000 events each, spread over a 128x128 sensor."""

    names = [f"class/{index}" for index in range(RECORDINGS)]
    labels = [index % 10 for index in range(RECORDINGS)]
    sensor = (128, 128)

    def load(self, index: int) -> Recording:
        rng = np.random.default_rng(index)
        x, y = rng.integers(0, 128, (2, 20_000)).astype(np.uint16)
        return Recording(np.arange(20_000), x, y, rng.random(20_000) < 0.5)

    def fingerprint(self) -> dict[str, Any]:
        return {"random": RECORDINGS}


class RandomEvents(EventDataModule):
    name = "random"
    simulated = True
    class_names = [str(label) for label in range(10)]

    def source(self) -> RandomRecordings:
        return RandomRecordings()


def module(root: str, **settings: Any) -> RandomEvents:
    data = RandomEvents(root, batch_size=BATCH, build_workers=1, **settings)
    data.setup("fit")
    return data


def gather(root: str) -> Callable[[], int]:
    """One epoch of the loader alone."""
    data = module(root)
    return lambda: sum(len(batch) for batch in data.train_dataloader())


def serve(root: str, **operations: Operation) -> Callable[[], int]:
    """One epoch up to where Lightning would hand it to the network."""
    data = module(root, augment=operations)
    generator = torch.Generator()

    def run() -> int:
        samples = 0
        for batch in data.train_dataloader():
            if operations:
                batch = data.augment(batch, generator)
            data.prepare(batch.x)
            samples += len(batch)
        return samples

    return run


def training(network: torch.nn.Module, batch: int) -> Callable[[], int]:
    """One training step on frames that are there already."""
    optimizer = torch.optim.AdamW(network.parameters())
    x, target = torch.rand(batch, 10, 2, 48, 48), torch.arange(batch) % 10

    def run() -> int:
        loss = torch.nn.functional.cross_entropy(network(x).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return batch

    return run


def main() -> None:
    print(f"torch {torch.__version__}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as root:
        jobs = {
            "gather": gather(root),
            "gather, prepare": serve(root),
            "gather, prepare, flip_roll": serve(root, flip=Flip(), roll=Roll()),
            "gather, prepare, nda, cutmix": serve(root, nda=NDA(), cutmix=CutMix(0.5)),
            "train convnet, width 0.25": training(convnet(2, 10, LIF, width=0.25), 16),
            "train convnet, width 1": training(convnet(2, 10, LIF), 16),
            "train vggsnn, width 0.25": training(vggsnn(2, 10, LIF, width=0.25), 16),
        }
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(ROUNDS + 1):
            for name, run in jobs.items():
                start = time.process_time()
                samples = run()
                if turn:
                    rates[name].append(samples / (time.process_time() - start))
    smallest = statistics.median(rates["train convnet, width 0.25"])
    for name, measured in rates.items():
        median = statistics.median(measured)
        print(
            f"{name:<30} {median:8.0f} samples a second ({min(measured):.0f} to {max(measured):.0f}); "
            f"{median / smallest:6.1f} times the smallest network's training"
        )


if __name__ == "__main__":
    main()
