"""The time loop of the LIF neuron, plain or compiled: what runs behind `neurons.LIF`, where its equations stand.

On a CPU, uncompiled, `eager.py` runs in its place.

Shapes: T time steps, B batch, N neurons of one step. A current `[T, B, ...]` gives spikes of the same shape, dtype and
memory layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tna_lightning.models import eager
from tna_lightning.models.compiled import Code, at_once, has_compiler, now
from tna_lightning.models.surrogates import ATan, FastSigmoid, Surrogate, Triangular

_TOO_MANY = 2**31  # values for the 32-bit indices of code for CUDA
_SAME_BITS = (ATan, FastSigmoid, Triangular)  # compiled as well; an exponential may be rounded otherwise


def lif(
    current: Tensor, beta: Tensor, threshold: Tensor, reset: str, surrogate: Surrogate, compiled: bool | str = False
) -> Tensor:
    """Spikes `[T, B, ...]` of LIF neurons, with their gradients; the equations stand at `neurons.LIF`.

    Args:
        current: `[T, B, ...]`.
        beta: decay in [0, 1]; broadcasts against one time step.
        threshold: likewise.
        reset: "zero", "subtract" or "none".
        surrogate: the spike's derivative in the backward pass.
        compiled: run the loop as compiled code where a compiler is at hand; "auto" once that is built.
    """
    if torch.compiler.is_exporting():  # inference: nothing but plain operations, T unrolled
        _, fired = _trajectory(current, beta, threshold, reset)
        # not a cast of the comparison, which converters to float16 leave as it is
        zero, one = (torch.full((), value, dtype=current.dtype, device=current.device) for value in (0.0, 1.0))
        return _stack([torch.where(step, one, zero) for step in fired[1:]])
    if torch.compiler.is_compiling():  # the whole network: its compiler sees to layout and fusing
        return _TimeLoop.apply(current, beta, threshold, None, reset, surrogate, "plain")
    way = _way(current, compiled)
    order = [0, *sorted(range(1, current.ndim), key=current.stride, reverse=True)]  # as it lies in memory
    beta, threshold = (_flatten_parameter(parameter, current.shape, order) for parameter in (beta, threshold))
    spikes = _TimeLoop.apply(current, beta, threshold, order, reset, surrogate, way)
    return _unflatten(spikes, current.shape, order)


def _way(current: Tensor, compiled: bool | str) -> str:
    """How the loops run: "compiled", "auto", in "blocks" (`eager.py`), or as they stand here, "plain"."""
    device = current.device.type
    if compiled and current.numel() < _TOO_MANY and has_compiler(device):
        return "compiled" if compiled is True else "auto"
    return "blocks" if device == "cpu" and not torch.jit.is_tracing() else "plain"


def time_loop(current: Tensor, beta: Tensor, threshold: Tensor, reset: str) -> Tensor:
    """Spikes `[T, ...]` of neurons driven by `current` `[T, ...]`; the equations stand at `LIF`.

    `beta` and `threshold` broadcast against one time step. No gradient passes through these spikes: see
    `time_loop_gradients`.
    """
    _, fired = _trajectory(current, beta, threshold, reset)
    return _stack([step.to(current.dtype) for step in fired[1:]])


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
    """Gradients of a loss with respect to current, beta and threshold: backpropagation through time, written out.

    Those of beta and threshold, where asked for, are of each neuron, in the membrane's dtype: they are summed by the
    same operation however the loop runs, so that no bit depends on it.

    With g[t] = dL/dU[t], s'(u) the derivative of the surrogate, and K[t] = 1 - S[t] where reset="zero", else 1:

        g[t] = dL/dS[t] s'(U[t] - theta) + beta K[t] g[t+1]
        dL/dI[t] = g[t]
        dL/dbeta = sum over t of g[t] K[t-1] U[t-1]
        dL/dtheta = - sum over t of dL/dS[t] s'(U[t] - theta), and - sum of g[t] S[t-1] where reset="subtract"
    """
    membranes, fired = _trajectory(current, beta, threshold, reset)
    grad_current = [grad_spikes] * len(membranes)
    grad_membrane = torch.zeros_like(membranes[0])
    beta_sum = torch.zeros_like(grad_membrane) if learn_beta else grad_membrane
    threshold_sum = torch.zeros_like(grad_membrane) if learn_threshold else grad_membrane
    for t in reversed(range(len(membranes))):
        if reset == "zero":
            grad_membrane = grad_membrane.masked_fill(fired[t + 1], 0)
        if learn_beta:
            beta_sum = beta_sum + grad_membrane * membranes[t]
        through_spike = surrogate.backward(membranes[t] - threshold, grad_spikes[t].to(grad_membrane.dtype))
        grad_membrane = through_spike + beta * grad_membrane
        if learn_threshold:
            threshold_sum = threshold_sum - through_spike
        if learn_threshold and reset == "subtract":
            threshold_sum = threshold_sum - grad_membrane * fired[t]
        grad_current[t] = grad_membrane.to(current.dtype)
    return (_stack(grad_current), *[beta_sum] * learn_beta, *[threshold_sum] * learn_threshold)


def _stack(steps: list[Tensor]) -> Tensor:
    """Steps `[...]` as `[T, ...]`.

    Inductor's convolutions on a CPU are channels-last, but it writes a stack of five dimensions in the usual order, and
    transposes all around it. So while a whole network is compiled, the order of the stack is spelled out.
    """
    if steps[0].ndim == 4 and steps[0].device.type == "cpu" and torch.compiler.is_compiling():
        return torch.stack([step.permute(0, 2, 3, 1) for step in steps]).permute(0, 1, 4, 2, 3)
    return torch.stack(steps)


def time_chunk(
    current: Tensor, beta: Tensor, threshold: Tensor, reset: str, membrane: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Spikes as of `time_loop` for a later part of a sequence, and U of its last step before the reset.

    `membrane` is U of the step before, from which that step's spike follows; None at the beginning.
    """
    if _way(current, compiled=False) == "plain":
        membranes, fired = _trajectory(current, beta, threshold, reset, membrane)
        return _stack([step.to(current.dtype) for step in fired[1:]]), membranes[-1]
    order = list(range(current.ndim))
    beta, threshold = (_flatten_parameter(parameter, current.shape, order) for parameter in (beta, threshold))
    last = torch.empty(current.shape[1:], dtype=eager.membrane_dtype(current))
    before = None if membrane is None else membrane.flatten()
    spikes = eager.time_loop(_flatten(current, order), beta, threshold, reset, before, last.view(-1))
    return spikes.view(current.shape), last


