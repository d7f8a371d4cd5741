"""What a data module says of its inputs, and what it yields: plain torch.

Letters: T time steps, B batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils.data._utils.collate import default_collate, default_collate_fn_map


@dataclass(frozen=True)
class Inputs:
    """What a network is built for.

    Attributes:
        channels: C.
        height: H.
        width: W.
        time_steps: T of event frames; None for static images, which a network repeats as often as it likes.
        num_classes: K.
    """

    channels: int
    height: int
    width: int
    time_steps: int | None
    num_classes: int


@dataclass(frozen=True, eq=False)
class Normalization:
    """What becomes of uint8 inputs before a network sees them: ``(x - mean) * scale``, then ``* gain``, in float32.

    Attributes:
        mean: ``[C, 1, 1]``, or what broadcasts against it.
        scale: likewise.
        gain: ``[H, W]``; None for none.
    """

    mean: Tensor
    scale: Tensor
    gain: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Float32 ``[..., C, H, W]`` of uint8 inputs."""
        x = x.float().sub(self.mean).mul_(self.scale)
        return x if self.gain is None else x.mul_(self.gain)


@dataclass
class Batch:
    """Samples and what is known of them. Not frozen: Lightning moves a batch to its device by setting the fields.

    It unpacks as a pair, ``x, target = batch``; by this Lightning also finds the size of a batch, which an index or
    weight of None would hide from it.

    Attributes:
        x: images ``[B, C, H, W]``, or event frames ``[B, T, C, H, W]``: B first, which nobody can check where T is B.
        target: class indices ``[B]`` (int64), or class probabilities ``[B, K]``.
        index: the samples' numbers in their set, int64 ``[B]``: places among all its images or recordings, whatever
            their split, the same for every seed.
        weight: one number a sample, ``[B]``; None weighs all alike.
        is_copy: which samples stand there a second time to be augmented strongly, bool ``[B]``
            (:class:`~tna_lightning.data.augment.Chosen`); None for none.
    """

    x: Tensor
    target: Tensor
    index: Tensor | None = None
    weight: Tensor | None = None
    is_copy: Tensor | None = None

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """A batch from what a data module yields: itself, or a pair of inputs and targets.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Sequence) and len(batch) == 2:
            return cls(*batch)
        raise ValueError(
            f"batch={type(batch).__name__}: a data module must yield tna_lightning.data.Batch or (x, target)"
        )

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x, self.target))

    def __len__(self) -> int:
        return len(self.target)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, for a :class:`~torch.utils.data.DataLoader` with ``pin_memory=True``."""
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                setattr(self, field.name, value.pin_memory())
        return self

    def mean(self, losses_B: Tensor) -> Tensor:
        """The mean over B of weight times loss, a scalar; not divided by the sum of the weights."""
        return losses_B.mean() if self.weight is None else (self.weight * losses_B).mean()


def _collate(samples: Sequence[Batch], *, collate_fn_map: Any = None) -> Batch:
    """Samples of a data set, each a :class:`Batch` without the first dimension, as one."""
    columns = {field.name: [getattr(sample, field.name) for sample in samples] for field in fields(Batch)}
    return Batch(**{name: default_collate(values) for name, values in columns.items() if values[0] is not None})


default_collate_fn_map[Batch] = _collate  # torch's way to teach its default_collate a new type
