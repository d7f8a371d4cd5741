"""The kept network as one file: codes at their bits, scales, the rest as it is, and how to build the network.

The file is safetensors: it holds no code and runs none. A quantised weight ``name`` is stored as ``name.codes``, its
codes bit by bit in bytes, and ``name.scale``; everything else of the network's state under its own name. The header's
metadata have one entry, named after the format, in JSON: ``version``, ``layers`` (scheme, bits and shape of each
quantised weight), ``spec`` (how to build the network), ``sha256`` (of the tensors) and whatever the caller adds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tna_lightning.files import replacing
from tna_lightning.quantization.folding import adopt_folding
from tna_lightning.quantization.kept import KeptWeight, kept_weights, packed_size, weight_name
from tna_lightning.quantization.parametrized import plain_state_dict
from tna_lightning.quantization.quantizers import alphabet

FORMAT = "tna_lightning.packed"
VERSION = 1


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
    if bits not in range(1, 9):
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
    """The tensors of the file, on the CPU, and its ``layers``: what is quantised, as it is in eval mode."""
    tensors = plain_state_dict(network.state_dict())
    layers = {}
    for layer, _, kept in kept_weights(network):
        if kept is not None:
            name = weight_name(layer)
            del tensors[name]
            tensors[f"{name}.codes"] = pack(kept.codes, kept.bits)
            if kept.scale is not None:
                tensors[f"{name}.scale"] = kept.scale
            layers[name] = {
                "scheme": kept.scheme,
                "bits": kept.bits,
                "shape": list(kept.codes.shape),
                "scaled": kept.scale is not None,
            }
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, layers


def save_network(
    path: Path | str,
    network: nn.Module,
    spec: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to one packed file, as a whole or not at all.

    Args:
        path: replaced if it exists.
        network: quantised or not; what is kept is what it computes in eval mode.
        spec: for :func:`tna_lightning.models.build`, JSON-able; None for a network of the user's own, which
            :func:`load_packed` then has to be given.
        metadata: more to remember, JSON-able, by name.

    Raises:
        ValueError: a weight to quantise holds NaN or infinite values, or a name in ``metadata`` is the format's own.
    """
    tensors, layers = packed_state(network)
    header = {"version": VERSION, "layers": layers, "spec": spec, "sha256": _digest(tensors)}
    if reserved := header.keys() & (metadata or {}).keys():
        raise ValueError(f"metadata={sorted(reserved)}: must have other names than {', '.join(header)}")
    header |= metadata or {}
    with replacing(path) as temporary:
        # one entry, because safetensors writes several in random order: the same network gives the same bytes
        save_file(tensors, temporary, {FORMAT: json.dumps(header)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_packed(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a packed file.

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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("sha256", digest := _digest(tensors)) != digest:
                raise ValueError(f"path={str(path)!r}: damaged, its tensors are not those that were written")
            return tensors, metadata
    except (SafetensorError, json.JSONDecodeError, KeyError, RecursionError) as error:
        raise ValueError(f"path={str(path)!r}: cut short, damaged or not a packed network ({error})") from None


def decoded_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, KeptWeight], dict[str, Any]]:
    """What a packed file holds: the state dict with its weights decoded, the codes of those, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or newer, or holds codes outside their alphabet.
    """
    tensors, metadata = read_packed(path)
    kept = {}
    try:
        for name, layer in metadata["layers"].items():
            codes = unpack(tensors.pop(f"{name}.codes"), layer["bits"], layer["shape"])
            scale = tensors.pop(f"{name}.scale", None)
            _check_scale(scale, codes, layer)
            kept[name] = KeptWeight(layer["scheme"], layer["bits"], codes, scale)
            tensors[name] = kept[name].weight
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"path={str(path)!r}: damaged ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"path={str(path)!r}: {name}: {error}") from None
    return tensors, kept, metadata


def _check_scale(scale: Tensor | None, codes: Tensor, layer: Mapping[str, Any]) -> None:
    if not isinstance(layer["scheme"], str):
        raise ValueError(f"scheme={layer['scheme']!r}: must be a name")
    if scale is None:
        if layer.get("scaled", False):
            raise ValueError("its scale is missing")
    elif not scale.is_floating_point() or not scale.isfinite().all():
        raise ValueError(f"its scale ({scale.dtype}) must be finite floating-point numbers")
    else:
        sizes = list(scale.shape[1:] if scale.ndim == codes.ndim + 1 and len(scale) == 2 else scale.shape)
        wide = [len(codes), *[1] * (codes.ndim - 1)]
        if sizes not in (wide, [1] * codes.ndim):
            raise ValueError(f"its scale has the shape {list(scale.shape)}, which fits no codes of {list(codes.shape)}")


def load_packed(path: Path | str, network: nn.Module | None = None) -> nn.Module:
    """The network of a packed file, on the CPU, in eval mode, with its decoded weights as plain parameters.

    Its logits equal those of the network that was saved, to the bit. Each layer with decoded weights has its
    :class:`KeptWeight` as ``layer.kept``, for reports.

    Args:
        path: written by :func:`save_network`.
        network: what to load into, for a file that was saved without a spec.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or newer, holds codes outside their alphabet, or fits another network.
    """
    state, kept, metadata = decoded_state(path)
    if network is None:
        if metadata["spec"] is None:
            raise ValueError(
                f"path={str(path)!r}: holds a network of your own, pass it: load_packed(path, network=...)"
            )
        from tna_lightning.models import build

        try:
            network = build(metadata["spec"])
        except Exception as error:  # whatever a constructor does with sizes that nobody has checked
            reason = str(error).partition("\n")[0]
            raise ValueError(f"path={str(path)!r}: no network can be built from its spec ({reason})") from None
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"path={str(path)!r}: {broken[0]}: holds NaN or infinite values")
    adopt_folding(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"path={str(path)!r}: fits another network ({str(error).splitlines()[1].strip()})") from None
    for name, module in network.named_modules():
        if weight_name(name) in kept:
            module.kept = kept[weight_name(name)]
    return network.eval()
