"""Operations for some of a batch's samples: those of a subset, or some by chance.

The chosen samples go through the operation as a smaller batch, so that it draws for them alone and mixes them among
themselves. Where it turns labels into probabilities, those of the others become one-hot; where it sets weights, theirs
are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.augment.mixing import class_probabilities
from tna_lightning.data.augment.operation import Operation, Samples, check_samples, set_up
from tna_lightning.data.batch import Batch


def apply_to(chosen: Tensor, operation: Operation, batch: Batch, generator: torch.Generator) -> Batch:
    """The batch with the operation applied to the samples where ``chosen``, bool ``[B]``, is true."""
    where = chosen.nonzero().squeeze(1)
    if not len(where):
        return batch
    rows: dict[str, Any] = {}
    for field in fields(Batch):
        column = getattr(batch, field.name)
        rows[field.name] = None if column is None else column[where]
    some = Batch(**rows)
    done = operation(some, generator)
    if len(done.x) != len(where):
        raise ValueError(f"{type(operation).__name__}: must return as many samples as it gets, {len(where)}")
    target, weight = batch.target, batch.weight
    if done.target.ndim > target.ndim:
        target = class_probabilities(target, done.target.shape[1])
    if done.weight is not None and weight is None:
        weight = torch.ones(len(batch), dtype=done.weight.dtype, device=done.weight.device)
    return replace(
        batch,
        x=batch.x.index_copy(0, where, done.x),
        target=target.index_copy(0, where, done.target),
        weight=weight if weight is None or done.weight is None else weight.index_copy(0, where, done.weight),
    )


class On:
    """Apply an operation to the samples of a subset.

    Args:
        subset: the samples' numbers in their set (:attr:`Batch.index`), as a list or an int64 tensor.
        operation: what is done to them.
    """

    def __init__(self, subset: Sequence[int] | Tensor, operation: Operation) -> None:
        self.subset = torch.as_tensor(subset, dtype=torch.int64)
        self.operation = operation

    def setup(self, data: Samples) -> None:
        """Hand it on."""
        set_up(self.operation, data)

    def check_samples(self, numbers: Tensor, num_samples: int) -> None:
        """Refuse numbers that no sample has, and a subset of which none is trained on.

        Raises:
            ValueError: it is such a one.
        """
        beyond = self.subset[(self.subset < 0) | (self.subset >= num_samples)]
        if len(beyond):
            raise ValueError(f"subset has {int(beyond[0])}: the samples' numbers are 0 to {num_samples - 1}")
        if not torch.isin(self.subset, numbers.to(self.subset.device)).any():
            raise ValueError("subset: none of these samples is trained on")
        check_samples(self.operation, numbers, num_samples)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        if batch.index is None:
            raise ValueError("On: batches must have the samples' numbers in their index")
        self.subset = self.subset.to(batch.index.device)
        return apply_to(torch.isin(batch.index, self.subset), self.operation, batch, generator)


class Sometimes:
    """Apply an operation to each sample with some probability, each for itself.

    Args:
        probability: of a sample to be chosen.
        operation: what is done to the chosen ones.
    """

    def __init__(self, probability: float, operation: Operation) -> None:
        if not 0 < probability < 1:
            raise ValueError(f"probability={probability!r}: must lie in (0, 1)")
        self.probability = probability
        self.operation = operation

    def setup(self, data: Samples) -> None:
        """Hand it on."""
        set_up(self.operation, data)

    def check_samples(self, numbers: Tensor, num_samples: int) -> None:
        """Hand it on."""
        check_samples(self.operation, numbers, num_samples)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        chosen = torch.rand(len(batch), generator=generator, device=batch.x.device) < self.probability
        return apply_to(chosen, self.operation, batch, generator)
