"""Neurons of other libraries: a cell that computes one step, stepped over time.

Slower than the neurons of this package (docs/neighbours.md says by how much), but any of theirs, in any backbone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.surrogates import Surrogate, get_surrogate
from tna_lightning.packages import require


class Stepwise(SpikingNeuron):
    """Steps a stateful cell over `[T, B, ...]`, from a new state in every forward; nothing of it is left in the cell.

    A cell computes one step in one of three ways:

    - as snntorch's, known by `reset_mem`: `spikes, *state = cell(current, *state)`, at first without a state;
    - as spikingjelly's in single-step mode, known by `reset`: `spikes = cell(current)`, and `reset()` forgets;
    - as norse's, and any other: `spikes, state = cell(current, state)`, at first with None.

    Currents of bf16 and fp16 are stepped in float32 and give spikes of their own dtype. A cell of snntorch does not
    stay in the list in which that library keeps every neuron, so its `reset` and `detach` do not reach in here.

    Args:
        cell: a factory of cells, `functools.partial(snntorch.Leaky, beta=0.5)`, or a cell, of which a copy is taken.

    Raises:
        ValueError: an input that is not `[T, B, ...]`.
    """

    def __init__(self, cell: nn.Module | Callable[[], nn.Module]):
        super().__init__()
        self.cell = copy.deepcopy(cell) if isinstance(cell, nn.Module) else cell()
        for module in self.cell.modules():
            known = getattr(type(module), "instances", None)  # snntorch's
            if isinstance(known, list):
                known[:] = [other for other in known if other is not module]

    def no_weight_decay(self) -> set[str]:
        """All but weights in the cell, which have two dimensions and more."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def forward(self, current: Tensor) -> Tensor:
        """Spikes `[T, B, ...]` for the currents `[T, B, ...]`."""
        if current.ndim < 2 or current.shape[0] < 1:
            raise ValueError(
                f"current={list(current.shape)}: must have at least two dimensions and a step, [T, B, ...]"
            )
        state: Any = () if hasattr(self.cell, "reset_mem") else None
        spikes = []
        with _left_as_it_was(self.cell):
            for step in current.to(torch.promote_types(current.dtype, torch.float32)):
                fired, state = self.step(step, state)
                spikes.append(fired)
        return torch.stack(spikes).to(current.dtype)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes `[B, ...]` of one step, and the state after it."""
        if hasattr(self.cell, "reset_mem"):
            spikes, *state = self.cell(current, *state)
            return spikes, state
        if hasattr(self.cell, "reset"):
            return self.cell(current), None
        spikes, state = self.cell(current, state)
        return spikes, state


@contextmanager
def _left_as_it_was(cell: nn.Module) -> Iterator[None]:
    """Take out of a cell what it keeps of the steps in attributes and buffers."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in cell.modules()]
    _reset(cell)
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        _reset(cell)


def _reset(cell: nn.Module) -> None:
    """Let spikingjelly's modules forget."""
    for module in cell.modules():
        if not hasattr(module, "reset_mem") and callable(reset := getattr(module, "reset", None)):
            reset()


def snntorch_neuron(
    cell: str = "Leaky",
    settings: Mapping[str, Any] | None = None,
    surrogate: str | Surrogate = "atan",
    channels: int | None = None,
) -> Stepwise:
    """A neuron of snntorch by its name, as `Stepwise`.

    Args:
        cell: `Leaky`, `Synaptic`, `Alpha`, `Lapicque`, `RLeaky`, `RSynaptic` or another that is stepped like these.
        settings: of the cell, such as `beta`; a recurrent one asks for `all_to_all: false`, or between convolutions for
            a `kernel_size`.
        surrogate: see `LIF`; snntorch's own closures cannot be pickled.
        channels: C, for recurrent convolutions; backbones say it.

    Raises:
        MissingPackage: snntorch is not installed.
        ValueError: there is no such cell, or it is not stepped so; or it refuses its settings.
    """
    require("snntorch")
    import snntorch

    given = dict(settings or {})
    kinds = {name: kind for name, kind in vars(snntorch).items() if isinstance(kind, type) and _is_stepped(kind)}
    kind = _kind("snntorch", cell, kinds)
    names = list(inspect.signature(kind).parameters)
    if "conv2d_channels" in names and "kernel_size" in given:
        given.setdefault("conv2d_channels", channels)
    for name, value in given.items():  # snntorch clamps decays in silence
        if name in ("alpha", "beta") and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"settings.{name}={value!r}: must lie in [0, 1]")
        if name == "threshold" and isinstance(value, int | float) and not value > 0:
            raise ValueError(f"settings.{name}={value!r}: must be above 0")
    by_us = ("spike_grad", "surrogate_disable", "init_hidden", "output")
    return _made(kind, given, [name for name in names if name not in by_us], spike_grad=get_surrogate(surrogate))


def _is_stepped(kind: type) -> bool:
    has_own_size = {"input_size", "in_channels"} & inspect.signature(kind).parameters.keys()
    return hasattr(kind, "reset_mem") and not has_own_size


def spikingjelly_neuron(cell: str = "LIFNode", settings: Mapping[str, Any] | None = None) -> Stepwise:
    """A neuron of spikingjelly by its name (`spikingjelly.activation_based.neuron`), as `Stepwise`.

    It fires and has its gradient as there: at the threshold already, with spikingjelly's own surrogate.

    Args:
        cell: `LIFNode`, `IFNode`, `ParametricLIFNode` or another with a single-step mode.
        settings: of the cell, such as `tau` or `detach_reset`.

    Raises:
        MissingPackage: spikingjelly is not installed.
        ValueError: there is no such cell, or it refuses its settings.
    """
    require("spikingjelly")
    from spikingjelly.activation_based import base, neuron

    kinds = {
        name: kind
        for name, kind in vars(neuron).items()
        if isinstance(kind, type)
        and issubclass(kind, base.MemoryModule)
        and "step_mode" in inspect.signature(kind).parameters
    }
    kind = _kind("spikingjelly", cell, kinds)
    given = dict(settings or {})
    return _made(kind, given, [name for name in inspect.signature(kind).parameters if name != "step_mode"])


def _kind(library: str, cell: str, kinds: Mapping[str, type]) -> type:
    if cell not in kinds:
        raise ValueError(f"cell={cell!r}: must be a neuron of {library} that is stepped: {', '.join(sorted(kinds))}")
    return kinds[cell]


def _made(kind: type, settings: Mapping[str, Any], names: list[str], **further: Any) -> Stepwise:
    if unknown := [name for name in settings if name not in names]:
        raise ValueError(f"settings.{unknown[0]}: {kind.__name__} takes {', '.join(names)}")
    try:
        return Stepwise(lambda: kind(**settings, **further))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings={dict(settings)!r}: {kind.__name__}: {' '.join(str(error).split())}") from error
