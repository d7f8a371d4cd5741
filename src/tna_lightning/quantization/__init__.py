"""Low-bit weights: quantisers (pure), their place in a network and in training, and the packed file.

Only ``WeightQuantization`` knows Lightning; it is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from tna_lightning.quantization.codes import Codes, decode
from tna_lightning.quantization.kept import network_bytes, quantized_share, weight_report
from tna_lightning.quantization.packing import load_packed, save_network
from tna_lightning.quantization.parametrized import dequantize_network, plain_state_dict, quantize_network
from tna_lightning.quantization.quantizers import (
    Binary,
    Quantizer,
    TemporalTernary,
    Ternary,
    TernaryAbsmean,
    TernaryTTQ,
    Uniform,
)

if TYPE_CHECKING:
    from tna_lightning.quantization.callback import WeightQuantization

__all__ = [
    "Binary",
    "Codes",
    "Quantizer",
    "TemporalTernary",
    "Ternary",
    "TernaryAbsmean",
    "TernaryTTQ",
    "Uniform",
    "WeightQuantization",
    "decode",
    "dequantize_network",
    "load_packed",
    "network_bytes",
    "plain_state_dict",
    "quantize_network",
    "quantized_share",
    "save_network",
    "weight_report",
]


def __getattr__(name: str) -> Any:
    if name == "WeightQuantization":
        from tna_lightning.quantization.callback import WeightQuantization

        return WeightQuantization
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
