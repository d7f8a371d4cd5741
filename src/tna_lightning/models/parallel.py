"""Spiking neurons without a loop over time: the membranes of all steps at once, by a matrix over time.

Letters: T time steps, N neurons of one step, X the currents `[T, N]`, H their membranes. A neuron of these has no reset
that would make a step wait for the one before. Sources: PSN, masked and sliding PSN of Fang et al. (arXiv 2304.12760),
PSU, IPSU and RPSU of Li et al. (arXiv 2402.00449).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.surrogates import Surrogate, get_surrogate


class ParallelNeuron(SpikingNeuron):
    """Base of the neurons without a loop: `spikes = 1 where shifted(X) > 0, else 0`, with the surrogate's gradient.

    Currents `[T, B, ...]` of bf16 and fp16 are multiplied in float32, under autocast too, and give spikes of their own
    dtype. Spikes lie in memory as the currents do.

    Args:
        surrogate: a name such as `atan` or a `Surrogate`, see `LIF`.

    Attributes:
        time_steps: T of what is learned for each step; None where any T will do.

    Raises:
        ValueError: an argument outside of what is allowed, or an input that is not `[T, B, ...]`, or of another T.
    """

    time_steps: int | None = None

    def __init__(self, surrogate: str | Surrogate = "atan"):
        super().__init__()
        self.surrogate = get_surrogate(surrogate)

    def shifted(self, currents: Tensor) -> Tensor:
        """Membranes less the threshold, `[T, N]`, for the currents `[T, N]`."""
        raise NotImplementedError

    def forward(self, current: Tensor) -> Tensor:
        """Spikes `[T, B, ...]` for the currents `[T, B, ...]`."""
        if current.ndim < 2 or current.shape[0] < 1:
            raise ValueError(
                f"current={list(current.shape)}: must have at least two dimensions and a step, [T, B, ...]"
            )
        if self.time_steps is not None and current.shape[0] != self.time_steps:
            raise ValueError(
                f"current={list(current.shape)}: must have the {self.time_steps} time steps of the neuron, which has "
                f"learned weights for each; of its kind sliding_psn and psu take any T"
            )
        order = list(range(current.ndim))
        if not torch.compiler.is_compiling():  # nor exporting: who compiles sees to the layout
            order = [0, *sorted(order[1:], key=current.stride, reverse=True)]  # as it lies in memory
        flat = current.permute(order).flatten(1)
        with torch.autocast(current.device.type, enabled=False):
            shifted = self.shifted(flat.to(torch.promote_types(current.dtype, torch.float32)))
        spikes = self.surrogate(shifted).to(current.dtype).unflatten(1, [current.shape[dim] for dim in order[1:]])
        return spikes.permute([order.index(dim) for dim in range(current.ndim)])

    def extra_repr(self) -> str:
        """The settings, for `print(network)`."""
        parts = [] if self.time_steps is None else [f"time_steps={self.time_steps}"]
        return ", ".join([*parts, f"surrogate={self.surrogate}"])


class PSN(ParallelNeuron):
    """Parallel spiking neuron (arXiv 2304.12760): `H = W X`, spikes where `H + b > 0`; W and b are learned, by layer.

    W is full: a step's spike depends on later steps as well, so all of them must be known.

    Args:
        time_steps: T; backbones say it.
        surrogate: see `LIF`.

    Attributes:
        weight: W, `[T, T]`, at first uniform in `+-1 / sqrt(T)` (Kaiming with a = sqrt 5, as a linear layer).
        bias: b, `[T, 1]`, at first -1, a threshold of 1.
    """

    time_steps: int

    def __init__(self, time_steps: int, surrogate: str | Surrogate = "atan"):
        super().__init__(surrogate)
        self.time_steps = _at_least_one("time_steps", time_steps)
        self.weight = nn.Parameter(torch.empty(time_steps, time_steps))
        self.bias = nn.Parameter(torch.full((time_steps, 1), -1.0))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def shifted(self, currents: Tensor) -> Tensor:  # noqa: D102
        return _affine(self.over_time(), currents, self.bias)

    def over_time(self) -> Tensor:
        """What the currents are multiplied by, `[T, T]`."""
        return self.weight


class MaskedPSN(PSN):
    """PSN whose step depends on few earlier ones: `H = (W M) X`, elementwise `M = lambda B + (1 - lambda)`.

    B is 1 for the present and the `order - 1` steps before it, else 0. While lambda rises from 0 to 1 the future and
    the far past fade; `progress` sets it to the share of training that is over, as the authors do,
    `epoch / (epochs - 1)`. Who trains without a `TwinLearner` calls `progress`. lambda is kept with the weights, so a
    network of an epoch before the last still sees some of what fades.

    Args:
        time_steps: T; backbones say it.
        order: steps that a membrane sums over in the end, the present one included.
        surrogate: see `LIF`.

    Attributes:
        weight: W, `[T, T]`; and `bias`, `[T, 1]`: as of `PSN`.
        lambda_: a buffer of one number, at first 0.
    """

    lambda_: Tensor
    band: Tensor

    def __init__(self, time_steps: int, order: int = 2, surrogate: str | Surrogate = "atan"):
        super().__init__(time_steps, surrogate)
        self.order = _at_least_one("order", order)
        ones = torch.ones(time_steps, time_steps)
        self.register_buffer("lambda_", torch.zeros(()))
        self.register_buffer("band", ones.tril() * ones.triu(1 - order), persistent=False)

    def progress(self, share: float) -> None:
        """Set lambda to the share of training that is over."""
        self.lambda_.fill_(share)

    def over_time(self) -> Tensor:  # noqa: D102
        return self.weight * (self.lambda_ * self.band + (1 - self.lambda_))

    def extra_repr(self) -> str:  # noqa: D102
        return f"order={self.order}, {super().extra_repr()}"


class SlidingPSN(ParallelNeuron):
    """PSN with the same weights at every step: `H[t] = sum over i < order of w[order - 1 - i] X[t - i]`, any T.

    A causal filter, after which it fires where `H[t] + b > 0`; currents before the first are 0.

    Args:
        order: steps that a membrane sums over, the present one included.
        surrogate: see `LIF`.

    Attributes:
        weight: w, `[order]`, the present step's last; at first ..., 1/4, 1/2, 1.
        bias: b, one number, at first -1.
    """

    def __init__(self, order: int = 2, surrogate: str | Surrogate = "atan"):
        super().__init__(surrogate)
        self.order = _at_least_one("order", order)
        self.weight = nn.Parameter(0.5 ** torch.arange(order - 1, -1, -1))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def shifted(self, currents: Tensor) -> Tensor:  # noqa: D102
        lag = _lags(currents)
        last = self.order - 1
        matrix = self.weight[(last - lag).clamp(0, last)] * ((lag >= 0) & (lag <= last))
        return _affine(matrix, currents, self.bias)

    @torch.no_grad()
    def chunk(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `LIF.chunk`; the state is the last `order - 1` currents."""
        if state is None:
            state = current.new_zeros(self.order - 1, *current.shape[1:])
        seen = torch.cat([state, current])
        return self(seen)[len(state) :], seen[len(seen) - len(state) :]

    def extra_repr(self) -> str:  # noqa: D102
        return f"order={self.order}, {super().extra_repr()}"


