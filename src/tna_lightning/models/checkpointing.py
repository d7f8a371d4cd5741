"""Activation checkpointing (arXiv 1604.06174): a stage is computed again in the backward pass, and not kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(stage: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The output of layers one after another, of which the input alone is kept for the backward pass.

    Results and gradients are those without checkpointing, bit for bit: the same graph, the random numbers drawn before,
    and buffers (running means of batch norm) as they were before, which are updated once.
    """
    layers = nn.Sequential(*stage)
    return checkpoint(layers, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_as_now(layers)))


def _buffers_as_now(module: nn.Module) -> AbstractContextManager[None]:
    """In which buffers have the values that they have now, whatever is done to them there."""
    places = [layer._buffers for layer in module.modules() if layer._buffers]
    values = [_copy(place) for place in places]

    @contextmanager
    def as_then() -> Iterator[None]:
        now = [dict(place) for place in places]
        for place, then in zip(places, values, strict=True):
            place.update(_copy(then))
        try:
            yield
        finally:
            for place, buffers in zip(places, now, strict=True):
                place.update(buffers)

    return as_then()


def _copy(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
