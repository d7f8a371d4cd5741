"""Scikit-learn's handwritten digits: the embedded data set, which needs no download."""

from __future__ import annotations

import torch
from torch import Tensor

from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.loading import stratified_split


def load_digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 ``[1797, 1, 8, 8]``, labels, and the indices of the 360 test images (the same for every seed).

    Real scans of the UCI set "Optical Recognition of Handwritten Digits" (its test part); the original 0 to 16 is
    scaled to 0 to 255.
    """
    from sklearn.datasets import load_digits as load_scans

    scans = load_scans()
    images = torch.from_numpy(scans.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(scans.target).long()
    _, test = stratified_split(labels, fraction=0.2, seed=0)
    return images, labels, test


class DigitsDataModule(ImageDataModule):
    """Handwritten digits, 8x8 grey: 1,797 real scans, of which 360 are for the test, stratified and fixed.

    Args:
        batch_size: training samples per step and device.
        eval_batch_size: at most so many samples per step and device in validation and test.
        val_fraction: share of the 1,437 training images set aside for validation, by ``seed``; 0 for none.
        train_subset: train on so many images only, stratified, by ``seed``; None for all.
        seed: of the validation split, of the order of training samples and of the augmentation.
        crop_padding: shift training images by up to so many pixels; 0 for none.
        device_resident: keep the whole set on the trainer's device.
    """

    name = "digits"
    # over the 1,437 training images, as a share of 255
    mean = (0.3051,)
    std = (0.3758,)
    size = (8, 8)

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        train_subset: int | None = None,
        seed: int = 0,
        crop_padding: int = 0,
        device_resident: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            train_subset=train_subset,
            seed=seed,
            crop_padding=crop_padding,
            device_resident=device_resident,
        )

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return [str(digit) for digit in range(10)]

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return load_digits()
