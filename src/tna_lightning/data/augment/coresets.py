"""Which samples stand for all: facility location over proxies of gradients (arXiv 2210.08363), chosen greedily.

Letters: N samples, K classes, D numbers of a proxy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES = 64  # whose gains are computed at once


def gradient_proxies(logits: Tensor, target: Tensor) -> Tensor:
    """The gradient of each sample's cross-entropy in its logits, ``softmax(logits) - onehot(target)``, ``[N, K]``."""
    return logits.softmax(1) - F.one_hot(target, logits.shape[1])


def similarities(proxies: Tensor) -> Tensor:
    """``[N, N]`` of ``[N, D]``: how much nearer two are than the two farthest, by Euclidean distance; 0 or more."""
    distances = torch.cdist(proxies, proxies, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.max() - distances


def facility_location(similarity: Tensor, count: int) -> Tensor:
    """So many places, int64 ``[count]``, chosen one after another, each the one by which this grows most:

        F(S) = sum over i of max over j in S of similarity[i, j]

    F is monotone and submodular, so that the greedy choice has at least 1 - 1/e of the best one's F. A gain never grows
    as others are chosen: candidates are looked at in the order of what they last gained, until none can gain more
    (Minoux's lazy greedy). Of gains that are equal as computed the first is taken.

    Args:
        similarity: ``[N, N]``, symmetric, 0 or more.
        count: at most N.
    """
    num_samples = len(similarity)
    best = similarity.new_zeros(num_samples)
    bounds = similarity.sum(0)
    chosen = torch.empty(count, dtype=torch.int64, device=similarity.device)
    step = min(CANDIDATES, num_samples)
    for place in range(count):
        order = torch.argsort(bounds, descending=True, stable=True)
        gain, winner = bounds.new_tensor(-math.inf), order[0]
        for candidates in order.split(step):
            if bounds[candidates[0]] < gain:  # nor can those behind it
                break
            gains = (similarity[candidates] - best).relu_().sum(1)  # rows, which lie together in memory
            bounds[candidates] = torch.where(bounds[candidates] == -math.inf, -math.inf, gains)
            highest = bounds[candidates].max()
            first = candidates[bounds[candidates] == highest].min()
            if highest > gain or (highest == gain and first < winner):
                gain, winner = highest, first
        chosen[place] = winner
        bounds[winner] = -math.inf
        best = torch.maximum(best, similarity[winner])
    return chosen


def budgets(class_sizes: Tensor, share: float) -> Tensor:
    """How many samples of each class are chosen: ``ceil(share * N / classes)``; what one lacks, others give.

    Args:
        class_sizes: int64, one or more each.
        share: of all samples, in (0, 1].
    """
    wanted = math.ceil(round(share * int(class_sizes.sum()) / len(class_sizes), 6))
    given = class_sizes.clamp(max=wanted)
    lacking = min(wanted * len(class_sizes), int(class_sizes.sum())) - int(given.sum())
    while lacking > 0:  # one from each that has any left, the first classes first
        more = (given < class_sizes).nonzero().squeeze(1)[:lacking]
        given[more] += 1
        lacking -= len(more)
    return given


def coreset(proxies: Tensor, target: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The samples that stand for all, class by class, and how many of their class each stands for.

    Args:
        proxies: ``[N, D]``.
        target: classes, int64 ``[N]``.
        share: of all samples, in (0, 1].

    Returns:
        places, int64 ``[n]``, and weights ``[n]``: the number of samples of the class whose nearest chosen one it is,
        over the mean of that.
    """
    classes, sizes = target.unique(return_counts=True)
    chosen, weights = [], []
    for label, count in zip(classes, budgets(sizes, share).tolist(), strict=True):
        members = (target == label).nonzero().squeeze(1)
        similarity = similarities(proxies[members])
        places = facility_location(similarity, count)
        nearest = similarity[:, places].argmax(1)
        chosen.append(members[places])
        weights.append(torch.bincount(nearest, minlength=count))
    weight = torch.cat(weights).float()
    return torch.cat(chosen), weight / weight.mean()
