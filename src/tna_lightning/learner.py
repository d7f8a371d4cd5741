"""The training step: base, companions and objective in one LightningModule.

Letters: T time steps, B batch, K classes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from tna_lightning.data.batch import Batch
from tna_lightning.models.blocks import is_spiking
from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.recording import watched
from tna_lightning.objectives import Losses, Objective, Plain, readout

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int, int], LRScheduler]

DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2)


def cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, *, warmup_epochs: float = 0) -> LRScheduler:
    """Linear warm-up, then a cosine to zero at the last step (arXiv 1608.03983), stepped once per batch.

    ``lr(s) = lr * (s + 1) / w`` for ``s < w``, else ``lr * (1 + cos(pi * (s - w) / (total_steps - w))) / 2``
    with ``w = warmup_epochs * steps_per_epoch``.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: steps of the whole training.
        steps_per_epoch: steps of an epoch.
        warmup_epochs: epochs of linear warm-up.
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
    """Trains a base network alone or beside companions, and judges the base: the network that is kept.

    Args:
        base: the network to keep; maps a batch to logits ``[T, B, K]`` or ``[B, K]``.
        companion: None, a twin or peer that trains along, or (with ``freeze_companion``) a teacher; several as a
            mapping from names to networks. Each is an attribute under its name, one without a name ``companion``.
        objective: what to minimise, see :mod:`tna_lightning.objectives`.
        num_classes: K.
        freeze_companion: whether the companions stay in eval mode and get no gradient, or the names of those that do.
        companion_device: where the companions work, if not beside the base: ``cuda:1``, or ``cpu``; by name where they
            differ. Batches go there and logits come back; on two GPUs two networks work at once. For training on one
            device, not DDP.
        optimizer: called with named parameter groups. One optimizer serves all networks, since Lightning counts
            ``global_step`` once per optimizer (Lightning#17958).
        schedule: called with the optimizer, the total number of optimizer steps and the steps per epoch; stepped
            every batch. None keeps the learning rate constant.

    Raises:
        ValueError: the objective takes other companions, or is called in another way, or weighs the firing rate of a
            base that does not spike; a companion's name is no identifier or taken; a frozen one or a device is named
            for a companion that is not there.

    Logs ``train/*``, ``val/*`` and ``test/*``: ``loss`` and its parts, ``acc`` (base) and ``<name>_acc`` (top-1),
    and ``acc_top5`` where K > 5. Accuracies are shares in [0, 1].

    Example::

        learner = TwinLearner(base, twin, TwinAugmentation(), num_classes=10)
        lightning.Trainer(max_epochs=15).fit(learner, DigitsDataModule())
    """

    def __init__(
        self,
        base: nn.Module,
        companion: nn.Module | Mapping[str, nn.Module] | None = None,
        objective: Objective | None = None,
        *,
        num_classes: int,
        freeze_companion: bool | Collection[str] = False,
        companion_device: str | torch.device | Mapping[str, str | torch.device] | None = None,
        optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
        schedule: ScheduleFactory | None = cosine,
    ) -> None:
        super().__init__()
        if isinstance(companion, nn.Module):
            companion = {"companion": companion}
        companions = dict(companion or {})
        self.objective = Plain() if objective is None else objective
        _refuse_old_call(self.objective)
        self.objective.check_companions(list(companions))
        if self.objective.rate_weight and not is_spiking(base):
            raise ValueError(
                f"objective.rate_weight={self.objective.rate_weight!r}: must be 0, the base does not spike"
            )
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.frozen = _named("freeze_companion", freeze_companion, companions)
        if companion_device is None or isinstance(companion_device, Mapping):
            placed = dict(companion_device or {})
        else:
            placed = dict.fromkeys(companions, companion_device)
        _named("companion_device", placed, companions)
        self.companion_devices = {name: torch.device(device) for name, device in placed.items()}
        ranks = [1, 5] if num_classes > 5 else [1]
        self.accuracies = nn.ModuleDict(
            {
                f"{stage}_{network}_{rank}": MulticlassAccuracy(num_classes, top_k=rank, average="micro")
                for stage in ("train", "val", "test")
                for network in ("base", *companions)
                for rank in ranks
            }
        )
        self.base = base
        for name, network in companions.items():
            if not name.isidentifier() or name in dir(self):
                raise ValueError(f"companion={name!r}: must be an identifier that the learner does not use itself")
            setattr(self, name, network)
            if name in self.frozen:
                network.requires_grad_(False).eval()
        self._names = ("base", *companions)
        if "companion" not in companions:
            self.companion = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks by name, the base first."""
        return {name: getattr(self, name) for name in self._names}

    def train(self, mode: bool = True) -> TwinLearner:  # noqa: D102
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TwinLearner:
        """Every move of the learner (`to`, `cuda`, `cpu`, Lightning's own), after which the companions go back."""
        super()._apply(fn, recurse)
        for name, device in self.companion_devices.items():
            getattr(self, name).to(device)
        return self

    def on_train_start(self) -> None:  # noqa: D102
        if not self.companion_devices:
            return
        for optimizer in self.trainer.optimizers:  # a checkpoint's state was brought to the base's device
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = value.to(parameter.device)

    def on_train_epoch_start(self) -> None:  # noqa: D102
        last = (self.trainer.max_epochs or 0) - 1
        share = min(1.0, self.current_epoch / last) if last > 0 else 1.0
        for name in self._names:
            if name not in self.frozen:
                for module in getattr(self, name).modules():
                    if isinstance(module, SpikingNeuron):
                        module.progress(share)

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

    def losses(self, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        """One pass of a batch through all networks.

        Returns:
            the objective's ``loss`` and parts; the logits ``[T, B, K]`` by network's name.
        """
        x = batch.x
        # companions' batches are copied before the base's kernels are queued: the copies would wait for them
        copies = {
            device: x.to(device, non_blocking=x.is_cuda) for device in dict.fromkeys(self.companion_devices.values())
        }
        logits: dict[str, Tensor] = {}
        rate = FiringRate()
        for name, network in self.networks.items():
            is_weighed = name == "base" and self.objective.rate_weight > 0
            with (
                watched(network, rate) if is_weighed else nullcontext(),
                torch.set_grad_enabled(torch.is_grad_enabled() and name not in self.frozen),
            ):
                output = network(copies[device] if (device := self.companion_devices.get(name)) else x)
                logits[name] = time_first(output).to(x.device)
        losses = self.objective(logits, batch, self.current_epoch)
        if self.objective.rate_weight:
            loss = losses["loss"] + self.objective.rate_weight * rate.mean
            losses = {**losses, "loss": loss, "firing_rate": rate.mean.detach()}
        return losses, logits

    def _step(self, stage: str, batch: Batch) -> Tensor:
        target = batch.target
        losses, logits = self.losses(batch)
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

        ``<network>.no_decay`` holds the parameters of normalisations, all of fewer than two dimensions (biases), and
        those that a module names in ``no_weight_decay()``, as neurons and quantisers do (timm's convention);
        ``<network>.weights`` the rest, at the optimizer's own weight decay.
        """
        trained = {name: network for name, network in self.networks.items() if name not in self.frozen}
        for network_name, network in trained.items():
            weights: list[nn.Parameter] = []
            no_decay: list[nn.Parameter] = []
            left_alone = {id(parameter) for module in network.modules() for parameter in _left_alone(module)}
            for module in network.modules():
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad:
                        (no_decay if id(parameter) in left_alone or parameter.ndim < 2 else weights).append(parameter)
            if weights:
                yield {"name": f"{network_name}.weights", "params": weights}
            if no_decay:
                yield {"name": f"{network_name}.no_decay", "params": no_decay, "weight_decay": 0.0}


class FiringRate:
    """The mean of the magnitude of spikes over all neurons, steps and samples that it was told of, differentiable."""

    def __init__(self) -> None:
        self._total: Tensor | float = 0.0
        self._count = 0

    def __call__(self, name: str, currents: Tensor, spikes: Tensor) -> None:
        """Add the spikes of a layer."""
        self._total = self._total + spikes.float().abs().sum()
        self._count += spikes.numel()

    @property
    def mean(self) -> Tensor:
        """Spikes a neuron and step."""
        return torch.as_tensor(self._total / self._count)


def _left_alone(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a module, or inside of it, that weight decay must leave alone because of it."""
    if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm):
        yield from module.parameters()
    elif named := getattr(module, "no_weight_decay", None):
        names = named()
        yield from (parameter for name, parameter in module.named_parameters() if name in names)


def _refuse_old_call(objective: Objective) -> None:
    """Version 0.1 called objectives with the logits of two networks and the targets."""
    parameters = list(inspect.signature(objective).parameters)
    if {"base_logits", "companion_logits", "target"} & set(parameters):
        raise ValueError(
            f"objective={type(objective).__name__}: takes ({', '.join(parameters)}), but is called as "
            "objective(logits, batch, epoch), with logits[name] of each network and batch.target"
        )


def _named(argument: str, names: bool | Collection[str], companions: Collection[str]) -> frozenset[str]:
    """The names as a set, where True is all of them and False none; each must be a companion's."""
    if isinstance(names, bool):
        return frozenset(companions if names else ())
    if unknown := [name for name in names if name not in companions]:
        raise ValueError(f"{argument}={unknown[0]!r}: companions are {', '.join(companions) or 'none'}")
    return frozenset(names)


def accuracy_name(stage: str, network: str = "base", rank: int = 1) -> str:
    """Name under which an accuracy is logged: ``val/acc``, ``test/companion_acc_top5`` and so on."""
    return f"{stage}/{'' if network == 'base' else network + '_'}acc{'' if rank == 1 else f'_top{rank}'}"
