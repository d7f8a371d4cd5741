"""Training objectives: pure functions of logits and labels.

Letters: T time steps, B batch, K classes. Every objective is called as

    objective(base_logits, companion_logits, target, epoch) -> {"loss": ..., parts...}

with logits ``[T, B, K]`` and ``target`` either class indices ``[B]`` (int64) or class probabilities ``[B, K]``
(after CutMix, say). All losses are computed in float32 whatever the precision of the networks. The parts are scalar
tensors for logging; ``loss`` alone is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

Losses = dict[str, Tensor]


def readout(logits_TBK: Tensor) -> Tensor:
    """Time-averaged logits ``[B, K]`` in float32: what a network says about an image."""
    return logits_TBK.float().mean(0)


def cross_entropy(
    logits_TBK: Tensor, target: Tensor, *, per_step: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the readout or, with ``per_step``, the mean of each time step's own (TET, arXiv 2202.11946)."""
    if not per_step:
        return F.cross_entropy(readout(logits_TBK), target, label_smoothing=label_smoothing)
    time_steps = logits_TBK.shape[0]
    repeated = target.repeat(time_steps, *[1] * (target.ndim - 1))
    return F.cross_entropy(logits_TBK.float().flatten(0, 1), repeated, label_smoothing=label_smoothing)


def squared_error(first: Tensor, second: Tensor) -> Tensor:
    """Squared difference of two logit tensors ``[..., K]``, summed over classes and averaged over all the rest.

    ``mean_b sum_k (first[b, k] - second[b, k])^2``, as TNA's first author has it
    (openreview TEmE9PSC65; github.com/Benjamin-Vandersmissen/kd_lth).
    """
    return (first.float() - second.float()).square().sum(-1).mean()


def kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax(target / temperature) || softmax(prediction / temperature))`` of logits ``[..., K]``, a mean."""
    log_target = F.log_softmax(target.float() / temperature, dim=-1)
    log_prediction = F.log_softmax(prediction.float() / temperature, dim=-1)
    return (log_target.exp() * (log_target - log_prediction)).sum(-1).mean()


def _at_least(objective: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(objective, name)
        if not value >= minimum:
            raise ValueError(f"{name}={value!r}: must be at least {minimum:g}")


def _one_of(objective: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(objective, name)
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives: the base network's own cross-entropy.

    Args:
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        per_step_cross_entropy: average the cross-entropy of every time step instead of taking that of the time-averaged
            logits (TET, arXiv 2202.11946).
    """

    label_smoothing: float = 0.0
    per_step_cross_entropy: bool = False

    needs_companion: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing!r}: must lie in [0, 1)")

    def __call__(self, base_logits: Tensor, companion_logits: Tensor | None, target: Tensor, epoch: int = 0) -> Losses:
        """The loss and its parts, scalars.

        Args:
            base_logits: ``[T, B, K]``.
            companion_logits: ``[T', B, K]``, or None for an objective without a companion.
            target: ``[B]`` int64 or ``[B, K]`` probabilities.
            epoch: epoch counted from 0, for schedules.
        """
        raise NotImplementedError

    def cross_entropy(self, logits_TBK: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of one network under this objective's settings."""
        return cross_entropy(
            logits_TBK, target, per_step=self.per_step_cross_entropy, label_smoothing=self.label_smoothing
        )


def _require(companion_logits: Tensor | None, objective: Objective) -> Tensor:
    if companion_logits is None:
        raise ValueError(f"companion=None: {type(objective).__name__} compares the base with a companion network")
    return companion_logits


@dataclass(frozen=True, kw_only=True)
class Plain(Objective):
    """Cross-entropy of the base alone: ``loss = CE(base)``."""

    def __call__(self, base_logits: Tensor, companion_logits: Tensor | None, target: Tensor, epoch: int = 0) -> Losses:  # noqa: D102
        cross_entropy_base = self.cross_entropy(base_logits, target)
        return {"loss": cross_entropy_base, "cross_entropy": cross_entropy_base.detach()}


@dataclass(frozen=True, kw_only=True)
class TwinAugmentation(Objective):
    """Twin Network Augmentation (arXiv 2409.15849).

    ``loss = CE(base) + CE(twin) + match_weight * mean_b sum_k (base[b, k] - twin[b, k])^2``

    on the time-averaged logits. The match term flows into both networks.

    Args:
        match_weight: weight of the match term, at least 0. For a mean over classes multiply by K. The default is the
            best of four values, a decade apart, by validation accuracy (experiments/results/evidence); the first
            author's is 0.005.
        match_start_epoch: the match term is added from this epoch on (late matching).
        match: ``squared_error`` (the paper's), or ``kl``: ``KL(base || twin) + KL(twin || base)``.
        per_step_match: match every time step's logits, not their average; both networks then need the same T.
        companion_cross_entropy: whether the twin is trained on the labels too.
        detach_companion: stop the match term's gradient at the twin, so that the twin trains as if alone.
    """

    match_weight: float = 0.05
    match_start_epoch: int = 0
    match: Literal["squared_error", "kl"] = "squared_error"
    per_step_match: bool = False
    companion_cross_entropy: bool = True
    detach_companion: bool = False

    needs_companion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "match_weight", "match_start_epoch")
        _one_of(self, "match", ("squared_error", "kl"))

    def __call__(self, base_logits: Tensor, companion_logits: Tensor | None, target: Tensor, epoch: int = 0) -> Losses:  # noqa: D102
        twin_logits = _require(companion_logits, self)
        base_ce = self.cross_entropy(base_logits, target)
        match = self.match_term(base_logits, twin_logits.detach() if self.detach_companion else twin_logits)
        parts = {"cross_entropy": base_ce.detach(), "match": match.detach()}
        loss = base_ce
        if self.companion_cross_entropy:
            twin_ce = self.cross_entropy(twin_logits, target)
            parts["companion_cross_entropy"] = twin_ce.detach()
            loss = loss + twin_ce
        if epoch >= self.match_start_epoch:
            loss = loss + self.match_weight * match
        return {"loss": loss, **parts}

    def match_term(self, base_logits: Tensor, twin_logits: Tensor) -> Tensor:
        """How far the two networks' logits ``[T, B, K]`` are apart, a scalar."""
        if not self.per_step_match:
            base_logits, twin_logits = readout(base_logits), readout(twin_logits)
        elif len(base_logits) != len(twin_logits):
            raise ValueError(
                f"per_step_match=True: base and twin need the same number of time steps, "
                f"got {len(base_logits)} and {len(twin_logits)}"
            )
        if self.match == "squared_error":
            return squared_error(base_logits, twin_logits)
        return kl_divergence(base_logits, twin_logits) + kl_divergence(twin_logits, base_logits)


@dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
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

    needs_companion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r}: must lie in [0, 1]")
        _one_of(self, "match", ("kl", "squared_error"))

    def __call__(self, base_logits: Tensor, companion_logits: Tensor | None, target: Tensor, epoch: int = 0) -> Losses:  # noqa: D102
        teacher, student = readout(_require(companion_logits, self).detach()), readout(base_logits)
        if self.match == "kl":
            match = self.temperature**2 * kl_divergence(teacher, student, self.temperature)
        else:
            match = squared_error(student, teacher)
        base_ce = self.cross_entropy(base_logits, target)
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

    needs_companion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "match_weight")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: must be above 0")

    def __call__(self, base_logits: Tensor, companion_logits: Tensor | None, target: Tensor, epoch: int = 0) -> Losses:  # noqa: D102
        peer_logits = _require(companion_logits, self)
        base, peer = readout(base_logits), readout(peer_logits)
        base_ce, peer_ce = self.cross_entropy(base_logits, target), self.cross_entropy(peer_logits, target)
        match = kl_divergence(base, peer, self.temperature) + kl_divergence(peer, base, self.temperature)
        return {
            "loss": base_ce + peer_ce + self.match_weight * match,
            "cross_entropy": base_ce.detach(),
            "companion_cross_entropy": peer_ce.detach(),
            "match": match.detach(),
        }
