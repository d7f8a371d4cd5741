"""Training objectives: pure functions of logits and labels.

Letters: T time steps, B batch, K classes. Every objective is called as

    objective(logits, batch, epoch) -> {"loss": ..., parts...}

with logits ``[T, B, K]`` by the network's name, "base" first, and a :class:`~tna_lightning.data.batch.Batch`. Losses
are one number a sample, ``[B]``, and reduced once: the mean over B of the sample's weight times its loss. All are
computed in float32 whatever the precision of the networks. The parts are scalar tensors for logging; ``loss`` alone is
differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations
from operator import add
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tna_lightning.data.batch import Batch

Logits = Mapping[str, Tensor]
Losses = dict[str, Tensor]

NO_LABEL = -(2**31)  # torch ignores a label by default, -100; a number that no data set has leaves none out


def readout(logits_TBK: Tensor) -> Tensor:
    """Time-averaged logits ``[B, K]`` in float32: what a network says about an image."""
    return logits_TBK.float().mean(0)


def cross_entropy(
    logits_TBK: Tensor,
    target: Tensor,
    *,
    per_step: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    ignore_index: int = NO_LABEL,
) -> Tensor:
    """Cross-entropy ``[B]`` of the readout or, with ``per_step``, the mean of each time step's own (arXiv 2202.11946).

    ``target`` is class indices ``[B]`` (int64) or class probabilities ``[B, K]`` (after CutMix, say).
    ``class_weights`` ``[K]`` multiply each class's part; the loss of a sample with the label ``ignore_index`` is 0.
    """
    settings: dict[str, Any] = {
        "weight": class_weights,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
    }
    if not per_step:
        return F.cross_entropy(readout(logits_TBK), target, reduction="none", **settings)
    time_steps, batch_size = logits_TBK.shape[:2]
    repeated = target.repeat(time_steps, *[1] * (target.ndim - 1))
    losses = F.cross_entropy(logits_TBK.float().flatten(0, 1), repeated, reduction="none", **settings)
    return losses.view(time_steps, batch_size).mean(0)


def squared_error(first: Tensor, second: Tensor) -> Tensor:
    """Squared difference ``[B]`` of logits ``[B, K]``, summed over classes; of ``[T, B, K]`` the mean over T.

    ``sum_k (first[b, k] - second[b, k])^2``, as TNA's first author has it
    (openreview TEmE9PSC65; github.com/Benjamin-Vandersmissen/kd_lth).
    """
    return _mean_over_time((first.float() - second.float()).square().sum(-1))


def kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax(target / temperature) || softmax(prediction / temperature))``, ``[B]``.

    Of logits ``[B, K]``; of ``[T, B, K]`` the mean over T.
    """
    log_target = F.log_softmax(target.float() / temperature, dim=-1)
    log_prediction = F.log_softmax(prediction.float() / temperature, dim=-1)
    return _mean_over_time((log_target.exp() * (log_target - log_prediction)).sum(-1))


def _mean_over_time(losses: Tensor) -> Tensor:
    return losses.mean(0) if losses.ndim == 2 else losses


