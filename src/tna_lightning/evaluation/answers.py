"""The logits of networks on a test set, by the very pass that gives the recorded results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from tna_lightning.data.batch import Batch
from tna_lightning.data.loading import BatchLoader, BatchSet, IndexBatches
from tna_lightning.learner import TwinLearner
from tna_lightning.objectives import Plain, readout
from tna_lightning.running.console import quiet_lightning
from tna_lightning.running.record import reading
from tna_lightning.running.train import device_name


@dataclass(frozen=True)
class Answers:
    """What a network said of N samples.

    Attributes:
        logits: float32 ``[N, K]``, means over time.
        labels: int64 ``[N]``.
        index: the samples' numbers in their set; None where the data module does not say.
        results: ``test/*``, as a run records them.
        device: it was computed on.
    """

    logits: Tensor
    labels: Tensor
    index: Tensor | None
    results: dict[str, float]
    device: str


class Samples(lightning.LightningDataModule):
    """Test samples that are not those of a run's own data module.

    Args:
        x: uint8 ``[N, ...]``.
        labels: int64 ``[N]``.
        prepare: what makes of a batch what the network takes.
        num_classes: K.
        batch_size: of the test.
    """

    def __init__(
        self, x: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], num_classes: int, batch_size: int
    ) -> None:
        super().__init__()
        self.samples = BatchSet(x, labels)
        self.prepare = prepare
        self.num_classes = num_classes
        self.batch_size = batch_size

    def test_dataloader(self) -> BatchLoader:  # noqa: D102
        return BatchLoader(self.samples, IndexBatches(len(self.samples), self.batch_size, shuffle=False, seed=0))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: D102
        assert self.trainer is not None
        return replace(batch, x=self.trainer.precision_plugin.convert_input(self.prepare(batch.x)))


class _Notes(lightning.Callback):
    """Keeps what the base says in a test."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.batches: list[Batch] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *arguments: Any) -> None:
        batch = Batch.of(batch)
        target = batch.target.argmax(1) if batch.target.ndim == 2 else batch.target
        self.batches.append(replace(batch, x=batch.x[:0], target=target.long()))

    def note(self, module: nn.Module, arguments: Any, logits: Tensor) -> None:
        """A hook of the base's forward."""
        self.logits.append(readout(logits if logits.ndim == 3 else logits[None]).cpu())


def answers_of(network: nn.Module, datamodule: Any, folder: Path | str, config: Mapping[str, Any]) -> Answers:
    """A network's answers to the test set, as at the end of its training.

    Args:
        network: in eval mode.
        datamodule: that has the test set.
        folder: of the run, for errors.
        config: the run's, as changed for this evaluation.
    """
    notes = _Notes()
    with quiet_lightning():
        with reading(folder):
            trainer = lightning.Trainer(
                accelerator=config["trainer"]["accelerator"],
                devices=1,
                precision=config["trainer"]["precision"],
                limit_test_batches=config["trainer"].get("limit_test_batches"),
                logger=False,
                callbacks=[notes],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        ignored = config["objective"].get("ignore_index")  # 0.1.0 had none
        learner = TwinLearner(network, objective=Plain(ignore_index=ignored), num_classes=datamodule.num_classes)
        handle = network.register_forward_hook(notes.note)
        try:
            (results,) = trainer.test(learner, datamodule=datamodule, verbose=False)
        finally:
            handle.remove()
    logits, labels = torch.cat(notes.logits), torch.cat([batch.target for batch in notes.batches]).cpu()
    indices = [batch.index for batch in notes.batches]
    index = None if any(each is None for each in indices) else torch.cat([each for each in indices if each is not None])
    if ignored is not None:
        is_labelled = labels != ignored
        logits, labels = logits[is_labelled], labels[is_labelled]
        index = None if index is None else index.cpu()[is_labelled]
    return Answers(logits, labels, None if index is None else index.cpu(), dict(results), device_name(trainer))
