"""What an operation of augmentation is, and what it may know of the data.

Letters: T time steps, B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from tna_lightning.data.batch import Batch


class Operation(Protocol):
    """Anything that can be called so; it returns a new batch and leaves the one it got as it was.

    ``batch.x`` are images as they were loaded, uint8 ``[B, C, H, W]``, or event frames, float32 ``[B, T, 2, H, W]``,
    counts evened out over the cells; shape and dtype stay. All randomness comes from ``generator``, which is on the
    batch's device and starts anew with each batch. Labels may become probabilities, ``[B, K]``.

    An operation that needs to know something of the data has a method ``setup(data)`` beside. The data module calls it
    once, before the first batch, with itself (:class:`Samples` says what can be read there). A ValueError that it
    raises refuses the data.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch, augmented."""


class Samples(Protocol):
    """What ``setup`` can read of a data module."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def in_channels(self) -> int:
        """C."""

    @property
    def time_steps(self) -> int | None:
        """T of event frames; None for images."""

    @property
    def blank(self) -> Tensor:
        """What stands for nothing in each channel, ``[C]``, on the scale of ``batch.x``: images' mean, no events."""


def set_up(operation: Any, data: Samples) -> None:
    """Call the operation's ``setup``, if it has one; who wraps operations hands ``setup`` on to them by this."""
    if hasattr(operation, "setup"):
        operation.setup(data)


def check_samples(operation: Any, numbers: Tensor, num_samples: int) -> None:
    """Call the operation's ``check_samples``, if it has one, before training.

    It gets the numbers of the training samples and that of all, and refuses by a ValueError.
    """
    if hasattr(operation, "check_samples"):
        operation.check_samples(numbers, num_samples)


def need_images(data: Samples) -> None:
    """Refuse event frames."""
    if data.time_steps is not None:
        raise ValueError("works on images, and these data are event frames")


def need_events(data: Samples) -> None:
    """Refuse images."""
    if data.time_steps is None:
        raise ValueError("works on event frames, and these data are images")
