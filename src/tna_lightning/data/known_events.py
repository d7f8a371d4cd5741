"""N-MNIST, DVS128 Gesture and N-Caltech101, where tonic or spikingjelly has left them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tna_lightning.data.class_folders import by_number, find_files, folders_in
from tna_lightning.data.event_folder import recording_files
from tna_lightning.data.events import EventDataModule
from tna_lightning.data.recordings import RecordingFile, RecordingFiles

SUFFIXES = (".bin", ".npz")
GESTURES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise"),
    *("left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A set as it lies on disk.

    Attributes:
        classes: their names, in the order of the labels.
        files: the recordings.
        test: the numbers of the official test's; empty where there is no official split.
        time_unit: of arrays.
        columns: of arrays without names.
    """

    classes: list[str]
    files: list[RecordingFile]
    test: list[int]
    time_unit: str = "us"
    columns: str | None = None


class KnownEventsDataModule(EventDataModule):
    """Base of the sets that are read where tonic or spikingjelly has left them.

    A subclass says the sensor, where a set may lie below ``root``, how many recordings it has (a warning says if there
    are others), and what to do where there is none; and it finds the recordings in such a place.

    Args:
        root: where tonic (``save_to``) or spikingjelly (``root``) has put it; frames are cached in ``root/.frames``.
        **settings: see :class:`~tna_lightning.data.EventDataModule`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a recording cannot be used.
    """

    simulated = False
    known_sensor: tuple[int, int]
    places: tuple[str, ...]
    numbers: tuple[int, ...]
    advice: str

    def __init__(self, root: str | Path = ".data", *, frames_root: str | Path | None = None, **settings: Any) -> None:
        # hidden, since the root may be the folder that holds the folders of classes
        super().__init__(root, frames_root=Path(root) / ".frames" if frames_root is None else frames_root, **settings)
        self._located: Located | None = None

    def own_test(self) -> list[int]:
        """The official test set."""
        return self._locate().test

    def source(self) -> RecordingFiles:  # noqa: D102
        found = self._locate()
        return RecordingFiles(found.files, self.known_sensor, found.time_unit, found.columns)

    def locate(self, place: Path) -> Located | None:
        """The set in a folder; None where it is not there."""
        raise NotImplementedError

    def _locate(self) -> Located:
        if self._located is None:
            try:
                found = (self.locate(self.root / place) for place in self.places if (self.root / place).is_dir())
                self._located = next((each for each in found if each is not None), None)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"root={str(self.root)!r}: {error}") from error
            if self._located is None:
                raise FileNotFoundError(f"root={str(self.root)!r}: holds no {self.name}; {self.advice}")
            number = len(self._located.files)
            if number not in self.numbers:
                usual = " or ".join(map(str, self.numbers))
                log.warning(
                    "root=%r: %s has %d recordings here, and %s elsewhere", str(self.root), self.name, number, usual
                )
        return self._located


class NMNISTDataModule(KnownEventsDataModule):
    """N-MNIST (Orchard et al. 2015, doi 10.3389/fnins.2015.00437): 34x34 pixels, 60,000 recordings and 10,000 to test.

    Found below ``root``: ``Train`` and ``Test`` with folders ``0`` to ``9`` of ``.bin``, in ``NMNIST`` (tonic) or
    ``extract`` (spikingjelly), or ``events_np/train`` and ``test`` of ``.npz`` (spikingjelly).

    Args:
        **settings: see :class:`~tna_lightning.data.known_events.KnownEventsDataModule`.
    """

    name = "nmnist"
    known_sensor = (34, 34)
    places = (".", "NMNIST", "extract", "events_np", "NMNIST/extract", "NMNIST/events_np")
    numbers = (70_000,)
    advice = "tonic.datasets.NMNIST(ROOT) fetches it: folders Train and Test, or their zips unpacked in root"

    def __init__(self, root: str | Path = ".data", *, size: int | tuple[int, int] = 34, **settings: Any) -> None:
        super().__init__(root, size=size, **settings)

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return [str(digit) for digit in range(10)]

    def locate(self, place: Path) -> Located | None:  # noqa: D102
        return _of_numbers(place, self.class_names)


