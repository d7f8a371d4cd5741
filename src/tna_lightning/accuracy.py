"""Accuracies, counted by class on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Accuracy(Metric):
    """Top-``rank`` accuracy, a share in [0, 1]; over several devices that of all samples.

    A label that is no class, such as an objective's ``ignore_index``, counts for nothing.

    Args:
        num_classes: K.
        rank: among how many of the largest logits the label must be.
        by_class: the mean over the classes of each one's own accuracy, whatever their sizes ("macro"; for rank 1
            scikit-learn's ``balanced_accuracy_score``), in place of that over the samples. Classes without samples are
            left out.

    Attributes:
        of_each: ``[K]``, the accuracy of each class, NaN where it has no sample; as of the last ``compute``.
    """

    full_state_update = False
    correct: Tensor
    samples: Tensor

    def __init__(self, num_classes: int, rank: int = 1, by_class: bool = False) -> None:
        super().__init__()
        self.rank, self.by_class = rank, by_class
        self.of_each: Tensor | None = None
        for name in ("correct", "samples"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``[B, K]`` and class indices ``[B]``."""
        best = logits.argmax(1, keepdim=True) if self.rank == 1 else logits.topk(self.rank).indices
        is_right = (best == labels.unsqueeze(1)).any(1, keepdim=True)
        is_of_class = labels.unsqueeze(1) == torch.arange(len(self.samples), device=labels.device)
        self.samples += is_of_class.sum(0)
        self.correct += (is_of_class & is_right).sum(0)

    def compute(self) -> Tensor:
        """The accuracy so far; NaN before the first labelled sample."""
        correct, samples = self.correct.float(), self.samples.float()
        self.of_each = correct / samples
        return self.of_each.nanmean() if self.by_class else correct.sum() / samples.sum()
