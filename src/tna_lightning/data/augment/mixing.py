"""Two samples in one: CutMix and mixup, of images or event frames.

Letters: B batch, H W pixels, K classes. Labels become class probabilities, ``[B, K]``. A mixed sample keeps the number
(:attr:`Batch.index`) of the sample that it was before; its weight, where samples have one, is mixed as its label is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tna_lightning.data.augment.operation import Samples
from tna_lightning.data.batch import Batch

_LEAST_ALPHA = 0.05  # at 0.01 both gammas of 18 % of all samples are the least number of float32, which gives a half


def class_probabilities(target: Tensor, num_classes: int) -> Tensor:
    """Class indices ``[B]`` as float32 ``[B, K]``; probabilities as they are.

    Raises:
        ValueError: an index is below 0, which stands for no class.
    """
    if target.ndim == 2:
        return target
    if target.device.type == "cpu" and (target < 0).any():  # CUDA's own check stops the process
        raise ValueError(
            f"label {int(target.min())}: samples without a label cannot be mixed: choose augmentation without"
        )
    return F.one_hot(target, num_classes).float()


def mix_labels(batch: Batch, x: Tensor, partner: Tensor, share: Tensor, num_classes: int) -> Batch:
    """A batch with inputs ``x``, in which ``partner``, int64 ``[B]``, has the given share, ``[B]``, of each sample."""
    labels = class_probabilities(batch.target, num_classes)
    of_partner = share[:, None]
    weight = batch.weight
    return replace(
        batch,
        x=x,
        target=(1 - of_partner) * labels + of_partner * labels[partner],
        weight=None if weight is None else (1 - share) * weight + share * weight[partner],
    )


def cutmix(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Put a box of another sample into each.

    The box covers a share of the picture drawn uniformly, around a centre drawn uniformly; the border clips it.

    Args:
        x: ``[B, ..., H, W]``.
        probability: with which a sample is mixed.
        generator: of all draws.

    Returns:
        The mixed samples; whose box each got, int64 ``[B]``; and the share of its pixels that the box covers, ``[B]``.
    """
    height, width = x.shape[-2:]
    count = len(x)
    share, row, column, mixed = torch.rand(4, count, generator=generator, device=x.device)
    partner = torch.randperm(count, generator=generator, device=x.device)
    side = share.sqrt() * (mixed < probability)
    box = _span(height, row, side)[:, :, None] & _span(width, column, side)[:, None]
    inside = box.view(count, *[1] * (x.ndim - 3), height, width)
    return torch.where(inside, x[partner], x), partner, box.float().mean(dim=(1, 2))


def _span(length: int, centre: Tensor, side: Tensor) -> Tensor:
    """Which pixels lie in a span of ``int(side * length)`` of them around the centre; bool ``[B, length]``."""
    size = (side * length).long()[:, None]
    start = (centre * length).long()[:, None] - size // 2
    pixel = torch.arange(length, device=centre.device)
    return (pixel >= start) & (pixel < start + size)


def mixup(x: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean of each sample and another, ``(1 - share) * x + share * x[partner]``.

    Args:
        x: ``[B, ...]``; whole numbers are rounded.
        alpha: the share follows Beta(alpha, alpha), each sample's own.
        generator: of all draws.

    Returns:
        The mixed samples, the partners, int64 ``[B]``, and their shares, float32 ``[B]``.
    """
    count = len(x)
    # Beta from two gammas, as torch.distributions draws it, which takes no generator
    first, second = torch._standard_gamma(torch.full((2, count), alpha, device=x.device), generator=generator)
    share = second / (first + second)
    partner = torch.randperm(count, generator=generator, device=x.device)
    of_partner = share.view(count, *[1] * (x.ndim - 1))
    mixed = (1 - of_partner) * x + of_partner * x[partner]
    return (mixed if x.is_floating_point() else mixed.round()).to(x.dtype), partner, share


class CutMix:
    """CutMix (arXiv 1905.04899 with alpha 1): a box of another sample, its label by area.

    Args:
        probability: with which a sample is mixed.
    """

    num_classes: int

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability!r}: must lie in (0, 1]")
        self.probability = probability

    def setup(self, data: Samples) -> None:
        """Read K."""
        self.num_classes = data.num_classes

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return mix_labels(batch, *cutmix(batch.x, self.probability, generator), self.num_classes)


class MixUp:
    """Mixup (arXiv 1710.09412): the weighted mean of two samples and of their labels.

    Args:
        alpha: of the Beta distribution of the other sample's share; 1 is uniform, below 1 one sample prevails.
    """

    num_classes: int

    def __init__(self, alpha: float = 0.5) -> None:
        if not alpha >= _LEAST_ALPHA:
            raise ValueError(
                f"alpha={alpha!r}: must be at least {_LEAST_ALPHA}, or both of its draws may be 0 in float32"
            )
        self.alpha = alpha

    def setup(self, data: Samples) -> None:
        """Read K."""
        self.num_classes = data.num_classes

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return mix_labels(batch, *mixup(batch.x, self.alpha, generator), self.num_classes)
