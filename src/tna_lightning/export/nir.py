"""A NIR graph, checked: the same spikes and predictions by NIR's equations; batch norm is folded, as NIR has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tna_lightning.export.checking import check, peek
from tna_lightning.export.nir_graph import NIRRunner, check_modules, to_nir, write_nir
from tna_lightning.files import replacing
from tna_lightning.packages import require
from tna_lightning.quantization.folding import fold_batch_norm


def export_nir(
    network: nn.Module, path: Path | str, batches: Iterable[Tensor], inputs: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write a NIR graph, see :mod:`tna_lightning.export.nir_graph`, and check it by NIR's equations.

    Arguments and result as for :func:`~tna_lightning.export.export_packed`.

    Raises:
        ExportMismatch: as there.
        MissingPackage: the extra ``[export]`` is not installed.
        ValueError: NIR cannot say what the network does.
    """
    require("h5py", "nir", extra="export")
    check_modules(network)  # before folding, which refuses them too
    first, batches = peek(batches)
    with replacing(path) as temporary:
        time_steps = first.shape[1] if first.ndim == 5 else getattr(network, "time_steps", 1)
        known = {"time_steps": time_steps, **(inputs or {})}
        if known["time_steps"] not in (None, time_steps):
            raise ValueError(f"inputs.time_steps={known['time_steps']!r}: must be {time_steps}, as the network runs")
        write_nir(temporary, to_nir(fold_batch_norm(network), tuple(first.shape[-3:]), known))
        runner = NIRRunner(temporary)
        order = {name.replace(".", "_"): place for place, (name, _) in enumerate(network.named_modules())}

        def run(x: Tensor) -> tuple[Tensor, list[Tensor]]:
            logits = runner(x.expand(time_steps, *x.shape) if x.ndim == 4 else x.transpose(0, 1))
            names = list(runner.spikes)  # of two branches those of the other may have been run first
            if order.keys() >= set(names):
                names.sort(key=order.__getitem__)
            return logits, [runner.spikes[name] for name in names]

        return check(network, run, batches)
