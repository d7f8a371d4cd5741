"""How long a training is, as far as Lightning's trainer knows before it begins."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Length(NamedTuple):
    """Counted in optimizer steps and epochs; None is what nobody knows yet.

    Attributes:
        steps: of the whole training; None where neither epochs nor steps are bounded, or the batches have no length.
        steps_per_epoch: None where the batches have no length.
        epochs: how many begin, with ``max_steps`` the last perhaps cut short.
    """

    steps: int | None
    steps_per_epoch: int | None
    epochs: int | None


def length_of(trainer: Any) -> Length:
    """The length of the training that a trainer is set up for; lets it load its data."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    steps = trainer.estimated_stepping_batches  # inf without an end, -1 for batches without a length
    known_steps = int(steps) if math.isfinite(steps) and steps >= 0 else None
    batches, together = trainer.num_training_batches, trainer.accumulate_grad_batches
    steps_per_epoch = max(1, math.ceil(batches / together)) if math.isfinite(batches) else None
    epochs = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None
    if known_steps is not None and steps_per_epoch is not None:
        epochs = math.ceil(known_steps / steps_per_epoch)
    return Length(known_steps, steps_per_epoch, epochs)


def planned_length(trainer: Any, batches: int) -> Length:
    """The length of a training whose epochs have so many batches, for a trainer that does not know its data yet."""
    steps_per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    steps = trainer.max_epochs * steps_per_epoch
    if trainer.max_steps != -1:
        steps = min(steps, trainer.max_steps)
    return Length(steps, steps_per_epoch, math.ceil(steps / steps_per_epoch))
