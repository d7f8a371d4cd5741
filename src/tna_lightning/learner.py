"""The training step: base, companion and objective in one LightningModule.

Letters: T time steps, B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from tna_lightning.data.batch import Batch
from tna_lightning.models import LIF
from tna_lightning.objectives import Losses, Objective, Plain, readout

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int, int], LRScheduler]

DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2)


def cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, *, warmup_epochs: float = 0.0) -> LRScheduler:
    """Linear warm-up, then a cosine to zero at the last step (arXiv 1608.03983), stepped once per batch.

    ``lr(s) = lr * (s + 1) / w`` for ``s < w``, else ``lr * (1 + cos(pi * (s - w) / (total_steps - w))) / 2``
    with ``w = warmup_epochs * steps_per_epoch``.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup < 0 or (warmup and warmup >= total_steps):
        raise ValueError(f"warmup_epochs={warmup_epochs!r}: must be at least 0 and shorter than the training")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return LambdaLR(optimizer, factor)


def time_first(logits: Tensor) -> Tensor:
    """Logits as ``[T, B, K]``; a network without time returns ``[B, K]``, which is T = 1."""
    if logits.ndim == 2:
        return logits.unsqueeze(0)
    if logits.ndim == 3:
        return logits
    raise ValueError(f"logits of shape {list(logits.shape)}: a network must return [T, B, K] or [B, K]")


