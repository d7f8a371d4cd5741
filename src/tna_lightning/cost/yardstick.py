"""The yardstick beside a spiking network: an ANN of its shape and weights, with few bits an activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tna_lightning.cost.memory import BITS, MemoryModel


def quantized_ann(
    layers: Sequence[Mapping[str, Any]],
    neurons: Sequence[Mapping[str, Any]],
    first: Mapping[str, Any] | None,
    *,
    time_steps: int,
    pj_per_mac: float,
    pj_per_ac: float,
    memory: MemoryModel,
) -> dict[str, Any] | None:
    """What an ANN costs that has the network's layers, weights and their precision, and carries as much an activation.

    A neuron of T steps says with its spikes one of T + 1 numbers, as an activation of ceil(log2(T + 1)) bits does (Yan
    et al., arXiv 2409.08290); where a spike is one of s + 1 numbers, one of s T + 1; where it is any, one of 32 bits.
    Each layer runs once, on activations none of which counts as 0. A ternary or binary weight accumulates (an AC), any
    other multiplies (a MAC), and so does each product of two activations; the first layer, which sees the same input in
    both, is priced as in the network itself, zeros included. Memory is as for the network, without membranes.

    Returns:
        ``activation_bits``; ``acs``, ``macs`` and the ``operations`` of both; those ``on_nonzero_weights``;
        ``energy_uj`` and ``energy_memory_uj``. None where there are no spiking neurons.
    """
    if not neurons or not any(layer["chances"] for layer in neurons):
        return None
    bits = max(spike_bits(layer["span"], time_steps) for layer in neurons)
    acs = macs = on_nonzero = moved = 0.0
    for layer in layers:
        operations = layer["ann_macs"]
        if layer is first:
            accumulates = layer["input"] in ("spikes", "ternary spikes")
        else:
            accumulates = "code_shares" in layer and layer["code_shares"].keys() <= {"-1", "0", "1"}
        acs, macs = (acs + operations, macs) if accumulates else (acs, macs + operations)
        on_nonzero += operations * layer["nonzero_share"]
        width = BITS[layer["input"]] if layer is first else bits
        buffer = layer["inputs_once"] * width / 8
        moved += memory.energy_uj(layer["inputs_once"] * width, buffer)
        if layer["bits_read"] is None:
            moved += memory.energy_uj(operations * bits, buffer)
        else:
            moved += memory.energy_uj(operations * layer["bits_read"], layer.get("bytes", 0))
    moved += sum(memory.energy_uj(layer["neurons"] * bits, layer["neurons"] * bits / 8) for layer in neurons)
    return {
        "activation_bits": bits,
        "operations": acs + macs,
        "acs": acs,
        "macs": macs,
        "on_nonzero_weights": on_nonzero,
        "energy_uj": (acs * pj_per_ac + macs * pj_per_mac) / 1e6,
        "energy_memory_uj": moved,
    }


def spike_bits(span: int | None, time_steps: int = 1) -> int:
    """Bits that say what a neuron fires in so many steps; a spike is one of ``span`` + 1 numbers, None of any."""
    return BITS["numbers"] if span is None else math.ceil(math.log2(span * time_steps + 1))
