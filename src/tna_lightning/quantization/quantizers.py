"""Weight quantisers: float weights to a few integer codes and a scale, and back.

A scheme is a pure function of ``rows``, the weights that share a scale: ``[G, N]`` with one row per output channel
(``per="channel"``, dimension 0 of the weight) or one row in all (``per="layer"``). Codes are integers in an alphabet
that follows from the bits of a code alone (:func:`~.codes.alphabet`), and :func:`~.codes.decode` is the same for every
scheme. One whose codes differ by time step gives ``[T, G, N]``.

Quantising twice gives the codes of quantising once, but for TaWQ, which standardises anew. It gives the same weights to
the bit for TWN, binary, and learned scales; a maximum scale may move by one rounding, and absmean shrinks its scale by
the share of nonzero codes, which is how that scheme is defined. TTQ is stable as long as both learned scales are
positive and neither falls below ``threshold`` times the other. In bfloat16 all this holds for up to 4 bits.
"""

from __future__ import annotations

import copy
import math
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any, Self

import torch
from torch import Tensor, nn

from tna_lightning.quantization.codes import CHANNEL, PERIODS, SIGN, STEP, VALUES, Codes, decode, scale_shape


def twn(rows: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Ternary weight networks (arXiv 1605.04711).

    ``delta = threshold * mean|w|``; codes ``sign(w)`` where ``|w| > delta``, else 0; scale: mean of ``|w|`` over
    ``|w| > delta``.
    """
    magnitude = rows.abs()
    is_nonzero = (magnitude > threshold * magnitude.mean(1, keepdim=True)).to(rows.dtype)
    return rows.sign().mul_(is_nonzero), _mean(magnitude, is_nonzero)


def absmean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """BitNet b1.58 (arXiv 2402.17764): scale ``gamma = mean|w|``, codes ``clip(round(w / gamma), -1, 1)``.

    Rounding half to even, that is ``sign(w)`` where ``|w| > gamma / 2``, which needs no epsilon.
    """
    magnitude = rows.abs()
    gamma = magnitude.mean(1, keepdim=True)
    return rows.sign() * (magnitude > gamma / 2), gamma


def sign_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """XNOR-Net's binary weights (arXiv 1603.05279): codes ``sign(w)`` with ``sign(0) = 1``, scale ``mean|w|``."""
    return torch.where(rows >= 0, 1, -1), _mean(rows.abs(), torch.ones_like(rows))


def two_sided(rows: Tensor, threshold: float) -> Tensor:
    """Codes of TTQ (arXiv 1612.01064): ``sign(w)`` where ``|w| > threshold * max|w|``, else 0."""
    magnitude = rows.abs()
    return rows.sign() * (magnitude > threshold * magnitude.amax(1, keepdim=True))


TAWQ_TAU, TAWQ_THRESHOLD, TAWQ_SLOPE, TAWQ_EPSILON = 2.0, 0.25, 4.0, 1e-6  # the authors'


def standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """All rows together at mean 0 and (unbiased) deviation 1, and one over the deviation; zeros if all are equal."""
    centred = rows - rows.mean()
    deviation = (centred.square().sum() / max(1, rows.numel() - 1)).sqrt()
    inverse = torch.where(deviation > 0, 1 / deviation, 0.0)
    return centred * inverse, inverse


def temporal_ternary(rows: Tensor, time_steps: int) -> tuple[Tensor, Tensor]:
    """Temporal-adaptive weight quantisation (TaWQ, arXiv 2511.17567; the authors' code), in closed form.

    The standardised weight x (:func:`standardised`) charges a membrane, ``u[t] = v[t-1] + (x - v[t-1]) / 2``; the code
    is ``sign(u[t])`` where ``|u[t]| > 1/4``, which empties it, else 0. As x is the same at every step, the code is
    ``sign(x)`` at the multiples of the smallest k with ``|x| (1 - 2^-k) > 1/4``, if k is at most T, and else 0. The
    scale of a row and step is ``1 / (mean|code| + 1e-6)``.
    """
    x, _ = standardised(rows)
    magnitude, steps = x.abs(), range(1, time_steps + 1)
    has_fired = [magnitude > TAWQ_THRESHOLD / (1 - 0.5**n) for n in steps]  # after n steps without a reset
    has_period = [has_fired[0], *(late & ~early for early, late in pairwise(has_fired))]
    is_due = [reduce(or_, (has_period[k - 1] for k in steps if t % k == 0)) for t in steps]
    codes = x.sign() * torch.stack(is_due)
    return codes, 1 / (codes.abs().mean(2, keepdim=True) + TAWQ_EPSILON)


def uniform(rows: Tensor, step: Tensor, bits: int) -> Tensor:
    """Codes ``round(clip(w / step, -q, q))`` with ``q = 2^(bits-1) - 1``; a step of 0 gives codes 0."""
    limit = 2 ** (bits - 1) - 1
    return (rows / step.masked_fill(step == 0, math.inf)).clamp(-limit, limit).round()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over a mask of 0 and 1 in the values' dtype, 0 where it is empty.

    The second pass takes the rounding of the first away, so that the mean of equal values is that value to the bit.
    Done once a training step for every layer, so it makes few copies: a mask of bools would be converted at each use.
    """
    count = mask.sum(1, keepdim=True).clamp_min(1)
    kept = values * mask
    mean = kept.sum(1, keepdim=True) / count
    return mean + torch.sub(values, mean, out=kept).mul_(mask).sum(1, keepdim=True) / count


class _StraightThrough(torch.autograd.Function):
    """The quantised weight; its gradient goes to the full-precision weight as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)  # not itself: autograd copies an input that is returned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _TTQ(torch.autograd.Function):
    """``{+Wp, 0, -Wn}`` with the gradients of arXiv 1612.01064, equations 7 and 8, on rows ``[G, N]``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return decode(codes, scale, (SIGN,))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        (grad,) = grads
        codes, scale = ctx.saved_tensors
        is_positive, is_negative = codes > 0, codes < 0
        grad_rows = grad * torch.where(is_positive, scale[0], torch.where(is_negative, scale[1], 1.0))
        grad_positive = (grad * is_positive).sum(1, keepdim=True)
        grad_negative = -(grad * is_negative).sum(1, keepdim=True)
        return grad_rows, None, torch.stack([grad_positive, grad_negative])


class _LSQ(torch.autograd.Function):
    """Learned step size (arXiv 1902.08153, equations 3 and 5), on rows ``[G, N]`` with a step each, ``[G, 1]``.

    With ``v = w / step``: ``dw = g`` where ``|v| <= q``, else 0; ``dstep = sum g * (round(v) - v)`` where ``|v| <= q``
    and ``+-q`` beyond, times ``1 / sqrt(N * q)``.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, step: Tensor, limit: int) -> Tensor:
        ctx.save_for_backward(rows, codes, step)
        ctx.limit = limit
        return decode(codes, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (grad,) = grads
        rows, codes, step = ctx.saved_tensors
        ratio = rows / step
        is_inside = ratio.abs() <= ctx.limit
        grad_step = (grad * (codes - ratio * is_inside)).sum(1, keepdim=True) / math.sqrt(rows.shape[1] * ctx.limit)
        return grad * is_inside, None, grad_step, None


def _are_alike(a: Any, b: Any) -> bool:
    """Whether two settings, of which one may be a copy, are the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_are_alike(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_are_alike, a, b))
    return repr(a) == repr(b) or (hasattr(a, "__dict__") and _are_alike(vars(a), vars(b)))


class _TaWQ(torch.autograd.Function):
    """Codes of TaWQ times their scales, with the gradient that the authors' step-by-step code has; rows ``[G, N]``.

    Backwards through the density (``mean|code|``), through each code, ``dq/du = (s'(u - 1/4) + s'(u + 1/4)) / 2`` with
    ``s'(u) = 4 sigmoid(4 u) (1 - sigmoid(4 u))``, through charge and reset, in which ``|code|`` is a constant, and
    through the standardisation.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(rows, codes, scale)
        return decode(codes, scale, (STEP,))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, codes, scale = ctx.saved_tensors
        wide = torch.promote_types(rows.dtype, torch.float32)
        grad, codes, scale = grads[0].to(wide), codes.to(wide), scale.to(wide)
        x, inverse = standardised(rows.to(wide))
        through_density = (grad * codes).sum(2, keepdim=True) * scale.square() / rows.shape[1]
        grad_codes = grad * scale - through_density * codes  # abs(code) has the derivative code
        is_silent = 1 - codes.abs()
        decay = 1 - 1 / TAWQ_TAU
        charged, rest = [], torch.zeros_like(x)
        for silent in is_silent:
            charged.append(decay * rest + x / TAWQ_TAU)
            rest = silent * charged[-1]
        grad_x = grad_rest = torch.zeros_like(x)
        for membrane, silent, grad_code in reversed(list(zip(charged, is_silent, grad_codes, strict=True))):
            low = torch.sigmoid(TAWQ_SLOPE * (membrane - TAWQ_THRESHOLD))
            high = torch.sigmoid(TAWQ_SLOPE * (membrane + TAWQ_THRESHOLD))
            slope = TAWQ_SLOPE / 2 * (low * (1 - low) + high * (1 - high))
            grad_membrane = grad_code * slope + grad_rest * silent
            grad_x = grad_x + grad_membrane / TAWQ_TAU
            grad_rest = decay * grad_membrane
        along = (grad_x * x).sum() / max(1, x.numel() - 1)
        return ((grad_x - grad_x.mean() - x * along) * inverse).to(rows.dtype), None, None


class Quantizer(nn.Module):
    """A quantiser of weights: ``weight -> encode(weight).weight`` with a straight-through gradient.

    A new scheme sets ``name`` and ``bits`` and defines :meth:`quantize`; one with learned scales also defines
    :meth:`initial_scale`, reads :attr:`scale` in :meth:`quantize`, and says in :meth:`with_gradient` what flows back.
    One whose codes differ by time step sets ``time_steps``; the weight of its layers is then ``[T, ...]``.

    Args:
        per: weights that share a scale: ``channel``, those of one output channel, or ``layer``, all.

    Attributes:
        name: the scheme's name in tables and files.
        bits: of one code when packed; the codes lie in ``alphabet(bits)``.
        time_steps: T of codes that differ by step; None where they do not.
        scales_by: what has a scale each beside what ``per`` says: ``sign``, ``step`` or both, in this order.
        encoding: how codes become bytes, see :class:`~.codes.Codes`.
        grows: whether training may see a part of the weights quantised: false where the scales start far from them.
        scale: the learned scale, a parameter; None where the scale follows from the weights.
    """

    name: str
    bits: int
    time_steps: int | None = None
    scales_by: tuple[str, ...] = ()
    encoding: str = VALUES
    grows = True
    scale: nn.Parameter | None

    def __init__(self, per: str = "channel") -> None:
        super().__init__()
        if per not in ("channel", "layer"):
            raise ValueError(f"per={per!r}: must be 'channel' or 'layer'")
        self.per = per
        self.register_parameter("scale", None)

    def no_weight_decay(self) -> set[str]:
        """Names of those parameters that weight decay must leave alone: all."""
        return {name for name, _ in self.named_parameters()}

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``[G, N]`` or ``[T, G, N]`` (any dtype) and scale of rows in float32 or float64.

        The scale is ``[G, 1]``, with an axis before it for each name in ``scales_by``: 2 signs (positive, negative
        codes), T steps.
        """
        raise NotImplementedError

    def initial_scale(self, rows: Tensor) -> Tensor | None:
        """Where a learned scale starts; None for schemes without one."""
        return None

    def with_gradient(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """The decoded codes, connected to the weights (and to a learned scale) for the backward pass.

        By default the gradient goes to the weights as it is; of codes that differ by step, the sum over the steps.
        """
        if self.time_steps is not None:
            rows = rows.expand(self.time_steps, -1, -1)
        return _StraightThrough.apply(rows, decode(codes, scale, self.scales_by))

    def for_weight(self, weight: Tensor) -> Self:
        """A copy of this quantiser for one weight, with its learned scales made from that weight."""
        quantizer = copy.deepcopy(self)
        scale = self.initial_scale(self._rows(weight.detach()))
        if scale is not None:
            quantizer.scale = nn.Parameter(scale.to(weight.dtype))
        return quantizer

    def is_alike(self, other: Quantizer) -> bool:
        """Whether another quantiser is of the same class with the same settings, whatever its scale has learned."""
        return type(self) is type(other) and _are_alike(self._settings(), other._settings())

    def described(self) -> dict[str, Any]:
        """Class and settings, as far as these are numbers and words, for a checkpoint to remember."""
        plain = {name: value for name, value in self._settings().items() if isinstance(value, int | float | str | None)}
        return {"quantizer": type(self).__qualname__, **plain}

    def _settings(self) -> dict[str, Any]:
        of_modules = vars(nn.Module())
        return {name: value for name, value in vars(self).items() if name not in of_modules}

    @torch.no_grad()
    def reset_scale(self, weight: Tensor) -> None:
        """Start a learned scale anew, from this weight."""
        scale = self.initial_scale(self._rows(weight))
        if self.scale is not None and scale is not None:
            self.scale.copy_(scale)

    def encode(self, weight: Tensor) -> Codes:
        """The codes of a weight, whose ``weight`` is what :meth:`forward` gives.

        Raises:
            ValueError: the weight holds NaN or infinite values.
        """
        if not weight.isfinite().all():
            raise ValueError(f"weight of shape {list(weight.shape)}: holds NaN or infinite values")
        values, scale = self._encode_rows(weight)
        values = values.reshape(self._shape(weight))
        axes = (CHANNEL,) if self.time_steps is None else (STEP, CHANNEL)
        scale_axes = (*self.scales_by, CHANNEL) if self.per == "channel" else self.scales_by
        scale = scale.detach().reshape(scale_shape(values.shape, axes, scale_axes))
        return Codes(values, scale, self.name, self.bits, axes, scale_axes, self.encoding)

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight, in the weight's shape (with a leading T where codes differ by step) and dtype."""
        codes, scale = self._encode_rows(weight)
        return self.with_gradient(self._rows(weight), codes, scale).reshape(self._shape(weight))

    def extra_repr(self) -> str:  # noqa: D102
        return f"per={self.per!r}"

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0] if self.per == "channel" else 1, -1)

    def _shape(self, weight: Tensor) -> list[int]:
        return [*([] if self.time_steps is None else [self.time_steps]), *weight.shape]

    def _encode_rows(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._rows(weight.detach())
        codes, scale = self.quantize(rows.to(torch.promote_types(rows.dtype, torch.float32)))
        sizes = {SIGN: 2, STEP: self.time_steps}
        codes_shape = self._shape(rows)
        row_scale_shape = [*(sizes[axis] for axis in self.scales_by), len(rows), 1]
        if list(codes.shape) != codes_shape or list(scale.shape) != row_scale_shape:
            raise ValueError(
                f"{type(self).__name__}.quantize: gave codes {list(codes.shape)} and a scale {list(scale.shape)}; "
                f"they must be {codes_shape} and {row_scale_shape}"
            )
        return codes.to(torch.int8), scale.to(weight.dtype)


class Ternary(Quantizer):
    """Ternary weights {-s, 0, +s} by threshold, :func:`twn`; zeros are about 42 % of Gaussian weights at 0.7.

    Args:
        threshold: weights below this share of the mean magnitude become 0.
        per: weights that share a scale: ``channel`` or ``layer``.
    """

    name = "ternary"
    bits = 2

    def __init__(self, threshold: float = 0.7, per: str = "channel") -> None:
        super().__init__(per)
        if not 0 <= threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: must be 0 or more")
        self.threshold = threshold

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return twn(rows, self.threshold)


class TernaryTTQ(Quantizer):
    """Trained ternary weights {+Wp, 0, -Wn}, both scales learned from 1 on; codes by :func:`two_sided`.

    Gradients (arXiv 1612.01064): ``dw = g`` times ``Wp``, 1 or ``Wn`` where the code is +1, 0 or -1;
    ``dWp`` = sum of ``g`` over positive codes; ``dWn`` = minus the sum of ``g`` over negative ones.

    Args:
        threshold: weights below this share of the largest magnitude become 0.
        per: weights that share the two scales: ``channel`` or ``layer``.
    """

    name = "ternary_ttq"
    bits = 2
    scales_by = (SIGN,)
    grows = False

    def __init__(self, threshold: float = 0.05, per: str = "layer") -> None:
        super().__init__(per)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold!r}: must lie in [0, 1)")
        self.threshold = threshold

    def initial_scale(self, rows: Tensor) -> Tensor:  # noqa: D102
        return rows.new_ones(2, len(rows), 1)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return two_sided(rows, self.threshold), self.initial_scale(rows) if self.scale is None else self.scale

    def with_gradient(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:  # noqa: D102
        return _TTQ.apply(rows, codes, scale)


class TernaryAbsmean(Quantizer):
    """Ternary weights {-s, 0, +s} by rounding at the mean magnitude, :func:`absmean`; about 31 % zeros."""

    name = "ternary_absmean"
    bits = 2

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return absmean(rows)


class TemporalTernary(Quantizer):
    """Ternary weights that differ by time step, 2T + 1 codes a weight: TaWQ, :func:`temporal_ternary`.

    ``weight -> [T, *weight.shape]``; a scale for each output channel and step. Stored as sign times period, 4 bits a
    weight for T up to 7. At T = 1 a static ternary quantiser, of weights beyond half a deviation from the mean.

    Args:
        time_steps: T of the network.
    """

    name = "tawq"
    bits = 2
    scales_by = (STEP,)
    encoding = PERIODS
    grows = False

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        if not isinstance(time_steps, int) or not 1 <= time_steps <= 127:
            raise ValueError(f"time_steps={time_steps!r}: must be a whole number from 1 to 127")
        self.time_steps = time_steps

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        assert self.time_steps is not None
        return temporal_ternary(rows, self.time_steps)

    def with_gradient(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:  # noqa: D102
        return _TaWQ.apply(rows, codes, scale)

    def extra_repr(self) -> str:  # noqa: D102
        return f"time_steps={self.time_steps}"


class Binary(Quantizer):
    """Binary weights {-s, +s}, :func:`sign_mean`."""

    name = "binary"
    bits = 1

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return sign_mean(rows)


class Uniform(Quantizer):
    """Symmetric integers -q .. q times a step, :func:`uniform`, with ``q = 2^(bits-1) - 1``.

    Args:
        bits: 2 to 8.
        scale: ``max``, the step is ``max|w| / q``; or ``learned`` (LSQ, arXiv 1902.08153), it starts at
            ``2 mean|w| / sqrt(q)`` and is trained.
        per: weights that share a step: ``channel`` or ``layer``.
    """

    def __init__(self, bits: int, scale: str = "max", per: str = "channel") -> None:
        super().__init__(per)
        if not isinstance(bits, int) or bits not in range(2, 9):
            raise ValueError(f"bits={bits!r}: must be a whole number from 2 to 8")
        if scale not in ("max", "learned"):
            raise ValueError(f"scale={scale!r}: must be 'max' or 'learned'")
        self.bits = bits
        self.name = f"int{bits}"
        self.is_learned = scale == "learned"

    @property
    def limit(self) -> int:
        """The largest code, q."""
        return 2 ** (self.bits - 1) - 1

    def initial_scale(self, rows: Tensor) -> Tensor | None:  # noqa: D102
        if not self.is_learned:
            return None
        return (2 * rows.abs().mean(1, keepdim=True) / math.sqrt(self.limit)).clamp_min(1e-8)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        step = self.initial_scale(rows) if self.scale is None else self.scale.abs()
        if step is None:
            step = rows.abs().amax(1, keepdim=True) / self.limit
        return uniform(rows, step.detach(), self.bits), step

    def with_gradient(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:  # noqa: D102
        if self.is_learned:
            return _LSQ.apply(rows, codes, scale, self.limit)
        return super().with_gradient(rows, codes, scale)

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.bits}, scale={'learned' if self.is_learned else 'max'!r}, per={self.per!r}"
