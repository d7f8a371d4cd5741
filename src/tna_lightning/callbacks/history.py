"""Every epoch's metrics, kept over interruptions."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tna_lightning.data.batch import Batch
from tna_lightning.files import write_text
from tna_lightning.learner import refuse_spawned


class History(Callback):
    """Collects the logged metrics of each epoch and the time training takes.

    Its state travels in the checkpoint, so that a run that was cut off and continued ends with one unbroken history;
    Lightning's own ``CSVLogger`` deletes the earlier rows when it starts again in the same folder. A training from
    epoch 0 on begins a new one.

    Args:
        path: CSV file rewritten after every epoch; None keeps the history in memory alone.

    Attributes:
        rows: one dict an epoch, ``epoch`` and every metric by name; what is not finite is None.
        train_seconds: time in training epochs, without validation.
        wall_seconds: time in fit, over all sessions of this run.
        train_samples: samples trained on in that time.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.rows: list[dict[str, float | int | None]] = []
        self.train_seconds = 0.0
        self.wall_seconds = 0.0
        self.train_samples = 0
        self._epoch_started = self._session_mark = 0.0
        self._is_validated = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        refuse_spawned(trainer, self)
        self._session_mark = time.perf_counter()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 0 and self.rows:  # another fit's, not those of the run that goes on
            self.rows, self.train_seconds, self.wall_seconds, self.train_samples = [], 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._is_validated = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.train_samples += len(Batch.of(batch)) * trainer.world_size

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._is_validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop_clock()
        now = time.perf_counter()
        self.wall_seconds += now - self._session_mark
        self._session_mark = now
        metrics = {
            name: _number(value)
            for name, value in trainer.callback_metrics.items()
            if "/" in name and (self._is_validated or not name.startswith("val/"))  # else of an earlier epoch
        }
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        if self.path is not None and trainer.is_global_zero:
            write_text(self.path, self.as_csv())

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self._epoch_started
        self._epoch_started = now

    def columns(self) -> dict[str, list[float | int | None]]:
        """The history by metric: ``{"epoch": [0, 1, ...], "train/loss": [...], ...}``."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def as_csv(self) -> str:
        """The history as CSV text, one row an epoch."""
        text = io.StringIO()
        columns = self.columns()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds,
            "train_samples": self.train_samples,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.train_seconds = state_dict["train_seconds"]
        self.wall_seconds = state_dict["wall_seconds"]
        self.train_samples = state_dict["train_samples"]


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
