"""A run that is continued ends where the uninterrupted one does."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class ExactResume(Callback):
    """Saves the random number generators with every checkpoint, and refuses checkpoints of another config.

    Shuffling and augmentation are functions of seed and epoch already (see :mod:`tna_lightning.data`); this covers the
    networks' own draws, dropout for example. A training that was stopped early stays so: it goes on to the test, not to
    another epoch. Lightning saves none of it.

    Args:
        identity: the run's identity (:func:`tna_lightning.running.identity.identity`); a checkpoint that
            carries another one is refused with a ValueError. None accepts any.
        extended: the identity of a shorter run, whose checkpoints are accepted too.
        began_with: what else every checkpoint shall remember of the training, JSON-able: under
            ``checkpoint[ExactResume.KEY]["began_with"]``.
    """

    KEY = "tna_lightning"

    def __init__(
        self, identity: str | None = None, began_with: Mapping[str, Any] | None = None, extended: str | None = None
    ) -> None:
        self.identity = identity
        self.extended = extended
        self.began_with = dict(began_with or {})
        self._generators: dict[str, Any] | None = None
        self._was_stopped = False

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
        name, keys, position, has_gauss, cached_gaussian = state
        checkpoint[self.KEY] = {
            "identity": self.identity,
            "began_with": self.began_with,
            "should_stop": trainer.should_stop,  # known by now: Lightning calls what saves after what may stop
            "generators": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached_gaussian],
                "python": random.getstate(),
            },
        }

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.KEY not in checkpoint or trainer.state.fn != "fit":
            return
        if self.identity is not None:
            refuse_another_run(checkpoint, trainer.ckpt_path, self.identity, self.extended)
        self._generators = checkpoint[self.KEY]["generators"]
        self._was_stopped = checkpoint[self.KEY].get("should_stop", False)  # version 0.1 did not save it

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._was_stopped:
            trainer.should_stop = True
        self._was_stopped = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # here, not on load: what Lightning does in between may draw
        if self._generators is None:
            return
        torch.set_rng_state(self._generators["torch"])
        if len(self._generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._generators["cuda"])
        name, keys, position, has_gauss, cached_gaussian = self._generators["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
        random.setstate(self._generators["python"])
        self._generators = None


def identity_of(checkpoint: Mapping[str, Any]) -> Any:
    """The identity of the run that saved a checkpoint; None where it is not said."""
    own = checkpoint.get(ExactResume.KEY)
    return own.get("identity") if isinstance(own, Mapping) else own


def refuse_another_run(
    checkpoint: Mapping[str, Any], path: Path | str | None, identity: str, extended: str | None = None
) -> None:
    """Raise a ValueError if the checkpoint carries the identity of another run, or an entry that is none of ours."""
    if ExactResume.KEY not in checkpoint:
        return
    saved = identity_of(checkpoint)
    if saved not in (identity, extended or identity):
        raise ValueError(
            f"ckpt_path={str(path)!r}: belongs to a run of another config "
            f"(identity {str(saved)[:8]}, this one is {identity[:8]}); continue it with its own, "
            f"for more epochs of a finished run: extend=RUN; or begin another with its weights: init_from={path}"
        )
