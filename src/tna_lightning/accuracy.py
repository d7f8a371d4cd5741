"""Accuracies and mean losses of an epoch, summed on the device."""

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
        for name in ("correct", "samples"):  # one place more, for what has no label
            self.add_state(name, torch.zeros(num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``[B, K]`` and class indices ``[B]``."""
        num_classes = len(self.samples) - 1
        if self.rank == 1:
            is_right = logits.argmax(1) == labels
        else:
            is_right = (logits.topk(self.rank).indices == labels.unsqueeze(1)).any(1)
        place = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
        self.samples.index_add_(0, place, torch.ones_like(place))
        self.correct.index_add_(0, place, is_right.to(place.dtype))

    def compute(self) -> Tensor:
        """The accuracy so far; NaN before the first labelled sample."""
        correct, samples = self.correct[:-1].float(), self.samples[:-1].float()
        self.of_each = correct / samples
        return self.of_each.nanmean() if self.by_class else correct.sum() / samples.sum()


class Mean(Metric):
    """Mean of a loss over the samples of an epoch; over several devices over all of theirs. NaN before the first."""

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: Tensor | int) -> None:
        """Take in the mean of a batch, a scalar, and over how many samples it is."""
        self.total = self.total + mean.detach() * samples
        self.samples = self.samples + samples

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.samples
