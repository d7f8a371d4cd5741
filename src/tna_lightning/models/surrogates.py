"""Surrogate gradients: what stands in for the derivative of the spike in the backward pass.

Forward is always the Heaviside step of snntorch, `spikes = (shifted > 0)` with `shifted = membrane - threshold`: a
membrane exactly at the threshold does not spike. Each surrogate is a frozen dataclass, so it can be compared, hashed,
pickled, copied and compiled, which snntorch's closures cannot. Names of parameters, defaults and formulas, written
u = shifted, are those of `snntorch.surrogate` (1.0.0), and from `PiecewiseQuadratic` on those of
`spikingjelly.activation_based.surrogate` (2.0.0), unless a docstring says otherwise.

Any of them may also be called as a function of `shifted`, and is then a valid `spike_grad` of a snntorch neuron.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override


@dataclass(frozen=True)
class Surrogate:
    """Base class: a subclass gives `derivative(shifted)`, elementwise and of the same shape, in closed form.

    Raises:
        ValueError: a parameter is not above what `above` says.
    """

    is_random: ClassVar[bool] = False
    """Whether the gradient draws random numbers."""
    above: ClassVar[Mapping[str, float]] = {}
    """What a parameter must be greater than, where the formula asks for it."""

    def __post_init__(self) -> None:
        for name, limit in self.above.items():
            if not getattr(self, name) > limit:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be above {limit:g}")

    def derivative(self, shifted: Tensor) -> Tensor:
        """Stand-in for d spikes / d membrane at `shifted = membrane - threshold`."""
        raise NotImplementedError

    def backward(self, shifted: Tensor, grad_spikes: Tensor) -> Tensor:
        """Gradient with respect to the membrane, given the gradient with respect to the spikes."""
        return grad_spikes * self.derivative(shifted)

    def __call__(self, shifted: Tensor) -> Tensor:
        """Spikes (0 or 1, dtype of `shifted`) that pass this surrogate's gradient backwards."""
        if torch.compiler.is_exporting():  # inference: nothing but plain operations
            return (shifted > 0).to(shifted.dtype)
        return _Spike.apply(shifted, self)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shifted: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(shifted)
        ctx.surrogate = surrogate
        return (shifted > 0).to(shifted.dtype)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None]:
        (shifted,) = ctx.saved_tensors
        return ctx.surrogate.backward(shifted, grad_spikes), None