def _trajectory(
    current: Tensor, beta: Tensor, threshold: Tensor, reset: str, membrane: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Membranes U[0] to U[T-1] before their reset, in float32 (float64 for float64), and whether S[-1] to S[T-1] fired.

    U[-1] is `membrane`, or 0.

    U > theta is U - theta > 0 in IEEE arithmetic; from the difference Inductor computes a spike again where it would
    store and transpose masks otherwise, which takes longer than the loop (benchmarks/results).
    """
    dtype = eager.membrane_dtype(current)
    if membrane is None:
        membrane = torch.zeros_like(current[0], dtype=dtype)
    membranes: list[Tensor] = []
    fired = [membrane - threshold > 0]  # of zeros none, unless a learned threshold fell below 0, as in snntorch
    for step in current.unbind(0):
        if reset == "zero":
            membrane = membrane.masked_fill(fired[-1], 0)
        membrane = beta * membrane + step.to(dtype)
        if reset == "subtract":
            membrane = membrane - fired[-1] * threshold
        membranes.append(membrane)
        fired.append(membrane - threshold > 0)
    return membranes, fired


class _TimeLoop(torch.autograd.Function):
    """`time_loop` forward, `time_loop_gradients` backward, in one of three ways (`_way`).

    The current is all that is kept in between, in its own dtype: membranes and spikes follow from it exactly, and
    computing them again costs a fused loop no memory traffic, where bits for spikes alone would not give the membrane.

    With the `order` of the dimensions in memory, the loops see the current as `[T, N]`, and such are the spikes. Done
    in here, not around it, this spares autograd nodes that take longer than the loop itself over a small batch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        threshold: Tensor,
        order: list[int] | None,
        reset: str,
        surrogate: Surrogate,
        way: str,
    ) -> Tensor:
        ctx.save_for_backward(current, beta, threshold)
        ctx.settings = order, reset, surrogate, way
        flat = current if order is None else _flatten(current, order)
        (spikes,) = _call(way, time_loop, (flat, beta, threshold), (reset,))
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        current, beta, threshold = ctx.saved_tensors
        order, reset, surrogate, way = ctx.settings
        _, learn_beta, learn_threshold, *_ = ctx.needs_input_grad
        flat = current if order is None else _flatten(current, order)
        settings = reset, surrogate, learn_beta, learn_threshold
        way = "plain" if surrogate.is_random else way  # which draws for all neurons of a step at once
        if way == "auto" and type(surrogate) not in _SAME_BITS:
            way = "compiled"
        grad_current, *sums = _call(way, time_loop_gradients, (flat, beta, threshold, grad_spikes), settings)
        if order is not None:
            grad_current = _unflatten(grad_current, current.shape, order)
        grad_beta = sums.pop(0).sum_to_size(beta.shape).to(beta.dtype) if learn_beta else None
        grad_threshold = sums.pop(0).sum_to_size(threshold.shape).to(threshold.dtype) if learn_threshold else None
        return grad_current, grad_beta, grad_threshold, None, None, None, None


