"""Event recordings as batches of frames: cache, split, and augmentation on the device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tna_lightning.data.array_cache import ArrayCache
from tna_lightning.data.batch import Batch, Inputs, Normalization
from tna_lightning.data.frame_cache import cache_key, open_cache
from tna_lightning.data.frames import FrameSpec, gain_of_cells
from tna_lightning.data.loading import BatchSet, ordered_split, stratified_split
from tna_lightning.data.module import BatchedDataModule
from tna_lightning.data.recordings import RecordingSource

SPLITS = ("train", "val", "test")
RULES = ("random", "first", "last", "file", "folders")
"""How the test set is chosen."""


class EventDataModule(BatchedDataModule):
    """Base of the event data sets; inputs are float32 ``[B, T, 2, H, W]``, OFF before ON.

    Frames hold counts of events. Where cells cover unequally many pixels (48 of 128), a count is multiplied by the mean
    number of pixels of a cell over its own, so that evenly spread events look even.

    A subclass sets ``name`` and ``simulated``, names its classes, and returns its recordings from :meth:`source`.

    Args:
        root: folder of the recordings; frames are cached in its folder ``frames``.
        frames_root: folder in which frames are cached instead, for recordings that lie where nothing can be written.
        time_steps: T, frames per recording.
        slicing: ``time`` for frames of equal length, ``count`` for frames of equally many events.
        size: pixels along a side of a frame, or its H and W; at most the sensor's.
        split: which recordings are the test set: ``random`` (of each class a share, by ``split_seed``), ``first`` or
            ``last`` (of each class, in the order of their numbers), ``file`` (``split_file``), ``folders`` (those of
            train and test); None: folders where the data have them, file where ``split_file`` is given, else random.
        test_fraction: share of the recordings of each class that is the test set, by a rule that draws or counts.
        split_seed: of the test set alone, so that runs of several seeds share it.
        split_file: JSON with lists of recordings' names (``airplane/cifar10_airplane_12``) under ``train``, ``test``
            and, if wanted, ``val``; used instead of ``test_fraction`` and ``split_seed``. Others are left out.
        val_fraction: share of the rest set aside for validation, stratified, by ``seed``; 0 for none.
        skip_bad: leave out recordings that cannot be used, with a warning that names them, rather than stop.
        build_workers: processes that build frames, once; 0 for one per core. Training has no ``num_workers``.
        **settings: see :class:`~tna_lightning.data.BatchedDataModule`.
    """

    name: str
    simulated: bool

    def __init__(
        self,
        root: str | Path = ".data",
        *,
        time_steps: int = 10,
        slicing: str = "time",
        size: int | tuple[int, int] = 48,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        split: str | None = None,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        split_file: str | Path | None = None,
        val_fraction: float = 0.1,
        skip_bad: bool = False,
        build_workers: int = 0,
        frames_root: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **settings)
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size={size!r}: must be at least 1")
        self.spec = FrameSpec(time_steps, slicing, (height, width))
        if split not in (None, *RULES):
            raise ValueError(f"split={split!r}: must be null or one of {', '.join(RULES)}")
        if (split == "file") != (split_file is not None) and split is not None:
            raise ValueError(f"split={split!r}: file, and no other, goes with split_file=FILE")
        for setting, value in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
            if not 0 <= value < 1:
                raise ValueError(f"{setting}={value!r}: must lie in [0, 1)")
        for setting, count in (("split_seed", split_seed), ("build_workers", build_workers)):
            if count < 0:
                raise ValueError(f"{setting}={count!r}: must not be negative")
        self.root = Path(root)
        self.frames_root = self.root / "frames" if frames_root is None else Path(frames_root)
        self.split = split
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.split_file = None if split_file is None else Path(split_file)
        self.val_fraction = val_fraction
        self.skip_bad = skip_bad
        self.build_workers = build_workers
        self.cache: ArrayCache | None = None

    @property
    def in_channels(self) -> int:
        """The two polarities."""
        return 2

    @property
    def time_steps(self) -> int:
        """T."""
        return self.spec.time_steps

    @property
    def inputs(self) -> Inputs:  # noqa: D102
        return Inputs(self.in_channels, *self.spec.size, self.time_steps, self.num_classes)

    def source(self) -> RecordingSource:
        """The recordings."""
        raise NotImplementedError

    def own_test(self) -> list[int]:
        """The numbers of the recordings that the data themselves set aside for the test; without any they leave it."""
        return []

    def setup(self, stage: str) -> None:  # noqa: D102
        if self.cache is not None:
            return
        source = self.source()
        if any(cells > pixels for cells, pixels in zip(self.spec.size, source.sensor, strict=True)):
            height, width = source.sensor
            limit = f"{height} pixels" if height == width else f"pixels, [{height},{width}]"
            raise ValueError(f"size={self._size!r}: must be at most the sensor's {limit}")
        labels = torch.tensor(source.labels)
        parts = self._split(source.names, labels)
        cache = open_cache(
            self.frames_root, self.name, source, self.spec, skip_bad=self.skip_bad, workers=self.build_workers
        )
        self._gain = gain_of_cells(source.sensor, self.spec.size)
        self._key = cache_key(source, self.spec)
        self.sensor = source.sensor
        usable = torch.zeros(len(labels), dtype=torch.bool)
        usable[torch.from_numpy(cache.usable)] = True
        frames = torch.from_numpy(cache.arrays)
        train, val, test = (indices[usable[indices]] for indices in parts)
        for part, samples in (("train", train), ("test", test)):
            if not len(samples):
                key, value = {"file": ("split_file", str(self.split_file)), "folders": ("split", "folders")}.get(
                    self.rule, ("test_fraction", self.test_fraction)
                )
                raise ValueError(f"{key}={value!r}: leaves no recording to {part}")
        self.train_set, self.val_set, self.test_set = (
            BatchSet(frames, labels, indices) for indices in self.reduce(labels, train, val, test)
        )
        self.cache = cache

    @property
    def rule(self) -> str:
        """Which of :data:`RULES` chooses the test set.

        Raises:
            ValueError: ``split=folders``, and the data have none.
        """
        if self.split == "folders" and not self.own_test():
            raise ValueError("split='folders': there are no folders of train and test")
        given = "file" if self.split_file is not None else "folders" if self.own_test() else "random"
        return self.split or given

    @property
    def _size(self) -> int | list[int]:
        """One number for a square."""
        height, width = self.spec.size
        return height if height == width else [height, width]

    def _split(self, names: Sequence[str], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.split_file is not None:
            listed = read_split(self.split_file, names)
            pool, test = listed["train"], listed["test"]
            if "val" in listed:
                return pool, listed["val"], test
        elif self.rule == "folders":
            is_test = torch.zeros(len(labels), dtype=torch.bool)
            is_test[self.own_test()] = True
            pool, test = (~is_test).nonzero().squeeze(1), is_test.nonzero().squeeze(1)
        elif self.rule == "random":
            pool, test = stratified_split(labels, self.test_fraction, self.split_seed)
        else:
            pool, test = ordered_split(labels, self.test_fraction, first=self.rule == "first")
        rest, chosen = stratified_split(labels[pool], self.val_fraction, self.seed)
        return pool[rest], pool[chosen], test

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:  # noqa: D102
        # evens out the cells before anything moves
        return super().augment(replace(batch, x=self.prepare(batch.x)), generator)

    @property
    def normalization(self) -> Normalization:
        """The counts, evened out over the cells; needs :meth:`setup`."""
        gain = None if self._gain is None else self._gain.cpu()
        return Normalization(torch.zeros(2, 1, 1), torch.ones(2, 1, 1), gain)

    def prepare(self, x: Tensor) -> Tensor:
        """Turn uint8 counts into float32, evened out over the cells; float frames are prepared already."""
        if x.is_floating_point():
            return x
        x = x.float()
        if self._gain is not None:
            self._gain = self._gain.to(x.device)
            x *= self._gain
        return x

    def describe(self) -> dict[str, Any]:
        """What a run record says; needs :meth:`setup`."""
        assert self.cache is not None
        stats = [stats for stats in self.cache.stats if not stats.error]
        events = sum(recording.events for recording in stats)
        return {
            **super().describe(),
            "simulated": self.simulated,
            "time_steps": self.time_steps,
            "slicing": self.spec.slicing,
            "size": self._size,
            "sensor": list(self.sensor),
            "split": self.rule,
            "frames_key": self._key,
            "bad_recordings": self.cache.bad,
            "events_per_recording": events / len(stats),
            "on_share": sum(recording.on_events for recording in stats) / events if events else None,
            "seconds_per_recording": sum(recording.duration_us for recording in stats) / len(stats) / 1e6,
            "saturated_cells": sum(recording.saturated for recording in stats),
        }


def read_split(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The indices of the recordings that a split file lists; int64, sorted.

    Raises:
        FileNotFoundError, ValueError: ``split_file=...`` and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"split_file={str(path)!r}: must be a JSON file")
    try:
        listed = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise ValueError(f"split_file={str(path)!r}: must be JSON ({error})") from error
    if (
        not isinstance(listed, dict)
        or not {"train", "test"} <= listed.keys() <= set(SPLITS)
        or not all(isinstance(members, list) for members in listed.values())
    ):
        raise ValueError(f"split_file={str(path)!r}: must hold lists under 'train', 'test' and, if wanted, 'val'")
    index = {name: number for number, name in enumerate(names)}
    seen: dict[str, str] = {}
    for split, members in listed.items():
        for name in members:
            if not isinstance(name, str) or name not in index:
                raise ValueError(
                    f"split_file={str(path)!r}: {split} lists {str(name)[:80]!r}, which is no recording here"
                )
            if name in seen:
                raise ValueError(f"split_file={str(path)!r}: {name!r} is listed in {seen[name]} and in {split}")
            seen[name] = split
    return {split: torch.tensor(sorted(index[name] for name in members)) for split, members in listed.items()}
