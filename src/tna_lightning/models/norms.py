"""Batch norm for spiking networks: over time as well, or with a scale for each time step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tna_lightning.models.over_time import OverTime

NORMS = ("bn", "tdbn", "tebn")


class TemporalEffectiveBatchNorm2d(OverTime, nn.BatchNorm2d):  # type: ignore[misc]  # torch's weight may be None
    """TEBN (Duan et al., NeurIPS 2022): `y[t] = p[t] BN(x)[t]`, batch norm over T and B and a learned scale a step.

    Args:
        num_features: C.
        time_steps: T.

    Attributes:
        step_scale: p, `[T]`, at first 1.
    """

    def __init__(self, num_features: int, time_steps: int):
        super().__init__(num_features)
        self.step_scale = nn.Parameter(torch.ones(time_steps))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W] -> [T, B, C, H, W]`.

        Raises:
            ValueError: the input has another T.
        """
        if len(x) != len(self.step_scale):
            raise ValueError(
                f"x={list(x.shape)}: must have the {len(self.step_scale)} time steps of the norm's scale (time_steps)"
            )
        normalised = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return normalised * self.step_scale.view(-1, 1, 1, 1, 1).to(normalised.dtype)


def new_norm(norm: str, channels: int, time_steps: int | None) -> nn.BatchNorm2d:
    """The batch norm of that name for C channels.

    Raises:
        ValueError: there is no such norm, or `tebn` is not told its T.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: must be one of {', '.join(NORMS)}")
    if norm != "tebn":
        return nn.BatchNorm2d(channels)
    if time_steps is None:
        raise ValueError("norm='tebn': needs time_steps=")
    return TemporalEffectiveBatchNorm2d(channels, time_steps)
