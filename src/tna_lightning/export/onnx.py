"""An ONNX model: T unrolled, any batch size, logits ``[T, B, K]``; onnxruntime must predict the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tna_lightning.export.checking import check, peek, require
from tna_lightning.files import replacing

OPSET = 20


def export_onnx(network: nn.Module, path: Path | str, batches: Iterable[Tensor]) -> dict[str, int]:
    """Write an ONNX model with its weights, of any batch size, and check it with onnxruntime.

    Arguments, result and errors as for :func:`~tna_lightning.export.export_packed`.
    """
    require("onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    first, batches = peek(batches)
    # two images, because torch takes a batch of one for a constant
    example = first[:2] if len(first) > 1 else torch.cat([first, first])
    with replacing(path) as temporary:
        with _quiet_onnx():
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


@contextmanager
def _quiet_onnx() -> Iterator[None]:
    """Without the exporter's notes that torchvision is missing, and torch's warning at a class of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