class _Unit(ParallelNeuron):
    """What the units of arXiv 2402.00449 share: time constant, threshold, and M1 and M2, see `PSU`."""

    tau: Tensor
    threshold: Tensor

    def __init__(self, tau: float, threshold: float, surrogate: str | Surrogate):
        super().__init__(surrogate)
        for name, value in {"tau": tau, "threshold": threshold}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: must be above 0")
            self.register_buffer(name, torch.tensor(float(value)))

    def integrated(self, currents: Tensor) -> Tensor:
        """`M1 X`."""
        return _decays(currents, self.tau, first_lag=0) / self.tau @ currents

    def resets(self, spikes: Tensor) -> Tensor:
        """`-M2` times an estimate of the spikes, `[T, N]`."""
        return _decays(spikes, self.tau, first_lag=1) @ spikes

    def extra_repr(self) -> str:
        return f"tau={self.tau.item():g}, threshold={self.threshold.item():g}, {super().extra_repr()}"


class PSU(_Unit):
    """Parallel spiking unit (arXiv 2402.00449): a LIF whose reset by subtraction is estimated, nothing learned, any T.

    `D = M1 X`, `H = D + threshold M2 sigmoid(D)`, spikes where `H > threshold`, with `M1[i, j] = tau^-(i - j + 1)` for
    `j <= i`, `M2[i, j] = -tau^-(i - j)` for `j < i`, else 0. So D integrates, `D[t] = (D[t-1] + X[t]) / tau`, and
    sigmoid(D) stands for the spikes whose resets H has to remember.

    Args:
        tau: time constant, above 0.
        threshold: firing threshold, above 0.
        surrogate: see `LIF`.
    """

    def __init__(self, tau: float = 2.0, threshold: float = 1.0, surrogate: str | Surrogate = "atan"):
        super().__init__(tau, threshold, surrogate)

    def shifted(self, currents: Tensor) -> Tensor:  # noqa: D102
        integrated = self.integrated(currents)
        return integrated - self.threshold * self.resets(integrated.sigmoid()) - self.threshold

    @torch.no_grad()
    def chunk(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `LIF.chunk`; the state is D and the sum of the resets for the step to come, `[2, B, ...]`."""
        wide = current.to(torch.promote_types(current.dtype, torch.float32))
        integrated, reset = torch.zeros_like(wide[:2]) if state is None else state
        spikes = []
        for step in wide:
            integrated = (integrated + step) / self.tau
            spikes.append(integrated - reset > self.threshold)
            reset = (reset + self.threshold * integrated.sigmoid()) / self.tau
        return torch.stack(spikes).to(current.dtype), torch.stack([integrated, reset])


class _LearnedUnit(_Unit):
    """What IPSU and RPSU share: `[T, T]` weights of which the lower triangle counts, and a bias for each step."""

    time_steps: int

    def __init__(self, time_steps: int, tau: float = 2.0, threshold: float = 1.0, surrogate: str | Surrogate = "atan"):
        super().__init__(tau, threshold, surrogate)
        self.time_steps = _at_least_one("time_steps", time_steps)
        self.weight = nn.Parameter(torch.empty(time_steps, time_steps))
        self.bias = nn.Parameter(torch.zeros(time_steps, 1))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def learned(self, currents: Tensor) -> Tensor:
        """`tril(W) X + b`."""
        return _affine(self.weight.tril(), currents, self.bias)


class IPSU(_LearnedUnit):
    """PSU that learns to integrate (arXiv 2402.00449).

    As the paper reads, `D = tril(W) X + b`, `H = D + M2 sigmoid(D)`; as the authors coded it,
    `H = tril(W) X + b + M2 X`, which is linear. M2 as for `PSU`; spikes where `H > threshold`.

    Args:
        time_steps: T; backbones say it.
        tau: time constant of M2, above 0.
        threshold: firing threshold, above 0.
        surrogate: see `LIF`.
        as_coded: the authors' code instead of the paper's equation.

    Attributes:
        weight: W, `[T, T]`, at first Kaiming normal (fan out); `bias`, b, `[T, 1]`, at first 0.
    """

    def __init__(
        self,
        time_steps: int,
        tau: float = 2.0,
        threshold: float = 1.0,
        surrogate: str | Surrogate = "atan",
        as_coded: bool = False,
    ):
        super().__init__(time_steps, tau, threshold, surrogate)
        self.as_coded = as_coded

    def shifted(self, currents: Tensor) -> Tensor:  # noqa: D102
        integrated = self.learned(currents)
        return integrated - self.resets(currents if self.as_coded else integrated.sigmoid()) - self.threshold

    def extra_repr(self) -> str:  # noqa: D102
        return f"as_coded={self.as_coded}, {super().extra_repr()}"


class RPSU(_LearnedUnit):
    """PSU that learns to reset (arXiv 2402.00449).

    `H = M1 X + M2 sigmoid(tril(W) X + b)`, spikes where `H > threshold`; M1 and M2 as for `PSU`.

    Args:
        time_steps: T; backbones say it.
        tau: time constant of M1 and M2, above 0.
        threshold: firing threshold, above 0.
        surrogate: see `LIF`.

    Attributes:
        weight: W, `[T, T]`, at first Kaiming normal (fan out); `bias`, b, `[T, 1]`, at first 0.
    """

    def shifted(self, currents: Tensor) -> Tensor:  # noqa: D102
        return self.integrated(currents) - self.resets(self.learned(currents).sigmoid()) - self.threshold


def _affine(matrix: Tensor, currents: Tensor, bias: Tensor) -> Tensor:
    """`matrix @ currents + bias`, in the currents' dtype."""
    return torch.addmm(bias.to(currents.dtype), matrix.to(currents.dtype), currents)


def _lags(currents: Tensor) -> Tensor:
    """`i - j`, `[T, T]`."""
    steps = torch.arange(currents.shape[0], device=currents.device)
    return steps[:, None] - steps


def _decays(currents: Tensor, tau: Tensor, first_lag: int) -> Tensor:
    """`tau^-(i - j)` where `i - j >= first_lag`, else 0, `[T, T]`."""
    lag = _lags(currents)
    return (lag >= first_lag) * tau.to(currents.dtype) ** -lag


def _at_least_one(name: str, value: Any) -> int:
    if not (isinstance(value, int) and value >= 1):
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    return value
