"""Image data sets that fit in memory as uint8: splits, augmentation and normalisation on the device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.batch import Batch, Inputs, Normalization
from tna_lightning.data.encodings import ENCODINGS, latency, rate
from tna_lightning.data.loading import BatchSet, derive_seed, stratified_split
from tna_lightning.data.module import BatchedDataModule


class ImageDataModule(BatchedDataModule):
    """Base of the image data sets; inputs are float32 ``[B, C, H, W]``, normalised per channel.

    A subclass sets ``name`` and the class names, and returns its images from :meth:`load`.

    Args:
        val_fraction: share of the training images set aside for validation, stratified, by ``seed``; 0 for none,
            which wants a trainer with ``limit_val_batches=0``.
        device_resident: keep the whole uint8 set on the trainer's device, so that batches are gathered there; else they
            are gathered on the CPU. Neither way needs loader workers (``num_workers``).
        encode: direct: a pixel is a current, the same at every step; rate: a spike at each step with the pixel as its
            probability; latency: one spike, the earlier the brighter. The last two give a network frames of 0 and 1.
        encode_steps: T of rate and latency, which model.time_steps must say too.
        **settings: see :class:`~tna_lightning.data.BatchedDataModule`.
    """

    mean: tuple[float, ...] | None = None
    """Of each channel, as a share of 255; None: measured over the training images, once they are loaded."""
    std: tuple[float, ...] | None = None
    """The deviation, likewise."""
    size: tuple[int, int] | None = None
    """H and W, where they are known before the images are loaded."""

    def __init__(
        self,
        *,
        val_fraction: float = 0.1,
        device_resident: bool = True,
        encode: str = "direct",
        encode_steps: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if encode not in ENCODINGS:
            raise ValueError(f"encode={encode!r}: must be one of {', '.join(ENCODINGS)}")
        if encode_steps < (2 if encode == "latency" else 1):
            raise ValueError(f"encode_steps={encode_steps!r}: must be at least 1, for a latency code 2")
        if encode == "direct" and encode_steps != 4:
            raise ValueError(f"encode_steps={encode_steps!r}: is T of encode=rate and latency; here encode='direct'")
        self.encode = encode
        self.encode_steps = encode_steps
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction!r}: must lie in [0, 1)")
        self.val_fraction = val_fraction
        self.device_resident = device_resident
        self._samples: tuple[Tensor, Tensor] | None = None
        self._constants: tuple[Tensor, Tensor] | None = None

    @property
    def in_channels(self) -> int:
        """C; the images are loaded for it where :attr:`mean` is to be measured."""
        return len(self._normalisation()[0])

    @property
    def blank(self) -> Tensor:
        """The mean of each channel, a whole grey level."""
        return self._normalisation()[0].round().flatten()

    @property
    def inputs(self) -> Inputs:
        """What networks are built for; without :attr:`size` it is seen from the images, which are loaded for it."""
        if self.size is None and self._samples is None:
            self.setup("fit")
        height, width = self.size or self._samples[0].shape[-2:]  # type: ignore[index]  # setup has filled it
        time_steps = None if self.encode == "direct" else self.encode_steps
        return Inputs(self.in_channels, height, width, time_steps, self.num_classes)

    def load(self) -> tuple[Tensor, Tensor, Tensor]:
        """All images, uint8 ``[N, C, H, W]``, their labels, int64 ``[N]``, and the indices of the test images, int64.

        What is of another type or shape is refused: 0 to 255 is what augmentation and normalisation are made for.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:  # noqa: D102
        if self._samples is None:
            images, labels, test = self.load()
            self._check(images, labels, test)
            self._samples = images, labels
            train, val = self._split(labels, test)
            for part, subset in (("train", train), ("test", test)):
                if not len(subset):
                    raise ValueError(f"{len(labels)} images of {self.num_classes} classes: none is left to {part}")
            self._subsets = self.reduce(labels, train, val, test)
            if self.mean is None:
                is_training = torch.ones(len(images), dtype=torch.bool)
                is_training[test] = False
                self.mean, self.std = measure(images, is_training.nonzero().squeeze(1))
        device = self.trainer.strategy.root_device if self.trainer and self.device_resident else torch.device("cpu")
        images, labels = (samples.to(device) for samples in self._samples)
        self.train_set, self.val_set, self.test_set = (BatchSet(images, labels, subset) for subset in self._subsets)

    def _check(self, images: Tensor, labels: Tensor, test: Tensor) -> None:
        channels = None if self.mean is None else len(self.mean)  # to measure it the images are loaded: not yet
        shape = "N", str(channels or "C"), "H", "W"
        for name, values, dtype, wanted in (
            ("images", images, torch.uint8, shape),
            ("labels", labels, torch.int64, shape[:1]),
            ("test indices", test, torch.int64, shape[:1]),
        ):
            is_right = isinstance(values, Tensor) and values.dtype == dtype and values.ndim == len(wanted)
            if not is_right or (name == "images" and channels not in (None, values.shape[1])):
                got = f"{list(getattr(values, 'shape', []))} of {getattr(values, 'dtype', type(values).__name__)}"
                hint = "; shares in [0, 1] become grey levels by mul(255).round().to(torch.uint8)"
                raise ValueError(
                    f"load: its {name} are {got}; must be a tensor [{', '.join(wanted)}] of {dtype}"
                    f"{hint if name == 'images' else ''}"
                )
        if len(images) != len(labels):
            raise ValueError(f"load: must give a label an image; there are {len(labels)} for {len(images)}")
        outside = test[(test < 0) | (test >= len(labels))]
        if len(outside) or len(test.unique()) < len(test):
            wrong_one = f"one is {int(outside[0])}" if len(outside) else "one is there twice"
            raise ValueError(f"load: its test indices must lie in 0 to {len(labels) - 1}, each once; {wrong_one}")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"load: labels must lie in 0 to {self.num_classes - 1}, as class_names has {self.num_classes}; one is "
                f"{int(wrong[0])}"
            )

    def _split(self, labels: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        is_test[test] = True
        pool = (~is_test).nonzero().squeeze(1)
        rest, chosen = stratified_split(labels[pool], self.val_fraction, self.seed)
        return pool[rest], pool[chosen]

    @property
    def normalization(self) -> Normalization:
        """Mean and deviation.

        Raises:
            ValueError: images become spikes, which these do not say.
        """
        if self.encode != "direct":
            raise ValueError(f"data.encode={self.encode}: is done by the data module alone, not by what is exported")
        mean, scale = self._normalisation()
        return Normalization(mean.cpu(), scale.cpu())

    def prepare(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalise uint8 images to zero mean and unit deviation per channel over the data set, or encode them.

        Args:
            x: ``[B, C, H, W]``.
            generator: of a rate code; None: one that starts anew from the seed.
        """
        if self.encode == "latency":
            return latency(x.float() / 255, self.encode_steps)
        if self.encode == "rate":
            generator = generator or torch.Generator(x.device).manual_seed(derive_seed(self.seed))
            return rate(x.float() / 255, self.encode_steps, generator)
        mean, scale = self._normalisation()
        self._constants = mean, scale = mean.to(x.device), scale.to(x.device)
        return x.sub(mean).mul_(scale)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and one over the deviation of grey levels, ``[C, 1, 1]``."""
        if self._constants is None:
            if self.mean is None:
                self.setup("fit")
            mean, std = (torch.tensor(values).mul(255).view(-1, 1, 1) for values in (self.mean, self.std))
            self._constants = mean, std.reciprocal()
        return self._constants

    def present(self, batch: Batch, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        if self.encode == "rate" and generator is None:  # each batch of an evaluation has draws of its own
            assert batch.index is not None
            seed = derive_seed(self.seed, int(batch.index[0]))
            generator = torch.Generator(batch.x.device).manual_seed(seed)
        return self.prepare(batch.x, generator)

    def describe(self) -> dict[str, Any]:
        """What a run record says; ``images_sha256`` tells copies of one data set apart. Needs :meth:`setup`."""
        assert self._samples is not None
        digest = hashlib.sha256()
        for samples in self._samples:
            digest.update(samples.numpy().data)
        return {**super().describe(), "images_sha256": digest.hexdigest()}


def measure(images: Tensor, subset: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of ``images[subset]``, uint8 ``[N, C, H, W]``, as a share of 255.

    From the counts of the 256 grey levels, so that the result depends on no order of summation. A channel that never
    changes has the deviation 1: it is left as it is but for its mean.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in subset.split(4096):
        for channel, levels in enumerate(images[part].transpose(0, 1)):
            counts[channel] += levels.flatten().bincount(minlength=256)
    shares = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]).square()).sum(1)
    std = variance.sqrt().where(variance > 0, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
