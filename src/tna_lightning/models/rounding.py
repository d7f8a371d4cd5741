"""Rounding with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def clipped_round(x: Tensor, limit: int) -> Tensor:
    """`round(clip(x, 0, limit))`, half to even, with the gradient of the clip (straight-through)."""
    if torch.compiler.is_exporting():
        return x.clamp(0, limit).round()
    return _ClippedRound.apply(x, limit)


class _ClippedRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: int) -> Tensor:
        ctx.save_for_backward((x >= 0) & (x <= limit))
        return x.clamp(0, limit).round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (is_within,) = ctx.saved_tensors
        return grads[0] * is_within, None
