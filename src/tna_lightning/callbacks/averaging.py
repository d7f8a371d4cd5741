"""What EMA and SWA share: a second set of weights, which is validated, saved, tested and packed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tna_lightning.data.batch import Batch

log = logging.getLogger(__name__)


class WeightAverage(Callback):
    """Keeps an average of the weights beside those under training, in every network that trains.

    The average is what is validated, saved, tested and packed: the same at the end of each epoch. Before its first
    update it is the network under training. When training ends, the learner's networks have it.

    Averaged are the parameters: of a quantised layer its full-precision weights and learned scales, so that the average
    is quantised like any network, and where this callback stands beside
    :class:`~tna_lightning.quantization.WeightQuantization` does not matter. Buffers are constants and stay, except the
    running statistics of batch norm. They are averaged as well, but then are those of other weights; so at the end of
    each epoch, and before a validation within one, the average's own are taken from training batches, as means over the
    batches, in eval mode otherwise. Of weights of 16 bits the average is kept in float32, in which small steps count.

    A checkpoint holds the average as ``state_dict`` and the network under training as ``current_model_state``, like
    those of Lightning's ``WeightAveraging``; a run that goes on from it ends where the uninterrupted one does.

    Args:
        recalibrate: at most so many training batches are run through the average at the end of each epoch for its batch
            norm statistics; 0 leaves them averaged.

    Raises:
        ValueError: ``recalibrate`` is no whole number of 0 or more, or not 0 where batches cannot be read twice.
    """

    def __init__(self, recalibrate: int = 100) -> None:
        if not isinstance(recalibrate, int) or recalibrate < 0:
            raise ValueError(f"recalibrate={recalibrate!r}: must be a whole number of 0 or more")
        self.recalibrate = recalibrate
        self._forget()

    def _forget(self) -> None:
        self._average: dict[str, Tensor] | None = None
        self._under_training: dict[str, Tensor] | None = None  # stands aside while the average is in its place
        self._updates = 0
        self._step_of_update = 0
        self._is_stale = False  # whether its batch norm statistics are those of other weights

    def is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether the weights enter the average after this optimizer step."""
        raise NotImplementedError

    def share(self, update: int) -> float:
        """Share of the weights in the average after this update, counted from 0; the first, which copies them, is 1."""
        raise NotImplementedError

    def check(self, max_epochs: int | None) -> None:
        """Refuse what does not fit a training of so many epochs; ``setup`` does, before it begins."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # missing in Lightning's annotations
                self.check(trainer.max_epochs)
            self._forget()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        interval, batches = trainer.val_check_batch, trainer.num_training_batches
        is_within = interval is None or interval < batches or trainer.check_val_every_n_epoch is None
        if self.recalibrate and is_within and getattr(trainer.train_dataloader, "persistent_workers", False):
            raise ValueError(
                f"recalibrate={self.recalibrate!r}: must be 0 with val_check_interval={trainer.val_check_interval!r} "
                "and persistent_workers=True, whose one pass over the batches would begin anew for it"
            )
        if self._average is not None:  # from a checkpoint, which is read before the networks are on their device
            for name, value in _averaged(pl_module).items():
                self._average[name] = self._average[name].to(value.device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # here even for the last step of an epoch, not when the epoch ends: validation comes before that
        if trainer.global_step > self._step_of_update and self.is_due(trainer):
            self._step_of_update = trainer.global_step
            self._update(pl_module)
            self._is_stale = True
        if self._average is not None and self.recalibrate and trainer.is_last_batch:
            self._recalibrate(trainer, pl_module)

    @torch.no_grad()
    def _update(self, pl_module: lightning.LightningModule) -> None:
        current = _averaged(pl_module)
        if self._average is None:
            self._average = {name: value.to(_precise(value.dtype), copy=True) for name, value in current.items()}
        else:
            share = self.share(self._updates)
            for name, value in current.items():
                if value.is_floating_point():
                    self._average[name].lerp_(value.to(_precise(value.dtype)), share)
                else:  # how many batches a norm has seen
                    self._average[name].copy_(value)
        self._updates += 1

    @torch.no_grad()
    def _recalibrate(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._is_stale = False
        norms = [norm for network in _trained(pl_module).values() for _, norm in _norms(network)]
        if not norms:
            return
        assert self._average is not None
        modes = {module: module.training for module in pl_module.modules()}
        momenta = {norm: norm.momentum for norm in norms}
        self._put_in_place(pl_module)
        pl_module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        batches = 0
        try:
            with isolate_rng(), trainer.precision_plugin.val_step_context():
                for x in islice(_training_inputs(trainer, pl_module), self.recalibrate):
                    batches += 1
                    for network in _trained(pl_module).values():
                        # not by a call, for which torch.compile would compile the whole network once more
                        network.forward(x.to(next(network.parameters()).device))
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
            for module, mode in modes.items():
                module.training = mode
        if not batches:
            raise ValueError(
                f"recalibrate={self.recalibrate!r}: must be 0 for training batches that cannot be read a second time"
            )
        for name, value in _averaged(pl_module).items():
            if not isinstance(value, nn.Parameter):
                each = value.clone()  # of several devices, each has seen other batches
                self._average[name].copy_(trainer.strategy.reduce(each, reduce_op="mean"))
        self._take_away(pl_module)

    @torch.no_grad()
    def _put_in_place(self, pl_module: lightning.LightningModule) -> None:
        assert self._average is not None
        current = _averaged(pl_module)
        self._under_training = {name: value.clone() for name, value in current.items()}
        for name, value in current.items():
            value.copy_(self._average[name])

    @torch.no_grad()
    def _take_away(self, pl_module: lightning.LightningModule) -> None:
        if self._under_training is not None:
            for name, value in _averaged(pl_module).items():
                value.copy_(self._under_training[name])
            self._under_training = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._is_stale and self.recalibrate:  # a validation within an epoch
            self._recalibrate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._is_stale and self.recalibrate:  # an epoch cut short, by max_steps or early stopping
            self._recalibrate(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._average is not None:
            self._put_in_place(pl_module)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._take_away(pl_module)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._take_away(pl_module)  # before those that save a checkpoint now, which Lightning calls last

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._average is not None:
            self._put_in_place(pl_module)
            self._under_training = None

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._average is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.warning(
                "%s: training ended before any weights were averaged; its last weights are kept", type(self).__name__
            )

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "step_of_update": self._step_of_update, "is_stale": self._is_stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._updates = state_dict["updates"]
        self._step_of_update = state_dict["step_of_update"]
        self._is_stale = state_dict.get("is_stale", False)  # earlier versions did not save it

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is not None:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint["state_dict"] | self._average

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            self._average = {name: checkpoint["state_dict"][name].clone() for name in _averaged(pl_module)}
            pl_module.load_state_dict(checkpoint["current_model_state"])


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _trained(pl_module: lightning.LightningModule) -> dict[str, nn.Module]:
    """The learner's networks that train, by name."""
    return {
        name: network
        for name, network in pl_module.named_children()
        if any(parameter.requires_grad for parameter in network.parameters())
    }


def _norms(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each normalisation that has running statistics."""
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield name, module


def _averaged(pl_module: lightning.LightningModule) -> dict[str, Tensor]:
    """What is averaged, as it is now, by its name in the learner's ``state_dict``."""
    tensors: dict[str, Tensor] = {}
    for name, network in _trained(pl_module).items():
        tensors |= {f"{name}.{key}": value for key, value in network.named_parameters() if value.requires_grad}
        for layer, norm in _norms(network):
            tensors |= {f"{name}.{layer}.{key}": value for key, value in norm.named_buffers(recurse=False)}
    return tensors


def _training_inputs(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> Iterator[Tensor]:
    """An epoch's training batches once more, prepared and moved as Lightning's own loop does it."""
    loader: Any = trainer.train_dataloader
    for number, batch in enumerate(loader):
        if number >= trainer.num_training_batches:
            return
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield Batch.of(trainer.strategy.batch_to_device(batch, dataloader_idx=0)).x
