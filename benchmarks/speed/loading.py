"""Images a second from the loader, beside images a second of the smallest ResNet's training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.training_step import Size, step

LOADER_BATCHES = 50


def write_cifar10(root: Path, images_per_file: int) -> None:
    """Random images in the official binary layout: records of a label and 3 x 32 x 32 bytes."""
    generator = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        records = generator.integers(256, size=(images_per_file, 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def _batch(settings: Settings) -> int:
    return 2 if settings.toy else 128


def _batches(settings: Settings) -> int:
    return 2 if settings.toy else LOADER_BATCHES


def _loader(settings: Settings, *more: str) -> Run:
    """Some batches as a training gets them: gathered, cropped, flipped and what more, normalised, on the device."""
    from tna_lightning.data import CIFARDataModule, augment  # brings Lightning, see objectives.py

    operations = {name: getattr(augment, name)() for name in ("Crop", "Flip", *more)}

    with tempfile.TemporaryDirectory() as root:
        write_cifar10(Path(root), 20 if settings.toy else 10_000)
        data = CIFARDataModule(root=root, download=False, batch_size=_batch(settings), augment=operations)
        data.setup("fit")
    data.train_set.inputs = data.train_set.inputs.to(settings.device)  # where a trainer's root device would put them
    data.train_set.targets = data.train_set.targets.to(settings.device)
    generator = torch.Generator(settings.device).manual_seed(0)

    def batches() -> Iterator[None]:
        while True:
            for batch in data.train_dataloader():
                data.prepare(data.augment(batch, generator).x)
                yield

    endless, count = batches(), _batches(settings)
    return lambda: [next(endless) for _ in range(count)]


def _training(settings: Settings, compiled: str) -> Run:
    size = Size("resnet8", 0.25, 2, 2) if settings.toy else Size("resnet8", 1.0, _batch(settings))
    return step(size, settings, compiled=compiled)


LOADERS = {"crop and flip": (), "AutoAugment and cutout too": ("AutoAugment", "Cutout")}
TRAININGS = {"training, neurons compiled": "neurons", "training, network compiled": "network"}


def contestants(settings: Settings) -> dict[str, Callable[[], Run]]:
    """The loader with two augmentations, the training in two ways."""
    return {
        **{f"loader, {name}": lambda more=more: _loader(settings, *more) for name, more in LOADERS.items()},
        **{name: lambda way=way: _training(settings, way) for name, way in TRAININGS.items()},
    }


def images(settings: Settings) -> dict[str, int]:
    """Images in a repetition."""
    batch = _batch(settings)
    return {f"loader, {name}": batch * _batches(settings) for name in LOADERS} | dict.fromkeys(TRAININGS, batch)


COMPARISONS = {
    "loading": Comparison(
        title="Loader and training",
        sizes=lambda settings: (
            f"CIFAR-10's files with random pixels, batches of {_batch(settings)}, gathered, augmented and normalised "
            f"on the device; a repetition of the loader is {_batches(settings)} batches. Training: steps of ResNet-8, "
            "the smallest, T=4, on a batch that is there already."
        ),
        contestants=contestants,
        images=images,
        memory=False,
        ratios=(
            Ratio("loader over training, images a second", tuple(TRAININGS), ("loader, crop and flip",)),
            Ratio("loader with AutoAugment over training", tuple(TRAININGS), ("loader, AutoAugment and cutout too",)),
        ),
    )
}