def symmetric_kl(first: Tensor, second: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """``KL(first || second) + KL(second || first)`` of two tensors of logits, a scalar."""
    there, back = kl_divergence(first, second, temperature), kl_divergence(second, first, temperature)
    return batch.mean(there) + batch.mean(back)


def _at_least(objective: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(objective, name)
        if not value >= minimum:
            raise ValueError(f"{name}={value!r}: must be at least {minimum:g}")


def _one_of(objective: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(objective, name)
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(allowed)}")


@cache
def _on_device(class_weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(class_weights, device=device)  # once, since a copy to a device waits for it


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(add, parts)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives: a network's own cross-entropy, and which companions there must be.

    Args:
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        per_step_cross_entropy: average the cross-entropy of every time step instead of taking that of the time-averaged
            logits (TET, arXiv 2202.11946).
        class_weights: one number a class, by which its part of the cross-entropy is multiplied (the mean over the batch
            is not divided by their sum); null weighs all alike.
        ignore_index: the label of samples without one, such as torch's -100; they have no cross-entropy, whose mean is
            over the others, and no accuracy, but are matched. null: every sample has a label.
        rate_weight: weight of the base's firing rate, its mean over all neurons and steps, beside the loss; 0 or more.
    """

    label_smoothing: float = 0.0
    per_step_cross_entropy: bool = False
    class_weights: Sequence[float] | None = None
    ignore_index: int | None = None
    rate_weight: float = 0.0

    num_companions: ClassVar[int | None] = 0
    """How many networks it takes beside the base; None for one or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing!r}: must lie in [0, 1)")
        _at_least(self, 0, "rate_weight")
        if self.class_weights is not None:
            weights = tuple(float(weight) for weight in self.class_weights)
            if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
                raise ValueError(f"class_weights={list(weights)}: must be finite numbers of 0 or more, not all 0")
            object.__setattr__(self, "class_weights", weights)

    @property
    def trains_companions(self) -> bool:
        """Whether any gradient reaches the companions; a teacher gets none."""
        return True

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:
        """The loss and its parts, scalars.

        Args:
            logits: ``[T, B, K]`` by network's name, the base's first; T may differ from network to network.
            batch: targets and, where samples do not count alike, their weights.
            epoch: epoch counted from 0, for schedules.
        """
        raise NotImplementedError

    def cross_entropy(self, logits_TBK: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy of one network under this objective's settings, a scalar."""
        smoothing = self.label_smoothing
        if self.class_weights is not None or self.ignore_index is not None:
            return self._cross_entropy_of_labelled(logits_TBK, batch)
        if not smoothing or self.per_step_cross_entropy or batch.target.ndim == 2:
            per_step = self.per_step_cross_entropy
            return batch.mean(cross_entropy(logits_TBK, batch.target, per_step=per_step, label_smoothing=smoothing))
        # its two parts are reduced one by one, as torch does: gradients are equal to the bit to those of its own mean
        log_probability = F.log_softmax(readout(logits_TBK), dim=-1)
        hard = batch.mean(F.nll_loss(log_probability, batch.target, reduction="none"))
        spread = batch.mean(-log_probability.sum(-1))
        return (1 - smoothing) * hard + spread * (smoothing / log_probability.shape[-1])

    def _cross_entropy_of_labelled(self, logits_TBK: Tensor, batch: Batch) -> Tensor:
        weights = None if self.class_weights is None else _on_device(tuple(self.class_weights), logits_TBK.device)
        has_labels = batch.target.ndim == 1
        if not has_labels and self.ignore_index is not None and self.ignore_index >= 0:
            raise ValueError(
                f"ignore_index={self.ignore_index!r}: is a class here, and labels are class probabilities, as after "
                "mixup or CutMix, of which none is left out"
            )
        ignored = self.ignore_index if has_labels and self.ignore_index is not None else NO_LABEL
        losses = cross_entropy(
            logits_TBK,
            batch.target,
            per_step=self.per_step_cross_entropy,
            label_smoothing=self.label_smoothing,
            class_weights=weights,
            ignore_index=ignored,
        )
        if ignored == NO_LABEL:
            return batch.mean(losses)
        labelled = (batch.target != ignored).sum().clamp(min=1)
        return (losses if batch.weight is None else batch.weight * losses).sum() / labelled

    def check_classes(self, num_classes: int) -> None:
        """Refuse another number of classes than this objective is made for.

        Raises:
            ValueError: there is not one weight a class.
        """
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"class_weights={list(self.class_weights)}: must be {num_classes} numbers, one a class, not "
                f"{len(self.class_weights)}"
            )

    def check_epochs(self, epochs: int | None) -> None:
        """Refuse a training of so many epochs, None if nobody knows, in which something would never begin."""

    def check_companions(self, names: Sequence[str]) -> None:
        """Refuse companions of a number that this objective does not take.

        Raises:
            ValueError: there are too few or too many.
        """
        name, takes = type(self).__name__, self.num_companions
        if takes == 0 and names:
            raise ValueError(f"companion={', '.join(names)}: {name} has no use for one")
        if takes != 0 and not names:
            raise ValueError(f"companion=None: {name} compares the base with a companion network")
        if takes is not None and len(names) != takes:
            raise ValueError(f"companion={', '.join(names)}: {name} compares the base with {takes} of them")

    def companion(self, logits: Logits) -> tuple[str, Tensor]:
        """Name and logits of the one network beside the base."""
        names = [name for name in logits if name != "base"]
        self.check_companions(names)
        return names[0], logits[names[0]]


@dataclass(frozen=True, kw_only=True)
class Plain(Objective):
    """Cross-entropy of the base alone: ``loss = CE(base)``."""

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:  # noqa: D102
        cross_entropy_base = self.cross_entropy(logits["base"], batch)
        return {"loss": cross_entropy_base, "cross_entropy": cross_entropy_base.detach()}


Features = Mapping[str, Mapping[str, Tensor]]
"""Outputs of named layers, ``[T, B, ...]``, by network's name and layer's."""


@dataclass(frozen=True, kw_only=True)
class WithFeatures(Objective):
    """Base of the objectives that may match layers inside of the networks beside their logits.

    The loss gets ``feature_weight`` times the mean over the named layers, and the sum over pairs of networks over their
    number less one, of ``mean_b mean_i (first[b, i] - second[b, i])^2``.

    Args:
        feature_weight: weight of what layers differ by, beside the loss; 0 or more.
        features: names of modules that all networks have, as neurons (`body.0`) or blocks (`body.3`), whose outputs
            are matched; null: none.
        feature_match: rates, the outputs' means over time, for networks of any T; or steps, each step's.
    """

    feature_weight: float = 0.0
    features: Sequence[str] | None = None
    feature_match: Literal["rates", "steps"] = "rates"

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "feature_weight")
        _one_of(self, "feature_match", ("rates", "steps"))
        if len(set(self.features or ())) < len(self.features or ()):
            raise ValueError(f"features={list(self.features or ())}: must name each layer once")
        if bool(self.features) != (self.feature_weight > 0):
            raise ValueError(
                f"features={self.features and list(self.features)}: must name layers where feature_weight is above 0, "
                f"and none where it is 0; it is {self.feature_weight!r}"
            )

    def matches_features(self, epoch: int) -> bool:
        """Whether layers are matched in this epoch."""
        return self.feature_weight > 0

    @property
    def detaches_features(self) -> bool:
        """Whether no gradient of theirs reaches the companions."""
        return False

    def feature_term(self, features: Features, batch: Batch) -> Tensor:
        """How far the layers of networks are apart, a scalar.

        Raises:
            ValueError: two layers of a name are not of the same shape.
        """
        pairs = [
            self._feature_distance(name, (one, first[name]), (other, second[name]), batch)
            for (one, first), (other, second) in combinations(features.items(), 2)
            for name in first
        ]
        return _sum(pairs) / (len(features) - 1) / len(self.features or ())

    def _feature_distance(
        self, name: str, first: tuple[str, Tensor], second: tuple[str, Tensor], batch: Batch
    ) -> Tensor:
        one, other = first[1].float(), second[1].float()
        if self.detaches_features:
            other = other.detach()
        if self.feature_match == "rates":
            one, other = one.mean(0, keepdim=True), other.mean(0, keepdim=True)
        if one.shape != other.shape:
            raise ValueError(
                f"features={name!r}: gives {list(first[1].shape)} in the {first[0]} and {list(second[1].shape)} in the "
                f"{second[0]}; must be alike{'' if self.feature_match == 'steps' else ' but for time'}"
            )
        return batch.mean((one - other).square().transpose(0, 1).flatten(1).mean(1))


@dataclass(frozen=True, kw_only=True)
class Matched(WithFeatures):
    """Base of the objectives that pull the logits of networks together while these learn the labels.

    Args:
        match_weight: weight of the match term, at least 0. For a mean over classes multiply by K. The default is the
            best of four values, a decade apart, by validation accuracy (experiments/results/evidence); the first
            author's is 0.005.
        match_start_epoch: the match term is added from this epoch on (late matching).
        match: ``squared_error`` (the paper's), or ``kl``: ``KL(first || second) + KL(second || first)``.
        per_step_match: match every time step's logits, not their average; the networks then need the same T.
    """

    match_weight: float = 0.05
    match_start_epoch: int = 0
    match: Literal["squared_error", "kl"] = "squared_error"
    per_step_match: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "match_weight", "match_start_epoch")
        _one_of(self, "match", ("squared_error", "kl"))

    def check_epochs(self, epochs: int | None) -> None:  # noqa: D102
        if epochs is not None and self.match_start_epoch >= max(1, epochs):
            raise ValueError(
                f"match_start_epoch={self.match_start_epoch!r}: must be at most {max(1, epochs) - 1}, the last of "
                f"{epochs} epochs counted from 0; else the networks are never matched"
            )

    def matches_features(self, epoch: int) -> bool:  # noqa: D102
        return super().matches_features(epoch) and epoch >= self.match_start_epoch

    def match_term(self, first: Tensor, second: Tensor, batch: Batch) -> Tensor:
        """How far two networks' logits ``[T, B, K]`` are apart, a scalar."""
        if not self.per_step_match:
            first, second = readout(first), readout(second)
        elif len(first) != len(second):
            raise ValueError(
                f"per_step_match=True: the networks need the same number of time steps, "
                f"got {len(first)} and {len(second)}"
            )
        if self.match == "squared_error":
            return batch.mean(squared_error(first, second))
        return symmetric_kl(first, second, batch)