@runtime_checkable
class ChangesNetworks(Protocol):
    """A callback that changes the networks of a learner, as quantisation does; a second time changes nothing."""

    def change_networks(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None: ...  # noqa: D102


class TwinLearner(lightning.LightningModule):
    """Trains a base network alone or beside a companion, and judges the base: the network that is kept.

    Args:
        base: the network to keep; maps a batch to logits ``[T, B, K]`` or ``[B, K]``.
        companion: None, a twin or peer that trains along, or (with ``freeze_companion``) a teacher.
        objective: what to minimise, see :mod:`tna_lightning.objectives`.
        num_classes: K.
        freeze_companion: the companion stays in eval mode and gets no gradient.
        companion_device: where the companion works, if not beside the base: ``cuda:1``, or ``cpu``. Batches go to it
            and its logits come back; on two GPUs both networks work at once. For training on one device, not DDP.
        companion_stream: on a GPU that both share, give the companion a CUDA stream of its own, so that small kernels
            of both can overlap. Same results.
        optimizer: called with named parameter groups. One optimizer serves both networks, since Lightning counts
            ``global_step`` once per optimizer (Lightning#17958).
        schedule: called with the optimizer, the total number of optimizer steps and the steps per epoch; stepped
            every batch. None keeps the learning rate constant.

    Logs ``train/*``, ``val/*`` and ``test/*``: ``loss`` and its parts, ``acc`` (base) and ``companion_acc`` (top-1),
    and ``acc_top5`` where K > 5. Accuracies are shares in [0, 1].

    Example::

        learner = TwinLearner(base, twin, TwinAugmentation(), num_classes=10)
        lightning.Trainer(max_epochs=15).fit(learner, DigitsDataModule())
    """

    def __init__(
        self,
        base: nn.Module,
        companion: nn.Module | None = None,
        objective: Objective | None = None,
        *,
        num_classes: int,
        freeze_companion: bool = False,
        companion_device: str | torch.device | None = None,
        companion_stream: bool = False,
        optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
        schedule: ScheduleFactory | None = cosine,
    ) -> None:
        super().__init__()
        objective = Plain() if objective is None else objective
        if objective.needs_companion and companion is None:
            raise ValueError(f"companion=None: {type(objective).__name__} compares the base with a companion network")
        if companion is not None and not objective.needs_companion:
            raise ValueError(f"companion={type(companion).__name__}: {type(objective).__name__} has no use for one")
        self.base = base
        self.companion = companion
        self.objective = objective
        self.freeze_companion = freeze_companion and companion is not None
        self.companion_device = torch.device(companion_device) if companion_device is not None else None
        self.companion_stream = companion_stream
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        if companion is not None and self.freeze_companion:
            companion.requires_grad_(False).eval()

        networks = ["base"] if companion is None else ["base", "companion"]
        ranks = [1, 5] if num_classes > 5 else [1]
        self.accuracies = nn.ModuleDict(
            {
                f"{stage}_{network}_{rank}": MulticlassAccuracy(num_classes, top_k=rank, average="micro")
                for stage in ("train", "val", "test")
                for network in networks
                for rank in ranks
            }
        )

    def train(self, mode: bool = True) -> TwinLearner:  # noqa: D102
        super().train(mode)
        if self.freeze_companion and self.companion is not None:
            self.companion.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TwinLearner:
        """Every move of the learner (`to`, `cuda`, `cpu`, Lightning's own), after which the companion goes back."""
        super()._apply(fn, recurse)
        if self.companion is not None and self.companion_device is not None:
            self.companion.to(self.companion_device)
        return self

    def on_train_start(self) -> None:  # noqa: D102
        if self.companion_device is None:
            return
        for optimizer in self.trainer.optimizers:  # a checkpoint's state was brought to the base's device
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = value.to(parameter.device)

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Adds none, but lets those that change the networks do so now, before others are set up and copy them."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # missing in Lightning's annotations
            if isinstance(callback, ChangesNetworks):
                callback.change_networks(self.trainer, self)
        return []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        # for a test, Lightning's WeightAveraging would put the weights under training in the place of the average
        if self._trainer is not None and self.trainer.state.fn != "fit":
            checkpoint.pop("current_model_state", None)
            checkpoint.pop("averaging_state", None)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the base, averaged over time, ``[B, K]`` float32."""
        return readout(time_first(self.base(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: D102
        return self._step("train", Batch.of(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: D102
        self._step("val", Batch.of(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: D102
        self._step("test", Batch.of(batch))

    def losses(self, x: Tensor, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        """One pass of a batch through both networks.

        Returns:
            the objective's ``loss`` and parts; the logits ``[T, B, K]`` of ``base`` and, where there is one,
            ``companion``.
        """
        # the companion's batch is copied before the base's kernels are queued: the copy would wait for them
        x_companion = x if self.companion_device is None else x.to(self.companion_device, non_blocking=x.is_cuda)
        stream = _side_stream(x.device) if self.companion_stream and x.is_cuda and x_companion is x else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(x.device))
        logits = {"base": time_first(self.base(x))}
        if self.companion is not None:
            with_gradient = torch.is_grad_enabled() and not self.freeze_companion
            with torch.set_grad_enabled(with_gradient), torch.cuda.stream(stream):
                companion_logits = time_first(self.companion(x_companion))
            if stream is not None:
                current = torch.cuda.current_stream(x.device)
                current.wait_stream(stream)
                x.record_stream(stream)  # the allocator must not hand memory on that the other stream still uses
                companion_logits.record_stream(current)
            logits["companion"] = companion_logits.to(x.device)
        return self.objective(logits["base"], logits.get("companion"), target, self.current_epoch), logits

    def _step(self, stage: str, batch: Batch) -> Tensor:
        x, target = batch.x, batch.target
        losses, logits = self.losses(x, target)
        batch_size = len(target)
        for part, value in losses.items():
            self.log(f"{stage}/{part}", value, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)
        if stage == "train":
            self.log("loss", losses["loss"], prog_bar=True, logger=False, batch_size=batch_size)
        labels = target.argmax(1) if target.ndim == 2 else target  # mixed samples count for their larger share
        for network, network_logits in logits.items():
            prediction = readout(network_logits.detach())
            for rank in (1, 5):
                key = f"{stage}_{network}_{rank}"
                if key in self.accuracies:
                    accuracy: Any = self.accuracies[key]
                    accuracy(prediction, labels)
                    self.log(
                        accuracy_name(stage, network, rank),
                        accuracy,
                        on_step=False,
                        on_epoch=True,
                        batch_size=batch_size,
                        prog_bar=stage == "val" and rank == 1,
                    )
        return losses["loss"]

    def configure_optimizers(self) -> Any:  # noqa: D102
        optimizer = self.optimizer_factory(list(self.parameter_groups()))
        if self.schedule_factory is None:
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = max(1, round(total_steps / (self.trainer.max_epochs or 1)))
        scheduler = self.schedule_factory(optimizer, total_steps, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Named groups: each network's weights, and what weight decay must not pull at.

        ``<network>.no_decay`` holds the parameters of normalisations, neurons and quantisers (learned scales), and all
        biases; ``<network>.weights`` the rest, at the optimizer's own weight decay.
        """
        networks = {"base": self.base}
        if self.companion is not None and not self.freeze_companion:
            networks["companion"] = self.companion
        for network_name, network in networks.items():
            weights: list[nn.Parameter] = []
            no_decay: list[nn.Parameter] = []
            for module_name, module in network.named_modules():
                # the full-precision copy of a quantised weight is `parametrizations.weight.original`;
                # below it, at `parametrizations.weight.0`, stands the quantiser with its learned scales
                in_quantizer = "parametrizations" in module_name.split(".")[:-2]
                is_excluded = in_quantizer or isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | LIF)
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad:
                        (no_decay if is_excluded or parameter.ndim < 2 else weights).append(parameter)
            if weights:
                yield {"name": f"{network_name}.weights", "params": weights}
            if no_decay:
                yield {"name": f"{network_name}.no_decay", "params": no_decay, "weight_decay": 0.0}


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The companion's stream on this device, one for the process: as an attribute it could not be copied or saved."""
    return torch.cuda.Stream(device)


def accuracy_name(stage: str, network: str = "base", rank: int = 1) -> str:
    """Name under which an accuracy is logged: ``val/acc``, ``test/companion_acc_top5`` and so on."""
    return f"{stage}/{'' if network == 'base' else network + '_'}acc{'' if rank == 1 else f'_top{rank}'}"
