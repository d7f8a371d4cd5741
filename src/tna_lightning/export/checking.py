"""What was exported is run beside the network that it came from, and held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from tna_lightning.models.recording import spikes_of

SPIKE_TOLERANCE = 1e-4
PREDICTION_TOLERANCE = 1e-3

Candidate = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class ExportMismatch(RuntimeError):
    """What was exported does not compute what the network does."""


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


def _prediction(logits: Tensor) -> Tensor:
    return (logits.mean(0) if logits.ndim == 3 else logits).argmax(-1)


def peek(batches: Iterable[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """The first batch, and all of them."""
    iterator = iter(batches)
    first = next(iterator)
    return first, chain([first], iterator)
