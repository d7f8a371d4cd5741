"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning

from tna_lightning.callbacks.averaging import WeightAverage


class EMA(WeightAverage):
    """Keeps, validates and packs an exponential moving average of the weights, updated after every optimizer step.

    ``average <- d * average + (1 - d) * weights`` with ``d = min(decay, (1 + n) / (10 + n))`` in update n, counted from
    0 (the rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``); the first takes the weights as they
    are. So the average spans about the last tenth of the steps so far, until ``decay`` bounds it: 0.999 after some
    9,000 steps. What is averaged is said in :class:`~tna_lightning.callbacks.averaging.WeightAverage`.

    Args:
        decay: share of the average that an update leaves, at most; in [0, 1).
        recalibrate: at most so many training batches are run through the average at the end of each epoch for its batch
            norm statistics; 0 leaves them averaged.

    Raises:
        ValueError: an argument outside of what is allowed.

    Example::

        trainer = lightning.Trainer(max_epochs=15, callbacks=[EMA(decay=0.99), WeightQuantization(Ternary())])
        trainer.fit(learner, datamodule=data)  # learner.base is the average now
    """

    def __init__(self, decay: float = 0.999, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: must lie in [0, 1)")
        self.decay = decay

    def is_due(self, trainer: lightning.Trainer) -> bool:
        return True

    def share(self, update: int) -> float:
        return 1 - min(self.decay, (1 + update) / (10 + update))
