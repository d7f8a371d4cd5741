"""What follows from logits and labels: accuracies, confusion, calibration, ensembles. Plain torch.

Letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

NUM_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599)


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """The share of samples whose largest logit is their label's, in [0, 1]."""
    return (logits_NK.argmax(1) == labels_N).float().mean().item()


def confusion_matrix(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """How often each class (row) was taken for each (column); int64 ``[K, K]``."""
    return multiclass_confusion_matrix(logits_NK.argmax(1), labels_N, num_classes=logits_NK.shape[1])


def class_accuracies(confusion_KK: Tensor) -> list[float | None]:
    """The accuracy on each class; None without samples."""
    samples = confusion_KK.sum(1)
    shares = confusion_KK.diagonal() / samples
    return [share if number else None for share, number in zip(shares.tolist(), samples.tolist(), strict=True)]


def calibration(logits_NK: Tensor, labels_N: Tensor, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """How sure the network is beside how often it is right.

    Samples are sorted by confidence, the largest probability, into bins of equal width. ``ece``, the expected
    calibration error, is the mean over samples of how far a bin's accuracy is from its mean confidence (Guo et al.,
    arXiv 1706.04599); ``nll`` the mean of -log of the probability of the label, in nats.

    Returns:
        ``ece``, ``nll``, and ``bins``: of each that is not empty ``from``, ``to``, ``samples``, ``confidence``,
        ``accuracy``.
    """
    probabilities = logits_NK.softmax(1)
    confidences, classes = probabilities.max(1)
    right = classes == labels_N
    numbers = (confidences * num_bins).long().clamp(max=num_bins - 1)
    bins = []
    for number in range(num_bins):
        inside = numbers == number
        if (samples := int(inside.sum())) > 0:
            bins.append(
                {
                    "from": number / num_bins,
                    "to": (number + 1) / num_bins,
                    "samples": samples,
                    "confidence": confidences[inside].mean().item(),
                    "accuracy": right[inside].float().mean().item(),
                }
            )
    ece = multiclass_calibration_error(probabilities, labels_N, logits_NK.shape[1], num_bins, norm="l1")
    nll = torch.nn.functional.cross_entropy(logits_NK, labels_N)
    return {"ece": ece.item(), "nll": nll.item(), "bins": bins}


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Logits of several networks together: the logarithm of the mean of their probabilities, ``[N, K]``.

    As Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles"
    (arXiv 1612.01474), combine networks.
    """
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0).sub(torch.tensor(len(logits)).log())