@dataclass(frozen=True, kw_only=True)
class TwinAugmentation(Matched):
    """Twin Network Augmentation (arXiv 2409.15849).

    ``loss = CE(base) + CE(twin) + match_weight * mean_b sum_k (base[b, k] - twin[b, k])^2``

    on the time-averaged logits. The match term flows into both networks.

    Args:
        companion_cross_entropy: whether the twin is trained on the labels too.
        detach_companion: stop the match term's gradient at the twin, so that the twin trains as if alone.
    """

    companion_cross_entropy: bool = True
    detach_companion: bool = False

    num_companions: ClassVar[int | None] = 1

    @property
    def trains_companions(self) -> bool:  # noqa: D102
        return self.companion_cross_entropy or not self.detach_companion

    @property
    def detaches_features(self) -> bool:  # noqa: D102
        return self.detach_companion

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:  # noqa: D102
        name, twin_logits = self.companion(logits)
        base_ce = self.cross_entropy(logits["base"], batch)
        match = self.match_term(logits["base"], twin_logits.detach() if self.detach_companion else twin_logits, batch)
        parts = {"cross_entropy": base_ce.detach(), "match": match.detach()}
        loss = base_ce
        if self.companion_cross_entropy:
            twin_ce = self.cross_entropy(twin_logits, batch)
            parts[f"{name}_cross_entropy"] = twin_ce.detach()
            loss = loss + twin_ce
        if epoch >= self.match_start_epoch:
            loss = loss + self.match_weight * match
        return {"loss": loss, **parts}


