"""Stochastic weight averaging."""

from __future__ import annotations

from typing import Any

import lightning

from tna_lightning.callbacks.averaging import WeightAverage


class SWA(WeightAverage):
    """Keeps, validates and packs the mean of the weights at the ends of the last epochs (arXiv 1803.05407).

    The learning rate stays what the schedule says; the paper's is constant or cyclic while weights are averaged. Under
    a cosine to zero the last epochs hardly differ, and there is little to average. What is averaged is said in
    :class:`~tna_lightning.callbacks.averaging.WeightAverage`.

    Args:
        start_epoch: the first epoch whose end counts, counted from 0; null: the last quarter of the epochs.
        recalibrate: at most so many training batches are run through the average at the end of each epoch for its batch
            norm statistics; 0 leaves them averaged.

    Raises:
        ValueError: an argument outside of what is allowed, or a start after the last epoch.

    Example::

        trainer = lightning.Trainer(max_epochs=20, callbacks=[SWA(start_epoch=15), WeightQuantization(Ternary())])
        trainer.fit(learner, datamodule=data)  # learner.base is the mean of five epochs' ends now
    """

    def __init__(self, start_epoch: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if start_epoch is not None and (not isinstance(start_epoch, int) or start_epoch < 0):
            raise ValueError(f"start_epoch={start_epoch!r}: must be a whole number of 0 or more, or null")
        self.start_epoch = start_epoch

    def check(self, max_epochs: int | None) -> None:
        if max_epochs is None or max_epochs < 1:  # no end
            if self.start_epoch is None:
                raise ValueError("start_epoch=None: must be a whole number where training has no last epoch")
        elif self.start_epoch is not None and self.start_epoch >= max_epochs:
            raise ValueError(
                f"start_epoch={self.start_epoch!r}: must be at most {max_epochs - 1}, the last of {max_epochs} epochs "
                "counted from 0"
            )

    def is_due(self, trainer: lightning.Trainer) -> bool:
        start = self.start_epoch if self.start_epoch is not None else 3 * (trainer.max_epochs or 0) // 4
        return trainer.is_last_batch and trainer.current_epoch >= start

    def share(self, update: int) -> float:
        return 1 / (1 + update)