@dataclass(frozen=True)
class ATan(Surrogate):
    """alpha/2 / (1 + (pi/2 alpha u)^2): derivative of a shifted arctangent (Fang et al., arXiv 2007.05785)."""

    alpha: float = 2.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = (torch.pi / 2 * self.alpha) * shifted
        return (self.alpha / 2) / (1 + scaled * scaled)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (1 + slope |u|)^2 (Zenke and Ganguli, SuperSpike, arXiv 1705.11146)."""

    slope: float = 25.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = self.slope * shifted.abs() + 1
        return 1 / (scaled * scaled)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """threshold below the firing threshold, -threshold at and above it, as snntorch documents and computes it."""

    threshold: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (1 - 2 * (shifted >= 0).to(shifted.dtype)) * self.threshold


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """k exp(-k u) / (1 + exp(-k u))^2: derivative of the logistic function, k = slope.

    Computed as k sigmoid(k u) sigmoid(-k u), the same number: snntorch's form is inf / inf = NaN in float32 where
    k u < -88.
    """

    slope: float = 25.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = self.slope * shifted
        return self.slope * torch.sigmoid(scaled) * torch.sigmoid(-scaled)


@dataclass(frozen=True)
class StraightThroughEstimator(Surrogate):
    """1 everywhere."""

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return torch.ones_like(shifted)


@dataclass(frozen=True)
class Heaviside(Surrogate):
    """1 where a spike was fired, else 0."""

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (shifted > 0).to(shifted.dtype)


@dataclass(frozen=True)
class SpikeRateEscape(Surrogate):
    """slope exp(-beta |u - 1|): Boltzmann escape rate (Gerstner and Kistler, Spiking neuron models, 2002)."""

    beta: float = 1.0
    slope: float = 25.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return self.slope * torch.exp(-self.beta * (shifted - 1).abs())


@dataclass(frozen=True)
class SparseFastSigmoid(Surrogate):
    """1 / (1 + slope |u|)^2 where u > B, else 0 (Perez-Nieves and Goodman, arXiv 2105.08810)."""

    slope: float = 25.0
    B: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = self.slope * shifted.abs() + 1
        return (shifted > self.B).to(shifted.dtype) / (scaled * scaled)


@dataclass(frozen=True)
class LeakySpikeOperator(Surrogate):
    """1 where a spike was fired, else `slope`: the gradient of a leaky ReLU.

    snntorch 1.0.0 documents this formula, but its `LSO()` calls the stochastic operator with an argument missing and
    raises TypeError, and its `LeakySpikeOperator` returns one gradient for two inputs, which autograd refuses.
    """

    slope: float = 0.1

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        fired = (shifted > 0).to(shifted.dtype)
        return fired + (1 - fired) * self.slope


@dataclass(frozen=True)
class StochasticSpikeOperator(Surrogate):
    """1 where a spike was fired, else (uniform[-0.5, 0.5) + mean) * variance, drawn anew for each value and step.

    Draws come from torch's global generator, last time step first, as in snntorch: the same seed, the same gradient.
    """

    is_random: ClassVar[bool] = True
    mean: float = 0.0
    variance: float = 0.2

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        noise = (torch.rand_like(shifted) - 0.5 + self.mean) * self.variance
        return torch.where(shifted > 0, 1.0, noise)


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """max(0, alpha - alpha^2 |u|): a triangle (Esser et al., arXiv 1603.08270)."""

    above = {"alpha": 0.0}
    alpha: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * shifted.abs()).clamp_min(0)


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """alpha/2 exp(-alpha |u|) (Shrestha and Orchard, SLAYER, arXiv 1810.08646)."""

    above = {"alpha": 0.0}
    alpha: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (self.alpha / 2) * torch.exp(-self.alpha * shifted.abs())


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """alpha / (2 (1 + alpha |u|)^2)."""

    above = {"alpha": 0.0}
    alpha: float = 2.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = 1 + self.alpha * shifted.abs()
        return (self.alpha / 2) / (scaled * scaled)


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """alpha / (1 + |u|)^2 (Zenke and Ganguli, arXiv 1705.11146); `FastSigmoid` scales u instead."""

    above = {"alpha": 0.0}
    alpha: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = 1 + shifted.abs()
        return self.alpha / (scaled * scaled)


@dataclass(frozen=True)
class NonzeroSignLogAbs(Surrogate):
    """alpha / (1 + |alpha u|)."""

    above = {"alpha": 0.0}
    alpha: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return self.alpha / (1 + self.alpha * shifted.abs())


@dataclass(frozen=True)
class Erf(Surrogate):
    """alpha / sqrt(pi) exp(-alpha^2 u^2): derivative of a Gaussian's error function (arXiv 1603.08270)."""

    above = {"alpha": 0.0}
    alpha: float = 2.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = self.alpha * shifted
        return (self.alpha / math.sqrt(math.pi)) * torch.exp(-scaled * scaled)


@dataclass(frozen=True)
class PiecewiseLeakyReLU(Surrogate):
    """1 / (2 w) where |u| < w, else c (Wu et al., STBP, arXiv 1706.02609; the leak as in Liu et al., 2020)."""

    above = {"w": 0.0}
    w: float = 1.0
    c: float = 0.01

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        within = (shifted.abs() < self.w).to(shifted.dtype)
        return within / (2 * self.w) + (1 - within) * self.c


@dataclass(frozen=True)
class Rect(Surrogate):
    """alpha where |u| < 1 / (2 alpha), else 0: a rectangle of area 1 (Wu et al., STBP, arXiv 1706.02609)."""

    above = {"alpha": 0.0}
    alpha: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (shifted.abs() < 0.5 / self.alpha).to(shifted.dtype) * self.alpha


@dataclass(frozen=True)
class SquarewaveFourierSeries(Surrogate):
    """4 / T_period sum over i = 1 .. n - 1 of cos(2 pi (2 i - 1) u / T_period): a square wave's first harmonics."""

    above = {"n": 1.0, "T_period": 0.0}
    n: int = 2
    T_period: float = 8.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        phase = (2 * math.pi / self.T_period) * shifted
        harmonics = [torch.cos((2 * i - 1) * phase) for i in range(1, self.n)]
        return (4 / self.T_period) * sum(harmonics[1:], harmonics[0])


