"""The time loop of LIF neurons on a CPU without compiled code: in blocks of neurons that stay in the cache, in place.

Plain operations on a whole layer read and write main memory at each of their steps; here every step of a block finds it
in the cache, and nothing is allocated but what is returned and the room for one block. Operations and their order are
those of `fused.py`, where the equations stand, so that no bit differs.

Shapes: T time steps, N neurons of a layer, n of a block. Currents are `[T, N]`, parameters one value or `[N]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from tna_lightning.models.surrogates import ATan, FastSigmoid, Surrogate, Triangular

_VALUES = 2**21  # T n for each thread: what a block's backward pass goes back to
_NEURONS = (2**15, 2**18)  # n for each thread: torch uses no second one for less; more gains nothing in cache

Rows = Sequence[Tensor]


def time_loop(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    reset: str,
    membrane: Tensor | None = None,
    last_membrane: Tensor | None = None,
) -> Tensor:
    """Spikes `[T, N]` as of `fused.time_loop`, without gradients.

    Args:
        current: `[T, N]`.
        beta: decay in [0, 1].
        threshold: likewise one value or `[N]`.
        reset: "zero", "subtract" or "none".
        membrane: U before the first step, `[N]` in the loop's own dtype; None for zeros.
        last_membrane: receives U of the last step before its reset, likewise.
    """
    dtype = membrane_dtype(current)
    spikes = torch.empty(current.shape, dtype=current.dtype)
    size = _block_size(current)
    room = torch.empty(2, min(size, current.shape[1]), dtype=dtype)
    tensors = current, spikes, beta.to(dtype), threshold.to(dtype), membrane, last_membrane
    for currents, outputs, beta, threshold, membrane, last in _blocks(size, *tensors):
        own_membrane, own_fired = room[:, : currents.shape[1]]
        rows = outputs.unbind(0)
        fired = rows if spikes.dtype == dtype else [own_fired] * len(rows)
        steps = _trajectory(currents.unbind(0), beta, threshold, reset, [own_membrane] * len(rows), fired, membrane)
        for row, values, now in zip(rows, fired, steps, strict=True):
            if row is not values:
                row.copy_(values)
            if last is not None and row is rows[-1]:
                last.copy_(now)
    return spikes


def time_loop_gradients(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    grad_spikes: Tensor,
    reset: str,
    surrogate: Surrogate,
    learn_beta: bool,
    learn_threshold: bool,
) -> tuple[Tensor, ...]:
    """Gradients as of `fused.time_loop_gradients`: membranes and spikes of a block again, then back through them."""
    dtype = membrane_dtype(current)
    gradients = torch.empty(current.shape, dtype=current.dtype)
    beta_sum = torch.zeros(current.shape[1], dtype=dtype) if learn_beta else None
    threshold_sum = torch.zeros(current.shape[1], dtype=dtype) if learn_threshold else None
    size = _block_size(current)
    length, width = len(current), min(size, current.shape[1])
    many = length if learn_beta else 1  # membranes of all steps, or of one
    room = torch.empty(2 + many + (0 if gradients.dtype == dtype else length), width, dtype=dtype)
    tensors = current, grad_spikes, gradients, beta.to(dtype), threshold.to(dtype), beta_sum, threshold_sum
    for block in _blocks(size, *tensors):
        rows = room[:, : block[0].shape[1]].unbind(0)
        membranes, below = rows[2 : 2 + many], rows[2 + many :]
        _block_gradients(reset, surrogate, membranes if learn_beta else membranes * length, below, rows[:2], *block)
    return (gradients, *(each for each in (beta_sum, threshold_sum) if each is not None))


def _block_gradients(
    reset: str,
    surrogate: Surrogate,
    membranes: Rows,
    below: Rows,
    scratch: Rows,
    current: Tensor,
    grad_spikes: Tensor,
    grad_current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    beta_sum: Tensor | None,
    threshold_sum: Tensor | None,
) -> None:
    """Writes the gradients of one block where they belong.

    There lies theta - U[t] before, which tells of step t all that the way back asks for. `membranes` (one room for all
    steps, if no gradient of beta is asked for) and `scratch` are room, and so is `below`, for outputs of another dtype.
    """
    carried, product = scratch
    outputs = grad_current.unbind(0)
    gradients = below or outputs
    trajectory = list(_trajectory(current.unbind(0), beta, threshold, reset, membranes, gradients, spare=product))
    backward = _IN_PLACE.get(type(surrogate), _any_backward)
    gradient: Tensor | None = None  # of a loss with respect to U[t + 1], then U[t]
    for t, grad in reversed(list(enumerate(grad_spikes.unbind(0)))):
        if gradient is not None:
            kept = _zero_where_fired(gradients[t], gradient, carried) if reset == "zero" else gradient
            if beta_sum is not None:
                beta_sum.add_(torch.mul(kept, trajectory[t], out=product))
            torch.mul(kept, beta, out=carried)
        through_spike = backward(surrogate, gradients[t], grad.to(beta.dtype))
        if threshold_sum is not None:
            threshold_sum.sub_(through_spike)
        if gradient is not None:
            gradient = torch.add(through_spike, carried, out=gradients[t])
        else:
            gradient = through_spike if through_spike is gradients[t] else gradients[t].copy_(through_spike)
        if threshold_sum is not None and reset == "subtract":
            fired_before = torch.lt(gradients[t - 1], 0, out=product) if t > 0 else _fires_at_zero(threshold)
            threshold_sum.addcmul_(gradient, fired_before, value=-1)
        if below:
            outputs[t].copy_(gradient)


def _trajectory(
    currents: Rows,
    beta: Tensor,
    threshold: Tensor,
    reset: str,
    membranes: Rows,
    marks: Rows,
    membrane: Tensor | None = None,
    spare: Tensor | None = None,
) -> Iterator[Tensor]:
    """Gives U[t] step by step, before its reset, in `membranes[t]` or the current; `marks[t]` then holds S[t], 0 or 1.

    With a spare room for S[t], `marks[t]` holds theta - U[t]. Membranes may be the same room for all steps, and marks
    without a spare one. Products are rounded before they are added, as in compiled code; `addcmul_`, which may not do
    that, is for those that are exact.
    """
    zero_where = _zero_where if spare is None else _zero_where_fired
    before = marks[0] if membrane is None else torch.gt(membrane, threshold, out=marks[0])
    for current, room, mark in zip(currents, membranes, marks, strict=True):
        if membrane is None:  # at rest
            membrane = current if current.dtype == room.dtype else room.copy_(current)
            if reset == "subtract":
                membrane = torch.sub(membrane, threshold.clamp(max=0), out=room)
        else:
            if reset == "zero":
                zero_where(before, membrane, room).mul_(beta)
            else:
                torch.mul(membrane, beta, out=room)
            membrane = room.add_(current)
            if reset == "subtract":
                fired = before if spare is None else torch.lt(before, 0, out=spare)
                membrane.addcmul_(fired, threshold, value=-1)
        before = torch.gt(membrane, threshold, out=mark) if spare is None else torch.sub(threshold, membrane, out=mark)
        yield membrane


def _fires_at_zero(threshold: Tensor) -> Tensor:
    """Whether neurons at rest spike, 0 or 1: none unless a learned threshold fell below 0, as in snntorch."""
    return torch.lt(threshold, 0).to(threshold.dtype)


def _zero_where(fired: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """The values where no spike was fired, and 0 where one was; in place if `out` are the values.

    What torch calls the gradient of hardtanh keeps values where -1 < `fired` < 1, whatever they are, nan and inf too,
    and is vectorised; `masked_fill_` and `where` take five times as long.
    """
    return torch.ops.aten.hardtanh_backward.grad_input(values, fired, -1, 1, grad_input=out)


def _zero_where_fired(below: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """The same, by `below` = theta - U. What torch calls the gradient of threshold keeps values unless below <= -tiny.

    Differences between 0 and the smallest normal number, tiny, are none but those of thresholds and membranes of 1e-31.
    """
    return torch.ops.aten.threshold_backward.grad_input(values, below, -torch.finfo(below.dtype).tiny, grad_input=out)


def _any_backward(surrogate: Surrogate, below: Tensor, grad_spikes: Tensor) -> Tensor:
    return surrogate.backward(torch.rsub(below, 0), grad_spikes)


def _atan_backward(surrogate: ATan, below: Tensor, grad_spikes: Tensor) -> Tensor:
    below.mul_(math.pi / 2 * surrogate.alpha).square_().add_(1).reciprocal_()
    if surrogate.alpha != 2:
        below.mul_(surrogate.alpha / 2)
    return below.mul_(grad_spikes)


def _fast_sigmoid_backward(surrogate: FastSigmoid, below: Tensor, grad_spikes: Tensor) -> Tensor:
    return below.abs_().mul_(surrogate.slope).add_(1).square_().reciprocal_().mul_(grad_spikes)


def _triangular_backward(surrogate: Triangular, below: Tensor, grad_spikes: Tensor) -> Tensor:
    return torch.le(below, 0, out=below).mul_(-2).add_(1).mul_(surrogate.threshold).mul_(grad_spikes)


_IN_PLACE: dict[type[Surrogate], Callable[..., Tensor]] = {
    ATan: _atan_backward,
    FastSigmoid: _fast_sigmoid_backward,
    Triangular: _triangular_backward,
}
"""`Surrogate.backward` of these classes themselves, not of what derives from them, in the place of theta - U.

The same bits: the sign of the difference is lost in a square and in an absolute value. The others' own `backward` takes
a third more time for the whole loop, since it allocates.
"""


def membrane_dtype(current: Tensor) -> torch.dtype:
    """Of membranes: float64 for float64, else float32."""
    return torch.float64 if current.dtype == torch.float64 else torch.float32


def _block_size(current: Tensor) -> int:
    """Neurons of a block, such that each thread has enough of them."""
    least, most = _NEURONS
    return torch.get_num_threads() * min(max(_VALUES // len(current), least), most)


def _blocks(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Blocks of as many neurons of all tensors side by side; of a single value, and of None, the same for all."""
    parts = [repeat(tensor) if tensor is None or tensor.ndim == 0 else tensor.split(size, -1) for tensor in tensors]
    return zip(*parts, strict=False)
