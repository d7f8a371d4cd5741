"""What of a network is kept as codes, and what that weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.quantization.parametrized import plain_state_dict, weighted_layers
from tna_lightning.quantization.quantizers import alphabet, decode


@dataclass(frozen=True, eq=False)
class KeptWeight:
    """A weight as it is kept: codes (int8) at so many bits, and their scale (None: the codes are the weight)."""

    scheme: str
    bits: int
    codes: Tensor
    scale: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The decoded weight."""
        return self.codes.to(torch.get_default_dtype()) if self.scale is None else decode(self.codes, self.scale)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scale when packed."""
        scale_bytes = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return packed_size(self.codes.numel(), self.bits) + scale_bytes


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many codes at so many bits each."""
    return -(-count * bits // 8)


@torch.no_grad()
def kept_weights(network: nn.Module) -> Iterator[tuple[str, Tensor, KeptWeight | None]]:
    """Name of each convolution and linear layer, its weight in eval mode, and its codes if it is quantised.

    A layer's codes are those of its parametrisation, or the ones that it was loaded with (``layer.kept``) if its weight
    still is what they say.
    """
    for name, weight, quantized in weighted_layers(network):
        if quantized is not None:
            codes, scale = quantized.quantizer.encode(weight)
            kept = KeptWeight(quantized.quantizer.name, quantized.quantizer.bits, codes, scale)
            yield name, kept.weight, kept
        else:
            loaded: KeptWeight | None = getattr(network.get_submodule(name), "kept", None)
            is_valid = loaded is not None and torch.equal(loaded.weight, weight.cpu())
            yield name, weight.detach(), loaded if is_valid else None


def weight_report(network: nn.Module) -> dict[str, Any]:
    """What is quantised and what is not, JSON-able: totals, and ``layers`` by name.

    Bytes are those of codes and scales, or of the weights where they are kept as they are; ``bytes_float32`` is 4 a
    weight. Zeros and ``code_shares`` (given up to three bits) are those of the weights as eval mode sees them.
    """
    layers = []
    for name, weight, kept in kept_weights(network):
        entry: dict[str, Any] = {"name": name, "weights": weight.numel(), "is_quantized": kept is not None}
        if kept is None:
            entry |= {"scheme": str(weight.dtype).removeprefix("torch."), "bits": 8 * weight.element_size()}
            entry["bytes"] = weight.numel() * weight.element_size()
        else:
            entry |= {"scheme": kept.scheme, "bits": kept.bits, "bytes": kept.num_bytes}
            if kept.bits <= 3:
                shares = {code: int((kept.codes == code).sum()) / weight.numel() for code in alphabet(kept.bits)}
                entry["code_shares"] = {str(code): share for code, share in shares.items()}
        entry["zeros"] = int((weight == 0).sum())
        layers.append(entry)
    total = sum(layer["weights"] for layer in layers)
    return {
        "weights": total,
        "quantized_share": sum(layer["weights"] for layer in layers if layer["is_quantized"]) / total,
        "zero_share": sum(layer["zeros"] for layer in layers) / total,
        "bytes": sum(layer["bytes"] for layer in layers),
        "bytes_float32": 4 * total,
        "layers": layers,
    }


def quantized_share(network: nn.Module) -> float:
    """Share of the convolution and linear weights that are quantised (in eval mode), 0 to 1."""
    return weight_report(network)["quantized_share"]


def network_bytes(network: nn.Module) -> dict[str, int]:
    """Bytes of a network's parameters and buffers: ``float32`` (4 a number), and ``kept``, as they are packed."""
    state = plain_state_dict(network.state_dict())
    kept = {weight_name(name): kept.num_bytes for name, _, kept in kept_weights(network) if kept is not None}
    return {
        "float32": 4 * sum(tensor.numel() for tensor in state.values()),
        "kept": sum(kept.get(name, tensor.numel() * tensor.element_size()) for name, tensor in state.items()),
    }


def weight_name(layer: str) -> str:
    """Name of a layer's weight in the state dict; the layer may be the whole network, named ``""``."""
    return f"{layer}.weight" if layer else "weight"
