"""A network as the layers that the C kernels know: what is refused is refused here, by the module's name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.export.parts import parts_of, refuse_what_no_layer_says
from tna_lightning.models import LIF, BasicBlock, MSBlock, Network, PerStep, SEWBlock
from tna_lightning.quantization.codes import CHANNEL, SIGN, Codes
from tna_lightning.quantization.folding import ScaledConv2d, fold_batch_norm

PIXELS = "pixels"  # the map that the first convolution sees
MOST_PLANES = 24
LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Map:
    """Spikes, or small whole numbers: 0 to ``largest``, ``[C, H, W]``, that stand for so many ``1 / denominator``.

    Or floats: pixels, or the currents that a block hands on which adds them (:class:`~tna_lightning.models.MSBlock`).
    """

    name: str
    channels: int
    height: int
    width: int
    largest: int = 1
    denominator: int = 1
    is_float: bool = False

    @property
    def planes(self) -> int:
        """Binary digits of the largest value."""
        return self.largest.bit_length()

    @property
    def are_currents(self) -> bool:
        """Whether it holds currents."""
        return self.is_float and self.name != PIXELS

    @property
    def words(self) -> int:
        """Words for all of it: of 64 bits, or a float32 number each."""
        return self.height * self.width * (self.channels if self.is_float else self.planes * words_of(self.channels))


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution, or a linear layer as one whose kernel is its whole input.

    ``current = sum(rows) * scale + bias`` for each output channel; a row is (kernel row, kernel column, input channel).

    Attributes:
        codes: int64 ``[rows, C_out]``, and their bits; None where the weights are not codes of one scale or two.
        weights: float32 ``[rows, C_out]``, where there are no codes.
        scale: float32 ``[C_out]``.
        negative_scale: of negative codes, where they have one of their own.
    """

    name: str
    source: Map
    out_channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    codes: np.ndarray | None
    bits: int
    weights: np.ndarray | None
    scale: np.ndarray
    negative_scale: np.ndarray | None
    bias: np.ndarray

    @property
    def num_rows(self) -> int:
        """Weights of one output channel."""
        return math.prod(self.kernel) * self.source.channels


@dataclass(frozen=True, eq=False)
class Neurons:
    """A layer of LIF neurons driven by convolutions and, in a residual block, by the spikes of ``identity``.

    Without convolutions, by the currents of ``identity``.
    """

    name: str
    sources: list[Convolution]
    identity: Map | None
    out: Map
    reset: str
    beta: np.ndarray
    threshold: np.ndarray


@dataclass(frozen=True, eq=False)
class Pool:
    """Average or maximum over windows: of output row y the input rows from ``rows[y][0]`` up to ``rows[y][1]``."""

    name: str
    kind: str
    source: Map
    out: Map
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Join:
    """What a SEW block makes of its spikes and its shortcut's map: their sum, or that map where it spikes or does not.

    Attributes:
        kind: ``add``, ``and`` or ``iand``.
        spikes: of the block's last neurons.
        other: the shortcut's, spikes or whole numbers.
    """

    name: str
    kind: str
    spikes: Map
    other: Map
    out: Map


@dataclass(frozen=True, eq=False)
class Currents:
    """Currents that are kept: those of a convolution of pixels or spikes; in a residual block, plus its shortcut's.

    Attributes:
        shortcut: a convolution of currents, or currents as they are, in whose place ``out`` lies.
    """

    name: str
    source: Convolution
    shortcut: Convolution | Map | None
    out: Map


Layer = Neurons | Pool | Join | Currents


@dataclass(frozen=True, eq=False)
class Program:
    """The layers in the order in which they run.

    Attributes:
        inputs: C, H, W of an image or frame.
        time_steps: T of an image.
        layers: the first one sees pixels.
        readout: the classifier.
    """

    inputs: tuple[int, int, int]
    time_steps: int
    layers: list[Layer]
    readout: Convolution

    @property
    def num_classes(self) -> int:
        """K."""
        return self.readout.out_channels


