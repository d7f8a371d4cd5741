"""A quantised weight as one object: integers, their scale, and what the axes of both mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGN, STEP, CHANNEL = "sign", "step", "channel"


def alphabet(bits: int) -> tuple[int, ...]:
    """The codes that a quantiser of so many bits may use: -1, +1 for one bit, else -q .. q with q = 2^(bits-1) - 1."""
    if bits == 1:
        return (-1, 1)
    limit = 2 ** (bits - 1) - 1
    return tuple(range(-limit, limit + 1))


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many codes at so many bits each."""
    return -(-count * bits // 8)


def decode(codes: Tensor, scale: Tensor, scale_axes: Sequence[str] = ()) -> Tensor:
    """Weights of the given codes, in the scale's dtype.

    Args:
        codes: integers of any shape.
        scale: broadcasts against the codes. Where ``scale_axes`` names ``sign``, it has a first dimension more, of 2:
            the scale of positive codes, then that of negative ones.
        scale_axes: see :class:`Codes`.

    Raises:
        ValueError: the scale has more dimensions than its axes and the codes account for.
    """
    if scale.ndim - (SIGN in scale_axes) > codes.ndim:
        raise ValueError(
            f"scale of shape {list(scale.shape)}: must broadcast against codes of {list(codes.shape)}; "
            f"where each sign has its own, say so: scale_axes=({SIGN!r}, ...)"
        )
    if SIGN in scale_axes:
        scale = torch.where(codes > 0, scale[0], scale[1])
    return codes.to(scale.dtype) * scale


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as it is kept: ``weight = values * scale``. ``values, scale = codes`` takes it apart.

    Attributes:
        values: int8, ``[C, ...]`` as the layer's weight, or ``[T, C, ...]``.
        scale: its dimensions are those of ``values``, each of size 1 along which the scale is the same, and before them
            one of 2 where it differs by sign: positive, then negative codes. None: the values are the weight.
        scheme: name of the quantiser.
        bits: of one value as stored; it lies in ``alphabet(bits)``.
        axes: names of the first axes of ``values``: ``("channel",)``, or ``("step", "channel")`` for a weight that
            differs by time step. The others lie within an output channel.
        scale_axes: along which axes the scale differs, in the order sign, step, channel; ``()`` is one scale a layer.

    Raises:
        ValueError: names, shapes and dtypes do not fit one another.
    """

    values: Tensor
    scale: Tensor | None
    scheme: str
    bits: int
    axes: tuple[str, ...] = (CHANNEL,)
    scale_axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.axes not in ((CHANNEL,), (STEP, CHANNEL)):
            raise ValueError(f"axes={list(self.axes)!r}: must be [{CHANNEL}] or [{STEP}, {CHANNEL}]")
        if self.values.ndim < len(self.axes) or not all(self.values.shape[: len(self.axes)]):
            raise ValueError(f"its codes have the shape {list(self.values.shape)}, without {' and '.join(self.axes)}")
        if self.scale_axes not in _scale_axes(self.axes):
            raise ValueError(
                f"scale_axes={list(self.scale_axes)!r}: must be names of {', '.join((SIGN, *self.axes))}, in this order"
            )
        if self.scale is None:
            if self.scale_axes:
                raise ValueError(f"scale_axes={list(self.scale_axes)!r}: must be [] without a scale")
        elif not self.scale.is_floating_point() or not self.scale.isfinite().all():
            raise ValueError(f"its scale ({self.scale.dtype}) must be finite floating-point numbers")
        elif list(self.scale.shape) != scale_shape(self.values.shape, self.axes, self.scale_axes):
            raise ValueError(
                f"its scale has the shape {list(self.scale.shape)}, which fits no codes of {list(self.values.shape)} "
                f"with scales by {', '.join(self.scale_axes) or 'layer'}"
            )

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.values, self.scale))

    @property
    def weight(self) -> Tensor:
        """The decoded weight, of the shape of ``values``."""
        if self.scale is None:
            return self.values.to(torch.get_default_dtype())
        return decode(self.values, self.scale, self.scale_axes)

    @property
    def time_steps(self) -> int | None:
        """T of codes that differ by step."""
        return len(self.values) if STEP in self.axes else None

    @property
    def num_bytes(self) -> int:
        """Bytes of values and scale when packed."""
        scale_bytes = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return packed_size(self.values.numel(), self.bits) + scale_bytes


def scale_shape(shape: Sequence[int], axes: Sequence[str], scale_axes: Sequence[str]) -> list[int]:
    """The shape of a scale that differs along ``scale_axes``, of codes of this shape with these first ``axes``."""
    leading = [size if axis in scale_axes else 1 for axis, size in zip(axes, shape, strict=False)]
    return [2] * (SIGN in scale_axes) + leading + [1] * (len(shape) - len(axes))


def _scale_axes(axes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All that ``scale_axes`` may be."""
    found: list[tuple[str, ...]] = [()]
    for axis in (SIGN, *axes):
        found += [(*names, axis) for names in found]
    return found
