"""Spiking neurons: the base class of all, and the leaky integrate-and-fire neuron with its equations.

Shapes: T time steps, B batch. A current `[T, B, ...]` gives spikes of the same shape, dtype and memory layout. The time
loop that computes them stands in `fused.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tna_lightning.models import fused
from tna_lightning.models.surrogates import Surrogate, get_surrogate

RESETS = ("zero", "subtract", "none")


class SpikingNeuron(nn.Module):
    """What turns currents `[T, B, ...]` into spikes of the same shape; a neuron that is none of these ignores time."""


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neurons with snntorch's equations, names and parameters (`snn.Leaky`, delayed reset).

    Every forward starts from zero membrane U and keeps nothing. With S the spikes, I the current, theta the threshold:

        reset="zero":      U[t] = beta (1 - S[t-1]) U[t-1] + I[t]      (hard reset, as in arXiv 2409.15849)
        reset="subtract":  U[t] = beta U[t-1] + I[t] - S[t-1] theta    (soft reset)
        reset="none":      U[t] = beta U[t-1] + I[t]
        S[t] = 1 if U[t] - theta > 0 else 0

    In the backward pass the spike has the surrogate's derivative, and S[t-1] in the reset is a constant. `beta` is
    clamped to [0, 1] in the forward pass, so a learned one keeps its meaning. Both parameters have snntorch's names and
    shapes: a `state_dict` entry moves between the two.

    bf16 and fp16 currents are integrated in float32 and give spikes of their own dtype. Of the activations, the current
    alone is kept for the backward pass, in its own dtype; membrane and spikes are computed from it again.

    Args:
        beta: decay of the membrane per time step, in [0, 1]; a tensor must broadcast against one time step `[B, ...]`,
            such as `[C, 1, 1]` for one value per channel.
        threshold: firing threshold, above 0; may be a tensor likewise.
        reset: zero (hard), subtract (soft) or none.
        surrogate: a name such as `atan`, `fast_sigmoid`, `triangular` or `sigmoid` (`surrogates.SURROGATES`), or a
            `Surrogate` object such as `ATan(alpha=4.0)`.
        learn_beta: train `beta` (a parametric LIF).
        learn_threshold: train `threshold`.

    Attributes:
        compiled: run the time loop through torch.compile (see `compile_neurons`); False at first.

    Raises:
        ValueError: an argument outside of what is allowed, or an input that is not `[T, B, ...]`.
    """

    beta: Tensor
    threshold: Tensor

    def __init__(
        self,
        beta: float | Tensor = 0.5,
        threshold: float | Tensor = 1.0,
        reset: str = "zero",
        surrogate: str | Surrogate = "atan",
        learn_beta: bool = False,
        learn_threshold: bool = False,
    ):
        super().__init__()
        beta_tensor, threshold_tensor = torch.as_tensor(beta), torch.as_tensor(threshold)
        if not bool(((beta_tensor >= 0) & (beta_tensor <= 1)).all()):
            raise ValueError(f"beta={beta!r}: must lie in [0, 1]")
        if not bool((threshold_tensor > 0).all()):
            raise ValueError(f"threshold={threshold!r}: must be above 0")
        if reset not in RESETS:
            raise ValueError(f"reset={reset!r}: must be one of {', '.join(RESETS)}")
        self.reset = reset
        self.surrogate = get_surrogate(surrogate)
        self.compiled = False
        self._register("beta", beta_tensor, learn_beta)
        self._register("threshold", threshold_tensor, learn_threshold)

    def _register(self, name: str, value: Tensor, learned: bool) -> None:
        value = value.detach().to(torch.get_default_dtype(), copy=True)
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self, current: Tensor) -> Tensor:
        """Spikes `[T, B, ...]` for the currents `[T, B, ...]`."""
        if current.ndim < 2 or current.shape[0] < 1:
            raise ValueError(
                f"current={list(current.shape)}: must have at least two dimensions and a step, [T, B, ...]"
            )
        compiled = self.compiled and not self.surrogate.is_random
        return fused.lif(current, self.beta.clamp(0, 1), self.threshold, self.reset, self.surrogate, compiled)

    def extra_repr(self) -> str:
        """The settings, for `print(network)`."""
        parts = []
        for name in ("beta", "threshold"):
            value = getattr(self, name)
            parts.append(f"{name}={value.item():g}" if value.numel() == 1 else f"{name}={list(value.shape)}")
        parts += [f"reset={self.reset}", f"surrogate={self.surrogate}"]
        parts += [f"learn_{name}=True" for name, _ in self.named_parameters()]
        return ", ".join(parts)


def compile_neurons(network: nn.Module, enabled: bool = True) -> None:
    """Let every `LIF` in `network` run its time loop through torch.compile, or eagerly again: same spikes, less time.

    Triton compiles it on CUDA, a C++ compiler on the CPU; where it is missing the neurons stay eager and one line in
    the log says why. Surrogates that draw random numbers stay eager too, because compiled code would draw others. The
    first call takes some seconds for each combination of T, dtype and settings; layers and batch sizes share the code,
    and torch keeps it on disk for the next process.
    """
    for module in network.modules():
        if isinstance(module, LIF):
            module.compiled = enabled
