"""A quantised weight as one object: integers, their scale, and what the axes of both mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGN, STEP, CHANNEL = "sign", "step", "channel"
VALUES, PERIODS = "values", "periods"  # how values become bytes


def alphabet(bits: int) -> tuple[int, ...]:
    """The codes that a quantiser of so many bits may use: -1, +1 for one bit, else -q .. q with q = 2^(bits-1) - 1."""
    if bits == 1:
        return (-1, 1)
    limit = 2 ** (bits - 1) - 1
    return tuple(range(-limit, limit + 1))


def period_bits(time_steps: int) -> int:
    """Bits of a period with its sign, -T .. T: 4 for T up to 7."""
    return time_steps.bit_length() + 1


def to_periods(values: Tensor) -> Tensor:
    """Ternary values ``[T, ...]`` by one number each, ``[...]``: the first step that is not 0, with its sign.

    Steps count from 1; 0 stands where all are 0. :func:`from_periods` gives the values back if each weight is not 0 at
    the multiples of its period alone.
    """
    steps = torch.arange(len(values), 0, -1, device=values.device).view(-1, *[1] * (values.ndim - 1))
    period = len(values) + 1 - (steps * values.abs()).amax(0)  # of a weight that is always 0: T + 1
    return (period * values.sum(0).sign()).to(torch.int8)


def from_periods(periods: Tensor, time_steps: int) -> Tensor:
    """Values ``[T, ...]``: the period's sign at the steps that are its multiples, counted from 1, else 0."""
    steps = torch.arange(1, time_steps + 1, device=periods.device).view(-1, *[1] * periods.ndim)
    is_due = steps % periods.abs().long().clamp_min(1) == 0
    return (periods.sign() * is_due).to(torch.int8)


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
        encoding: how values become bytes: ``values``, each by itself; or ``periods``, ternary values of a weight over
            time by one number, since they are its sign at the multiples of its period, and else 0.

    Raises:
        ValueError: names, shapes and dtypes do not fit one another.
    """

    values: Tensor
    scale: Tensor | None
    scheme: str
    bits: int
    axes: tuple[str, ...] = (CHANNEL,)
    scale_axes: tuple[str, ...] = ()
    encoding: str = VALUES

    def __post_init__(self) -> None:
        if self.axes not in ((CHANNEL,), (STEP, CHANNEL)):
            raise ValueError(f"axes={list(self.axes)!r}: must be [{CHANNEL}] or [{STEP}, {CHANNEL}]")
        if self.values.ndim < len(self.axes) or not all(self.values.shape[: len(self.axes)]):
            raise ValueError(f"its codes have the shape {list(self.values.shape)}, without {' and '.join(self.axes)}")
        if self.scale_axes not in _scale_axes(self.axes):
            raise ValueError(
                f"scale_axes={list(self.scale_axes)!r}: must be names of {', '.join((SIGN, *self.axes))}, in this order"
            )
        if self.encoding not in (VALUES, PERIODS):
            raise ValueError(f"encoding={self.encoding!r}: must be {VALUES!r} or {PERIODS!r}")
        if self.encoding == PERIODS:
            if STEP not in self.axes or self.bits != 2:
                raise ValueError(f"encoding={self.encoding!r}: must be of 2-bit codes that differ by step")
            if not torch.equal(from_periods(to_periods(self.values), len(self.values)), self.values):
                raise ValueError(f"encoding={self.encoding!r}: its codes do not recur by a period each")
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
    def stored(self) -> tuple[Tensor, int]:
        """What becomes bytes: the values, or their periods, and the bits of each."""
        if self.encoding == PERIODS:
            return to_periods(self.values), period_bits(len(self.values))
        return self.values, self.bits

    @property
    def bits_per_weight(self) -> int:
        """Bits of one weight as stored, of all its steps together."""
        return period_bits(len(self.values)) if self.encoding == PERIODS else self.bits * (self.time_steps or 1)

    @property
    def information(self) -> float:
        """Bits of one weight in information, of all its steps together: log2 of how many it may be."""
        if self.encoding == PERIODS:
            return math.log2(2 * len(self.values) + 1)
        return (self.time_steps or 1) * math.log2(len(alphabet(self.bits)))

    @property
    def num_bytes(self) -> int:
        """Bytes of values and scale when packed."""
        scale_bytes = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return packed_size(self.values.numel() // (self.time_steps or 1), self.bits_per_weight) + scale_bytes


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
