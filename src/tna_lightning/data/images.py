"""Image data sets that fit in memory as uint8: splits, augmentation and normalisation on the device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.batch import Inputs, Normalization
from tna_lightning.data.loading import BatchSet, derive_seed, stratified_split
from tna_lightning.data.module import BatchedDataModule


class ImageDataModule(BatchedDataModule):
    """Base of the image data sets; inputs are float32 ``[B, C, H, W]``, normalised per channel.

    A subclass sets ``name``, :attr:`mean`, :attr:`std` and the class names, and returns its images from :meth:`load`.

    Args:
        val_fraction: share of the training images set aside for validation, stratified, by ``seed``; 0 for none,
            which wants a trainer with ``limit_val_batches=0``.
        train_subset: train on so many images only, stratified, by ``seed``; None for all.
        device_resident: keep the whole uint8 set on the trainer's device, so that batches are gathered there.
        **settings: see :class:`~tna_lightning.data.BatchedDataModule`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    """H and W, where they are known before the images are loaded."""

    def __init__(
        self,
        *,
        val_fraction: float = 0.1,
        train_subset: int | None = None,
        device_resident: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction!r}: must lie in [0, 1)")
        self.val_fraction = val_fraction
        self.train_subset = train_subset
        self.device_resident = device_resident
        self._samples: tuple[Tensor, Tensor] | None = None
        self._mean = torch.tensor(self.mean).mul(255).view(-1, 1, 1)
        self._scale = torch.tensor(self.std).mul(255).reciprocal().view(-1, 1, 1)

    @property
    def in_channels(self) -> int:  # noqa: D102
        return len(self.mean)

    @property
    def blank(self) -> Tensor:
        """The mean of each channel, a whole grey level."""
        return self._mean.round().flatten()

    @property
    def inputs(self) -> Inputs:
        """What networks are built for; without :attr:`size` it is seen from the images, which are loaded for it."""
        if self.size is None and self._samples is None:
            self.setup("fit")
        height, width = self.size or self._samples[0].shape[-2:]  # type: ignore[index]  # setup has filled it
        return Inputs(self.in_channels, height, width, None, self.num_classes)

    def load(self) -> tuple[Tensor, Tensor, Tensor]:
        """All images, uint8 ``[N, C, H, W]``, their labels, int64 ``[N]``, and the indices of the test images."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:  # noqa: D102
        if self._samples is None:
            images, labels, test = self.load()
            self._samples = images, labels
            self._subsets = (*self._split(labels, test), test)
        device = self.trainer.strategy.root_device if self.trainer and self.device_resident else torch.device("cpu")
        images, labels = (samples.to(device) for samples in self._samples)
        self.train_set, self.val_set, self.test_set = (BatchSet(images, labels, subset) for subset in self._subsets)

    def _split(self, labels: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        is_test[test] = True
        pool = (~is_test).nonzero().squeeze(1)
        rest, chosen = stratified_split(labels[pool], self.val_fraction, self.seed)
        train, val = pool[rest], pool[chosen]
        if self.train_subset is not None:
            if not 1 <= self.train_subset <= len(train):
                raise ValueError(f"train_subset={self.train_subset!r}: must be null or lie in [1, {len(train)}]")
            if self.train_subset < len(train):
                _, chosen = stratified_split(labels[train], self.train_subset / len(train), derive_seed(self.seed, 1))
                train = train[chosen]
        return train, val

    @property
    def normalization(self) -> Normalization:  # noqa: D102
        return Normalization(self._mean.cpu(), self._scale.cpu())

    def prepare(self, x: Tensor) -> Tensor:
        """Normalise uint8 images to zero mean and unit deviation per channel over the data set."""
        self._mean, self._scale = self._mean.to(x.device), self._scale.to(x.device)
        return x.sub(self._mean).mul_(self._scale)

    def describe(self) -> dict[str, Any]:
        """What a run record says; ``images_sha256`` tells copies of one data set apart. Needs :meth:`setup`."""
        assert self._samples is not None
        digest = hashlib.sha256()
        for samples in self._samples:
            digest.update(samples.numpy().data)
        return {**super().describe(), "images_sha256": digest.hexdigest()}
