"""The training step: base, companions and objective in one LightningModule.

Letters: T time steps, B batch, K classes.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tna_lightning.accuracy import Accuracy, Mean
from tna_lightning.data.batch import Batch
from tna_lightning.length import length_of
from tna_lightning.models.blocks import is_spiking
from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.models.recording import watched
from tna_lightning.objectives import Features, Losses, Objective, Plain, readout
from tna_lightning.quantization.parametrized import QUANTIZERS, check_quantizers, check_state, quantizers_of
from tna_lightning.shapes import check_batch, check_labels, refuse_batch_first, time_first

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int | None, int | None], LRScheduler | Mapping[str, Any]]

DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2)


def cosine(
    optimizer: Optimizer,
    total_steps: int | None,
    steps_per_epoch: int | None,
    *,
    warmup_epochs: float = 0,
    final_share: float = 0.0,
) -> LRScheduler:
    """Linear warm-up, then a cosine to zero at the last step (arXiv 1608.03983), stepped once per batch.

    ``lr(s) = lr * (s + 1) / w`` for ``s < w``, else ``lr * (f + (1 - f) * (1 + cos(pi * (s - w) / (n - w))) / 2)``
    with ``w = warmup_epochs * steps_per_epoch``, ``f = final_share`` and ``n = total_steps``.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: steps of the training.
        steps_per_epoch: steps of an epoch.
        warmup_epochs: epochs of linear warm-up.
        final_share: share of the learning rate that is left at the end, 0 to 1.

    Raises:
        ValueError: a share that is none; a warm-up below 0 or as long as the training; a training, or with a warm-up an
            epoch, of a length that is not known (None).
    """
    if total_steps is None:
        raise ValueError(
            "total_steps=None: a cosine must know where training ends; set the trainer's max_steps (with batches of a "
            "known length max_epochs will do), or schedule=None"
        )
    if warmup_epochs and steps_per_epoch is None:
        raise ValueError(f"warmup_epochs={warmup_epochs!r}: must be 0 where an epoch's batches have no length")
    warmup = round(warmup_epochs * (steps_per_epoch or 1))
    if warmup < 0 or (warmup and warmup >= total_steps):
        raise ValueError(f"warmup_epochs={warmup_epochs!r}: must be at least 0 and shorter than the training")

    if not 0 <= final_share <= 1:
        raise ValueError(f"final_share={final_share!r}: must lie in [0, 1]")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))
        return final_share + (1 - final_share) * falling

    return LambdaLR(optimizer, factor)


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
        freeze_companion: whether the companions stay in eval mode and get no gradient, or the names of those that do;
            None: as the objective has it, which freezes a teacher and trains a twin.
        companion_device: where the companions work, if not beside the base: ``cuda:1``, or ``cpu``; by name where they
            differ. Batches go there and logits come back; on two GPUs two networks work at once. For training on one
            device, not DDP.
        optimizer: called with named parameter groups. One optimizer serves all networks, since Lightning counts
            ``global_step`` once per optimizer (Lightning#17958).
        schedule: called with the optimizer, the number of optimizer steps and the steps per epoch (None where they are
            not known). The steps are those of the fit: of a trainer that fits once more (with ``max_epochs`` raised),
            and not from a checkpoint, those that are left, for which the schedule begins anew. A scheduler is stepped
            every batch, a ``ReduceLROnPlateau`` every epoch by ``val/loss``; for anything else return Lightning's
            mapping, ``{"scheduler": ..., "interval": "epoch"}``. None keeps the learning rate constant.

    Raises:
        ValueError: the objective takes other companions or classes, is called in another way, or weighs the firing rate
            of a base that does not spike or whose stages are checkpointed; it matches layers that a network lacks or
            whose stages are checkpointed; a companion's name is no identifier or
            taken, or it shares parameters with another network; a frozen one or a device is named for a companion that
            is not there; a teacher is not to be frozen. In training: inputs, labels, logits, or the trainer's length do
            not fit; the message names the network.

    Logs, at the end of an epoch, ``train/*``, ``val/*`` and ``test/*``: ``loss`` and its parts, ``acc`` (base) and
    ``<name>_acc`` (top-1); in validation and test also ``acc_top5`` where K > 5, and of the base ``acc_macro``, the
    mean of the classes' own. Accuracies are shares in [0, 1]; losses are means over the samples, with the objective's
    ``ignore_index`` over those that have a label. Of several loaders the second logs ``val_1/*`` and so on.
    ``trainer.predict`` gives logits ``[B, K]``.

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
        freeze_companion: bool | Collection[str] | None = None,
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
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes!r}: must be a whole number of at least 2")
        self.objective.check_classes(num_classes)
        self.num_classes = num_classes
        if self.objective.rate_weight and not is_spiking(base):
            raise ValueError(
                f"objective.rate_weight={self.objective.rate_weight!r}: must be 0, the base does not spike"
            )
        if self.objective.rate_weight and getattr(base, "checkpoint_stages", False):
            raise ValueError(
                f"objective.rate_weight={self.objective.rate_weight!r}: must be 0 with checkpoint_stages=true, which "
                "computes spikes a second time, where nobody sums them"
            )
        self.feature_names = list(getattr(self.objective, "features", None) or ())
        for name, network in {"base": base, **companions}.items():
            _check_features(self.feature_names, name, network)
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self._lr: float | None = None
        is_teacher = not self.objective.trains_companions
        asked = is_teacher if freeze_companion is None else freeze_companion
        self.frozen = _named("freeze_companion", asked, companions)
        if is_teacher and (trained := [name for name in companions if name not in self.frozen]):
            raise ValueError(
                f"freeze_companion={sorted(self.frozen)}: the {trained[0]} gets no gradient from this "
                f"{type(self.objective).__name__} and must be frozen (companion.freeze=true), else its batch norm "
                "statistics alone would change"
            )
        if companion_device is None or isinstance(companion_device, Mapping):
            placed = dict(companion_device or {})
        else:
            placed = dict.fromkeys(companions, companion_device)
        _named("companion_device", placed, companions)
        self.companion_devices = {name: torch.device(device) for name, device in placed.items()}
        self.means, self.accuracies = nn.ModuleDict(), nn.ModuleDict()
        _refuse_shared({"base": base, **companions})
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
        for stage in ("train", "val", "test"):
            self._accuracies(stage)
        self._have_time_first: set[str] = set()
        self._labels_seen: set[str] = set()
        self._first_bad_inputs: dict[str, Tensor] = {}
        self._epochs_trained: int | None = None
        self._steps_before = 0  # of earlier fits of the trainer

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks by name, the base first."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def lr(self) -> float | None:
        """Learning rate of all groups, as a ``LearningRateFinder`` sets it; None leaves the optimizer's own."""
        return self._lr

    @lr.setter
    def lr(self, lr: float | None) -> None:
        self._lr = lr
        if self._trainer is None:
            return
        for config in self.trainer.lr_scheduler_configs:  # they hold on to the learning rates that they began with
            optimizer = config.scheduler.optimizer
            for group in optimizer.param_groups:
                group["lr"] = lr
                group.pop("initial_lr", None)
            config.scheduler = self._scheduled(optimizer)["scheduler"]

    def _accuracies(self, stage: str) -> list[tuple[str, str, Accuracy, str]]:
        """Network, logged name, metric and its attribute's name, each made when it is first asked for."""
        kinds = [("acc", 1, False)]
        if self.num_classes > 5 and stage != "train":
            kinds.append(("acc_top5", 5, False))
        found = []
        for network in self._names:
            macro = [("acc_macro", 1, True)] if network == "base" and stage != "train" else []
            for kind, rank, by_class in kinds + macro:
                key = f"{stage}_{network}_{kind}"
                if key not in self.accuracies:
                    self.accuracies[key] = Accuracy(self.num_classes, rank, by_class).to(self.device)
                name = f"{stage}/{'' if network == 'base' else network + '_'}{kind}"
                accuracy: Any = self.accuracies[key]
                found.append((network, name, accuracy, f"accuracies.{key}"))
        return found

    def class_accuracy(self, stage: str = "test") -> list[float | None]:
        """The base's accuracy on each of K classes in the last epoch of ``val`` or ``test``; None without samples."""
        metric: Any = self.accuracies[f"{stage}_base_acc_macro"]
        shares = [math.nan] * self.num_classes if metric.of_each is None else metric.of_each.tolist()
        return [None if math.isnan(share) else share for share in shares]

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

    def on_fit_start(self) -> None:  # noqa: D102
        self._epochs_trained = None
        self._labels_seen.clear()
        self._have_time_first.clear()

    def on_train_start(self) -> None:  # noqa: D102
        if self._lr is not None:  # a finder has written it over what a warm-up begins with
            for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
                for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                    group["lr"] = lr
        for first, second in combinations([name for name in self._names if name not in self.frozen], 2):
            if _are_equal(self.networks[first], self.networks[second]):
                log.warning(
                    "%s: has the weights of the %s, so that both stay equal and the match term 0, unless a layer draws "
                    "at random; build it anew instead of copying",
                    *(second, first),
                )
        if not self.companion_devices:
            return
        for optimizer in self.trainer.optimizers:  # a checkpoint's state was brought to the base's device
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = value.to(parameter.device)

    def on_train_epoch_start(self) -> None:  # noqa: D102
        self.forget("train")
        self._epochs_trained = self.current_epoch + 1
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
                refuse_spawned(self.trainer, callback)
                callback.change_networks(self.trainer, self)
        return []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        # for a test, Lightning's WeightAveraging would put the weights under training in the place of the average
        if self._trainer is not None and self.trainer.state.fn != "fit":
            checkpoint.pop("current_model_state", None)
            checkpoint.pop("averaging_state", None)
        for name, network in self.networks.items():
            state = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(f"{name}.")}
            if state:
                check_state(name, network, {key.removeprefix(f"{name}."): value for key, value in state.items()})
                check_quantizers(name, network, checkpoint.get(QUANTIZERS, {}).get(name, {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        checkpoint[QUANTIZERS] = {name: quantizers_of(network) for name, network in self.networks.items()}

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        self.forget("val")

    def on_test_epoch_start(self) -> None:  # noqa: D102
        self.forget("test")

    def on_train_epoch_end(self) -> None:  # noqa: D102
        self._raise_if_inputs_were_bad("train")

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        self._raise_if_inputs_were_bad("val")

    def on_test_epoch_end(self) -> None:  # noqa: D102
        self._raise_if_inputs_were_bad("test")

    def on_predict_epoch_end(self) -> None:  # noqa: D102
        self._raise_if_inputs_were_bad("predict")

    def on_fit_end(self) -> None:  # noqa: D102
        if self._epochs_trained is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            self.objective.check_epochs(self._epochs_trained)
        except ValueError as error:
            log.warning("training ended after %d epochs; %s", self._epochs_trained, error)

    def backward(self, loss: Tensor, *arguments: Any, **settings: Any) -> None:  # noqa: D102
        try:
            super().backward(loss, *arguments, **settings)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise ValueError(
                f"{', '.join(self._names)}: a network keeps a state from one batch to the next; it must start from a "
                "new one in each forward (snntorch.utils.reset, spikingjelly's functional.reset_net)"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the base, averaged over time, ``[B, K]`` float32."""
        return readout(time_first(self.base(x), "base", len(x), self.num_classes))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: D102
        return self._step("train", Batch.of(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        self._step(f"val_{dataloader_idx}" if dataloader_idx else "val", Batch.of(batch), batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        self._step(f"test_{dataloader_idx}" if dataloader_idx else "test", Batch.of(batch), batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits ``[B, K]`` of the base, for inputs alone or a batch with targets, which are not looked at."""
        x = batch if isinstance(batch, Tensor) else batch[0] if len(batch) == 1 else Batch.of(batch).x
        self._look_at_inputs("predict", x, batch_idx)
        logits: Tensor = self(x)
        return logits

    def losses(self, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        """One pass of a batch through all networks.

        Returns:
            the objective's ``loss`` and parts; the logits ``[T, B, K]`` by network's name.
        """
        check_batch(batch, self.num_classes)
        x = batch.x
        # companions' batches are copied before the base's kernels are queued: the copies would wait for them
        copies = {
            device: x.to(device, non_blocking=x.is_cuda) for device in dict.fromkeys(self.companion_devices.values())
        }
        logits: dict[str, Tensor] = {}
        features: dict[str, dict[str, Tensor]] = {}
        rate = FiringRate()
        for name, network in self.networks.items():
            is_weighed = name == "base" and self.objective.rate_weight > 0
            with (
                watched(network, rate) if is_weighed else nullcontext(),
                outputs_of(network, self.feature_names) as outputs,
                torch.set_grad_enabled(torch.is_grad_enabled() and name not in self.frozen),
            ):
                output = network(copies[device] if (device := self.companion_devices.get(name)) else x)
                logits[name] = time_first(output, name, len(x), self.num_classes).to(x.device)
            features[name] = {layer: value.to(x.device) for layer, value in outputs.items()}
        losses = self.objective(logits, batch, self.current_epoch)
        if self.objective.rate_weight:
            loss = losses["loss"] + self.objective.rate_weight * rate.mean
            losses = {**losses, "loss": loss, "firing_rate": rate.mean.detach()}
        if self.feature_names:
            losses = self._with_features(losses, features, batch)
        return losses, logits

    def _with_features(self, losses: Losses, features: Features, batch: Batch) -> Losses:
        objective: Any = self.objective
        for name, outputs in features.items():
            for layer in self.feature_names:
                if layer not in outputs or outputs[layer].shape[1:2] != (len(batch),):
                    got = list(outputs[layer].shape) if layer in outputs else "nothing"
                    raise ValueError(f"features={layer!r}: gives {got} in the {name}; must be a layer of [T, B, ...]")
        term = objective.feature_term(features, batch)
        loss = losses["loss"]
        if objective.matches_features(self.current_epoch):
            loss = loss + objective.feature_weight * term
        return {**losses, "loss": loss, "features": term.detach()}

    def _step(self, stage: str, batch: Batch, number: int) -> Tensor:
        target, ignored = batch.target, self.objective.ignore_index
        self._look_at_inputs(stage.partition("_")[0], batch.x, number)
        if target.device.type == "cpu" or stage not in self._labels_seen:  # elsewhere the first batch, for it waits
            check_labels(target, self.num_classes, ignored)
            self._labels_seen.add(stage)
        losses, logits = self.losses(batch)
        if not stage.startswith("test"):  # there a cost may be counted, once a sample
            self._refuse_batch_first(batch.x, logits)
        labels = target.argmax(1) if target.ndim == 2 else target  # mixed samples count for their larger share
        samples: Tensor | int = len(target)
        if ignored is not None and target.ndim == 1:
            samples = (labels != ignored).sum()
            labels = torch.where(labels == ignored, -1, labels.long())
        for part, value in losses.items():
            mean: Any = self._mean(stage, part)
            mean.update(value, samples)
            self._log_once(f"{stage}/{part}", mean, f"means.{stage}_{part}")
        predictions = {name: readout(each.detach()) for name, each in logits.items()}
        for network, name, accuracy, attribute in self._accuracies(stage):
            accuracy.update(predictions[network], labels)
            self._log_once(name, accuracy, attribute, prog_bar=name == "val/acc")  # all would not fit into a line
        if stage == "train" and number % 10 == 0:  # for the progress bar; a call takes 1 ms
            self.log("loss", losses["loss"], prog_bar=True, logger=False, batch_size=len(target))
        return losses["loss"]

    def _mean(self, stage: str, part: str) -> nn.Module:
        key = f"{stage}_{part}"
        if key not in self.means:
            self.means[key] = Mean().to(self.device)
        return self.means[key]

    def _log_once(self, name: str, metric: Any, attribute: str, prog_bar: bool = False) -> None:
        """Hand a metric to Lightning in the first batch of an epoch, at whose end it is read: a call takes 1 ms."""
        if metric.update_count == 1:
            self.log(
                name,
                metric,
                metric_attribute=attribute,
                prog_bar=prog_bar,
                on_step=False,
                on_epoch=True,
                add_dataloader_idx=False,  # the stage's name says it
            )

    def forget(self, stage: str) -> None:
        """Begin the sums of a stage anew, also where an epoch was broken off."""
        for key, metric in [*self.means.items(), *self.accuracies.items()]:
            if key.startswith(stage):
                metric.reset()  # type: ignore[operator]

    def _refuse_batch_first(self, x: Tensor, logits: Mapping[str, Tensor]) -> None:
        """Once a network; only where T equals B is there a doubt."""
        for name in logits.keys() - self._have_time_first:
            time_steps, batch_size = logits[name].shape[:2]
            if time_steps == batch_size > 1:
                network_x = x.to(self.companion_devices.get(name, x.device))
                refuse_batch_first(self.networks[name], name, network_x, logits[name])
            if batch_size > 1:
                self._have_time_first.add(name)

    def _look_at_inputs(self, stage: str, x: Tensor, number: int) -> None:
        """Remember the first batch whose inputs are NaN or infinite: a spike hides them, no result would show it.

        On an accelerator it is read at the end of the epoch, since to look means to wait.
        """
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return
        is_bad = ~x.isfinite().all()
        before = self._first_bad_inputs.get(stage)
        if before is None or before.device != x.device:
            before = torch.full((), -1, dtype=torch.int64, device=x.device)
        self._first_bad_inputs[stage] = torch.where(is_bad & (before < 0), number, before)
        if x.device.type == "cpu":
            self._raise_if_inputs_were_bad(stage)

    def _raise_if_inputs_were_bad(self, stage: str) -> None:
        first = self._first_bad_inputs.pop(stage, None)
        if first is not None and (number := int(first)) >= 0:
            raise ValueError(f"{stage}: the inputs of batch {number} (counted from 0) are NaN or infinite somewhere")

    def configure_optimizers(self) -> Any:  # noqa: D102
        if not any(parameter.requires_grad for parameter in self.base.parameters()):
            raise ValueError("base: has no parameter that trains (requires_grad)")
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # a few batches, to see that all works
            self.objective.check_epochs(length_of(self.trainer).epochs)
        # a trainer that fits a second time counts on; from a checkpoint the schedule goes on as well
        self._steps_before = self.trainer.global_step if self.trainer.ckpt_path is None else 0
        groups = list(self.parameter_groups())
        if self._lr is not None:
            groups = [group | {"lr": self._lr} for group in groups]
        optimizer = self.optimizer_factory(groups)
        scheduled = self._scheduled(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduled} if scheduled else optimizer

    def _scheduled(self, optimizer: Optimizer) -> dict[str, Any]:
        """The schedule as Lightning wants it; empty without one."""
        if self.schedule_factory is None:
            return {}
        length = length_of(self.trainer)
        steps = length.steps
        if steps is not None and steps > self._steps_before:  # else nothing is left to train
            steps -= self._steps_before
        schedule = self.schedule_factory(optimizer, steps, length.steps_per_epoch)
        if isinstance(schedule, Mapping):
            return dict(schedule)
        if isinstance(schedule, ReduceLROnPlateau):
            return {"scheduler": schedule, "interval": "epoch", "monitor": "val/loss"}
        return {"scheduler": schedule, "interval": "step"}

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
            for name, parameter in network.named_parameters():  # each once, also where several modules hold it
                if parameter.requires_grad:
                    is_lazy = isinstance(parameter, UninitializedParameter)  # its shape comes with the first batch
                    is_vector = name.rpartition(".")[2] == "bias" if is_lazy else parameter.ndim < 2
                    (no_decay if id(parameter) in left_alone or is_vector else weights).append(parameter)
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


@contextmanager
def outputs_of(network: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of those names give in a forward, by name; of one that is called more than once, the last."""
    outputs: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _check_features(names: Sequence[str], name: str, network: nn.Module) -> None:
    """Refuse layers that a network does not have, or does not show."""
    modules = dict(network.named_modules())
    for missing in (layer for layer in names if layer not in modules or not layer):
        neurons = [layer for layer, module in modules.items() if isinstance(module, SpikingNeuron)]
        raise ValueError(f"objective.features={missing!r}: the {name} has no such module; its neurons are {neurons}")
    if names and getattr(network, "checkpoint_stages", False):
        raise ValueError(
            f"objective.features={list(names)}: must be null with checkpoint_stages=true, which computes layers a "
            "second time"
        )


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


def _refuse_shared(networks: Mapping[str, nn.Module]) -> None:
    """Each parameter must belong to one network: else it is moved twice a step, or frozen with a teacher."""
    owners: dict[int, str] = {}
    for network, module in networks.items():
        for name, parameter in module.named_parameters():
            owner = owners.setdefault(id(parameter), network)
            if owner != network:
                raise ValueError(f"{network}: shares its parameter {name} with the {owner}; each network needs its own")
        for name, norm in module.named_modules():  # one without parameters still takes the statistics of both
            if isinstance(norm, _NormBase) and (owner := owners.setdefault(id(norm), network)) != network:
                raise ValueError(
                    f"{network}: shares its {name} with the {owner}; each network needs its own statistics"
                )


def _are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have the same parameters by name and value."""
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    if ours.keys() != theirs.keys() or any(isinstance(each, UninitializedParameter) for each in ours.values()):
        return False
    return all(
        value.shape == theirs[name].shape and torch.equal(value, theirs[name].to(value.device))
        for name, value in ours.items()
    )


def refuse_spawned(trainer: Any, callback: object) -> None:
    """Refuse a strategy that trains in processes from which what this callback did would not come back.

    Raises:
        ValueError: it is one of ``ddp_spawn``, ``ddp_fork`` and ``ddp_notebook``.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"strategy=ddp_{launcher._start_method}: must be ddp, or one device; it trains in processes from which "
            f"what {type(callback).__name__} does would not come back"
        )
