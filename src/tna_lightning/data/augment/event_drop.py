"""EventDrop (arXiv 2106.05836): a part of the events is dropped, by time, by area, or at random.

Frames are ``[B, T, 2, H, W]``. Single events are no longer known in them: those of one cell, of a step, polarity and
pixel, are dropped together, and a period of time is so many whole steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tna_lightning.data.augment.operation import Samples, need_events
from tna_lightning.data.batch import Batch

KINDS = ("none", "time", "area", "random")


def spans(start: Tensor, share: Tensor, length: int) -> Tensor:
    """Which of ``length`` cells have their middle in ``[start, start + share)`` of the whole; bool ``[B, length]``."""
    middle = (torch.arange(length, device=start.device) + 0.5) / length
    return (middle >= start[:, None]) & (middle < (start + share)[:, None])


def event_drop(frames: Tensor, generator: torch.Generator, kinds: Sequence[str] = KINDS) -> Tensor:
    """One of ``kinds`` for each sample, with the authors' shares, each as likely.

    ``time``: a period of 0.1, 0.2, ... or 0.9 of the recording, which starts anywhere and may end behind it. ``area``:
    a rectangle of 0.05, 0.1, 0.15, 0.2 or 0.25 of each side, whose upper left corner lies anywhere. ``random``: each
    cell with a probability of 0.1, 0.2, ... or 0.9. ``none``: the sample stays.
    """
    count, time_steps, _, height, width = frames.shape
    device = frames.device
    kind = torch.randint(len(kinds), (count,), generator=generator, device=device)
    tenths = torch.randint(1, 10, (count,), generator=generator, device=device) / 10
    twentieths = torch.randint(1, 6, (count,), generator=generator, device=device) / 20
    start, top, left = torch.rand(3, count, generator=generator, device=device)
    dropped = torch.zeros(1, dtype=torch.bool, device=device)
    for place, name in enumerate(kinds):
        if name == "time":
            where = spans(start, tenths, time_steps)[:, :, None, None, None]
        elif name == "area":
            rows, columns = spans(top, twentieths, height), spans(left, twentieths, width)
            where = (rows[:, :, None] & columns[:, None])[:, None, None]
        elif name == "random":
            chance = torch.rand(frames.shape, generator=generator, device=device)
            where = chance < tenths.view(-1, 1, 1, 1, 1)
        else:
            continue
        dropped = dropped | (where & (kind == place).view(-1, 1, 1, 1, 1))
    return torch.where(dropped, 0, frames)


class EventDrop:
    """EventDrop of event frames (:func:`event_drop`, arXiv 2106.05836).

    Args:
        kinds: of which one is drawn for each sample: none, time, area, random.
    """

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        if not kinds or len(set(kinds)) < len(kinds) or any(name not in KINDS for name in kinds):
            raise ValueError(f"kinds={list(kinds)}: must be some of {', '.join(KINDS)}, each once")
        self.kinds = tuple(kinds)

    def setup(self, data: Samples) -> None:
        """Refuse images."""
        need_events(data)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=event_drop(batch.x, generator, self.kinds))