def _flatten(current: Tensor, order: list[int]) -> Tensor:
    """A current as `[T, N]`: a view where it is dense or one for all steps."""
    return (current if order == sorted(order) else current.permute(order)).flatten(1)


def _flatten_parameter(parameter: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """A parameter for such a current: one value, or `[N]`."""
    if parameter.numel() == 1:
        return parameter if parameter.ndim == 0 else parameter.reshape(())
    return parameter.expand(shape[1:]).permute([dim - 1 for dim in order[1:]]).reshape(-1)


def _unflatten(flat: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """`[T, N]` in the shape and memory order of the current."""
    if order == sorted(order):  # the common case without operations that do nothing, a few microseconds each
        return flat.view(shape)
    return flat.view([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(len(order))])


_IN_BLOCKS: dict[Callable[..., Any], Callable[..., Any]] = {
    time_loop: eager.time_loop,
    time_loop_gradients: eager.time_loop_gradients,
}


def _call(
    way: str, function: Callable[..., Any], tensors: tuple[Tensor, ...], settings: tuple[Any, ...]
) -> Sequence[Tensor]:
    """`function(*tensors, *settings)` in that way; tensors are `[T, N]`, `[N]` or `[]`, for "plain" of any shape."""
    if way in ("compiled", "auto"):
        # of a float64 without dimensions, tracing would make a symbol for its value, which the compiler refuses
        wide = tuple(tensor.view(1) if tensor.ndim == 0 else tensor for tensor in tensors)
        wide = tuple(tensor if tensor.stride() == (0, 1) else tensor.contiguous() for tensor in wide)
        kinds = tuple((tensor.dtype, tensor.ndim, len(tensor) == 1 or tensor.stride() == (0, 1)) for tensor in wide)
        code = Code(function, settings, len(wide[0]), kinds, wide[0].device, torch.get_num_threads())
        run = at_once(code) if way == "compiled" else now(code, wide[0].numel())
        if run is not None:
            return run(*wide)
    outputs = (function if way == "plain" else _IN_BLOCKS[function])(*tensors, *settings)
    return outputs if isinstance(outputs, tuple) else (outputs,)
