"""Other leaky integrate-and-fire neurons: with an adaptive threshold, with ternary spikes, with whole numbers.

Shapes as in `neurons.py`: currents `[T, B, ...]` give spikes of the same shape and dtype. Their loops over time are
plain torch, slower than that of `LIF`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.rounding import clipped_round
from tna_lightning.models.surrogates import Surrogate, get_surrogate


class LoopNeuron(SpikingNeuron):
    """Base of neurons whose loop over time is plain torch: a subclass says what one step does.

    Currents of bf16 and fp16 are integrated in float32.

    Args:
        constants: what is fixed and kept with the weights, by name.

    Raises:
        ValueError: an input that is not `[T, B, ...]`.
    """

    def __init__(self, **constants: float):
        super().__init__()
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor(float(value)))

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes `[B, ...]` of one step, and the state after it; the state before the first is None."""
        raise NotImplementedError

    def forward(self, current: Tensor) -> Tensor:
        """Spikes `[T, B, ...]` for the currents `[T, B, ...]`."""
        return self._run(current, None)[0]

    @torch.no_grad()
    def chunk(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As `LIF.chunk`."""
        return self._run(current, state)

    def _run(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        if current.ndim < 2 or current.shape[0] < 1:
            raise ValueError(
                f"current={list(current.shape)}: must have at least two dimensions and a step, [T, B, ...]"
            )
        spikes = []
        for step in current.to(torch.promote_types(current.dtype, torch.float32)):
            fired, state = self.step(step, state)
            spikes.append(fired)
        return torch.stack(spikes).to(current.dtype), state

    def extra_repr(self) -> str:
        """The settings, for `print(network)`."""
        return ", ".join(f"{name}={value.item():g}" for name, value in self.named_buffers())


class ALIF(LoopNeuron):
    """Adaptive LIF (Bellec et al., arXiv 1803.09574): each spike raises the threshold, which decays back.

        a[t] = rho a[t-1] + (1 - rho) S[t-1]
        A[t] = threshold + adaptation a[t]
        U[t] = beta U[t-1] + I[t] - S[t-1] A[t-1]
        S[t] = 1 if U[t] > A[t] else 0

    The paper scales the current by 1 - beta, which the norm before a neuron learns here. The gradient passes through
    the spikes in a; S[t-1] in the reset is a constant, as in `LIF`.

    Args:
        beta: decay of the membrane per time step, in [0, 1].
        threshold: without adaptation, above 0.
        adaptation: by how much the threshold of a neuron that always fires rises, 0 or more; the paper has 1.8.
        rho: decay of the adaptation per time step, in [0, 1]; the paper's is near 1, for hundreds of steps.
        surrogate: see `LIF`.
    """

    beta: Tensor
    threshold: Tensor
    adaptation: Tensor
    rho: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        threshold: float = 1.0,
        adaptation: float = 1.8,
        rho: float = 0.8,
        surrogate: str | Surrogate = "atan",
    ):
        _check_decay(beta=beta, rho=rho)
        _check_above_zero(threshold=threshold)
        if not adaptation >= 0:
            raise ValueError(f"adaptation={adaptation!r}: must be 0 or more")
        super().__init__(beta=beta, threshold=threshold, adaptation=adaptation, rho=rho)
        self.surrogate = get_surrogate(surrogate)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: D102
        membrane, reset, adapted = (torch.zeros_like(current),) * 3 if state is None else state
        membrane = self.beta * membrane + current - reset
        threshold = self.threshold + self.adaptation * adapted
        spikes = self.surrogate(membrane - threshold)
        return spikes, (membrane, spikes.detach() * threshold, self.rho * adapted + (1 - self.rho) * spikes)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, surrogate={self.surrogate}"


class TernaryLIF(LoopNeuron):
    """LIF with spikes -1, 0 and 1 (Ternary Spike, Guo et al., AAAI 2024, arXiv 2312.06372, equations 7 and 8).

        U[t] = beta (1 - abs(S[t-1])) U[t-1] + I[t]
        S[t] = 1 if U[t] > threshold, -1 if U[t] < -threshold, else 0

    In the backward pass each threshold has the surrogate's derivative, s'(U - threshold) + s'(-U - threshold), and
    S[t-1] in the reset is a constant, as in `LIF`; the paper's trained amplitude is not part of it.

    Args:
        beta: decay of the membrane per time step, in [0, 1]; the paper has 0.25.
        threshold: firing threshold, above 0.
        surrogate: see `LIF`.
    """

    beta: Tensor
    threshold: Tensor

    def __init__(self, beta: float = 0.25, threshold: float = 1.0, surrogate: str | Surrogate = "atan"):
        _check_decay(beta=beta)
        _check_above_zero(threshold=threshold)
        super().__init__(beta=beta, threshold=threshold)
        self.surrogate = get_surrogate(surrogate)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: D102
        membrane = current if state is None else self.beta * state + current
        spikes = self.surrogate(membrane - self.threshold) - self.surrogate(-membrane - self.threshold)
        return spikes, (1 - spikes.detach().abs()) * membrane

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, surrogate={self.surrogate}"


class IntegerLIF(LoopNeuron):
    """LIF that fires whole numbers (I-LIF, Luo et al., arXiv 2407.20708, as trained by Spike-driven Transformer v3).

        U[t] = beta (U[t-1] - S[t-1] threshold) + I[t]
        S[t] = round(clip(U[t] / threshold, 0, max_spikes))

    A spike of n stands for n spikes of 1, which hardware fires one after another. The derivative of S is that of the
    clip, 1 / threshold within its bounds, else 0; S[t-1] in the reset is a constant, as in `LIF`.

    Args:
        beta: decay of the membrane per time step, in [0, 1]; the authors have 0.25.
        threshold: of one spike, above 0.
        max_spikes: the largest number, D in the papers, at least 1.
    """

    beta: Tensor
    threshold: Tensor

    def __init__(self, beta: float = 0.25, threshold: float = 1.0, max_spikes: int = 4):
        _check_decay(beta=beta)
        _check_above_zero(threshold=threshold)
        if max_spikes < 1:
            raise ValueError(f"max_spikes={max_spikes!r}: must be at least 1")
        super().__init__(beta=beta, threshold=threshold)
        self.max_spikes = max_spikes

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: D102
        membrane = current if state is None else self.beta * state + current
        spikes = clipped_round(membrane / self.threshold, self.max_spikes)
        return spikes, membrane - spikes.detach() * self.threshold

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, max_spikes={self.max_spikes}"


def _check_decay(**decays: float) -> None:
    """Refuse a decay outside of [0, 1]; NaN is outside."""
    for name, value in decays.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: must lie in [0, 1]")


def _check_above_zero(**values: float) -> None:
    """Refuse what is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r}: must be above 0")
