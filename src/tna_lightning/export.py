"""A run's network, taken away: ``python -m tna_lightning.export RUN --format packed|onnx|nir``.

What was written is read back, run on the test set beside the kept network, and only then moved to its place:

- packed: logits equal to the bit (with ``--fold``, spikes within the tolerance);
- onnx: the same predictions by onnxruntime; opset 20, any batch size, T unrolled, logits ``[T, B, K]``;
- nir: the same spikes and predictions by NIR's equations; batch norm is folded, as NIR has none.

Rounding may move a membrane over the threshold. Tolerance: one spike in 10,000, one prediction in 1,000.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.files import replacing
from tna_lightning.models import SpikingNeuron
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.quantization.packing import load_packed, save_network

OURS = ("tna_lightning.models.", "torch.nn.ReLU")  # what load_packed builds from a file
SUFFIXES = {"packed": "safetensors", "onnx": "onnx", "nir": "nir"}
ONNX_OPSET = 20
SPIKE_TOLERANCE = 1e-4
PREDICTION_TOLERANCE = 1e-3

Candidate = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class ExportMismatch(RuntimeError):
    """What was exported does not compute what the network does."""


def export_packed(
    network: nn.Module,
    path: Path | str,
    batches: Iterable[Tensor],
    spec: Mapping[str, Any] | None = None,
    fold: bool = False,
    rebuild: Callable[[], nn.Module] | None = None,
) -> dict[str, int]:
    """Write a packed file (:func:`~tna_lightning.quantization.save_network`) and check it.

    Args:
        network: in eval mode.
        path: replaced if all goes well.
        batches: inputs to check with.
        spec: from which the file's reader builds the network.
        fold: fold batch norm first.
        rebuild: makes the network to load into where the file alone is not enough: without ``spec``, or with one that
            names a network of the user's own.

    Returns:
        Counts, see :func:`check`.

    Raises:
        ExportMismatch: what was read back computes something else; nothing is left at ``path``.
    """
    with replacing(path) as temporary:
        save_network(temporary, fold_batch_norm(network) if fold else network, spec)
        loaded = load_packed(temporary, None if rebuild is None else rebuild())
        return check(network, lambda x: spikes_of(loaded, x), batches, exact=not fold)


def export_onnx(network: nn.Module, path: Path | str, batches: Iterable[Tensor]) -> dict[str, int]:
    """Write an ONNX model with its weights, of any batch size, and check it with onnxruntime.

    Arguments, result and errors as for :func:`export_packed`.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    first, batches = _peek(batches)
    # two images, because torch takes a batch of one for a constant
    example = first[:2] if len(first) > 1 else torch.cat([first, first])
    with replacing(path) as temporary:
        with _quiet_onnx():
            torch.onnx.export(
                network,
                (example,),
                temporary,
                dynamo=True,
                opset_version=ONNX_OPSET,
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


def export_nir(network: nn.Module, path: Path | str, batches: Iterable[Tensor]) -> dict[str, int]:
    """Write a NIR graph, see :mod:`tna_lightning.nir_graph`, and check it by NIR's equations.

    Arguments and result as for :func:`export_packed`.

    Raises:
        ExportMismatch: as there.
        ValueError: NIR cannot say what the network does.
    """
    _require("nir")
    from tna_lightning.nir_graph import NIRRunner, to_nir, write_nir

    first, batches = _peek(batches)
    with replacing(path) as temporary:
        write_nir(temporary, to_nir(fold_batch_norm(network), tuple(first.shape[-3:])))
        runner = NIRRunner(temporary)

        def run(x: Tensor) -> tuple[Tensor, list[Tensor]]:
            time_steps = getattr(network, "time_steps", 1)
            logits = runner(x.expand(time_steps, *x.shape) if x.ndim == 4 else x.transpose(0, 1))
            return logits, list(runner.spikes.values())

        return check(network, run, batches)


@torch.inference_mode()
def check(network: nn.Module, candidate: Candidate, batches: Iterable[Tensor], exact: bool = False) -> dict[str, int]:
    """Run both on the same inputs.

    Args:
        network: the source.
        candidate: gives logits and, if it can, the spikes of each layer of neurons in order.
        batches: inputs.
        exact: ask for equal logits.

    Returns:
        ``images``, ``predictions_differing``, ``spikes`` (of the source, where compared) and ``spikes_differing``.

    Raises:
        ExportMismatch: beyond the tolerance.
    """
    network.eval()
    counts = {"images": 0, "predictions_differing": 0, "spikes": 0, "spikes_differing": 0}
    for x in batches:
        logits, spikes = spikes_of(network, x)
        other_logits, other_spikes = candidate(x)
        if exact and not torch.equal(logits, other_logits):
            raise ExportMismatch(f"logits differ by up to {(logits - other_logits).abs().max():.3g} from the network's")
        counts["images"] += len(x)
        counts["predictions_differing"] += int((_prediction(logits) != _prediction(other_logits)).sum())
        for ours, theirs in zip(spikes, other_spikes, strict=bool(other_spikes)):
            counts["spikes"] += int((ours != 0).sum())
            counts["spikes_differing"] += int((ours != theirs).sum())
    if counts["images"] == 0:
        raise ExportMismatch("there is no image to check with")
    too_many = counts["predictions_differing"] > PREDICTION_TOLERANCE * counts["images"]
    if too_many or counts["spikes_differing"] > SPIKE_TOLERANCE * counts["spikes"]:
        raise ExportMismatch(
            f"{counts['predictions_differing']:,} of {counts['images']:,} predictions and "
            f"{counts['spikes_differing']:,} of {counts['spikes']:,} spikes differ from the network's"
        )
    return counts


def spikes_of(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a network, and the spikes of each layer of neurons in order."""
    spikes: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: spikes.append(output))
        for module in network.modules()
        if isinstance(module, SpikingNeuron)
    ]
    try:
        return network(x), spikes
    finally:
        for handle in handles:
            handle.remove()


def _prediction(logits: Tensor) -> Tensor:
    return (logits.mean(0) if logits.ndim == 3 else logits).argmax(-1)


def _peek(batches: Iterable[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    iterator = iter(batches)
    first = next(iterator)
    return first, chain([first], iterator)


def _require(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise ValueError(f"format: needs the package {package}: pip install 'tna-lightning[export]'") from None


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


def export(
    folder: Path | str,
    format: str,
    output: Path | str | None = None,
    fold: bool = False,
    num_images: int | None = None,
    data_root: str | None = None,
) -> tuple[Path, dict[str, int]]:
    """Export the kept network of a finished run.

    Args:
        folder: the run's folder.
        format: ``"packed"``, ``"onnx"`` or ``"nir"``.
        output: the file, which must not be there yet; by default ``network-exported`` in the run's folder, replaced.
        fold: fold batch norm into scales and biases (NIR always does).
        num_images: check with so many images of the test set; by default all.
        data_root: where the data are, if not where they were in training.

    Returns:
        The file and the counts of :func:`check`.

    Raises:
        ValueError: no finished run, no such format, a format that cannot say what the network does, a file that is
            there already, or fewer than one image.
        ExportMismatch: the check failed; nothing is left at ``output``.
    """
    from tna_lightning import runs
    from tna_lightning.factory import build_network, data_to_test, network_spec

    if format not in SUFFIXES:
        raise ValueError(f"format={format!r}: must be one of {', '.join(SUFFIXES)}")
    if num_images is not None and num_images < 1:
        raise ValueError(f"images={num_images!r}: must be at least 1")
    config = runs.finished_record(folder)["config"]
    if output is not None:
        _check_output(output)
    datamodule = data_to_test(config, data_root)
    spec = network_spec(config, datamodule)
    network = load_packed(Path(folder) / runs.NETWORK, build_network(spec))
    datamodule.prepare_data()
    datamodule.setup("test")
    path = Path(output) if output is not None else Path(folder) / f"network-exported.{SUFFIXES[format]}"
    batches = _first_images(datamodule, num_images)
    if format == "packed":
        # a network of the user's own cannot be built from the file alone, and is given to whoever reads it
        is_ours = all(str(spec[part].get("_target_")).startswith(OURS) for part in ("model", "neuron"))
        rebuild = None if is_ours else lambda: build_network(spec)
        return path, export_packed(network, path, batches, spec, fold, rebuild)
    if format == "onnx":
        return path, export_onnx(fold_batch_norm(network) if fold else network, path, batches)
    return path, export_nir(network, path, batches)


def _check_output(output: Path | str) -> None:
    path = Path(output)
    if path.is_dir():
        raise ValueError(f"output={str(output)!r}: is a folder; name a file in it")
    if path.exists():  # the run's own record and network among them
        raise ValueError(f"output={str(output)!r}: is there already; remove it, or name another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"output={str(output)!r}: there is no folder {path.parent} to write to")


def _first_images(datamodule: Any, count: int | None) -> Iterator[Tensor]:
    """The test inputs as networks take them, on the CPU."""
    seen = 0
    for x, _ in datamodule.test_dataloader():
        if count is not None:
            x = x[: count - seen]
        if len(x) == 0:
            return
        seen += len(x)
        yield datamodule.prepare(x).cpu()


def main() -> None:
    """The command line."""
    from tna_lightning.console import leave

    parser = argparse.ArgumentParser(
        prog="python -m tna_lightning.export", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    parser.add_argument("--output", help="the file to write (default: network-exported.* in the run's folder)")
    parser.add_argument("--fold", action="store_true", help="fold batch norm into scales and biases (nir always does)")
    parser.add_argument("--images", type=int, help="check with so many images of the test set (default: all)")
    parser.add_argument("--data-root", help="where the data are, if not where they were in training")
    arguments = parser.parse_args()
    try:
        path, counts = export(
            arguments.run, arguments.format, arguments.output, arguments.fold, arguments.images, arguments.data_root
        )
    except ExportMismatch as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        leave(error)
    print(f"{path}: {path.stat().st_size:,} bytes")
    compared = f", {counts['spikes_differing']:,} of {counts['spikes']:,} spikes" if counts["spikes"] else ""
    print(f"checked on {counts['images']:,} images: {counts['predictions_differing']:,} predictions{compared} differ")


if __name__ == "__main__":
    main()
