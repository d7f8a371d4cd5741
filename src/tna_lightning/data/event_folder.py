"""Event recordings of one's own, a folder a class."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from tna_lightning.data.class_folders import Found, by_number, find_files
from tna_lightning.data.events import EventDataModule
from tna_lightning.data.formats import TIME_UNITS, BadRecording, unit_hint
from tna_lightning.data.recordings import ARRAYS, READ, RecordingFile, RecordingFiles

log = logging.getLogger(__name__)


class EventFolderDataModule(EventDataModule):
    """Recordings below ``root``: in ``train/CLASS`` and ``test/CLASS``, or in ``CLASS`` alone.

    Without ``train`` and ``test`` a fifth of each class is the test set, by ``split``. A recording may lie in folders
    below its class. Read are ``.npz`` and ``.npy`` with t, x, y and p by name, as arrays or as fields of one, or with
    one array ``[N, 4]`` of these columns (``p`` 0 and 1, -1 and 1, or false and true), ``.aedat`` (AEDAT 2.0 of a
    DVS128, turned as those of CIFAR10-DVS; AEDAT 3.1), ``.aedat4``, ``.dat`` (Prophesee, version 2) and ``.bin`` (as of
    N-MNIST).

    Args:
        root: the folder, which holds a folder of recordings for each class, or ``train`` and ``test`` of such; frames
            are cached in its folder ``.frames``.
        sensor: pixels of the camera, H and W, or one number for both; None: as the first recording says it, which
            ``.aedat4``, ``.aedat`` of AEDAT 2.0 and most ``.dat`` do.
        time_unit: of t in ``.npz`` and ``.npy``: ``us``, ``ms``, ``s`` or ``ns``.
        **settings: see :class:`~tna_lightning.data.EventDataModule`.

    Raises:
        FileNotFoundError: no such folder, or no classes in it.
        ValueError: a class without recordings, one class alone, classes of the test that training does not have; a
            sensor that is not known; a recording that cannot be used.
    """

    simulated = False

    def __init__(
        self,
        root: str | Path,
        *,
        sensor: int | tuple[int, int] | None = None,
        time_unit: str = "us",
        batch_size: int = 16,
        test_fraction: float = 0.2,
        frames_root: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if time_unit not in TIME_UNITS:
            raise ValueError(f"time_unit={time_unit!r}: must be one of {', '.join(TIME_UNITS)}")
        pixels = (sensor, sensor) if isinstance(sensor, int) else sensor
        if pixels is not None and not 1 <= min(pixels) <= max(pixels) <= 1 << 14:
            raise ValueError(f"sensor={sensor!r}: must be null, or from 1 to {1 << 14} pixels")
        root = Path(root)
        frames_root = root / ".frames" if frames_root is None else frames_root
        super().__init__(root, batch_size=batch_size, test_fraction=test_fraction, frames_root=frames_root, **settings)
        self.name = root.name
        self.given_sensor = pixels
        self.time_unit = time_unit
        self._found: Found | None = None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes' folders, in alphabetical order."""
        return self._find().classes

    def own_test(self) -> list[int]:
        """The recordings in the folder ``test``."""
        return self._find().test

    def setup(self, stage: str) -> None:  # noqa: D102
        is_new = self.cache is None
        super().setup(stage)
        assert self.cache is not None
        durations = [
            stats.duration_us
            for (path, _), stats in zip(self._find().files, self.cache.stats, strict=True)
            if not stats.error and path.lower().endswith(ARRAYS)
        ]
        if is_new and durations and (hint := unit_hint(middle := median(durations), self.time_unit)):
            log.warning("data: the median recording lasts %g s%s", middle / 1e6, hint)

    def source(self) -> RecordingFiles:  # noqa: D102
        files = recording_files(self.root, self._find())
        others = sorted({file.suffix for file in files} - {*ARRAYS})
        if self.time_unit != "us" and others:
            raise ValueError(f"time_unit={self.time_unit!r}: {', '.join(others)} have microseconds, must be us")
        sensor = self.given_sensor or self._read_sensor(files)
        changed = [file.path.stat().st_mtime_ns for file in files]
        return RecordingFiles(files, sensor, self.time_unit, changed=changed)

    def _read_sensor(self, files: list[RecordingFile]) -> tuple[int, int]:
        """As the first recording says it; with ``skip_bad``, the first that can be read."""
        for file in files:
            try:
                if (sensor := file.sensor()) is not None:
                    return sensor
                recording = file.load(self.time_unit)
            except BadRecording as error:
                bad = error
                if not self.skip_bad:
                    break
                continue
            reach = f"; {file.name} reaches [{recording.y.max() + 1},{recording.x.max() + 1}]" if len(recording) else ""
            raise ValueError(f"sensor=null: {file.suffix} files do not say it; set data.sensor=[H,W], in pixels{reach}")
        raise BadRecording(f"{bad}; data.skip_bad=true leaves bad recordings out") from bad

    def _find(self) -> Found:
        if self._found is None:
            try:
                self._found = find_files(self.root, READ, "recordings", by_number)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"root={str(self.root)!r}: {error}") from error
        return self._found


def recording_files(root: Path, found: Found) -> list[RecordingFile]:
    """The recordings that were found, named by their paths without what stands after the dot.

    Raises:
        ValueError: two have one name.
    """
    names = [Path(path).with_suffix("").as_posix() for path, _ in found.files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"root={str(root)!r}: holds {twice[0]} twice, in two formats; keep one")
    return [
        RecordingFile(root / path, None, name, label, (root / path).stat().st_size)
        for name, (path, label) in zip(names, found.files, strict=True)
    ]
