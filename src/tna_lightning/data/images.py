"""Image data sets that fit in memory as uint8: splits, augmentation and normalisation on the device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.augment import cutout, random_crop, random_horizontal_flip
from tna_lightning.data.auto_augment import POLICIES, AutoAugment
from tna_lightning.data.batch import Inputs
from tna_lightning.data.loading import Batch, BatchedDataModule, BatchSet, derive_seed, stratified_split


class ImageDataModule(BatchedDataModule):
    """Base of the image data sets; batches are ``(float32 [B, C, H, W], int64 [B])``, normalised per channel.

    A subclass sets ``name``, :attr:`mean`, :attr:`std` and the class names, and returns its images from :meth:`load`.

    Args:
        batch_size: training samples per step and device.
        eval_batch_size: at most so many samples per step and device in validation and test.
        val_fraction: share of the training images set aside for validation, stratified, by ``seed``; 0 for none,
            which wants a trainer with ``limit_val_batches=0``.
        train_subset: train on so many images only, stratified, by ``seed``; None for all.
        seed: of the splits, of the order of training samples and of the augmentation.
        crop_padding: shift training images by up to so many pixels; 0 for none.
        flip: mirror half of the training images.
        auto_augment: None, ``autoaugment``, ``randaugment`` or ``trivialaugment``; colour images only.
        cutout: side of the square erased from each training image, filled with the mean; 0 for none.
        device_resident: keep the whole uint8 set on the trainer's device, so that batches are gathered there.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    """H and W, where they are known before the images are loaded."""

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        train_subset: int | None = None,
        seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
        auto_augment: str | None = None,
        cutout: int = 0,
        device_resident: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction!r}: must lie in [0, 1)")
        for name, pixels in (("crop_padding", crop_padding), ("cutout", cutout)):
            if pixels < 0:
                raise ValueError(f"{name}={pixels!r}: must be at least 0 pixels")
        if auto_augment is not None and auto_augment not in POLICIES:
            raise ValueError(f"auto_augment={auto_augment!r}: must be null or {', '.join(POLICIES)}")
        if auto_augment is not None and self.in_channels != 3:
            raise ValueError(f"auto_augment={auto_augment!r}: must be null for images without colour")
        self.val_fraction = val_fraction
        self.train_subset = train_subset
        self.crop_padding = crop_padding
        self.flip = flip
        self.auto_augment = auto_augment
        self.cutout = cutout
        self.device_resident = device_resident
        self._samples: tuple[Tensor, Tensor] | None = None
        self._policy: AutoAugment | None = None
        self._mean = torch.tensor(self.mean).mul(255).view(-1, 1, 1)
        self._scale = torch.tensor(self.std).mul(255).reciprocal().view(-1, 1, 1)

    @property
    def in_channels(self) -> int:  # noqa: D102
        return len(self.mean)

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

    def augment(self, x: Tensor, target: Tensor, generator: torch.Generator) -> Batch:  # noqa: D102
        if self.crop_padding:
            x = random_crop(x, self.crop_padding, generator)
        if self.flip:
            x = random_horizontal_flip(x, generator)
        if self.auto_augment:
            if self._policy is None:
                self._policy = AutoAugment(self.auto_augment)
            x = self._policy(x, generator)
        if self.cutout:
            x = cutout(x, self.cutout, generator, self._mean.round().flatten())
        return x, target

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
