"""The kept network of a finished run, in one of the formats."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tna_lightning.data.batch import Batch, Normalization
from tna_lightning.export.c import export_c
from tna_lightning.export.nir import export_nir
from tna_lightning.export.onnx import OPSET, export_onnx
from tna_lightning.export.packed import export_packed
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.running.factory import build_network, expected_inputs, inputs_of
from tna_lightning.running.own import targets_in
from tna_lightning.running.record import C_FOLDER, finished_record
from tna_lightning.running.trust import kept_network, rebuilt

OURS = r"tna_lightning\.models\..*|torch\.nn\.ReLU"  # what load_packed builds from a file
NAMES = {
    "packed": "network-exported.safetensors",
    "onnx": "network-exported.onnx",
    "nir": "network-exported.nir",
    "c": C_FOLDER,
}


def export(
    folder: Path | str,
    format: str,
    output: Path | str | None = None,
    fold: bool = False,
    num_images: int | None = None,
    data_root: str | None = None,
    *,
    opset: int | None = None,
    trust: bool = False,
    is_checked: bool = True,
) -> tuple[Path, dict[str, int]]:
    """Export the kept network of a finished run.

    Args:
        folder: the run's folder.
        format: ``"packed"``, ``"onnx"``, ``"nir"`` or ``"c"``.
        output: the file (of C the folder), which must not be there yet; by default ``network-exported`` in the run's
            folder, replaced.
        fold: fold batch norm into scales and biases (NIR and C always do).
        num_images: check with so many images of the test set; by default all.
        data_root: where the data are, if not where they were in training.
        opset: of an ONNX model, see :func:`export_onnx`; by default 20.
        trust: also import and call what the run's record names that is no part of this package: code of one's own.
        is_checked: run it beside the network; only C can be written without, where there is no compiler.

    Returns:
        The file or folder and the counts of :func:`check`; of C also ``table_bytes`` and ``ram_bytes``, and without a
        check nothing else.

    Raises:
        ValueError: no finished run, no such format, a format that cannot say what the network does, a file that is
            there already, or fewer than one image.
        ExportMismatch: the check failed; nothing is left at ``output``.
    """

    if format not in NAMES:
        raise ValueError(f"format={format!r}: must be one of {', '.join(NAMES)}")
    if not is_checked and format != "c":
        raise ValueError(f"no-check: must be left out with format={format!r}, whose file is always checked")
    if num_images is not None and num_images < 1:
        raise ValueError(f"images={num_images!r}: must be at least 1")
    if opset is not None and format != "onnx":
        raise ValueError(f"opset={opset!r}: must be left out, format={format} has none")
    finished_record(folder)
    if output is not None:
        _check_output(output, "folder" if format == "c" else "file")
    datamodule, spec = rebuilt(folder, data_root, trust)
    network = kept_network(folder, spec)
    path = Path(output) if output is not None else Path(folder) / NAMES[format]
    if format == "c":
        return path, _export_c(network, path, datamodule, num_images, is_checked)
    batches = _first_images(datamodule, num_images)
    expected = expected_inputs(network, datamodule)
    if format == "packed":
        # a network of the user's own cannot be built from the file alone, and is given to whoever reads it
        targets = [*targets_in(spec["model"]), *targets_in(spec["neuron"])]
        is_ours = all(re.fullmatch(OURS, target) for target in targets)
        rebuild = None if is_ours else lambda: build_network(spec)
        return path, export_packed(network, path, batches, spec, fold, rebuild, expected)
    if format == "onnx":
        folded = fold_batch_norm(network) if fold else network
        return path, export_onnx(folded, path, batches, OPSET if opset is None else opset, expected)
    return path, export_nir(network, path, batches, expected)


def _export_c(
    network: nn.Module, path: Path, datamodule: Any, num_images: int | None, is_checked: bool
) -> dict[str, int]:
    normalization = getattr(datamodule, "normalization", None)
    if not isinstance(normalization, Normalization):
        raise ValueError(
            f"data={type(datamodule).__name__}: must say what it does to uint8 inputs, in a property normalization "
            "(tna_lightning.data.Normalization)"
        )
    raw = (x.cpu() for x in _first_raw(datamodule, num_images))
    numbers = [str(number) for number in range(inputs_of(datamodule).num_classes)]
    names, prepare = getattr(datamodule, "class_names", numbers), lambda x: datamodule.prepare(x).cpu()
    written = export_c(network, path, raw, normalization, names, prepare, is_checked)
    return {**(written.counts or {}), "table_bytes": written.table_bytes, "ram_bytes": written.ram_bytes}


def _check_output(output: Path | str, kind: str) -> None:
    path = Path(output)
    if path.is_dir() and kind == "file":
        raise ValueError(f"output={str(output)!r}: is a folder; name a file in it")
    if path.exists():  # the run's own record and network among them
        raise ValueError(f"output={str(output)!r}: is there already; remove it, or name another {kind}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"output={str(output)!r}: there is no folder {path.parent} to write to")


def _first_images(datamodule: Any, count: int | None) -> Iterator[Tensor]:
    """The test inputs as networks take them, on the CPU."""
    return (datamodule.prepare(x).cpu() for x in _first_raw(datamodule, count))


def _first_raw(datamodule: Any, count: int | None) -> Iterator[Tensor]:
    """The test inputs as they were loaded."""
    seen = 0
    for batch in datamodule.test_dataloader():
        x = Batch.of(batch).x
        if count is not None:
            x = x[: count - seen]
        if len(x) == 0:
            return
        seen += len(x)
        yield x
