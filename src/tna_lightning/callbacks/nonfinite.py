"""Stop when the loss, a weight or a running statistic is no number any more."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

ADVICE = "a lower optimizer.lr or trainer.gradient_clip_val may help"


class NonFiniteLoss(FloatingPointError):
    """The training loss, a weight or a buffer became NaN or infinite."""


class StopOnNonFiniteLoss(Callback):
    """Ends training with :class:`NonFiniteLoss` once the loss is NaN or infinite, or a weight or buffer after an epoch.

    The step of the loss is remembered on the device and read every ``every_n_steps`` batches and at the end of every
    epoch, before checkpoints are written: no bad state is ever saved, and an accelerator need not wait at every step.
    The last step of an epoch may spoil the weights with a finite loss, and huge inputs the running statistics of batch
    norm, which training does not read: they are looked at too, before validation, but for buffers that were not finite
    when training began.

    Args:
        every_n_steps: how often to look; 1 on a CPU, where looking is free.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad_step: Tensor | None = None
        self._watched: list[str] = []

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._first_bad_step = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        buffers = [
            name for name, buffer in pl_module.named_buffers() if buffer.is_floating_point() and buffer.isfinite().all()
        ]
        # the quantisers' cutoff is infinite where training sees nothing quantised
        self._watched = [name for name in buffers if not name.endswith("parametrizations.weight.0.cutoff")]

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

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._raise_if_weights_are_bad(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._raise_if_bad(trainer)
        self._raise_if_weights_are_bad(trainer, pl_module)

    def _raise_if_weights_are_bad(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._raise_if_bad(trainer)  # the loss came first
        buffers = dict(pl_module.named_buffers())
        tensors = [*pl_module.named_parameters(), *((name, buffers[name]) for name in self._watched if name in buffers)]
        names, are_finite = zip(*((name, tensor.isfinite().all()) for name, tensor in tensors), strict=True)
        is_finite = torch.stack([each.to(are_finite[0].device) for each in are_finite]).tolist()  # one wait for all
        if not all(is_finite):
            name = names[is_finite.index(False)]
            advice = f"inputs may be too large for it; if not, {ADVICE}" if name in buffers else ADVICE
            raise NonFiniteLoss(
                f"{name} is not finite at the end of epoch {trainer.current_epoch}: training stops, the last good "
                f"checkpoint is kept; {advice}"
            )

    def _raise_if_bad(self, trainer: lightning.Trainer) -> None:
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) >= 0:
            raise NonFiniteLoss(
                f"the loss is not finite at step {step} (epoch {trainer.current_epoch}): training stops, the last good "
                f"checkpoint is kept; {ADVICE}"
            )
