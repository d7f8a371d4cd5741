"""What image and event data share: splits, the order of batches, and loaders of whole batches.

Nothing here draws from a global random generator: an order or an augmentation is a function of (seed, epoch, rank,
batch), so that a resumed run repeats what an uninterrupted one does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from tna_lightning.data.batch import Batch


def derive_seed(*parts: int) -> int:
    """Mix several small numbers into one seed, so that (0, 1) and (1, 0) start unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(len(labels))`` into ``(rest, chosen)``, both sorted, each class in proportion.

    ``chosen`` holds ``ceil(fraction * N)`` samples (scikit-learn's rule). Each class gives the whole part of its share;
    what is then missing comes from the classes with the largest remainders, lower classes first.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction!r}: must lie in [0, 1)")
    classes, class_sizes = labels.unique(return_counts=True)
    total = math.ceil(round(fraction * len(labels), 6))
    shares = class_sizes.double() * (total / max(1, len(labels)))
    counts = (shares + 1e-6).floor().long()
    by_remainder = torch.argsort(shares - counts, descending=True, stable=True)
    counts[by_remainder[: total - int(counts.sum())]] += 1

    generator = torch.Generator().manual_seed(derive_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def ordered_split(labels: Tensor, fraction: float, *, first: bool) -> tuple[Tensor, Tensor]:
    """Split ``range(len(labels))`` into ``(rest, chosen)``, both sorted: the first or the last samples of each class.

    Of N samples of a class ``N - ceil((1 - fraction) * N)`` are chosen: with ``first=False`` what spikingjelly's
    ``split_to_train_test_set`` gives to the test unless it is told to shuffle.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction!r}: must lie in [0, 1)")
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        count = len(members) - math.ceil(round((1 - fraction) * len(members), 6))
        chosen[members[:count] if first else members[len(members) - count :]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def split_hash(train: Tensor, val: Tensor, test: Tensor) -> str:
    """sha256 over the sorted index lists, each led by its length, as little-endian int64."""
    digest = hashlib.sha256()
    for indices in (train, val, test):
        digest.update(np.array([len(indices), *sorted(indices.tolist())], dtype="<i8").tobytes())
    return digest.hexdigest()


class IndexBatches(DistributedSampler):
    """Yields lists of indices, one per batch, for one rank of several.

    Lightning leaves a :class:`DistributedSampler` as it is and tells it the epoch. All ranks get equally many batches.

    Training (``shuffle``): the order depends on (seed, epoch) alone. It is cut into global batches of
    ``batch_size * num_replicas``, and each rank takes every ``num_replicas``-th sample of each. The last global batch
    may be smaller; it is left out where it would give some rank a single sample (batch normalisation) or none.

    Evaluation: each sample goes to exactly one rank, without padding, in as few batches as ``batch_size`` allows, as
    even as they come.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, num_replicas: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: must be at least 1")
        if num_samples < num_replicas:
            raise ValueError(
                f"batch_size={batch_size!r}: {num_samples} samples cannot be shared by {num_replicas} devices"
            )
        super().__init__(range(num_samples), num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        if shuffle:
            global_batch = batch_size * num_replicas
            self.num_batches, left_over = divmod(num_samples, global_batch)
            least = 1 if batch_size == 1 or self.num_batches == 0 else 2
            self.num_batches += left_over // num_replicas >= least
        else:
            self.num_batches = math.ceil(math.ceil(num_samples / num_replicas) / batch_size)
            self.num_batches = min(self.num_batches, num_samples // num_replicas)  # none is empty

    def __iter__(self) -> Iterator[list[int]]:
        num_samples = len(self.dataset)  # type: ignore[arg-type]
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(num_samples, generator=generator)
            for global_batch in order.split(self.batch_size * self.num_replicas)[: self.num_batches]:
                yield global_batch[self.rank :: self.num_replicas].tolist()
        else:
            share = torch.arange(self.rank, num_samples, self.num_replicas)
            for batch in share.tensor_split(self.num_batches):
                yield batch.tolist()

    def __len__(self) -> int:
        return self.num_batches


class BatchSet(Dataset[Batch]):
    """A subset of samples in memory (or memory-mapped): ``batches[[3, 1, 4]]`` gathers inputs and targets at once.

    Args:
        inputs: ``[N, ...]``, usually uint8.
        targets: int64 ``[N]``, on the same device.
        subset: the samples of ``inputs`` that belong here, in the order of this set's own indices; None means all.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, subset: Tensor | None = None) -> None:
        self.inputs = inputs
        self.targets = targets
        self.subset = torch.arange(len(targets)) if subset is None else subset

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, indices: list[int] | Tensor) -> Batch:
        where = self.subset[indices].to(self.inputs.device, non_blocking=True)
        return Batch(self.inputs.index_select(0, where), self.targets.index_select(0, where), index=where)


class BatchLoader:
    """Iterates over the batches of a set in this process.

    A :class:`~torch.utils.data.DataLoader` without workers does the same, but draws from the global random generator
    at each epoch, and makes Lightning warn of too few workers. A batch of 128 CIFAR images is gathered in 0.04 ms: to
    hand it over from another process would take longer.
    """

    batch_sampler = None  # Lightning looks for it beside `sampler`

    def __init__(self, batches: BatchSet, sampler: IndexBatches) -> None:
        self.batches = batches
        self.sampler = sampler

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.sampler:
            yield self.batches[indices]

    def __len__(self) -> int:
        return len(self.sampler)
