"""A run's network, taken away: ``python -m tna_lightning.export RUN --format packed|onnx|nir|c``.

What was written is read back, run on the test set beside the kept network, and only then moved to its place:

- packed: logits equal to the bit (with ``--fold``, spikes within the tolerance);
- onnx: the same predictions by onnxruntime; opset 20, any batch size, T unrolled, logits ``[T, B, K]``;
- nir: the same spikes and predictions by NIR's equations; batch norm is folded, as NIR has none;
- c: the same spikes and predictions by the compiled code; batch norm is folded.

Rounding may move a membrane over the threshold. Tolerance: one spike in 10,000, one prediction in 1,000.
"""

from typing import TYPE_CHECKING, Any

from tna_lightning.export.c import export_c, load_c
from tna_lightning.export.checking import ExportMismatch, check
from tna_lightning.export.nir import export_nir
from tna_lightning.export.onnx import export_onnx
from tna_lightning.export.packed import export_packed
from tna_lightning.models.recording import spikes_of

if TYPE_CHECKING:
    from tna_lightning.export.run import export

__all__ = [
    "ExportMismatch",
    "check",
    "export",
    "export_c",
    "export_nir",
    "export_onnx",
    "export_packed",
    "load_c",
    "spikes_of",
]


def __getattr__(name: str) -> Any:
    if name != "export":  # the run's own, which needs Hydra and Lightning: the others want a network alone
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tna_lightning.export.run import export

    return export
