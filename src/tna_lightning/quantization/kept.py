"""What of a network is kept as codes, and what that weighs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.models.over_time import OverTime
from tna_lightning.quantization.codes import VALUES, Codes, alphabet
from tna_lightning.quantization.parametrized import plain_state_dict, weighted_layers
from tna_lightning.quantization.weights import modules_of, other_weights, parameter_layers


@torch.no_grad()
def kept_weights(network: nn.Module) -> Iterator[tuple[str, Tensor, Codes | None]]:
    """Name of each convolution and linear layer, its weight in eval mode, and its codes if it is quantised.

    The weight of a layer whose codes differ by step is ``[T, ...]``.
    A layer's codes are those of its parametrisation, or the ones that it was loaded with (``layer.kept``) if its weight
    still is what they say.

    Raises:
        ValueError: a weight holds NaN or infinite values, or gets such a scale; the message names the layer.
    """
    modules = modules_of(network)
    for name, weight, quantized in weighted_layers(network):
        if quantized is not None:
            try:
                kept = quantized.quantizer.encode(weight)
            except ValueError as error:
                raise ValueError(f"{weight_name(name)}: {error}") from None
            yield name, kept.weight, kept
        else:
            loaded: Codes | None = getattr(modules[name], "kept", None)
            is_valid = loaded is not None and torch.equal(loaded.weight, weight.cpu())
            yield name, weight.detach(), loaded if is_valid else None


def weight_report(network: nn.Module) -> dict[str, Any]:
    """What is quantised and what is not, JSON-able: totals, and ``layers`` by name.

    All weights are in it: of convolutions and linear layers, and the :func:`other_weights`.
    Bytes are those of codes and scales, or of the weights where they are kept as they are; ``bytes_float32`` is 4 a
    weight. Zeros and ``code_shares`` (given up to three bits a code) are those of the weights as eval mode sees them.
    ``bits`` are those of a weight as stored, ``information`` log2 of how many codes it may have. A weight that differs
    by time step counts once: both are those of all its T codes together, ``zeros`` the mean over its steps, and the
    layer has an entry ``time_steps``, and one ``encoding`` if they are stored by their period.
    A parameter that several layers share is in it once, under the first's name. Shares of no weights are 0.
    """
    layers = []
    layers_of = parameter_layers(network)
    tied = {layers_of[name] for name in _tied(network)}
    order = {name: position for position, name in enumerate(modules_of(network))}
    others = ((name, weight, None) for name, weight in other_weights(network))
    for name, weight, kept in sorted(
        [*kept_weights(network), *others], key=lambda entry: order.get(entry[0], order[entry[0].rpartition(".")[0]])
    ):
        if name in tied:
            continue
        steps = _time_steps(network, name, weight)
        count = weight.numel() // (steps or 1)
        entry: dict[str, Any] = {"name": name, "weights": count, "is_quantized": kept is not None}
        if kept is None:
            entry |= {"scheme": str(weight.dtype).removeprefix("torch."), "bits": 8 * weight.element_size()}
            entry["bytes"] = weight.numel() * weight.element_size()
        else:
            entry |= {"scheme": kept.scheme, "bits": kept.bits_per_weight, "information": kept.information}
            entry |= {"bytes": kept.num_bytes} | ({} if kept.encoding == VALUES else {"encoding": kept.encoding})
            if kept.bits <= 3:
                shares = {code: int((kept.values == code).sum()) / weight.numel() for code in alphabet(kept.bits)}
                entry["code_shares"] = {str(code): share for code, share in shares.items()}
        entry["zeros"] = int((weight == 0).sum())
        if steps is not None:
            entry |= {"zeros": entry["zeros"] / steps, "time_steps": steps}
            if kept is None:
                entry["bits"] *= steps
        layers.append(entry)
    total = sum(layer["weights"] for layer in layers)
    all_weights = total or 1
    return {
        "weights": total,
        "quantized_share": sum(layer["weights"] for layer in layers if layer["is_quantized"]) / all_weights,
        "zero_share": sum(layer["zeros"] for layer in layers) / all_weights,
        "bytes": sum(layer["bytes"] for layer in layers),
        "bytes_float32": 4 * total,
        "layers": layers,
    }


def quantized_share(network: nn.Module) -> float:
    """Share of the weights that are quantised (in eval mode), 0 to 1."""
    return weight_report(network)["quantized_share"]


def network_bytes(network: nn.Module) -> dict[str, int]:
    """Bytes of a network's parameters and buffers: ``float32`` (4 a number), and ``kept``, as they are packed.

    In float32 a weight that differs by time step counts once, as in :func:`weight_report`. A parameter of several
    names counts once.
    """
    tied = _tied(network)
    state = plain_state_dict(
        {
            name: tensor
            for name, tensor in network.state_dict().items()
            if name not in tied and isinstance(tensor, Tensor)  # get_extra_state may give anything
        }
    )
    counts = {name: tensor.numel() for name, tensor in state.items()}
    kept = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    for name, weight, codes in kept_weights(network):
        if weight_name(name) in counts:  # else tied, or computed from others, which are what is kept
            counts[weight_name(name)] = weight.numel() // (_time_steps(network, name, weight) or 1)
            size = weight.numel() * weight.element_size()
            kept[weight_name(name)] = size if codes is None else codes.num_bytes
    return {"float32": 4 * sum(counts.values()), "kept": sum(kept.values())}


def _tied(network: nn.Module) -> set[str]:
    """Further names of parameters and buffers that have an earlier one."""
    every = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    every |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    return every - {name for name, _ in (*network.named_parameters(), *network.named_buffers())}


def _time_steps(network: nn.Module, name: str, weight: Tensor) -> int | None:
    """T of a layer whose weight differs by step; the name may be that of a parameter, which has none."""
    return len(weight) if isinstance(modules_of(network).get(name), OverTime) else None


def weight_name(layer: str) -> str:
    """Name of a layer's weight in the state dict; the layer may be the whole network, named ``""``."""
    return f"{layer}.weight" if layer else "weight"
