"""Strongly augmented copies of chosen training samples (data-efficient augmentation, arXiv 2210.08363)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tna_lightning.data.augment.combinators import apply_to
from tna_lightning.data.augment.coresets import budgets, coreset, gradient_proxies
from tna_lightning.data.augment.operation import Operation, Samples, check_samples, set_up
from tna_lightning.data.batch import Batch
from tna_lightning.data.loading import BatchSet, derive_seed

WAYS = ("coreset", "max_loss", "random")


class Chosen:
    """Appends copies of some training samples to each epoch, and augments the copies, and these alone, strongly.

    Operations written before it are for all samples, copies too. Every ``every`` epochs, the first among them, the
    samples are chosen anew, by :class:`~tna_lightning.callbacks.ChooseCopies`, which a run adds by itself. An epoch has
    the samples and the copies in one random order, so it is longer from the first one on, and a schedule counts it so.

    Args:
        strong: an operation, or several by name, in their order.
        share: how many copies, as a share of the training samples, in (0, 1].
        every: epochs from one choice to the next.
        by: coreset: of each class those whose gradients stand for all (facility location); max_loss: those of the
            largest cross-entropy; random.
        weigh: let a copy of a coreset count as many times as it stands for samples of its class, 1 on average.
    """

    def __init__(
        self,
        strong: Operation | Mapping[str, Operation],
        share: float = 0.3,
        every: int = 5,
        by: str = "coreset",
        weigh: bool = False,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share!r}: must lie in (0, 1]")
        if every < 1:
            raise ValueError(f"every={every!r}: must be at least 1 epoch")
        if by not in WAYS:
            raise ValueError(f"by={by!r}: must be one of {', '.join(WAYS)}")
        if weigh and by != "coreset":
            raise ValueError(f"weigh={weigh!r}: must be false with by={by}, of which no sample stands for others")
        self.strong = dict(strong) if isinstance(strong, Mapping) else {"strong": strong}
        for name, operation in self.strong.items():
            if not callable(operation):
                raise ValueError(f"strong.{name}={operation!r}: must be an operation")
        if not self.strong:
            raise ValueError("strong={}: must have an operation")
        self.share, self.every, self.by, self.weigh = share, every, by, weigh
        self.epoch = -1  # of the last choice
        self.samples = torch.empty(0, dtype=torch.int64)  # places in the training set
        self.weights: Tensor | None = None

    def setup(self, data: Samples) -> None:
        """Hand it on."""
        for operation in self.strong.values():
            set_up(operation, data)

    def check_samples(self, numbers: Tensor, num_samples: int) -> None:
        """Hand it on."""
        for operation in self.strong.values():
            check_samples(operation, numbers, num_samples)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        if batch.is_copy is None:
            return batch
        for operation in self.strong.values():
            batch = apply_to(batch.is_copy, operation, batch, generator)
        return batch

    def num_copies(self, target: Tensor) -> int:
        """How many of samples with these classes are chosen, int64 ``[N]``."""
        return int(budgets(target.unique(return_counts=True)[1], self.share).sum())

    def choose(self, epoch: int, seed: int, logits: Tensor | None, target: Tensor) -> None:
        """Choose for an epoch.

        Args:
            epoch: counted from 0.
            seed: of a random choice.
            logits: ``[N, K]``; None will do for a random choice.
            target: classes, int64 ``[N]``.
        """
        count = self.num_copies(target)
        weights = None
        if self.by == "random" or logits is None:
            generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
            samples = torch.randperm(len(target), generator=generator)[:count]
        elif self.by == "max_loss":
            losses = F.cross_entropy(logits, target, reduction="none")
            samples = losses.argsort(descending=True, stable=True)[:count]
        else:
            samples, weights = coreset(gradient_proxies(logits, target), target, self.share)
        self.load_state_dict({"epoch": epoch, "samples": samples, "weights": weights if self.weigh else None})

    def state_dict(self) -> dict[str, Any]:
        """The last choice."""
        return {"epoch": self.epoch, "samples": self.samples, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Choose what was chosen."""
        weights = state["weights"]
        self.epoch, self.samples = state["epoch"], state["samples"].cpu()
        self.weights = None if weights is None else weights.cpu()


class WithCopies(BatchSet):
    """A training set and behind it the copies of its chosen samples, which batches tell by :attr:`Batch.is_copy`.

    Args:
        samples: the training set.
        chosen: which of them there are twice.
    """

    def __init__(self, samples: BatchSet, chosen: Chosen) -> None:
        super().__init__(samples.inputs, samples.targets, samples.subset)
        self.chosen = chosen
        self.num_samples = len(samples)
        self.num_copies = chosen.num_copies(samples.targets[samples.subset])

    def __len__(self) -> int:
        return self.num_samples + self.num_copies

    def __getitem__(self, indices: list[int] | Tensor) -> Batch:
        if self.chosen.epoch < 0:
            raise ValueError(
                "Chosen: nothing is chosen yet; a trainer of one's own needs tna_lightning.callbacks.ChooseCopies()"
            )
        places = torch.as_tensor(indices)
        is_copy = places >= self.num_samples
        copied = (places - self.num_samples).clamp(min=0)
        batch = super().__getitem__(torch.where(is_copy, self.chosen.samples[copied], places))
        batch.is_copy = is_copy.to(batch.target.device)
        if self.chosen.weights is not None:
            weight = torch.where(is_copy, self.chosen.weights[copied], 1)
            batch.weight = weight.to(batch.target.device)
        return batch
