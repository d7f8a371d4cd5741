"""Checkpoints that survive a full disk, a killed process and a move, and are looked at before they are used."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from tna_lightning.files import replacing, write_bytes
from tna_lightning.length import Length, length_of

# where version 0.1 put the state of `savers`, as Lightning would: a user's ModelCheckpoint may have the same settings
_KEYS_OF_0_1 = {
    f"ModelCheckpoint{{'monitor': {monitor!r}, 'mode': {mode!r}, 'every_n_train_steps': 0, 'every_n_epochs': 1, "
    "'train_time_interval': None}": f"tna_lightning.{name}"
    for name, monitor, mode in (("last", None, "min"), ("best", "val/acc", "max"))
}


# what a checkpoint must hold for a training to go on from it
_NEEDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "global_step"), int),
    **dict.fromkeys(("loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
}


class Saver(ModelCheckpoint):
    """Lightning's, whose state has a key of its own: a user's may have the same settings.

    It refuses a validation after which an epoch goes on to its end: what it found would be said of, and with ``best``
    choose, weights of some steps later.

    Its state names files without their folder. By its absolute path, as Lightning has it, the score of the best epoch
    would be forgotten where a run's folder has been moved or copied.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        super().on_train_start(trainer, pl_module)
        batches, interval = trainer.num_training_batches, trainer.val_check_batch or math.inf
        if trainer.enable_validation and math.isfinite(batches) and math.isfinite(interval):
            refuse_rest(trainer.val_check_interval, int(interval), int(batches))
        refuse_more(trainer, length_of(trainer))

    @property
    def state_key(self) -> str:  # noqa: D102
        return f"tna_lightning.{self.filename}"

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return _placed(super().state_dict(), None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(_placed(state_dict, str(self.dirpath)))


def refuse_rest(asked: int | float, interval: int, batches: int) -> None:
    """Refuse validations of which the last in an epoch is not at its end.

    Args:
        asked: what ``trainer.val_check_interval`` says.
        interval: the same in batches.
        batches: of an epoch.

    Raises:
        ValueError: an epoch is no multiple of the interval, nor (where it counts over epochs) the other way round.
    """
    if batches % interval and interval % batches:
        allowed = ", ".join(str(number) for number in range(1, batches + 1) if batches % number == 0)
        raise ValueError(
            f"trainer.val_check_interval={asked!r}: the last validation of an epoch ({batches} batches) would be of "
            f"other weights than those that are kept at its end; allowed are whole numbers of batches: {allowed}"
        )


def refuse_more(trainer: Any, length: Length) -> None:
    """Refuse to go on for longer than there is something to train on.

    Raises:
        ValueError: ``min_steps`` or ``min_epochs`` of the trainer is beyond the end of training.
    """
    for name, most in (("min_steps", length.steps), ("min_epochs", length.epochs)):
        least = getattr(trainer, name)
        if least is not None and most is not None and least > most:
            raise ValueError(f"trainer.{name}={least!r}: must be at most {most}, where training ends")


def _placed(state: Mapping[str, Any], folder: str | None) -> dict[str, Any]:
    """The state of a :class:`Saver` with its files in this folder, in none where that is None."""

    def place(path: str) -> str:
        return path and str(Path(folder or "") / Path(path).name)

    paths = {name: place(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    scores = {place(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": scores, "dirpath": folder}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole.

    Lightning writes it to the system's temporary folder first and moves it from there, which is a plain copy where that
    is another file system: a disk that fills up, or a kill, then leaves half a checkpoint in place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: D102
        content = io.BytesIO()  # torch's own writer to a file hides why a write failed
        torch.save(checkpoint, content)
        write_bytes(path, content.getbuffer())

    def load_checkpoint(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """A checkpoint that is as it was written, also of version 0.1."""
        refuse_damaged(Path(settings["checkpoint_path"] if "checkpoint_path" in settings else arguments[0]))
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


def refuse_damaged(path: Path) -> None:
    """Refuse a file that is not the checkpoint that was written: torch reads it without a look at its checksums.

    Raises:
        ValueError: it is cut short, changed, or no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as file:
            changed = file.testzip()
    except Exception as error:  # a damaged file makes zipfile raise many of them
        reason = " ".join(str(error).split())
        raise ValueError(f"{str(path)!r}: damaged, cut short or no checkpoint ({reason})") from error
    if changed is not None:
        raise ValueError(f"{str(path)!r}: damaged, cut short or no checkpoint ({changed} is not what was written)")


def open_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, whoever wrote it; its tensors stay on the disk until they are used.

    Raises:
        ValueError: it is damaged, or no checkpoint.
    """
    refuse_damaged(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # what is crafted by hand; torch raises many of them
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{str(path)!r}: damaged, cut short or no checkpoint ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{str(path)!r}: damaged, cut short or no checkpoint (it has no state_dict)")
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds that a training can go on from, as :func:`open_checkpoint`.

    Raises:
        ValueError: it is damaged, or no such checkpoint.
    """
    content = open_checkpoint(path)
    odd = [name for name, kind in _NEEDED.items() if not isinstance(content.get(name), kind)]
    if odd:
        raise ValueError(f"{str(path)!r}: no checkpoint of a training, it has no {odd[0]}")
    return content


def best_beside(path: Path, content: Mapping[str, Any]) -> Path | None:
    """The checkpoint of the best epoch that belongs to the one at ``path``; None where none has been kept so far.

    It lies beside it. It may be of a later epoch: a process that was killed had written it, and not the last one.

    Raises:
        ValueError: it is missing or damaged, or of an epoch that is not as good as the best so far.
    """
    score = _best_score(path, content)
    if score is None:
        return None
    best = path.with_name("best.ckpt")
    if not best.is_file():
        raise ValueError(f"{str(path)!r}: best.ckpt is missing beside it, which holds the best epoch so far")
    its = _best_score(best, read_checkpoint(best))
    if its is None or its < score:
        raise ValueError(f"{str(path)!r}: best.ckpt beside it is of another training, or of an earlier time")
    return best


def _best_score(path: Path, content: Mapping[str, Any]) -> float | None:
    states = content["callbacks"]
    old = (name for name, new in _KEYS_OF_0_1.items() if new == "tna_lightning.best")
    state = next((states[name] for name in ("tna_lightning.best", *old) if name in states), None)
    try:
        return None if state is None or state["best_model_score"] is None else float(state["best_model_score"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError(f"{str(path)!r}: no checkpoint of a training, its best score is none") from None


def take_up(path: Path, best: Path | None, folder: Path) -> None:
    """Make a checkpoint from elsewhere, with the best one that belongs to it, this folder's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((best, "best.ckpt"), (path, "last.ckpt")):  # the last one last: only then is all there
        if source is not None and source.resolve() != (folder / name).resolve():
            with replacing(folder / name) as temporary:
                shutil.copyfile(source, temporary)
