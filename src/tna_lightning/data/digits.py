"""Scikit-learn's handwritten digits: the embedded data set, which needs no download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.loading import stratified_split
from tna_lightning.packages import require


def load_digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 ``[1797, 1, 8, 8]``, labels, and the indices of the 360 test images (the same for every seed).

    Real scans of the UCI set "Optical Recognition of Handwritten Digits" (its test part); the original 0 to 16 is
    scaled to 0 to 255.
    """
    require("sklearn")
    from sklearn.datasets import load_digits as load_scans

    scans = load_scans()
    images = torch.from_numpy(scans.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(scans.target).long()
    _, test = stratified_split(labels, fraction=0.2, seed=0)
    return images, labels, test


class DigitsDataModule(ImageDataModule):
    """Handwritten digits, 8x8 grey: 1,797 real scans, of which 360 are for the test, stratified and fixed.

    Args:
        **settings: see :class:`~tna_lightning.data.ImageDataModule`.
    """

    name = "digits"
    # over the 1,437 training images, as a share of 255
    mean = (0.3051,)
    std = (0.3758,)
    size = (8, 8)

    def __init__(self, *, batch_size: int = 64, **settings: Any) -> None:
        super().__init__(batch_size=batch_size, **settings)

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return [str(digit) for digit in range(10)]

    def load(self) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return load_digits()
