"""An ONNX model: T unrolled, any batch size, logits ``[T, B, K]``; onnxruntime must predict the same.

Its ``metadata_props`` hold what the network expects (``inputs``, as in a packed file's header), in JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.export.checking import check, peek
from tna_lightning.files import replacing
from tna_lightning.packages import LEAF_SPEC, quiet, require
from tna_lightning.quantization.folding import without_quantizers
from tna_lightning.quantization.packing import inputs_entry

OPSET = 20
LEAST_OPSET = 18  # the one in which torch's exporter writes; its converter goes no further down


def export_onnx(
    network: nn.Module,
    path: Path | str,
    batches: Iterable[Tensor],
    opset: int = OPSET,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write an ONNX model with its weights, decoded, of any batch size, and check it with onnxruntime.

    Args:
        network: quantised or not; what is written is what it computes in eval mode.
        path: replaced if all goes well.
        batches: inputs to check with.
        opset: version of ONNX's operators, at least 18.
        inputs: what the network expects, as for :func:`~tna_lightning.quantization.save_network`.

    Returns:
        Counts, see :func:`~tna_lightning.export.check`.

    Raises:
        ExportMismatch: what was written computes something else; nothing is left at ``path``.
        MissingPackage: the extra ``[export]`` is not installed.
        ValueError: there is no such opset, or ``inputs`` cannot be.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="export")
    import onnx
    import onnxruntime

    if not LEAST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ValueError(f"opset={opset!r}: must lie in [{LEAST_OPSET}, {onnx.defs.onnx_opset_version()}]")
    entry = inputs_entry(network, inputs)
    network = without_quantizers(network)
    first, batches = peek(batches)
    # two images, because torch takes a batch of one for a constant
    example = first[:2] if len(first) > 1 else torch.cat([first, first])
    with replacing(path) as temporary:
        with quiet("torch.onnx", logging.ERROR, LEAF_SPEC):  # among its notes: that torchvision is missing
            torch.onnx.export(
                network,
                (example,),
                temporary,
                dynamo=True,
                opset_version=opset,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
        model = onnx.load(temporary)
        for node in model.graph.node:
            del node.metadata_props[:]  # where in whose Python files each node was made: most of a small file
        written = {each.domain: each.version for each in model.opset_import}
        if written.get("") != opset:
            raise ValueError(f"opset={opset!r}: torch's exporter has written {written.get('')} instead")
        onnx.helper.set_model_props(model, {"inputs": entry})
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary)
        return check(network, lambda x: (torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), []), batches)
