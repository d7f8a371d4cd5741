"""The kept network as one file: codes at their bits, scales, the rest as it is, and how to build the network.

The file is safetensors: it holds no code and runs none. A quantised weight ``name`` is stored as ``name.codes``, its
codes bit by bit in bytes, and ``name.scale``; everything else of the network's state under its own name. The header's
metadata have one entry, named after the format, in JSON:

- ``sha256``: the first entry. Of the bytes of the whole file, in which its own 64 letters are zeros ("0").
- ``version``: 3.
- ``layers``: of each quantised weight by name, what :class:`~.codes.Codes` says of it: ``scheme``, ``bits``, ``axes``,
  ``scale_axes`` (null without a scale), ``shape`` of the codes, and ``encoding``, how they became bytes: ``values``,
  each code in the order of memory, its rank in the alphabet of so many bits, low bit first; the last byte is filled
  with zeros; or ``periods``, for ternary codes over T steps, of each weight the period with its sign
  (:func:`~.codes.to_periods`), written likewise with :func:`~.codes.period_bits` each.
- ``spec``: how to build the network; null for one of the user's own.
- ``inputs``: what the network expects, see :data:`INPUTS`; null where that is unknown.
- whatever the caller adds.

Until version 2 ``sha256`` was that of the tensors' bytes in the order of their names, and could be missing.
Version 1 had no ``inputs``, and of a layer ``scheme``, ``bits``, ``shape`` and ``scaled`` (whether there is a scale).
Its axes follow from the scale's shape: with one dimension more than the codes it differs by sign, and by channel where
it has as many numbers as the codes have channels. It is read as before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tna_lightning.data.formats import TIME_UNITS
from tna_lightning.data.frames import SLICINGS
from tna_lightning.files import write_bytes
from tna_lightning.models.blocks import is_spiking
from tna_lightning.quantization.codes import (
    CHANNEL,
    PERIODS,
    SIGN,
    VALUES,
    Codes,
    alphabet,
    from_periods,
    packed_size,
    period_bits,
)
from tna_lightning.quantization.folding import adopt_folding
from tna_lightning.quantization.inputs import make_askable
from tna_lightning.quantization.kept import kept_weights, weight_name
from tna_lightning.quantization.parametrized import check_exists, give_steps, plain_state_dict
from tna_lightning.quantization.weights import aliases_of, modules_of, plain_name

if TYPE_CHECKING:
    from tna_lightning.quantization.inputs import KeptNetwork

FORMAT = "tna_lightning.packed"
VERSION = 3
NO_DIGEST = "0" * 64

# what a network expects, by name: what may stand there, in words and as a test of the value from JSON
INPUTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": ("images or events", lambda value: value in ("images", "events")),
    "shape": ("[C, H, W] of an image or frame", lambda value: _is_list(value, _is_count) and len(value) == 3),
    "mean": ("a list of numbers, one a channel", lambda value: _is_list(value, _is_number)),
    "std": ("a list of numbers above 0, one a channel", lambda value: _is_list(value, _is_number) and min(value) > 0),
    "class_names": ("a list of names", lambda value: _is_list(value, lambda name: isinstance(name, str))),
    "time_steps": ("a whole number of at least 1", lambda value: _is_count(value)),
    "framing": ("sensor, [H, W] of what was recorded, and slicing, of the frames", lambda value: _is_framing(value)),
}


def _is_framing(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {"sensor", "slicing"} <= value.keys() <= {"sensor", "slicing", "time_unit"}
        and value["slicing"] in SLICINGS
        and value.get("time_unit", "us") in TIME_UNITS
        and _is_list(value["sensor"], _is_count)
        and len(value["sensor"]) == 2
    )


def _is_list(value: Any, is_allowed: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_allowed, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def inputs_entry(network: nn.Module, inputs: Mapping[str, Any] | None) -> str:
    """What a network expects (:data:`INPUTS`), in JSON with all entries, for files of other formats.

    Raises:
        ValueError: as for :func:`save_network`.
    """
    return json.dumps(_inputs_of(network, inputs))


def _inputs_of(network: nn.Module, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """All entries of ``inputs``.

    Raises:
        ValueError: one cannot be, or the network shows an image for another number of steps.
    """
    entries = _checked_inputs({} if inputs is None else inputs)
    shown = getattr(network, "time_steps", None) if is_spiking(network) else None
    if entries["kind"] == "images" and isinstance(shown, int) and entries["time_steps"] not in (None, shown):
        raise ValueError(f"inputs.time_steps={entries['time_steps']!r}: must be {shown}, as the network has it")
    return entries


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in ``alphabet(bits)`` as a string of bits, low bit first: uint8 ``[ceil(n * bits / 8)]``.

    Raises:
        ValueError: a code lies outside the alphabet.
    """
    letters = alphabet(bits)
    flat = codes.flatten().cpu().numpy().astype(np.int16)
    if flat.size and not np.isin(flat, letters).all():
        raise ValueError(
            f"codes from {flat.min()} to {flat.max()}: must lie in {letters[0]} .. {letters[-1]} ({bits} bits)"
        )
    ranks = ((flat + 1) // 2 if bits == 1 else flat - letters[0]).astype(np.uint8)
    if bits == 8:
        return torch.from_numpy(ranks)
    digits = (ranks[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(digits, bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    """Codes (int8, of this shape) from :func:`pack`.

    Raises:
        ValueError: too few or too many bytes, or a code outside the alphabet.
    """
    if type(bits) is not int or bits not in range(1, 9):
        raise ValueError(f"bits={bits!r}: must be a whole number from 1 to 8")
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{packed.numel()} bytes of {packed.dtype} codes: must be {packed_size(count, bits)} of torch.uint8"
        )
    if bits in (1, 2, 4, 8):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        ranks = ((packed.numpy()[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]
    else:
        digits = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
        ranks = digits @ (1 << np.arange(bits, dtype=np.uint8))
    letters = alphabet(bits)
    if ranks.size and ranks.max() >= len(letters):
        raise ValueError(
            f"code {int(ranks.max()) + letters[0]}: must lie in {letters[0]} .. {letters[-1]} ({bits} bits)"
        )
    codes = ranks.astype(np.int16)
    return torch.from_numpy((2 * codes - 1 if bits == 1 else codes + letters[0]).astype(np.int8).reshape(shape))


def packed_state(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the file, on the CPU, and its ``layers``: what is quantised, as it is in eval mode.

    A layer that stands at several places of the network is in it under each of its names.
    """
    modules, aliases = modules_of(network), aliases_of(network)
    check_exists(modules)
    tensors = plain_state_dict(network.state_dict())
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: is a {type(value).__name__}; a packed file holds tensors alone, such as buffers")
    layers = {}
    for layer, weight, kept in kept_weights(network):
        if kept is None:
            continue
        _check_finite(weight_name(layer), weight)
        for name in map(weight_name, aliases[id(modules[layer])]):
            del tensors[name]
            tensors[f"{name}.codes"] = pack(*kept.stored)
            if kept.scale is not None:
                tensors[f"{name}.scale"] = kept.scale
            layers[name] = {
                "scheme": kept.scheme,
                "bits": kept.bits,
                "axes": list(kept.axes),
                "scale_axes": None if kept.scale is None else list(kept.scale_axes),
                "shape": list(kept.values.shape),
                "encoding": kept.encoding,
            }
    for name, tensor in tensors.items():
        _check_finite(name, tensor)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, layers


def _check_finite(name: str, tensor: Tensor) -> None:
    """Refuse what :func:`load_packed` would.

    Raises:
        ValueError: it holds NaN or infinite values.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{name}: holds NaN or infinite values")


def save_network(
    path: Path | str,
    network: nn.Module,
    spec: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to one packed file, as a whole or not at all.

    Args:
        path: replaced if it exists.
        network: quantised or not; what is kept is what it computes in eval mode.
        spec: for :func:`tna_lightning.models.build`, JSON-able; None for a network of the user's own, which
            :func:`load_packed` then has to be given.
        metadata: more to remember, JSON-able, by name.
        inputs: what the network expects, as far as it is known: ``kind`` (``images`` or ``events``), ``shape``
            (``[C, H, W]``), ``mean`` and ``std`` (one a channel, of pixels from 0 to 1), ``class_names``,
            ``time_steps``, ``framing`` of events (``{"sensor": [H, W], "slicing": "time"}`` or ``"count"``;
            ``time_unit`` of t in arrays, if not ``us``).

    Raises:
        ValueError: a weight or buffer holds NaN or infinite values, or a weight does once it is decoded; a module's
            ``get_extra_state`` gives anything but a tensor; a lazy module
            has seen no input; a name in ``metadata`` is the format's own; or ``inputs`` has another entry or one that
            cannot be, such as another ``time_steps`` than the network's.
    """
    tensors, layers = packed_state(network)
    header = {"version": VERSION, "layers": layers, "spec": spec, "inputs": _inputs_of(network, inputs)}
    if reserved := (header.keys() | {"sha256"}) & (metadata or {}).keys():
        raise ValueError(f"metadata={sorted(reserved)}: must have other names than sha256, {', '.join(header)}")
    write_packed(path, tensors, header | dict(metadata or {}))


def write_packed(path: Path | str, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write the tensors and the header's entry, with its digest before all others."""
    # one entry, because safetensors writes several in random order: the same network gives the same bytes; and not by
    # its own hands, which say neither that the disk is full nor which file it was
    content = save(tensors, {FORMAT: json.dumps({"sha256": NO_DIGEST, **header})})
    write_bytes(path, content.replace(NO_DIGEST.encode(), _digest(content).encode(), 1))


def _digest(content: bytes) -> str:
    """SHA-256 (hex) of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """As files of versions 1 and 2 have it: of the tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_inputs(inputs: Any) -> dict[str, Any]:
    """All entries of ``inputs``, None where one is unknown.

    Raises:
        ValueError: there is another entry, or a value that cannot be.
    """
    if not isinstance(inputs, Mapping) or not inputs.keys() <= INPUTS.keys():
        names = sorted(inputs) if isinstance(inputs, Mapping) else inputs
        raise ValueError(f"inputs={names!r}: must be a mapping with no other names than {', '.join(INPUTS)}")
    checked: dict[str, Any] = {}
    for name, (words, is_allowed) in INPUTS.items():
        value = inputs.get(name)
        checked[name] = list(value) if isinstance(value, tuple) else value
        if value is not None and not is_allowed(checked[name]):
            raise ValueError(f"inputs.{name}={value!r}: must be {words}")
    channels = {name: len(checked[name]) for name in ("mean", "std") if checked[name] is not None}
    if checked["shape"] is not None:
        channels["shape"] = checked["shape"][0]
    if len(set(channels.values())) > 1:
        raise ValueError(f"inputs={channels!r} channels: must be as many in each")
    return checked


def read_packed(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a packed file; of its ``inputs`` all entries are there, None where unknown.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, changed, no packed network, or written by a newer version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if FORMAT not in header:
                raise ValueError(f"path={str(path)!r}: not a packed network, its header has no {FORMAT}")
            metadata = json.loads(header[FORMAT])
            if not isinstance(metadata, dict) or not isinstance(metadata["layers"], dict) or "spec" not in metadata:
                raise KeyError("layers and spec")
            if type(metadata["version"]) is not int or metadata["version"] < 1:
                raise ValueError(f"path={str(path)!r}: damaged, its version is {metadata['version']!r}")
            if metadata["version"] > VERSION:
                raise ValueError(
                    f"path={str(path)!r}: written by a newer version (format {metadata['version']}; "
                    f"this one reads up to {VERSION})"
                )
            if metadata["version"] == 1:
                metadata = {"inputs": _checked_inputs({})} | metadata
            else:
                try:
                    metadata["inputs"] = _checked_inputs(metadata["inputs"])
                except ValueError as error:
                    raise ValueError(f"path={str(path)!r}: {error}") from None
            if metadata["version"] > 2:
                stored = str(metadata["sha256"])
                content = Path(path).read_bytes()
                if _digest(content.replace(stored.encode(), NO_DIGEST.encode(), 1)) != stored:
                    raise ValueError(f"path={str(path)!r}: damaged, its bytes are not those that were written")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["version"] < 3 and metadata.get("sha256", old := _digest_of_tensors(tensors)) != old:
                raise ValueError(f"path={str(path)!r}: damaged, its tensors are not those that were written")
            return tensors, metadata
    except (SafetensorError, json.JSONDecodeError, KeyError, RecursionError) as error:
        raise ValueError(f"path={str(path)!r}: cut short, damaged or not a packed network ({error})") from None


def decoded_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Codes], dict[str, Any]]:
    """What a packed file holds: the state dict with its weights decoded, the codes of those, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or newer, or holds codes outside their alphabet.
    """
    tensors, metadata = read_packed(path)
    kept = {}
    try:
        for name, layer in metadata["layers"].items():
            packed, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale", None)
            kept[name] = _codes(layer if metadata["version"] > 1 else _layer_of_version_1(layer, scale), packed, scale)
            tensors[name] = kept[name].weight
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"path={str(path)!r}: damaged ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"path={str(path)!r}: {name}: {error}") from None
    return tensors, kept, metadata


def _codes(layer: Mapping[str, Any], packed: Tensor, scale: Tensor | None) -> Codes:
    """The codes of a layer's entry in the header, in which nothing is believed before it is checked."""
    if not isinstance(layer["scheme"], str):
        raise ValueError(f"scheme={layer['scheme']!r}: must be a name")
    encoding = layer["encoding"]
    if encoding not in (VALUES, PERIODS):
        raise ValueError(f"encoding={encoding!r}: must be {VALUES!r} or {PERIODS!r}, those that this version reads")
    shape, axes, scale_axes = layer["shape"], layer["axes"], layer["scale_axes"]
    if not _is_list(shape, _is_count):
        raise ValueError(f"shape={shape!r}: must be a list of whole numbers above 0")
    if scale is None and scale_axes is not None:
        raise ValueError("its scale is missing")
    if scale is None:
        scale_axes = []
    for name, names in {"axes": axes, "scale_axes": scale_axes}.items():
        if not isinstance(names, list):
            raise ValueError(f"{name}={names!r}: must be a list of names")
    if encoding == PERIODS:
        time_steps, *of_one_step = shape
        periods = unpack(packed, period_bits(time_steps), of_one_step)
        if int(periods.abs().max()) > time_steps:
            raise ValueError(f"period {int(periods.abs().max())}: must be at most {time_steps}")
        values = from_periods(periods, time_steps)
    else:
        values = unpack(packed, layer["bits"], shape)
    return Codes(values, scale, layer["scheme"], layer["bits"], tuple(axes), tuple(scale_axes), encoding)


def _layer_of_version_1(layer: Mapping[str, Any], scale: Tensor | None) -> dict[str, Any]:
    """The entry as version 2 has it; what the scale's axes are, follows from its shape."""
    scale_axes = None
    if scale is not None:
        has_signs = scale.ndim == len(layer["shape"]) + 1
        channels = scale.shape[has_signs : has_signs + 1]
        scale_axes = [SIGN] * has_signs + [CHANNEL] * (list(channels) == layer["shape"][:1])
    elif layer.get("scaled", False):
        scale_axes = []  # and missing
    return {**layer, "axes": [CHANNEL], "scale_axes": scale_axes, "encoding": VALUES}


def load_packed(path: Path | str, network: nn.Module | None = None) -> KeptNetwork:
    """The network of a packed file, on the CPU, in eval mode, with its decoded weights as plain parameters.

    Its logits equal those of the network that was saved, to the bit. Each layer with decoded weights has its
    :class:`~.codes.Codes` as ``layer.kept``, for reports. Weights that differ by time step are ``[T, ...]``.

    It answers about raw inputs: ``network.predict(x)`` gives class and probability of Pillow's pictures, uint8 arrays
    and recordings, ``network.preprocess(x)`` what the network itself takes of them, ``network.classes`` the names
    (:class:`~.inputs.Questions`). Raw inputs given to the network itself are refused.

    Args:
        path: written by :func:`save_network`.
        network: what to load into, for a file that was saved without a spec.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or newer, holds codes outside their alphabet, or fits another network.
    """
    state, kept, metadata = decoded_state(path)
    is_ours = network is None
    if network is None and metadata["spec"] is None:
        raise ValueError(f"path={str(path)!r}: holds a network of your own, pass it: load_packed(path, network=...)")
    try:
        for name, tensor in state.items():
            _check_finite(name, tensor)
        if network is None:
            network = _built(metadata["spec"], sum(tensor.numel() for tensor in state.values()))
        _load(network, state, kept)
    except ValueError as error:
        raise ValueError(f"path={str(path)!r}: {error}") from None
    inputs = metadata["inputs"]
    is_known = is_ours or inputs["mean"] is not None or inputs["framing"] is not None
    own = {plain_name(name): value for name, value in network.state_dict().items()}
    for name, value in state.items():
        if not torch.equal(own[name], value.to(own[name])):
            raise ValueError(f"path={str(path)!r}: fits another network ({name} is tied to another weight in this one)")
    aliases = aliases_of(network)
    module: Any
    for module in network.modules():
        for name in map(weight_name, aliases[id(module)]):
            if name in kept:
                module.kept = kept[name]
    make_askable(network.eval(), inputs, str(path), refuses_raw=is_known)
    return cast("KeptNetwork", network)


class _Bounded(TorchDispatchMode):
    """Lets new tensors be made up to so many numbers in all: sizes that nobody has checked take no memory."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], list | tuple) and all(isinstance(size, int) for size in args[0]):
            self.left -= math.prod(args[0])
            if self.left < 0:
                raise ValueError("it is far larger than what the file holds")
        return func(*args, **(kwargs or {}))


def _built(spec: Any, numbers: int) -> nn.Module:
    """The network of a file's spec, in which nothing is believed; the file holds so many numbers.

    Raises:
        ValueError: there is none.
    """
    from tna_lightning.models import build

    try:
        with _Bounded(4 * numbers + 2**22):  # room for what constructors make on the way
            return build(spec)
    except Exception as error:  # whatever a constructor does with sizes that nobody has checked
        reason = str(error).partition("\n")[0]
        raise ValueError(f"no network can be built from its spec ({reason})") from None


def _load(network: nn.Module, state: Mapping[str, Tensor], kept: Mapping[str, Codes]) -> None:
    """Load what a file holds into a network.

    Raises:
        ValueError: it fits another network.
    """
    adopt_folding(network, state)
    try:
        _adopt_steps(network, kept)
        names = {plain_name(name): name for name in network.state_dict()}
        network.load_state_dict({names.get(name, name): value for name, value in state.items()})
    except ValueError as error:
        raise ValueError(f"fits another network ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"fits another network ({str(error).splitlines()[1].strip()})") from None


def _adopt_steps(network: nn.Module, kept: Mapping[str, Codes]) -> None:
    """Give a network the layers over time of the one that these codes were taken from."""
    for name, codes in kept.items():
        if codes.time_steps is not None:
            give_steps(network, name.removesuffix(".weight"), codes.time_steps)
