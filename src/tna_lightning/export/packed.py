"""A packed file, checked: logits equal to the bit, or with batch norm folded, spikes within the tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tna_lightning.export.checking import check
from tna_lightning.files import replacing
from tna_lightning.models.recording import spikes_of
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.quantization.packing import load_packed, save_network


def export_packed(
    network: nn.Module,
    path: Path | str,
    batches: Iterable[Tensor],
    spec: Mapping[str, Any] | None = None,
    fold: bool = False,
    rebuild: Callable[[], nn.Module] | None = None,
    inputs: Mapping[str, Any] | None = None,
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
        inputs: what the network expects, as for :func:`~tna_lightning.quantization.save_network`.

    Returns:
        Counts, see :func:`check`.

    Raises:
        ExportMismatch: what was read back computes something else; nothing is left at ``path``.
    """
    with replacing(path) as temporary:
        save_network(temporary, fold_batch_norm(network) if fold else network, spec, inputs=inputs)
        loaded = load_packed(temporary, None if rebuild is None else rebuild())
        return check(network, lambda x: spikes_of(loaded, x), batches, exact=not fold)
