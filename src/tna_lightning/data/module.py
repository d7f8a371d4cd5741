"""The module around the batches of a data set: loaders for Lightning's trainer, and augmentation on the device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from tna_lightning.data.augment.chosen import Chosen, WithCopies
from tna_lightning.data.augment.operation import Operation, check_samples, set_up
from tna_lightning.data.batch import Batch, Inputs, Normalization
from tna_lightning.data.loading import BatchLoader, BatchSet, IndexBatches, derive_seed, split_hash, stratified_split
from tna_lightning.data.words import listed

log = logging.getLogger(__name__)


class BatchedDataModule(LightningDataModule):
    """Serves samples that lie in memory as :class:`~tna_lightning.data.Batch`, and augments batches on the device.

    A subclass sets :attr:`name`, fills :attr:`train_set`, :attr:`val_set` and :attr:`test_set` in :meth:`setup`, says
    what :meth:`prepare` does to a batch on the device and what is :attr:`blank`, and names its classes.

    Args:
        batch_size: training samples per step and device.
        eval_batch_size: at most so many samples per step and device in validation and test.
        seed: of the splits, of the order of training samples and of the augmentation.
        augment: the operations on training batches, by name, in their order; None for none.
        train_subset: train on so many samples only, stratified, by ``seed``; None for all.
        val_subset: validate on so many samples only, likewise.
        test_subset: test on so many samples only, stratified, the same for every ``seed``; None for all. Figures on
            them are no figures on the test set: record and report say so.
    """

    name: str
    train_set: BatchSet
    val_set: BatchSet
    test_set: BatchSet

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        augment: Mapping[str, Operation] | None = None,
        train_subset: int | None = None,
        val_subset: int | None = None,
        test_subset: int | None = None,
    ) -> None:
        super().__init__()
        self.train_subset = train_subset
        self.val_subset = val_subset
        self.test_subset = test_subset
        self._of_samples: dict[str, int] = {}
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value!r}: must be at least {least}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.operations = dict(augment or {})
        self._knows_data = False
        copying = [name for name, operation in self.operations.items() if isinstance(operation, Chosen)]
        if len(copying) > 1:
            raise ValueError(f"augment.{copying[1]}=Chosen: augment.{copying[0]} is one already, which has the copies")

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """C."""
        raise NotImplementedError

    @property
    def time_steps(self) -> int | None:
        """T of event frames; None for images."""
        return None

    @property
    def inputs(self) -> Inputs:
        """What networks are built for."""
        raise NotImplementedError

    @property
    def blank(self) -> Tensor:
        """What stands for nothing in each channel of a batch as operations get it, ``[C]``."""
        return torch.zeros(self.in_channels)

    @property
    def normalization(self) -> Normalization:
        """What :meth:`prepare` does to uint8 inputs, for code that runs without it: here, nothing."""
        return Normalization(torch.zeros(self.in_channels, 1, 1), torch.ones(self.in_channels, 1, 1))

    @property
    def split_hash(self) -> str:
        """sha256 of which sample is in which split; needs :meth:`setup`."""
        return split_hash(self.train_set.subset, self.val_set.subset, self.test_set.subset)

    def describe(self) -> dict[str, Any]:
        """What a run record says about the data; needs :meth:`setup`."""
        return {
            "name": self.name,
            "simulated": False,
            "train_samples": len(self.train_set),
            "val_samples": len(self.val_set),
            "test_samples": len(self.test_set),
            "split_hash": self.split_hash,
            **({"of_samples": self._of_samples} if self._of_samples else {}),
        }

    def reduce(self, labels: Tensor, train: Tensor, val: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The samples of each set that ``train_subset``, ``val_subset`` and ``test_subset`` leave.

        Classes of which none is left to train, or to test, are named in a warning.

        Args:
            labels: of all samples, int64 ``[N]``.
            train: the training samples' numbers, int64.
            val: the validation samples'.
            test: the test samples'.
        """
        self._of_samples = {}
        train = self._reduced("train", labels, train, derive_seed(self.seed, 1))
        val = self._reduced("val", labels, val, derive_seed(self.seed, 2))
        test = self._reduced("test", labels, test, derive_seed(0, 3))
        for part, samples in (("train", train), ("test", test)):
            lost = sorted({*labels.unique().tolist()} - {*labels[samples].unique().tolist()})
            if lost:
                log.warning("data: no sample is left to %s of %s", part, listed([self.class_names[k] for k in lost]))
        return train, val, test

    def check_subsets(self) -> None:
        """Refuse a subset that :meth:`setup` has not drawn, as one that does not call :meth:`reduce`; needs setup.

        Raises:
            ValueError: there is one.
        """
        for part in ("train", "val", "test"):
            count, there = getattr(self, f"{part}_subset"), len(getattr(self, f"{part}_set"))
            if count not in (None, there):
                raise ValueError(f"{part}_subset={count!r}: {type(self).__name__}.setup does not draw it, by reduce()")

    def _reduced(self, part: str, labels: Tensor, samples: Tensor, seed: int) -> Tensor:
        count = getattr(self, f"{part}_subset")
        if count is None or count == len(samples) > 0:
            return samples
        if not len(samples):
            raise ValueError(f"{part}_subset={count!r}: must be null, there are no samples for {part}")
        if not 1 <= count <= len(samples):
            raise ValueError(f"{part}_subset={count!r}: must be null or lie in [1, {len(samples)}]")
        self._of_samples[part] = len(samples)
        return samples[stratified_split(labels[samples], count / len(samples), seed)[1]]

    @property
    def chosen(self) -> Chosen | None:
        """The operation for copies of some samples, which are chosen in training; None without it."""
        return next((operation for operation in self.operations.values() if isinstance(operation, Chosen)), None)

    def set_up_augmentation(self) -> None:
        """Let the operations read what they must know of the data, once.

        Raises:
            ValueError: ``augment.NAME=CLASS`` and why it does not fit these data.
        """
        if self._knows_data:
            return
        for name, operation in self.operations.items():
            try:
                set_up(operation, self)
            except ValueError as error:
                raise ValueError(f"augment.{name}={type(operation).__name__}: {error}") from error
        self._knows_data = True

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change a training batch, as loaded, on its device; all randomness comes from ``generator``."""
        self.set_up_augmentation()
        for name, operation in self.operations.items():
            before, batch = batch, operation(batch, generator)
            if not _is_alike(batch, before):
                raise ValueError(
                    f"augment.{name}={type(operation).__name__}: must return a Batch of as many samples, with x as it "
                    f"was, of the shape {list(before.x.shape)} and {before.x.dtype}"
                )
        return batch

    def try_augmentation(self) -> None:
        """Augment two samples, so that an operation that does not do what it should is refused before training.

        Needs :meth:`setup`.

        Raises:
            ValueError: ``augment.NAME=CLASS`` and what it must return, or that it is for samples that are not there.
        """
        for name, operation in self.operations.items():
            try:
                check_samples(operation, self.train_set.subset, len(self.train_set.inputs))
            except ValueError as error:
                raise ValueError(f"augment.{name}={type(operation).__name__}: {error}") from error
        batch = self.train_set[[0, len(self.train_set) - 1]]
        if self.chosen is not None:
            batch.is_copy = torch.tensor([False, True], device=batch.x.device)
        self.augment(batch, torch.Generator(batch.x.device).manual_seed(0))

    def prepare(self, x: Tensor) -> Tensor:
        """Turn a batch, as loaded or augmented, into what networks take."""
        return x

    def present(self, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """What networks take of a batch; ``generator`` is that of its augmentation, None in evaluation."""
        return self.prepare(batch.x)

    def train_dataloader(self) -> BatchLoader:  # noqa: D102
        # Lightning cannot turn shuffling off from outside
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        samples = self.train_set if self.chosen is None else WithCopies(self.train_set, self.chosen)
        return self._loader(samples, self.batch_size, shuffle=shuffle)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Batches of the validation set; none without one, where the trainer wants ``limit_val_batches=0``."""
        return self._loader(self.val_set, self.eval_batch_size, shuffle=False) if len(self.val_set) else []

    def test_dataloader(self) -> BatchLoader:  # noqa: D102
        return self._loader(self.test_set, self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> BatchLoader:
        """The test set's batches, in order."""
        return self.test_dataloader()

    def _loader(self, batches: BatchSet, batch_size: int, *, shuffle: bool) -> BatchLoader:
        trainer = self.trainer
        rank, num_replicas = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = IndexBatches(
            len(batches), batch_size, shuffle=shuffle, seed=self.seed, rank=rank, num_replicas=num_replicas
        )
        return BatchLoader(batches, sampler)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: D102
        trainer, generator = self.trainer, None
        if trainer is not None and trainer.training:
            step = trainer.fit_loop.epoch_loop.batch_idx + 1  # Lightning counts the batch after its transfer
            seed = derive_seed(self.seed, trainer.current_epoch, trainer.global_rank, step)
            generator = torch.Generator(batch.x.device).manual_seed(seed)
            batch = self.augment(batch, generator)
        x = self.present(batch, generator)
        # Lightning has converted the batch to its precision already, when it was still uint8. Labels and weights stay
        # float32: losses are computed in it, whatever the network's precision.
        return replace(batch, x=x if trainer is None else trainer.precision_plugin.convert_input(x))


def _is_alike(batch: object, before: Batch) -> bool:
    """Whether an operation has kept what it must: the number of samples, and shape and dtype of the inputs."""
    if not isinstance(batch, Batch) or batch.x.shape != before.x.shape or batch.x.dtype != before.x.dtype:
        return False
    per_sample = [values for values in (batch.target, batch.index, batch.weight) if values is not None]
    return all(len(values) == len(before) for values in per_sample)
