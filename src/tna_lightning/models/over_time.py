"""Layers whose weight differs by time step.

A layer becomes one by its class alone (:func:`weigh_over_time`), so that its parameters and their names stay; its
weight is then `[T, ...]`. It stands in a `PerStep`, which hands it `[T, B, ...]` and the layers beside it `[T*B, ...]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OverTime(nn.Module):
    """`[T, B, ...] -> [T, B, ...]`, each step by its own weight."""

    weight: Tensor

    def steps(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Input and weight of each step.

        Raises:
            ValueError: the input has another T than the weight.
        """
        weight = self.weight  # once: it may be computed
        if len(x) != len(weight):
            raise ValueError(
                f"x={list(x.shape)}: must have the {len(weight)} time steps of the layer's weight (time_steps of its "
                "quantizer)"
            )
        return list(zip(x, weight, strict=True))


def has_weights_over_time(module: nn.Module) -> bool:
    """Whether the weight of a layer in it differs by step; its input must then have as many steps."""
    return any(isinstance(layer, OverTime) for layer in module.modules())


class Conv2dOverTime(OverTime, nn.Conv2d):
    """A convolution with a weight `[T, C_out, C_in, kH, kW]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[T, B, C_out, H, W]`."""
        # joined as images, since only four dimensions keep a channels-last layout
        images = torch.cat([self._conv_forward(step, weight, self.bias) for step, weight in self.steps(x)])
        return images.unflatten(0, x.shape[:2])


class LinearOverTime(OverTime, nn.Linear):
    """A linear layer with a weight `[T, C_out, C_in]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[T, B, ..., C_out]`."""
        return torch.stack([nn.functional.linear(step, weight, self.bias) for step, weight in self.steps(x)])


OVER_TIME: dict[type[nn.Module], type[OverTime]] = {nn.Conv2d: Conv2dOverTime, nn.Linear: LinearOverTime}


def weigh_over_time(layer: nn.Module) -> None:
    """Make a layer (a key of `OVER_TIME`) one whose weight is `[T, ...]`; who calls this gives it such a weight."""
    layer.__class__ = OVER_TIME[type(layer)]


def weigh_alike(layer: nn.Module) -> None:
    """Make a layer of :func:`weigh_over_time` what it was; who calls this gives it a weight without T."""
    (layer.__class__,) = (plain for plain, over_time in OVER_TIME.items() if over_time is type(layer))
