"""What is counted of a product, of a layer of neurons, and of what they write: plain sums, by forward pass.

Letters: T time steps, B images of a forward, b a batch of matrices, m rows, k the numbers summed over, n columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

KINDS = ("spikes", "ternary spikes", "whole numbers", "numbers")
SPIKES, TERNARY, WHOLE, NUMBERS = range(len(KINDS))


def kind_of(x: Tensor, at_least: int = SPIKES) -> int:
    """The kind of the numbers in a tensor, as an index into :data:`KINDS`, or the kind known so far if that is later.

    Spikes are 0 and 1, ternary spikes -1, 0 and 1, whole numbers such as sums of spikes or counts of events.
    """
    if at_least == NUMBERS or x.dtype is torch.bool:
        return at_least
    if x.is_complex():
        return NUMBERS
    square = x * x
    if torch.equal(square, x):
        return at_least
    if torch.equal(square * x, x):
        return max(at_least, TERNARY)
    return max(at_least, WHOLE) if torch.equal(x.round(), x) else NUMBERS


@dataclass(frozen=True)
class Data:
    """The origin of what is computed from the network's input.

    Attributes:
        timed: from event frames or behind a neuron.
        images_first: its first dimension is that of the images, as far as is known: the input's is, and no operation
            has swapped it or set another before it.
    """

    timed: bool
    images_first: bool = True


class Passes:
    """How often a layer runs for an image: what one pass over all of its time steps does, and what one step does.

    A network of T steps runs a layer T times where the layer's input is ``[T, B, ...]`` or ``[T*B, ...]``; where its
    first dimension is a multiple of T*B (tokens or windows folded into it) and what it holds comes from neurons or from
    event frames; and where the layer is called T times, or a multiple of T. Any other runs once.
    Of T images, T tokens before all neurons look like ``[T, B, ...]``, and are no time where images lead. Attention and
    recurrent layers may transpose their input before they compute, so both shapes are looked at.

    Args:
        in_ann: whether an ANN of the same shape has this too; if not, it does nothing in one step without time.
    """

    def __init__(self, in_ann: bool = True) -> None:
        self.in_ann = in_ann
        self.dense = self.inputs = 0  # over all time steps
        self.dense_once = self.inputs_once = 0.0  # without time
        self._calls: list[tuple[int, int, tuple[torch.Size, ...], Data]] = []

    def call(self, dense: int, inputs: int, shapes: tuple[torch.Size, ...], data: Data) -> None:
        """One call: its dense operations, the numbers it reads, their possible shapes, and what is known of them."""
        self._calls.append((dense, inputs, shapes, data))

    def end(self, num_images: int, time_steps: int) -> None:
        """The forward pass is over, and T is known."""
        rows = time_steps * num_images
        have_time = [
            any(
                (
                    shape[:2] == (time_steps, num_images)
                    and (time_steps != num_images or data.timed or not data.images_first)
                )
                or shape[0] == rows
                or (data.timed and shape[0] % rows == 0)
                for shape in shapes
                if shape
            )
            for *_, shapes, data in self._calls
        ]
        in_a_loop = have_time.count(False) % time_steps == 0
        for (dense, inputs, *_), has_time in zip(self._calls, have_time, strict=True):
            steps = time_steps if has_time or in_a_loop else 1
            self.dense += dense
            self.inputs += inputs
            if self.in_ann:
                self.dense_once += dense / steps
                self.inputs_once += inputs / steps
        self._calls.clear()

    def drop(self) -> None:
        """The forward pass has failed."""
        self._calls.clear()


class WeightProduct:
    """Products of one weight with inputs: which numbers of the input were not 0, and what they meet.

    An input that is not 0 costs one operation at each of its synapses, a weight at an output position.
    """

    is_layer: ClassVar[bool] = True

    def __init__(self) -> None:
        self.passes = Passes(in_ann=self.is_layer)
        self.kind = SPIKES
        self.num_nonzero = 0.0
        self.density: dict[Any, tuple[int, int]] = {}
        # by the part of the weight, its zeros and the shape of an input, since a layer may have several of each
        self._nonzero: dict[Any, Tensor] = {}
        self._fan_out: dict[Any, Callable[[], Iterator[Tensor]]] = {}
        self._masks: dict[Any, list[Tensor]] = {}

    def count(self, key: Any, x: Tensor, weight: Tensor, fan_out: Callable[[Tensor], Callable[[], Any]]) -> None:
        """Inputs ``[rows, ...]``, counted over their rows.

        Args:
            key: says which part of the weight is met, and how.
            x: the inputs.
            weight: that part of the weight; another one of the same key, such as one parameter under two masks, counts
                by itself.
            fan_out: makes of the weight what gives, when called, the synapses that each number of a row feeds, and
                those of them that are not 0.
        """
        self.kind = kind_of(x, self.kind)
        nonzero = x.sum(0, dtype=torch.float32) if self.kind == SPIKES else (x != 0).sum(0, dtype=torch.float32)
        mask = weight != 0
        masks = self._masks.setdefault(key, [])
        place = next((place for place, known in enumerate(masks) if torch.equal(known, mask)), len(masks))
        if place == len(masks):
            masks.append(mask)
        key = key, place
        if key not in self._nonzero:
            self._nonzero[key] = torch.zeros((), dtype=torch.float64, device=x.device)
            self._fan_out[key] = fan_out(weight)
            self.density[key] = int(mask.sum()), weight.numel()
        self._nonzero[key] = self._nonzero[key] + nonzero.double()

    def report(self, num_images: int) -> dict[str, Any]:
        """The counts of an image."""
        num_nonzero, operations, on_nonzero = 0.0, 0.0, 0.0
        for key, nonzero in self._nonzero.items():
            every, some = self._fan_out[key]()
            num_nonzero += float(nonzero.sum())
            operations += float((nonzero * every).sum())
            on_nonzero += float((nonzero * some).sum())
        if not self.is_layer:
            operations = on_nonzero
        accumulates = self.kind <= TERNARY
        acs, macs = (operations, 0.0) if accumulates else (0.0, operations)
        return {
            "input": KINDS[self.kind],
            "input_rate": num_nonzero / self.passes.inputs if self.passes.inputs else 0.0,
            "dense_macs": self.passes.dense / num_images,
            "ann_macs": self.passes.dense_once / num_images,
            "synaptic_operations": acs / num_images,
            "on_nonzero_weights": (on_nonzero if accumulates else 0.0) / num_images,
            "macs": macs / num_images,
        }

    @property
    def nonzero_share(self) -> float:
        """Share of its weights that are not 0."""
        nonzero, total = (
            (sum(counts) for counts in zip(*self.density.values(), strict=True)) if self.density else (0, 1)
        )
        return nonzero / total


class NeuronProduct(WeightProduct):
    """A neuron's own product with a matrix, as that over time of a parallel neuron.

    No ANN has it. Zeros of the matrix are its shape, such as a triangle, and cost nothing.
    """

    is_layer = False


class ActivationProduct:
    """Products of two activations: an operation where neither is 0.

    Args:
        in_ann: see :class:`Passes`.
    """

    def __init__(self, in_ann: bool = True) -> None:
        self.passes = Passes(in_ann)
        self.kinds = (SPIKES, SPIKES)
        self.operations: Tensor | float = 0.0

    def count(self, a: Tensor, b: Tensor) -> None:
        """``[b, m, k]`` times ``[b, k, n]``."""
        self.kinds = kind_of(a, self.kinds[0]), kind_of(b, self.kinds[1])
        met = (a != 0).sum(1, dtype=torch.float64) * (b != 0).sum(2, dtype=torch.float64)
        self.operations = self.operations + met.sum()

    def report(self, num_images: int) -> dict[str, Any]:
        """The counts of an image."""
        operations = float(self.operations) / num_images
        accumulates = min(self.kinds) <= TERNARY  # the spikes of one select what of the other is summed
        return {
            "input": " x ".join(KINDS[kind] for kind in self.kinds),
            "dense_macs": self.passes.dense / num_images,
            "ann_macs": self.passes.dense_once / num_images,
            "synaptic_operations": operations if accumulates else 0.0,
            "on_nonzero_weights": operations if accumulates else 0.0,
            "macs": 0.0 if accumulates else operations,
        }


class NeuronCount:
    """Spikes of one layer of neurons, ``[T, B, ...]``: what is not 0, and what it may be beside 1."""

    def __init__(self) -> None:
        self.spikes: Tensor | int = 0
        self.kind = SPIKES
        self.low = self.high = 0.0
        self.chances = 0
        self.neurons = 0  # of the largest forward
        self._calls: list[tuple[int, int]] = []

    def count(self, output: Tensor) -> None:
        """Spikes ``[T, B, ...]``."""
        self.spikes = self.spikes + (output.detach() != 0).sum()
        self.kind = kind_of(output.detach(), self.kind)
        if self.kind >= WHOLE and output.numel():
            low, high = output.detach().aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        self.chances += output.numel()
        self._calls.append((len(output), output[0, 0].numel()))

    def end(self, time_steps: int | None) -> None:
        """The forward is over: a module that saw all steps several times is as many layers of neurons.

        One that was called step by step is one for each size.
        """
        whole = [neurons for steps, neurons in self._calls if steps == time_steps and steps > 1]
        by_step = {neurons for steps, neurons in self._calls if steps != time_steps or steps == 1}
        self.neurons = max(self.neurons, sum(whole) + sum(by_step))
        self._calls.clear()

    def report(self, num_images: int) -> dict[str, Any]:
        """The counts of an image; ``chances`` are neurons times steps, a spike is one of ``span`` + 1 numbers.

        The span is None where spikes are no whole numbers.
        """
        span = {SPIKES: 1, TERNARY: 2, WHOLE: round(self.high - self.low)}.get(self.kind)
        return {
            "output": KINDS[self.kind],
            "span": span,
            "neurons": self.neurons,
            "firing_rate": int(self.spikes) / self.chances if self.chances else 0.0,
            "spikes": int(self.spikes) / num_images,
            "chances": self.chances / num_images,
        }
