"""Stop when the loss is no number any more."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class NonFiniteLoss(FloatingPointError):
    """The training loss became NaN or infinite."""


class StopOnNonFiniteLoss(Callback):
    """Ends training with :class:`NonFiniteLoss` once the loss is NaN or infinite, and names the step.

    The step is remembered on the device and read every ``every_n_steps`` batches and at the end of every epoch, before
    checkpoints are written: so no bad state is ever saved, and an accelerator is not made to wait at every step.

    Args:
        every_n_steps: how often to look; 1 on a CPU, where looking is free.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad_step: Tensor | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        step = trainer.fit_loop.total_batch_idx
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=loss.device)
        is_first = ~torch.isfinite(loss) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)
        if loss.device.type == "cpu" or (step + 1) % self.every_n_steps == 0:
            self._raise_if_bad(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._raise_if_bad(trainer)

    def _raise_if_bad(self, trainer: lightning.Trainer) -> None:
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) >= 0:
            raise NonFiniteLoss(
                f"the loss is not finite at step {step} (epoch {trainer.current_epoch}): training stops, the last good "
                "checkpoint is kept; a lower optimizer.lr or trainer.gradient_clip_val may help"
            )
