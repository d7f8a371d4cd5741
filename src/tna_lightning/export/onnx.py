"""An ONNX model: T unrolled, any batch size, logits ``[T, B, K]``; onnxruntime must predict the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from tna_lightning.export.checking import check, peek
from tna_lightning.files import replacing
from tna_lightning.packages import LEAF_SPEC, quiet, require
from tna_lightning.quantization.folding import without_quantizers

OPSET = 20


def export_onnx(network: nn.Module, path: Path | str, batches: Iterable[Tensor]) -> dict[str, int]:
    """Write an ONNX model with its weights, decoded, of any batch size, and check it with onnxruntime.

    Arguments, result and errors as for :func:`~tna_lightning.export.export_packed`.

    Raises:
        MissingPackage: the extra ``[export]`` is not installed.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="export")
    import onnx
    import onnxruntime

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
                opset_version=OPSET,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
        model = onnx.load(temporary)
        for node in model.graph.node:
            del node.metadata_props[:]  # where in whose Python files each node was made: most of a small file
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary)
        return check(network, lambda x: (torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), []), batches)
