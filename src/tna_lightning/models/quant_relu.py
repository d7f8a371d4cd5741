"""The activation of a network without spikes that carries as much as a spiking one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tna_lightning.models.rounding import clipped_round


class QuantReLU(nn.Module):
    """Rectified linear unit of few bits: `maximum / q * round(clip(q x / maximum, 0, q))` with `q = 2^bits - 1`.

    A neuron of T steps says one of T + 1 numbers, so an activation of `bits = ceil(log2(T + 1))` carries as much (Yan
    et al., arXiv 2409.08290). `maximum` is learned, one a layer; rounding is straight-through, so that its gradient is
    that of LSQ (arXiv 1902.08153) without the factor.

    Args:
        time_steps: T of the spiking network beside it; backbones say it.
        maximum: where the learned largest activation starts, above 0.

    Attributes:
        bits: of an activation.
        maximum: the learned largest activation, a parameter.
    """

    def __init__(self, time_steps: int, maximum: float = 2.0):
        super().__init__()
        if not (isinstance(time_steps, int) and time_steps >= 1):
            raise ValueError(f"time_steps={time_steps!r}: must be a whole number of at least 1")
        if not maximum > 0:
            raise ValueError(f"maximum={maximum!r}: must be above 0")
        self.bits = time_steps.bit_length()  # ceil(log2(T + 1))
        self.maximum = nn.Parameter(torch.tensor(float(maximum)))

    def forward(self, x: Tensor) -> Tensor:
        """Activations of the shape and dtype of `x`."""
        limit = 2**self.bits - 1
        step = (self.maximum.abs() / limit).to(torch.promote_types(x.dtype, torch.float32))
        return (step * clipped_round(x / step, limit)).to(x.dtype)

    def extra_repr(self) -> str:
        """The settings, for `print(network)`."""
        return f"bits={self.bits}, maximum={self.maximum.item():g}"