@dataclass(frozen=True, kw_only=True)
class Cohort(Matched):
    """N networks that learn together, every two of them matched: Twin Network Augmentation with more than one twin.

    ``loss = sum_i CE(i) + match_weight / (N - 1) * sum_(i < j) D(i, j)``

    where ``D`` is what ``match`` says, of the time-averaged logits. Each network is pulled towards the others by
    ``match_weight`` times the mean over these of ``D``'s gradient, as in deep mutual learning of more than two (arXiv
    1706.00384): so ``match_weight`` means the same whatever N, and with N = 2 this is :class:`TwinAugmentation`.
    """

    num_companions: ClassVar[int | None] = None

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:  # noqa: D102
        self.check_companions([name for name in logits if name != "base"])
        own = {name: self.cross_entropy(network_logits, batch) for name, network_logits in logits.items()}
        pairs = [self.match_term(first, second, batch) for first, second in combinations(logits.values(), 2)]
        match = _sum(pairs) / (len(logits) - 1)
        loss = _sum(own.values())
        if epoch >= self.match_start_epoch:
            loss = loss + self.match_weight * match
        parts = {"cross_entropy" if name == "base" else f"{name}_cross_entropy": ce for name, ce in own.items()}
        return {"loss": loss} | {name: part.detach() for name, part in {**parts, "match": match}.items()}


