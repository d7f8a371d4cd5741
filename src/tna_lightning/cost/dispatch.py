"""Seeing every product where torch computes it: a dispatch mode that looks at each operation of a forward pass.

Every tensor has an origin. It is data if it is computed from the network's input; it is of a weight if it is computed
from parameters and buffers alone, such as a quantised weight; and else a constant. What takes no data costs nothing:
it is computed once for all images. A product of data with a weight belongs to that weight, whoever computes it; one of
data with data, to the module that computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tna_lightning.cost.counts import TERNARY, Data, kind_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Weight:
    """The origin of what is computed from parameters and buffers alone: the name of the largest of them."""

    name: str
    size: int


Origin = Data | Weight | None
Shapes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class Frame:
    """A module at work: its name, and the shape and the origin of its input."""

    name: str
    module: nn.Module
    shape: torch.Size | None
    origin: Origin

    @property
    def is_recurrent(self) -> bool:
        """Whether constants are its first state, which is counted as data are."""
        return isinstance(self.module, nn.RNNBase | nn.RNNCellBase)

    @property
    def of_sequences(self) -> torch.Size | None:
        """Images and tokens of a module that may transpose its input ``[images, tokens, features]`` before it computes.

        None where the module is of another kind, or its input has not these dimensions.
        """
        module = self.module.self_attn if isinstance(self.module, nn.TransformerEncoderLayer) else self.module
        if self.shape is None or len(self.shape) != 3 or not isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            return None
        images, tokens = self.shape[:2] if module.batch_first else (self.shape[1], self.shape[0])
        return torch.Size((images, tokens))

    @property
    def attends_to_images(self) -> bool:
        """Whether this is attention among the tokens of images, before all neurons and not repeated over time."""
        is_attention = isinstance(self.module, nn.MultiheadAttention) and self.module.batch_first
        return is_attention and self.origin == Data(timed=False)


class Sink(Protocol):
    """Who is told of the products; ``shapes`` are those that the data may have without their features: what is time."""

    def weight_product(
        self, frame: Frame, operation: str, weight: Weight | None, shapes: Shapes, data: Data, product: Any
    ) -> None:
        """Data times a weight or a constant; ``product`` is a :class:`Convolution` or a :class:`MatrixProduct`."""

    def activation_product(
        self, frame: Frame, operation: str, shapes: Shapes, data: Data, a: Tensor, b: Tensor
    ) -> None:
        """Data ``[b, m, k]`` times data ``[b, k, n]``."""

    def not_counted(self, frame: Frame, operation: str) -> None:
        """What multiplies, and is not understood."""

    def is_not_counted(self, frame: Frame, operation: str) -> bool:
        """Whether that has been said."""


@dataclass(frozen=True)
class Convolution:
    """Inputs ``[rows, C, ...]`` and a weight, with stride, padding, dilation, transposed, output padding and groups."""

    x: Tensor
    weight: Tensor
    outputs: int
    settings: tuple[Any, ...]

    @property
    def dense(self) -> int:
        """Operations if zeros and the border are not left out: each weight at every output position."""
        positions = self.x.numel() if self.settings[3] else self.outputs
        return positions * self.weight[0].numel()

    @property
    def key(self) -> Any:
        """Says how the weight is met."""
        return self.x.shape[1:], repr(self.settings), *geometry(self.weight)

    def fan_out(self, weight: Tensor) -> Callable[[], Iterator[Tensor]]:
        """The synapses that each number of an input feeds, all and those that are not 0.

        It is the gradient of the sum of the outputs, in float64: exact, borders, stride and groups included.
        """
        shape, settings, mask = self.x.shape[1:], self.settings, weight != 0

        def synapses() -> Iterator[Tensor]:
            for kept in (torch.ones_like(mask), mask):
                with torch.inference_mode(False), torch.enable_grad():
                    x = torch.zeros(1, *shape, dtype=torch.float64, device=mask.device, requires_grad=True)
                    output = torch.convolution(x, kept.double().clone(), None, *settings)
                    yield torch.autograd.grad(output.sum(), x)[0][0]

        return synapses


@dataclass(frozen=True)
class MatrixProduct:
    """Inputs ``[rows, b, k]`` and a weight ``[b, k, n]``."""

    x: Tensor
    weight: Tensor

    @property
    def dense(self) -> int:
        """Operations if zeros are not left out."""
        return len(self.x) * self.weight.numel()

    @property
    def key(self) -> Any:
        """Says how the weight is met."""
        return geometry(self.weight)

    def fan_out(self, weight: Tensor) -> Callable[[], Iterator[Tensor]]:
        """As :meth:`Convolution.fan_out`."""
        every, some = torch.full(weight.shape[:2], float(weight.shape[2]), device=weight.device), (weight != 0).sum(2)
        return lambda: iter((every.double(), some.double()))


def geometry(weight: Tensor) -> tuple[Any, ...]:
    """Which part of a parameter this is."""
    return weight.shape, weight.stride(), weight.storage_offset()


# operations on two tensors and more that multiply nothing; normalisation, which folds, is one of them
_ADDITIVE = {
    *(
        "add",
        "sub",
        "rsub",
        "cat",
        "stack",
        "where",
        "copy",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "clamp",
        "clamp_min",
    ),
    *("clamp_max", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and"),
    *("bitwise_or", "bitwise_xor", "index", "index_put", "_unsafe_index", "index_select", "index_add", "index_copy"),
    *("gather", "scatter", "scatter_add", "masked_fill", "masked_select", "masked_scatter", "embedding", "take"),
    *("slice_scatter", "select_scatter", "heaviside", "isclose", "equal", "bucketize", "searchsorted", "set"),
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "native_layer_norm", "native_group_norm", "_fused_rms_norm"),
    *("_prelu_kernel", "max_unpool2d", "fill", "resize_as", "repeat_interleave", "sigmoid_backward"),
}
# operations on one tensor that multiply its numbers
_OF_ONE = {
    *("prod", "cumprod", "pow", "square", "var", "std", "var_mean", "std_mean", "norm", "cov", "corrcoef", "stft"),
    *("istft", "matrix_power", "matrix_exp", "inverse", "pinverse", "det", "logdet", "slogdet", "cholesky", "svd"),
    *("cholesky_inverse", "renorm", "qr"),
}
_OF_ONE_PREFIXES = ("fft_", "_fft_", "linalg_", "upsample_linear", "upsample_bi", "upsample_tri", "_upsample_bi")
_SCALING = {"mul", "div"}

_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "scaled_dot_product_attention",
)


class Watch(TorchDispatchMode):
    """Tells a sink of every product while it is entered; results are what they are without it.

    Args:
        network: whose parameters and buffers are weights.
        sink: who is told.
    """

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.frames: list[Frame] = []
        self.is_in_neuron = False  # whose elementwise arithmetic is not looked at, products of matrices alone
        named = [*network.named_parameters(), *network.named_buffers()]
        self._weights = {id(tensor): Weight(name, tensor.numel()) for name, tensor in named}
        self._origins: Any = WeakTensorKeyDictionary()
        self._does_decompose: dict[Any, bool] = {}
        self._written: dict[int, tuple[StorageWeakRef, Data]] = {}  # storages that data were written into
        self._handlers: dict[str, Callable[..., None]] = {
            "convolution": self._convolution,
            "linear": self._linear,
            "mm": self._matmul,
            "_int_mm": self._matmul,
            "bmm": self._matmul,
            "addmm": self._added_matmul,
            "_addmm_activation": self._added_matmul,
            "baddbmm": self._added_matmul,
            "addbmm": self._added_matmul,
            "mv": lambda name, out, a, b: self._matmul(name, out, a, b, right=(..., None)),
            "addmv": lambda name, out, _, a, b, **__: self._matmul(name, out, a, b, right=(..., None)),
            "dot": lambda name, out, a, b: self._matmul(name, out, a, b, left=(None, ...), right=(..., None)),
            "vdot": lambda name, out, a, b: self._matmul(name, out, a, b, left=(None, ...), right=(..., None)),
            "addr": lambda name, out, _, a, b, **__: self._matmul(name, out, a, b, left=(..., None), right=(None, ...)),
        }

    # ---- origins ----------------------------------------------------------------------------------------------------

    def origin(self, tensor: Tensor) -> Origin:
        """Where a tensor comes from."""
        found = self._origins.get(tensor)
        if isinstance(found, Data):
            return found
        if self._written and tensor.layout is torch.strided:
            _, origin = self._written.get(tensor.untyped_storage()._cdata, (None, None))
            if origin is not None:
                return origin
        return found if found is not None else self._weights.get(id(tensor))

    def forget(self) -> None:
        """The forward pass is over."""
        self.frames.clear()
        self._origins.clear()
        self._written.clear()

    def note(self, values: Any, origin: Origin) -> None:
        """All tensors in there come from there."""
        if origin is not None:
            for tensor in tensors_in(values):
                self._origins[tensor] = origin

    def common(self, values: Any) -> Origin:
        """The origin of what is computed from all tensors in there."""
        origins = [self.origin(tensor) for tensor in tensors_in(values)]
        data = [origin for origin in origins if isinstance(origin, Data)]
        if data:
            return max(data, key=lambda origin: (origin.timed, not origin.images_first))
        weights = [origin for origin in origins if isinstance(origin, Weight)]
        return max(weights, key=lambda origin: origin.size, default=None)

    # ---- operations -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute, and look at what was computed."""
        kwargs = kwargs or {}
        origin = self.common((args, kwargs))
        out = func(*args, **kwargs) if origin is None else self._look(func, args, kwargs, origin)
        if isinstance(origin, Data) and not origin.timed and isinstance(func, torch._ops.OpOverload):
            data = (tensor for tensor in tensors_in((args, kwargs)) if isinstance(self.origin(tensor), Data))
            x = max(data, key=lambda tensor: tensor.ndim)
            images_first = origin.images_first != _swaps_first(func._opname, args) and not _has_new_first(x, out)
            origin = Data(origin.timed, images_first)
        self.note(out, origin)
        if isinstance(origin, Data) and isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for tensor in tensors_in(out):  # a view, perhaps, of what is read later
                if tensor.layout is torch.strided:
                    storage = tensor.untyped_storage()
                    self._written[storage._cdata] = StorageWeakRef(storage), origin
        return out

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], origin: Data | Weight) -> Any:
        if not isinstance(func, torch._ops.OpOverload):  # of higher order: it may compute anything
            if isinstance(origin, Data):
                self._not_counted(str(func))
            return func(*args, **kwargs)
        name = f"{func.namespace}.{func._opname}"
        plain = func._opname.removesuffix("_") if func.namespace == "aten" else ""
        handler = self._handlers.get(plain)
        if handler is not None and not all(_is_plain(tensor) for tensor in tensors_in(args)):
            self._not_counted(name)
        elif handler is not None:
            out = func(*args, **kwargs)
            handler(name, out, *args, **kwargs)
            return out
        if not isinstance(origin, Data):  # weights are computed once
            return func(*args, **kwargs)
        if func._opname in _ATTENTION and all(_is_plain(tensor) for tensor in tensors_in(args)):
            out = func(*args, **kwargs)
            names = [argument.name for argument in func._schema.arguments]
            self._attention(name, {**dict(zip(names, args, strict=False)), **kwargs})
            return out
        operands = tensors_in((args, kwargs))
        is_additive = plain in _ADDITIVE and kwargs.get("reduce") != "multiply"
        if is_additive or (func.namespace == "prim" and len(operands) < 2):
            return func(*args, **kwargs)
        if len(operands) > 1 and (out := self._decomposed(func, args, kwargs)) is not NotImplemented:
            return out
        if not self.is_in_neuron and self._multiplies(plain, operands, name):
            self._not_counted(name)
        return func(*args, **kwargs)

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result by smaller operations, which are looked at; NotImplemented where there are none."""
        if not self._does_decompose.get(func, True):
            return NotImplemented
        with self:
            out = func.decompose(*args, **kwargs)
        self._does_decompose[func] = out is not NotImplemented
        return out

    def _multiplies(self, plain: str, operands: list[Tensor], name: str) -> bool:
        if not plain or plain in _ADDITIVE:  # none of torch's own, or one that reduces by products
            return True
        if len(operands) < 2:
            return plain in _OF_ONE or plain.startswith(_OF_ONE_PREFIXES)
        if plain not in _SCALING or self.sink.is_not_counted(self.frames[-1], name):
            return True
        if operands[1].numel() == 1:  # one number for all scales what comes next
            return False
        # spikes select
        return plain == "div" or not any(x.numel() == 1 or kind_of(x) <= TERNARY for x in operands)

    def _not_counted(self, name: str) -> None:
        self.sink.not_counted(self.frames[-1], name)

    def _is_data(self, origin: Origin) -> bool:
        return isinstance(origin, Data) or (origin is None and self.frames[-1].is_recurrent)

    def _convolution(self, name: str, out: Tensor, x: Tensor, weight: Tensor, bias: Any, *settings: Any) -> None:
        of_x, of_weight = self.origin(x), self.origin(weight)
        if isinstance(of_weight, Data):
            self._not_counted(name)
        elif isinstance(of_x, Data):
            product = Convolution(x, weight, out.numel(), settings)
            self.sink.weight_product(self.frames[-1], name, of_weight, (x.shape[:1],), of_x, product)

    def _linear(self, name: str, out: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> None:
        of_x, of_weight = self.origin(x), self.origin(weight)
        if not isinstance(of_weight, Data) and self._is_data(of_x):
            product = MatrixProduct(x.reshape(-1, 1, x.shape[-1]), weight.reshape(-1, x.shape[-1]).t()[None])
            self._tell_weight(name, of_x, of_weight, x.shape, product)
        else:
            self._matmul(name, out, x, weight.t(), left=(None, ...) if x.ndim == 1 else ...)

    def _tell_weight(self, name: str, of_x: Origin, of_weight: Origin, shape: torch.Size, product: Any) -> None:
        frame = self.frames[-1]
        if (
            isinstance(frame.module, nn.Linear) and frame.shape is not None
        ):  # a linear layer may have flattened its input
            shape = frame.shape
        data = self._data(of_x if isinstance(of_x, Data) else Data(timed=False))
        weight = of_weight if isinstance(of_weight, Weight) else None
        self.sink.weight_product(frame, name, weight, self._shapes(shape), data, product)

    def _shapes(self, shape: torch.Size) -> Shapes:
        frames = [frame for frame in reversed(self.frames) if frame.of_sequences is not None]
        known = [frame.of_sequences for frame in frames if frame.of_sequences is not None]
        if frames and frames[0].attends_to_images:  # its tokens are transposed to the front, and are no time
            return tuple(known)
        return shape[:-1], *known

    def _data(self, data: Data) -> Data:
        """What is known of data; of those that a module may have transposed, whether images lead its input."""
        for frame in reversed(self.frames):
            if frame.of_sequences is not None and isinstance(frame.origin, Data):
                return Data(data.timed, frame.origin.images_first)
        return data

    def _added_matmul(self, name: str, out: Tensor, added: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
        self._matmul(name, out, a, b)

    def _matmul(self, name: str, out: Tensor, a: Tensor, b: Tensor, *_: Any, left: Any = ..., right: Any = ...) -> None:
        """A product of matrices, batched or not; vectors become matrices by ``left`` and ``right``."""
        of_a, of_b = self.origin(a), self.origin(b)
        shape = a.shape
        a, b = a[left], b[right]
        a, b = (x[None] if x.ndim == 2 else x for x in (a, b))
        if isinstance(of_a, Data) and isinstance(of_b, Data):
            data = self._data(Data(of_a.timed or of_b.timed, of_a.images_first and of_b.images_first))
            self.sink.activation_product(self.frames[-1], name, self._shapes(shape), data, a, b)
            return
        if not isinstance(of_a, Data) and (isinstance(of_b, Data) or not self._is_data(of_a)):
            if not self._is_data(of_b):
                return
            of_a, of_b, shape = of_b, of_a, b.shape
            a, b = b.mT, a.mT  # the same product, transposed
        if len(b) > 1 and b.stride(0) == 0:  # one weight for the whole batch
            a, b = a.reshape(1, -1, a.shape[-1]), b[:1]
        self._tell_weight(name, of_a, of_b, shape, MatrixProduct(a.transpose(0, 1), b))

    def _attention(self, name: str, given: Mapping[str, Any]) -> None:
        """Both products of softmax(q k^T + mask) v, which a fused kernel does not show."""
        query, key, value = given["query"], given["key"], given["value"]
        mask = given.get("attn_mask") if given.get("attn_bias") is None else given["attn_bias"]
        origin = self.common((query, key, value))
        data = self._data(origin if isinstance(origin, Data) else Data(timed=False))
        groups = query.shape[-3] // key.shape[-3] if query.ndim > 3 else 1  # heads that share a key and a value
        key, value = (x.repeat_interleave(groups, -3) if groups > 1 else x for x in (key, value))
        scores = query.float() @ key.float().mT * (given.get("scale") or query.shape[-1] ** -0.5)
        if given.get("is_causal"):
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).tril().logical_not(), -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        shares = scores.softmax(-1).nan_to_num(0.0)  # a query that sees nothing has no shares
        for a, b in ((query, key.mT), (shares, value)):
            a, b = a.expand(*scores.shape[:-2], *a.shape[-2:]), b.expand(*scores.shape[:-2], *b.shape[-2:])
            self.sink.activation_product(
                self.frames[-1], name, self._shapes(a.shape), data, a.flatten(0, -3) if a.ndim > 2 else a[None],
                b.flatten(0, -3) if b.ndim > 2 else b[None],
            )  # fmt: skip


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_complex()


def _swaps_first(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation moves another dimension to the place of the first."""
    if name == "transpose":
        return 0 in (args[1] % args[0].ndim, args[2] % args[0].ndim)
    return name == "permute" and args[1][0] % args[0].ndim != 0


def _has_new_first(x: Tensor, out: Any) -> bool:
    """Whether an operation has put a dimension before the first one, as repeating and stacking do."""
    if not isinstance(out, Tensor) or out.ndim == 0 or len(out) < 2:
        return False
    return out.shape[1:] == x.shape or (x.ndim > 1 and len(x) == 1 and out.shape[1:] == x.shape[1:])


_NESTED = (tuple, list, dict)


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, _NESTED):
        return []
    found: list[Tensor] = []
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _NESTED):
            found += tensors_in(value)
    return found
