"""The copies of a training set's samples are chosen by what the network makes of them."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tna_lightning.data.augment.chosen import Chosen
from tna_lightning.data.module import BatchedDataModule

log = logging.getLogger(__name__)


class ChooseCopies(Callback):
    """Chooses for :class:`~tna_lightning.data.augment.Chosen`, which stands among the data module's operations.

    When an epoch begins whose turn it is, the base looks at all training samples, not augmented and in eval mode; what
    it trains with is as it was before. The first of several processes chooses, the others are told. Every checkpoint
    remembers the choice, so that a training that goes on has the same copies.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return dict(self._restored or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict) or None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Find what is chosen for.

        Raises:
            ValueError: the data module has no such operation.
        """
        if stage != "fit":
            return
        if _chosen(trainer) is None:
            raise ValueError("ChooseCopies: the data module must have a Chosen among its operations")
        self._restored = None  # a checkpoint is read later

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Choose, if it is time to."""
        chosen, epoch = _chosen(trainer), trainer.current_epoch
        assert chosen is not None
        if self._restored is not None:
            chosen.load_state_dict(self._restored)
        is_known = self._restored is not None and chosen.epoch == epoch  # a training goes on in the middle of it
        if epoch % chosen.every == 0 and not is_known:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            began = time.perf_counter()
            if trainer.is_global_zero:
                target = data.train_set.targets[data.train_set.subset].to(pl_module.device)
                logits = None if chosen.by == "random" else _logits(trainer, pl_module)
                chosen.choose(epoch, data.seed, logits, target)
            chosen.load_state_dict(trainer.strategy.broadcast(chosen.state_dict()))
            seconds = time.perf_counter() - began
            if trainer.is_global_zero:
                log.info("epoch %d: %d samples chosen (%s), %.1f s", epoch + 1, len(chosen.samples), chosen.by, seconds)
        self._restored = chosen.state_dict()


def _chosen(trainer: lightning.Trainer) -> Chosen | None:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.chosen if isinstance(data, BatchedDataModule) else None


@torch.no_grad()
def _logits(trainer: lightning.Trainer, learner: Any) -> Tensor:
    """The base's time-averaged logits of all training samples, ``[N, K]``, as validation would see them."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    were_training = [(module, module.training) for module in learner.base.modules()]
    learner.base.eval()
    try:
        logits = []
        for places in torch.arange(len(data.train_set)).split(data.eval_batch_size):
            x = data.prepare(data.train_set[places.tolist()].x.to(learner.device))
            with trainer.precision_plugin.forward_context():
                logits.append(learner(trainer.precision_plugin.convert_input(x)))
        return torch.cat(logits)
    finally:
        for module, was_training in were_training:
            module.training = was_training