@dataclass(frozen=True, kw_only=True)
class Distillation(WithFeatures):
    """Knowledge distillation from a teacher (Hinton et al. 2015, arXiv 1503.02531).

    ``loss = (1 - alpha) * CE(base) + alpha * temperature^2 * KL(teacher_temperature || base_temperature)``

    or, with ``match="squared_error"``, ``(1 - alpha) * CE(base) + alpha * mean_b sum_k (base[b, k] - teacher[b, k])^2``
    (temperature has no part in it). No gradient reaches the teacher.

    Args:
        temperature: softens both distributions, above 0.
        alpha: share of the teacher's term, in [0, 1].
        match: ``kl`` or ``squared_error``.
    """

    temperature: float = 4.0
    alpha: float = 0.5
    match: Literal["kl", "squared_error"] = "kl"

    num_companions: ClassVar[int | None] = 1

    @property
    def trains_companions(self) -> bool:  # noqa: D102
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r}: must lie in [0, 1]")
        _one_of(self, "match", ("kl", "squared_error"))

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:  # noqa: D102
        teacher, student = readout(self.companion(logits)[1].detach()), readout(logits["base"])
        if self.match == "kl":
            match = self.temperature**2 * batch.mean(kl_divergence(teacher, student, self.temperature))
        else:
            match = batch.mean(squared_error(student, teacher))
        base_ce = self.cross_entropy(logits["base"], batch)
        loss = (1 - self.alpha) * base_ce + self.alpha * match
        return {"loss": loss, "cross_entropy": base_ce.detach(), "match": match.detach()}


@dataclass(frozen=True, kw_only=True)
class MutualLearning(Objective):
    """Deep mutual learning (arXiv 1706.00384), as in the baseline of TNA's authors.

    ``loss = CE(base) + CE(peer) + match_weight * (KL(base || peer) + KL(peer || base))``

    on softmax(time-averaged logits / temperature), gradients into both networks.

    Args:
        match_weight: weight of the two divergences, at least 0.
        temperature: above 0.
    """

    match_weight: float = 1.0
    temperature: float = 1.0

    num_companions: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "match_weight")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: must be above 0")

    def __call__(self, logits: Logits, batch: Batch, epoch: int = 0) -> Losses:  # noqa: D102
        name, peer_logits = self.companion(logits)
        base_ce, peer_ce = self.cross_entropy(logits["base"], batch), self.cross_entropy(peer_logits, batch)
        match = symmetric_kl(readout(logits["base"]), readout(peer_logits), batch, self.temperature)
        return {
            "loss": base_ce + peer_ce + self.match_weight * match,
            "cross_entropy": base_ce.detach(),
            f"{name}_cross_entropy": peer_ce.detach(),
            "match": match.detach(),
        }
