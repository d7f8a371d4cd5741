"""Checkpoints that survive a full disk and a killed process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from tna_lightning.files import replacing

# where version 0.1 put the state of `savers`, as Lightning would: a user's ModelCheckpoint may have the same settings
_KEYS_OF_0_1 = {
    f"ModelCheckpoint{{'monitor': {monitor!r}, 'mode': {mode!r}, 'every_n_train_steps': 0, 'every_n_epochs': 1, "
    "'train_time_interval': None}": f"tna_lightning.{name}"
    for name, monitor, mode in (("last", None, "min"), ("best", "val/acc", "max"))
}


class Saver(ModelCheckpoint):
    """Lightning's, whose state has a key of its own: a user's may have the same settings."""

    @property
    def state_key(self) -> str:  # noqa: D102
        return f"tna_lightning.{self.filename}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole.

    Lightning writes it to the system's temporary folder first and moves it from there, which is a plain copy where that
    is another file system: a disk that fills up, or a kill, then leaves half a checkpoint in place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: D102
        content = io.BytesIO()  # torch's own writer to a file hides why a write failed
        torch.save(checkpoint, content)
        with replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def load_checkpoint(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """A checkpoint, also of version 0.1."""
        checkpoint = super().load_checkpoint(*arguments, **settings)
        states = checkpoint.get("callbacks", {})
        if "tna_lightning.last" not in states:
            for old in _KEYS_OF_0_1.keys() & states.keys():
                states[_KEYS_OF_0_1[old]] = states.pop(old)
        return checkpoint


def savers(folder: Path, keep: str) -> tuple[Saver, list[Saver]]:
    """The callback whose checkpoint holds the network to keep, and all that save, in the order in which they must.

    Args:
        folder: for ``last.ckpt``, written after every epoch, and ``best.ckpt``.
        keep: ``best``: the epoch of the highest ``val/acc``, the first of several equals; ``last``: the last epoch.
    """
    common: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    last = Saver(folder, filename="last", **common)
    if keep == "last":
        return last, [last]
    best = Saver(folder, filename="best", monitor="val/acc", mode="max", **common)
    return best, [best, last]  # the last knows which was best, for a run that goes on from it
