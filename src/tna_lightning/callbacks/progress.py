"""What a person sees of a training: a bar in a terminal, a line an epoch in a file."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted from 1 as everywhere else: ``Epoch 3/30``."""

    def _get_train_description(self, current_epoch: int) -> str:  # Lightning has no other place for it
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class EpochLines(Callback):
    """Prints ``epoch 3 of 30: loss 0.5213, validation accuracy 91.22 %, 4.1 s`` as each epoch ends, and at once."""

    def __init__(self) -> None:
        self._started = 0.0
        self._is_validated = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._started = time.perf_counter()
        self._is_validated = False

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._is_validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        words = [f"loss {float(metrics['train/loss']):.4g}"] if "train/loss" in metrics else []
        if self._is_validated and "val/acc" in metrics:
            words.append(f"validation accuracy {float(metrics['val/acc']):.2%}")
        words.append(f"{time.perf_counter() - self._started:.1f} s")
        print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {', '.join(words)}", flush=True)
