"""Spiking neurons: the base class of all, and the leaky integrate-and-fire neuron with its equations.

Shapes: T time steps, B batch. A current `[T, B, ...]` gives spikes of the same shape, dtype and memory layout. The time
loop that computes them stands in `fused.py`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from tna_lightning.models import fused
from tna_lightning.models.surrogates import Surrogate, get_surrogate

RESETS = ("zero", "subtract", "none")
PER = ("layer", "channel")


class SpikingNeuron(nn.Module):
    """Base class of all neurons: `forward` turns currents `[T, B, ...]` into spikes of the same shape and dtype.

    It sees the whole sequence at once, T first, and starts afresh each time: a neuron keeps no state between two
    forwards, since batches have nothing to do with each other. A layer of neurons sees convolutions' `[T, B, C, H, W]`
    and linear layers' `[T, B, C]`.

    The factory of a neuron, its class or a `functools.partial` of it, is called once a layer, with those of these
    hints that its signature takes: `channels` (C of the layer), `time_steps` (T), and where a block asks for one a
    `threshold`.

    Attributes:
        is_random: whether spikes are drawn at random in eval mode, from torch's generator.
    """

    is_random: ClassVar[bool] = False

    def no_weight_decay(self) -> set[str]:
        """Names of those parameters that weight decay must leave alone: here all."""
        return {name for name, _ in self.named_parameters()}

    def progress(self, share: float) -> None:
        """For neurons that change over the training: called when an epoch begins, with the share of it that is over.

        It is `epoch / (epochs - 1)`: 0 in the first epoch, 1 in the last, and 1 where there is no last one.
        """


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neurons with snntorch's equations, names and parameters (`snn.Leaky`, delayed reset).

    Every forward starts from zero membrane U and keeps nothing. With S the spikes, I the current, theta the threshold:

        reset="zero":      U[t] = beta (1 - S[t-1]) U[t-1] + I[t]      (hard reset, as in arXiv 2409.15849)
        reset="subtract":  U[t] = beta U[t-1] + I[t] - S[t-1] theta    (soft reset)
        reset="none":      U[t] = beta U[t-1] + I[t]
        S[t] = 1 if U[t] - theta > 0 else 0

    In the backward pass the spike has the surrogate's derivative, and S[t-1] in the reset is a constant. `beta` is
    clamped to [0, 1] in the forward pass, so a learned one keeps its meaning. Both parameters have snntorch's names,
    and with `per="layer"` its shapes: a `state_dict` entry moves between the two.

    bf16 and fp16 currents are integrated in float32 and give spikes of their own dtype. Of the activations, the current
    alone is kept for the backward pass, in its own dtype; membrane and spikes are computed from it again.

    Args:
        beta: decay of the membrane per time step, in [0, 1]; a tensor must broadcast against one time step `[B, ...]`,
            such as `[C, 1, 1]` for one value per channel.
        threshold: firing threshold, above 0; may be a tensor likewise.
        reset: after a spike: zero (hard reset), subtract (soft reset) or none.
        surrogate: a name such as `atan`, `fast_sigmoid`, `sigmoid`, `Rect` or `PiecewiseQuadratic`
            (`surrogates.SURROGATES`), or a `Surrogate` object such as `ATan(alpha=4.0)`.
        learn_beta: train `beta` (a parametric LIF).
        learn_threshold: train `threshold`.
        per: neurons that share one beta and one threshold: those of a `layer`, or of a `channel`, the third dimension
            of `[T, B, C, ...]`; then both are kept as `[C]`.
        channels: C, for `per="channel"`; backbones say it.

    Attributes:
        compiled: run the time loop as compiled code, or "auto" (see `compile_neurons`); False at first.

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
        per: str = "layer",
        channels: int | None = None,
    ):
        super().__init__()
        if per not in PER:
            raise ValueError(f"per={per!r}: must be one of {', '.join(PER)}")
        if per == "channel" and channels is None:
            raise ValueError("per='channel': needs channels=, which the backbone must pass on (models.new_neuron)")
        beta_tensor, threshold_tensor = torch.as_tensor(beta), torch.as_tensor(threshold)
        if not bool(((beta_tensor >= 0) & (beta_tensor <= 1)).all()):
            raise ValueError(f"beta={beta!r}: must lie in [0, 1]")
        if not bool((threshold_tensor > 0).all()):
            raise ValueError(f"threshold={threshold!r}: must be above 0")
        if reset not in RESETS:
            raise ValueError(f"reset={reset!r}: must be one of {', '.join(RESETS)}")
        self.per = per
        self.reset = reset
        self.surrogate = get_surrogate(surrogate)
        self.compiled: bool | str = False
        shape = None if channels is None or per == "layer" else (channels,)
        self._register("beta", beta_tensor, learn_beta, shape)
        self._register("threshold", threshold_tensor, learn_threshold, shape)

    def _register(self, name: str, value: Tensor, learned: bool, shape: tuple[int] | None) -> None:
        if shape is not None:
            if value.ndim and value.shape != shape:
                raise ValueError(f"{name} of shape {list(value.shape)}: must be one number, or {list(shape)}")
            value = value.expand(shape)
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
        compiled = False if self.surrogate.is_random else self.compiled
        beta, threshold = self.of_one_step(current.shape[1:])
        return fused.lif(current, beta, threshold, self.reset, self.surrogate, compiled)

    @torch.no_grad()
    def chunk(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes of the next part of a sequence, and the state for the part after it; without gradients.

        Args:
            current: `[T', B, ...]`, the next T' steps.
            state: as it came with the part before; None for the first.
        """
        beta, threshold = self.of_one_step(current.shape[1:])
        return fused.time_chunk(current, beta, threshold, self.reset, state)

    def of_one_step(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Beta, clamped, and threshold, such that they broadcast against one step of this shape, `[B, ...]`."""
        if self.per == "layer":
            return self.beta.clamp(0, 1), self.threshold
        if shape[1:2] != self.beta.shape:
            raise ValueError(f"current=[T, {str(list(shape))[1:]}: must be [T, B, {len(self.beta)}, ...], per channel")
        wide = [-1, *[1] * (len(shape) - 2)]
        return self.beta.clamp(0, 1).view(wide), self.threshold.view(wide)

    def extra_repr(self) -> str:
        """The settings, for `print(network)`."""
        parts = []
        for name in ("beta", "threshold"):
            value = getattr(self, name)
            parts.append(f"{name}={value.item():g}" if value.numel() == 1 else f"{name}={list(value.shape)}")
        parts += [f"reset={self.reset}", f"surrogate={self.surrogate}"]
        parts += [f"learn_{name}=True" for name, _ in self.named_parameters()]
        parts += [f"per={self.per}"] if self.per != "layer" else []
        return ", ".join(parts)


def compile_neurons(network: nn.Module, enabled: bool | str = True) -> None:
    """Let every `LIF` in `network` run its time loop as compiled code, or eagerly again: same spikes, less time.

    Triton compiles it on CUDA, a C++ compiler on the CPU; where it is missing the neurons stay eager and one line in
    the log says why. Surrogates that draw random numbers stay eager too, because compiled code would draw others.
    Building takes some seconds for each combination of T, dtype and settings; layers and batch sizes share the code,
    and it is kept on disk for the next process, which loads it in milliseconds (`models/compiled.py`).

    Args:
        network: whose neurons.
        enabled: True waits while code is built; "auto" runs eagerly meanwhile, while another process builds it, which
            gives the same numbers to the bit; where it might not (an exponential in the surrogate, a surrogate of one's
            own) and on CUDA it waits, too. False runs eagerly.

    Raises:
        ValueError: another `enabled`.
    """
    if enabled not in (True, False, "auto"):
        raise ValueError(f"enabled={enabled!r}: must be True, False or 'auto'")
    for module in network.modules():
        if isinstance(module, LIF):
            module.compiled = enabled