class DVSGestureDataModule(KnownEventsDataModule):
    """DVS128 Gesture (Amir et al. 2017): 128x128 pixels, 11 gestures; users 1 to 23 train, 24 to 29 test.

    Found below ``root``: tonic's ``ibmGestureTrain`` and ``ibmGestureTest`` (in ``DVSGesture``; ``.npy`` in whole
    milliseconds, 1,077 and 264 recordings), or spikingjelly's ``events_np/train`` and ``test`` (``.npz``, 1,176 and
    288): the two cut the same recordings up differently.

    Args:
        **settings: see :class:`~tna_lightning.data.known_events.KnownEventsDataModule`.
    """

    name = "dvsgesture"
    known_sensor = (128, 128)
    places = (".", "DVSGesture", "events_np", "DVS128Gesture/events_np")
    numbers = (1077 + 264, 1176 + 288)
    advice = (
        "tonic.datasets.DVSGesture(ROOT) fetches tonic's, and spikingjelly.datasets.DVS128Gesture(ROOT) cuts IBM's "
        "DvsGesture.tar.gz into events_np"
    )

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return list(GESTURES)

    def locate(self, place: Path) -> Located | None:  # noqa: D102
        parts = ("ibmGestureTrain", "ibmGestureTest")
        if not all((place / part).is_dir() for part in parts):
            return _of_numbers(place, self.class_names)
        files: list[RecordingFile] = []
        test: list[int] = []
        for part in parts:
            paths = sorted((place / part).glob("*/*.npy"), key=lambda path: (int(path.stem), path.parent.name))
            test += range(len(files), len(files) + len(paths)) if part == parts[1] else ()
            files += [
                RecordingFile(path, None, f"{part}/{path.parent.name}/{path.stem}", int(path.stem), path.stat().st_size)
                for path in paths
            ]
        return Located(list(GESTURES), files, test, "ms", "xypt") if test and test[0] else None


class NCaltech101DataModule(KnownEventsDataModule):
    """N-Caltech101 (Orchard et al. 2015, doi 10.3389/fnins.2015.00437): 180x240 pixels, 101 classes, no official split.

    Found below ``root``: ``Caltech101`` with a folder a class of ``.bin``, in ``NCALTECH101`` (tonic) or ``extract``
    (spikingjelly), or spikingjelly's ``events_np`` of ``.npz``. Coordinates are as the files have them; tonic's
    own data set moves each recording to the upper left corner.

    Args:
        **settings: see :class:`~tna_lightning.data.known_events.KnownEventsDataModule`.
    """

    name = "ncaltech101"
    known_sensor = (180, 240)
    places = (".", "Caltech101", "NCALTECH101/Caltech101", "extract/Caltech101", "events_np")
    numbers = (8709,)
    advice = "tonic.datasets.NCALTECH101(ROOT) fetches it: a folder Caltech101 in root"

    @property
    def class_names(self) -> list[str]:
        """The names of the classes' folders, in alphabetical order."""
        return self._locate().classes

    def locate(self, place: Path) -> Located | None:  # noqa: D102
        if "airplanes" not in folders_in(place):
            return None
        found = find_files(place, SUFFIXES, "recordings", by_number)
        return Located(found.classes, recording_files(place, found), [])


def _of_numbers(place: Path, classes: list[str]) -> Located | None:
    """The set in ``train`` and ``test`` whose folders of classes are called by their numbers."""
    if not {"train", "test"} <= {name.lower() for name in folders_in(place)}:
        return None
    found = find_files(place, SUFFIXES, "recordings", by_number)
    if sorted(found.classes) != sorted(map(str, range(len(classes)))):
        raise ValueError(f"{place}: has the classes {', '.join(found.classes)}, must have 0 to {len(classes) - 1}")
    files = recording_files(place, found)
    return Located(classes, [replace(file, label=int(found.classes[file.label])) for file in files], found.test)