def words_of(channels: int) -> int:
    """Words of 64 bits that hold so many."""
    return -(-channels // 64)


@torch.no_grad()
def to_program(network: nn.Module, inputs: tuple[int, int, int]) -> Program:
    """The layers of a network, batch norm folded.

    Args:
        network: a :class:`~tna_lightning.models.Network` in eval mode, quantised or not, folded or not.
        inputs: C, H, W of an image or frame.

    Raises:
        ValueError: there is no kernel for a module; the message names it.
    """
    if not isinstance(network, Network) or type(network).forward is not Network.forward:
        kind = type(network).__name__
        raise ValueError(f"network: there is no C code for {kind}, only for tna_lightning.models.Network")
    refuse_what_no_layer_says(network, "there is no C kernel")
    _refuse_unknown(network)
    builder = _Builder(inputs)
    builder.walk("", fold_batch_norm(network))
    assert builder.readout is not None
    return Program(inputs, network.time_steps, builder.layers, builder.readout)


POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
_LAYERS = (nn.Conv2d, ScaledConv2d, nn.Linear, nn.BatchNorm2d, LIF, *POOLS)
_BLOCKS = (BasicBlock, MSBlock, SEWBlock)
_KNOWN = {module.forward for module in (*_LAYERS, *_BLOCKS, nn.Sequential, PerStep, nn.Identity, nn.Flatten)}


def _refuse_unknown(network: nn.Module) -> None:
    """Refuse a module without a kernel, before folding, which would name the batch norm next to it."""
    for name, module in network.named_modules():
        is_parametrization = ".parametrizations" in f".{name}"  # evaluated when the network is folded
        if name and not is_parametrization and type(module).forward not in _KNOWN:
            raise ValueError(f"network.{name}: there is no C kernel for {type(module).__name__}")


class _Builder:
    """Layers so far. The next module sees the map ``here``, or the currents of the convolutions in ``pending``."""

    def __init__(self, inputs: tuple[int, int, int]) -> None:
        self.layers: list[Layer] = []
        self.readout: Convolution | None = None
        self.here = Map(PIXELS, *inputs, is_float=True)
        self.pending: list[Convolution] = []
        self.identity: Map | None = None
        self.in_shortcut = False  # of a block that adds currents: a convolution may see them

    def walk(self, name: str, module: nn.Module) -> None:
        """Append a module."""
        if isinstance(module, BasicBlock):
            block_input = self.here
            for part in ("conv1", "neuron1", "conv2"):
                self.walk(f"{name}.{part}", getattr(module, part))
            residual, self.pending = self.pending, []
            self.here = block_input
            self.walk(f"{name}.shortcut", module.shortcut)
            if self.pending:
                self.pending = residual + self.pending
            else:
                if self.here.largest > 1 or self.here.is_float:
                    raise ValueError(
                        f"network.{name}.shortcut: there is no C kernel for a shortcut of what is no spikes"
                    )
                self.pending, self.identity = residual, self.here
            self.walk(f"{name}.neuron2", module.neuron2)
        elif isinstance(module, MSBlock):
            if self.pending:
                self.keep_currents(self.pending[0].name)
            block_input = self.here
            for part in ("neuron1", "pool", "conv1", "neuron2", "conv2"):
                self.walk(f"{name}.{part}", getattr(module, part))
            residual, self.pending = self.pending, []
            self.here = block_input
            self.walk(f"{name}.pool", module.pool)
            self.in_shortcut = True
            self.walk(f"{name}.shortcut", module.shortcut)
            self.in_shortcut = False
            shortcut, self.pending = self.pending, residual
            self.keep_currents(name, shortcut[0] if shortcut else self.here)
        elif isinstance(module, SEWBlock):
            block_input = self.here
            for part in ("conv1", "neuron1", "conv2", "neuron2"):
                self.walk(f"{name}.{part}", getattr(module, part))
            spikes, self.here = self.here, block_input
            self.walk(f"{name}.shortcut", module.shortcut)
            self.add_join(name, module.connect, spikes)
        elif isinstance(module, LIF):
            self.add_neurons(name, module)
        elif isinstance(module, nn.Conv2d):
            self.add_convolution(name, module)
        elif isinstance(module, nn.Linear):
            self.add_linear(name, module)
        elif isinstance(module, POOLS):
            self.add_pool(name, module)
        else:
            for part, child in parts_of(module):
                self.walk(f"{name}.{part}".lstrip("."), child)

    def add_neurons(self, name: str, neurons: LIF) -> None:
        if self.pending:
            first = self.pending[0]
            shape = (first.out_channels, first.out_height, first.out_width)
        elif self.here.are_currents:
            self.identity = self.here
            shape = (self.here.channels, self.here.height, self.here.width)
        else:
            raise ValueError(f"network.{name}: neurons must follow a convolution")
        beta, threshold = (
            _per_channel(name, what, value, shape)
            for what, value in zip(("beta", "threshold"), neurons.of_one_step(torch.Size([1, *shape])), strict=True)
        )
        out = Map(name, *shape)
        self.layers.append(Neurons(name, self.pending, self.identity, out, neurons.reset, beta, threshold))
        self.here, self.pending, self.identity = out, [], None

    def keep_currents(self, name: str, shortcut: Convolution | Map | None = None) -> None:
        (source,), self.pending = self.pending, []
        self.here = Map(name, source.out_channels, source.out_height, source.out_width, is_float=True)
        self.layers.append(Currents(name, source, shortcut, self.here))

    def add_join(self, name: str, kind: str, spikes: Map) -> None:
        other = self.here
        if other.is_float or other.denominator > 1:
            raise ValueError(f"network.{name}.shortcut: there is no C kernel for a shortcut of what is no whole number")
        largest = other.largest + (kind == "add")
        out = Map(name, other.channels, other.height, other.width, largest)
        self.layers.append(Join(name, kind, spikes, other, out))
        self.here = out

    def add_convolution(self, name: str, conv: nn.Conv2d) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or conv.groups != 1:
            raise ValueError(f"network.{name}: C convolutions pad with zeros, by numbers of pixels, and have one group")
        kernel, stride, padding, dilation = (
            _pair(value) for value in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        )
        sizes = (self.here.height, self.here.width)
        height, width = (
            (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
            for axis, size in enumerate(sizes)
        )
        self.add(name, conv, conv.weight, (height, width), kernel, stride, padding, dilation)

    def add_linear(self, name: str, linear: nn.Linear) -> None:
        sizes = (self.here.height, self.here.width)
        self.add(name, linear, linear.weight, (1, 1), sizes, (1, 1), (0, 0), (1, 1))
        (self.readout,) = self.pending
        self.pending = []

    def add(
        self,
        name: str,
        layer: Any,
        weight: Tensor,
        out: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None:
        """Append a layer whose weight flattens to ``[C_out, C_in * kernel]``."""
        if self.pending or self.readout is not None:
            raise ValueError(f"network.{name}: there is no C kernel for a layer without neurons before it")
        source = self.here
        if source.are_currents and not self.in_shortcut:
            raise ValueError(f"network.{name}: there is no C kernel for a layer of currents but a block's shortcut")
        if min(out) < 1:
            raise ValueError(f"network.{name}: {source.height} x {source.width} pixels are too few for it")
        channels = len(weight)
        scale = layer.scale.detach().double() if isinstance(layer, ScaledConv2d) else torch.ones(channels).double()
        bias = torch.zeros(channels) if layer.bias is None else layer.bias.detach()
        codes, bits, values, negative_scale = None, 0, None, None
        kept: Codes | None = getattr(layer, "kept", None)
        if not source.is_float and kept is not None and _is_said_in_bits(kept):
            codes, bits = _rows(kept.values.long(), channels, kernel), kept.bits
            if kept.scale is not None and SIGN in kept.scale_axes:
                scales = kept.scale.double().reshape(2, -1).expand(2, channels)
                scale, negative_scale = scales[0] * scale, scales[1] * scale
            elif kept.scale is not None:
                scale = kept.scale.double().flatten().expand(channels) * scale
        else:
            values = _rows(weight.detach(), channels, kernel).astype(np.float32)
        convolution = Convolution(
            name,
            source,
            channels,
            *out,
            kernel,
            stride,
            padding,
            dilation,
            codes,
            bits,
            values,
            _float32(scale / source.denominator),
            None if negative_scale is None else _float32(negative_scale / source.denominator),
            _float32(bias),
        )
        if not source.is_float and convolution.num_rows * source.largest * 2 ** max(bits - 1, 0) > LARGEST_SUM:
            raise ValueError(f"network.{name}: its sums do not fit into 32 bits")
        self.pending.append(convolution)

    def add_pool(self, name: str, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.MaxPool2d) -> None:
        source = self.here
        of_currents = source.are_currents and isinstance(pool, nn.MaxPool2d)
        if self.pending or (source.is_float and not of_currents):
            raise ValueError(f"network.{name}: there is no C kernel for pooling of what is no spikes")
        sizes = (source.height, source.width)
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            wanted: Any = pool.output_size
            asked = [wanted] * 2 if isinstance(wanted, int) else list(wanted)
            outs = [size if out is None else out for size, out in zip(sizes, asked, strict=True)]
            rows, columns = (
                [(place * size // out, -(-(place + 1) * size // out)) for place in range(out)]
                for size, out in zip(sizes, outs, strict=True)
            )
        else:
            if isinstance(pool, nn.AvgPool2d) and (_pair(pool.padding) != (0, 0) or pool.divisor_override is not None):
                raise ValueError(f"network.{name}: C averages have no padding and no divisor of their own")
            if _pair(getattr(pool, "dilation", 1)) != (1, 1):
                raise ValueError(f"network.{name}: C pooling has no dilation")
            window, step, padding = (_pair(each) for each in (pool.kernel_size, pool.stride, pool.padding))
            rows, columns = (
                _windows(size, window[axis], step[axis], padding[axis], bool(pool.ceil_mode))
                for axis, size in enumerate(sizes)
            )
        if not rows or not columns:
            raise ValueError(f"network.{name}: {sizes[0]} x {sizes[1]} pixels are too few for it")
        if isinstance(pool, nn.MaxPool2d):
            if source.largest > 1:
                raise ValueError(f"network.{name}: there is no C kernel for the maximum of what is no spikes")
            kind, multiple = "max", 1
        else:
            kind = "average"
            multiple = math.lcm(*((bottom - top) * (right - left) for top, bottom in rows for left, right in columns))
        out = Map(
            f"{name}, of currents" if of_currents else name,  # a block pools both
            source.channels,
            len(rows),
            len(columns),
            source.largest * multiple,
            source.denominator * multiple,
            of_currents,
        )
        if out.planes > MOST_PLANES:
            raise ValueError(f"network.{name}: its windows are too unlike for whole numbers of {MOST_PLANES} bits")
        self.layers.append(Pool(name, kind, source, out, rows, columns))
        self.here = out


def _is_said_in_bits(kept: Codes) -> bool:
    """Whether a weight is whole numbers with one scale a channel, or ternary with one for each sign."""
    return set(kept.scale_axes) <= {SIGN, CHANNEL} and (SIGN not in kept.scale_axes or kept.bits == 2)


def _windows(size: int, window: int, step: int, padding: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """First pixel of each window and the one behind its last, as torch places them, without those that pad.

    None begins behind the image.
    """
    count = (size + 2 * padding - window + (step - 1 if ceil_mode else 0)) // step + 1
    begins = (place * step - padding for place in range(max(count, 0)))
    return [(max(begin, 0), min(begin + window, size)) for begin in begins if begin < size]


def _rows(weight: Tensor, channels: int, kernel: tuple[int, int]) -> np.ndarray:
    """A weight ``[C_out, C_in * kernel]`` as ``[kernel row, kernel column, C_in][C_out]``."""
    return weight.reshape(channels, -1, *kernel).permute(2, 3, 1, 0).reshape(-1, channels).cpu().numpy()


def _per_channel(name: str, what: str, value: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    wide = value.detach().float().expand(1, *shape)[0].reshape(shape[0], -1)
    if (wide != wide[:, :1]).any():
        raise ValueError(f"network.{name}: there is no C kernel for a {what} that differs by pixel")
    return wide[:, 0].contiguous().cpu().numpy()


def _float32(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy().copy()


def _pair(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(value), 2)
    return int(first), int(second)


def convolutions_of(program: Program) -> Iterator[Convolution]:
    """All of them, in order."""
    for layer in program.layers:
        if isinstance(layer, Neurons):
            yield from layer.sources
        elif isinstance(layer, Currents):
            yield layer.source
            if isinstance(layer.shortcut, Convolution):
                yield layer.shortcut
    yield program.readout