@dataclass(frozen=True)
class S2NN(Surrogate):
    """alpha s(alpha u) s(-alpha u) where u < 0, else beta / (u + 1); s is the logistic function (arXiv 2201.10879)."""

    above = {"alpha": 0.0}
    alpha: float = 4.0
    beta: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        scaled = self.alpha * shifted
        below = self.alpha * torch.sigmoid(scaled) * torch.sigmoid(-scaled)
        return torch.where(shifted < 0, below, self.beta / (shifted.clamp_min(0) + 1))


@dataclass(frozen=True)
class QPseudoSpike(Surrogate):
    """(1 + 2 |u| / (alpha - 1))^(-alpha) (Herranz-Celotti and Rouat, arXiv 2202.00282)."""

    above = {"alpha": 1.0}
    alpha: float = 2.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (1 + (2 / (self.alpha - 1)) * shifted.abs()) ** -self.alpha


@dataclass(frozen=True)
class LeakyKReLU(Surrogate):
    """k where u >= 0, else leak."""

    leak: float = 0.0
    k: float = 1.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        above = (shifted >= 0).to(shifted.dtype)
        return above * self.k + (1 - above) * self.leak


@dataclass(frozen=True)
class FakeNumericalGradient(Surrogate):
    """min(1 / |u|, alpha)."""

    above = {"alpha": 0.0}
    alpha: float = 0.3

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return (1 / shifted.abs()).clamp_max(self.alpha)


@dataclass(frozen=True)
class LogTailedReLU(Surrogate):
    """alpha where u <= 0, 1 where 0 < u <= 1, 1 / u beyond (Cai et al., arXiv 1702.00953)."""

    alpha: float = 0.0

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return torch.where(shifted > 0, 1 / shifted.clamp_min(1), self.alpha)


@dataclass(frozen=True)
class CustomSurrogate(Surrogate):
    """A function of one's own, `function(shifted, grad_spikes, spikes) -> grad`, as snntorch's `custom_surrogate`.

    From Python; a config names a class derived from `Surrogate` in a `_target_`.

    Raises:
        ValueError: `function` is none.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"function={self.function!r}: must be a function (shifted, grad_spikes, spikes) -> grad")

    @override
    def derivative(self, shifted: Tensor) -> Tensor:
        return self.backward(shifted, torch.ones_like(shifted))

    @override
    def backward(self, shifted: Tensor, grad_spikes: Tensor) -> Tensor:
        return self.function(shifted, grad_spikes, (shifted > 0).to(shifted.dtype))


SURROGATES: dict[str, type[Surrogate]] = {
    "atan": ATan,
    "fast_sigmoid": FastSigmoid,
    "triangular": Triangular,
    "sigmoid": Sigmoid,
    "straight_through_estimator": StraightThroughEstimator,
    "heaviside": Heaviside,
    "spike_rate_escape": SpikeRateEscape,
    "sparse_fast_sigmoid": SparseFastSigmoid,
    "SFS": SparseFastSigmoid,
    "leaky_spike_operator": LeakySpikeOperator,
    "LSO": LeakySpikeOperator,
    "stochastic_spike_operator": StochasticSpikeOperator,
    "SSO": StochasticSpikeOperator,
    **{
        surrogate.__name__: surrogate
        for surrogate in (
            PiecewiseQuadratic,
            PiecewiseExp,
            SoftSign,
            SuperSpike,
            NonzeroSignLogAbs,
            Erf,
            PiecewiseLeakyReLU,
            Rect,
            SquarewaveFourierSeries,
            S2NN,
            QPseudoSpike,
            LeakyKReLU,
            FakeNumericalGradient,
            LogTailedReLU,
        )
    },
}
"""Name -> class: snntorch's function names, with the long form of its abbreviations, and spikingjelly's class names."""


def get_surrogate(surrogate: str | Surrogate) -> Surrogate:
    """The surrogate of that name with its default parameters, or the given object itself.

    Raises:
        ValueError: the name is unknown, or the object is no `Surrogate`.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str) or surrogate not in SURROGATES:
        raise ValueError(f"surrogate={surrogate!r}: must be one of {', '.join(SURROGATES)}, or a Surrogate object")
    return SURROGATES[surrogate]()
