"""CIFAR10-DVS (Li et al. 2017, doi 10.3389/fnins.2017.00309): 10,000 recordings of a DVS128 before a moving picture."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from tna_lightning.data.cifar import CLASSES
from tna_lightning.data.download import DownloadError, check, download
from tna_lightning.data.events import EventDataModule
from tna_lightning.data.recordings import BadRecording, RecordingFiles, find_recordings
from tna_lightning.data.words import listed

CLASS_NAMES = CLASSES["cifar10"]
SENSOR = (128, 128)
ARCHIVE = "CIFAR10DVS.zip"
# The API serves the file that tonic 1.7 names (figshare.com/ndownloader/files/38023437, this checksum) without a page
# that asks whether one is human: neuromorphs/tonic PR #337. Not tried here, for want of a network.
URL = "https://api.figshare.com/v2/file/download/38023437"
PAGE = "https://figshare.com/ndownloader/files/38023437"
MD5 = "ce3a4a0682dc0943703bd8f749a7701c"
SAVED_AS = ("CIFAR10DVS*.zip", "38023437*")  # what browsers call it: CIFAR10DVS (1).zip, 38023437


class CIFAR10DVSDataModule(EventDataModule):
    """Real recordings, 1,000 of each of ten classes, 128x128 pixels, 1.2 s. There is no official split.

    Found under ``root``: AEDAT 4 as tonic's host has it, or AEDAT 2.0 (``.aedat``) of the original release; in a folder
    or a zip per class; directly, in ``CIFAR10DVS`` (tonic), or in ``extract``, ``download`` or ``events_np``
    (spikingjelly, whose ``.npz`` are read too); or as tonic's ``CIFAR10DVS.zip``, also under the names that browsers
    give it, which is unpacked. AEDAT 2.0 is turned upright as spikingjelly does; AEDAT 4 is taken as it comes, and no
    copy of it was at hand to tell whether it stands the same way.

    Args:
        root: where to look, and where the download goes.
        download: fetch tonic's archive if nothing is there. Its host often lets only browsers through; the error then
            says which file to put where.
        **settings: see :class:`~tna_lightning.data.EventDataModule`; ``skip_bad`` leaves out folders of no class too.

    Raises:
        FileNotFoundError: no recordings, and they may not or could not be fetched.
        ValueError: recordings are bad or incomplete; the message names the file.
    """

    name = "cifar10dvs"
    simulated = False

    def __init__(self, root: str | Path = ".data", *, download: bool = True, **settings: Any) -> None:
        super().__init__(root, **settings)
        self.download = download

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return CLASS_NAMES

    def prepare_data(self) -> None:
        """Unpack tonic's archive if it is there, or fetch it if nothing is."""
        folder = self.root / "CIFAR10DVS"
        try:
            find_recordings(self.root, CLASS_NAMES)
        except (
            FileNotFoundError,
            ValueError,
        ) as error:  # none, or some classes only: a killed run may have unpacked them
            archive = next((path for place in (self.root, folder) for path in _archives(place)), None)
            if archive is None and isinstance(error, FileNotFoundError):
                archive = self._fetch(str(error))
            if archive is None:
                raise
            unpack(archive, folder, CLASS_NAMES)

    def _fetch(self, reason: str) -> Path:
        archive = self.root / ARCHIVE
        advice = (
            f"Open {PAGE} in a browser, save it as {archive} (md5 {MD5}) and start again. The original release's "
            f"{CLASS_NAMES[0]}.zip to {CLASS_NAMES[-1]}.zip (figshare.com, CIFAR10-DVS) in {self.root} do as well."
        )
        if not self.download:
            raise FileNotFoundError(f"{reason}, and download=false.\n{advice}")
        try:
            return download(URL, archive, f"md5:{MD5}")
        except DownloadError as error:
            raise FileNotFoundError(f"{reason}, and its host gave none ({error.__cause__}).\n{advice}") from error

    def source(self) -> RecordingFiles:  # noqa: D102
        self.prepare_data()
        files, unknown = find_recordings(self.root, CLASS_NAMES)
        if unknown:
            message = f"{unknown[0]}: holds recordings of no class; the classes are {', '.join(CLASS_NAMES)}"
            if not self.skip_bad:
                raise BadRecording(f"{message}; data.skip_bad=true leaves it out")
            warnings.warn(f"{len(unknown)} folder(s) left out: {listed(unknown)}", stacklevel=2)
        return RecordingFiles(files, SENSOR)


def _archives(folder: Path) -> list[Path]:
    """Tonic's archive, its own name first; what it is, its checksum tells."""
    found = {path for pattern in SAVED_AS for path in folder.glob(pattern) if path.is_file()}
    found = {path for path in found if path.suffix not in (".part", ".lock")}
    return sorted(found, key=lambda path: (path.name != ARCHIVE, path.name))


def unpack(archive: Path, folder: Path, class_names: list[str]) -> None:
    """Take the zips of the classes out of tonic's archive, each complete or absent; those there already are kept.

    Raises:
        ValueError: the archive's checksum differs, or a class is missing from it.
    """

    def missing() -> list[str]:
        return [name for name in class_names if not (folder / f"{name}.zip").exists() and not (folder / name).is_dir()]

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not missing():
            return
        check(archive, f"md5:{MD5}")
        with zipfile.ZipFile(archive) as outer:
            # what it says of itself is believed: its checksum is that of the release
            members = {PurePosixPath(member).name: member for member in outer.namelist()}
            for name in missing():
                if f"{name}.zip" not in members:
                    raise ValueError(f"{archive}: must hold {name}.zip")
                part = folder / f"{name}.zip.part"
                with outer.open(members[f"{name}.zip"]) as packed, part.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
                part.replace(folder / f"{name}.zip")
