"""Event recordings: what one is, the two AEDAT formats that CIFAR10-DVS comes in, and where its files may lie.

Coordinates count from the top left of the scene, ``x`` to the right and ``y`` down; ``p`` is True where the pixel got
brighter (ON); times are microseconds. Reading AEDAT 4 needs tonic (GPL-3.0) and its undeclared dependency aedat; both
are imported by that function alone.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from tna_lightning.packages import require

SUFFIXES = (".aedat", ".aedat4")
FOLDERS = (".", "CIFAR10DVS", "extract", "download", "CIFAR10DVS/extract", "CIFAR10DVS/download")


class BadRecording(ValueError):
    """A recording that cannot be used; the message starts with its name."""


@dataclass(frozen=True)
class Recording:
    """The N events of one recording, in order of time.

    Attributes:
        t: int64 ``[N]``, microseconds from any origin.
        x: uint16 ``[N]``, column.
        y: uint16 ``[N]``, row.
        p: bool ``[N]``, True for ON.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    @property
    def duration_us(self) -> int:
        """Time from the first to the last event."""
        return int(self.t[-1] - self.t[0]) if len(self) else 0


class RecordingSource(Protocol):
    """A list of recordings that can be loaded one by one, in any process: it must be picklable."""

    @property
    def names(self) -> Sequence[str]:
        """One unique name per recording, ``class/stem``."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each."""

    @property
    def sensor(self) -> tuple[int, int]:
        """``(H, W)``."""

    def load(self, index: int) -> Recording:
        """Read or make one recording; raises BadRecording."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines what :meth:`load` returns, as JSON."""


def check(recording: Recording, name: str, sensor: tuple[int, int]) -> Recording:
    """Hand the recording on if it has events, in order of time, all on the sensor; else raise BadRecording."""
    height, width = sensor
    if not len(recording):
        raise BadRecording(f"{name}: holds no events")
    backwards = np.flatnonzero(recording.t[1:] < recording.t[:-1])
    if len(backwards):
        raise BadRecording(f"{name}: time goes backwards at event {backwards[0] + 1} ({len(backwards)} times in all)")
    outside = np.flatnonzero((recording.x >= width) | (recording.y >= height))
    if len(outside):
        x, y = recording.x[outside[0]], recording.y[outside[0]]
        raise BadRecording(
            f"{name}: event {outside[0]} at x={x}, y={y} is outside the {width}x{height} sensor ({len(outside)} in all)"
        )
    return recording


def parse_aedat2(content: bytes, name: str) -> Recording:
    """The pixel events of an AEDAT 2.0 file of a DVS128, as the original release of CIFAR10-DVS has them.

    After header lines that start with ``#``: pairs of big-endian uint32, address and time in microseconds
    (docs.inivation.com, "AEDAT 2.0"). Address bit 0 is 0 for ON, bits 1-7 and 8-14 are the sensor's two axes, bit 15
    marks external events, which no pixel sent and which are left out. The sensor stood turned by a quarter: the scene
    is upright with ``x = 127 - bits 8-14`` and ``y = 127 - bits 1-7``, as spikingjelly reads these files.

    A file cut off between two events cannot be told from a shorter recording: the format keeps no length.
    """
    start = 0
    version = None
    while content[start : start + 1] == b"#":
        line_end = content.find(b"\n", start) + 1
        if line_end == 0:
            raise BadRecording(f"{name}: truncated in its header")
        if match := re.match(rb"#!AER-DAT(\d+)\.", content[start:line_end]):
            version = int(match[1])
        start = line_end
    if version != 2:
        raise BadRecording(f"{name}: no '#!AER-DAT2.0' line in its header")
    if (len(content) - start) % 8:
        raise BadRecording(f"{name}: truncated, {(len(content) - start) % 8} bytes after its last whole event")
    address, t = np.frombuffer(content, dtype=">u4", offset=start).reshape(-1, 2).T
    pixel = (address & 0x8000) == 0
    address, t = address[pixel].astype(np.uint32), t[pixel]
    foreign = np.flatnonzero(address >> 16)
    if len(foreign):
        raise BadRecording(f"{name}: address {address[foreign[0]]:#010x} of event {foreign[0]} is none of a DVS128")
    return Recording(
        t=t.astype(np.int64),
        x=(127 - (address >> 8 & 0x7F)).astype(np.uint16),
        y=(127 - (address >> 1 & 0x7F)).astype(np.uint16),
        p=(address & 1) == 0,
    )


def read_aedat4(path: Path, name: str) -> Recording:
    """The events of an AEDAT 4 file through tonic, with coordinates and polarity as the file has them.

    A file cut short is noticed. Changed bytes may be, or may give other events: the format has no checksum of its own
    (and on a few, aedat's decoder ends the process).
    """
    require("tonic", "aedat")
    from tonic.io import read_aedat4 as read

    try:
        events = read(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tonic raises bare Exceptions; panics of aedat's Rust code are BaseExceptions
        if "at least one array" in str(error):
            raise BadRecording(f"{name}: holds no events") from error
        raise BadRecording(f"{name}: truncated or damaged AEDAT 4 ({error})") from error
    t, x, y, p = (events[column] for column in events.dtype.names)
    return Recording(t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(bool))


@dataclass(frozen=True)
class RecordingFile:
    """Where one recording lies: a file, or a member of a zip archive.

    Attributes:
        size: of the (unpacked) file in bytes.
    """

    path: Path
    member: str | None
    name: str
    label: int
    size: int

    def load(self) -> Recording:
        """Read it, by the format that its first bytes name."""
        where = f"{self.path}:{self.member}" if self.member else str(self.path)
        if self.member:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    content = archive.read(self.member)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise BadRecording(f"{where}: damaged in its archive ({error})") from error
        else:
            content = self.path.read_bytes()
        if not content.startswith(b"#!AER-DAT4"):
            return parse_aedat2(content, where)
        if not self.member:
            return read_aedat4(self.path, where)
        with tempfile.NamedTemporaryFile(suffix=".aedat4") as unpacked:
            unpacked.write(content)
            unpacked.flush()
            return read_aedat4(Path(unpacked.name), where)


class RecordingFiles:
    """A :class:`RecordingSource` over files.

    Args:
        files: which recordings.
        sensor: ``(H, W)``; events outside make a recording bad.
    """

    def __init__(self, files: Sequence[RecordingFile], sensor: tuple[int, int]) -> None:
        self.files = files
        self.sensor = sensor
        self.names = [file.name for file in files]
        self.labels = [file.label for file in files]

    def load(self, index: int) -> Recording:  # noqa: D102
        file = self.files[index]
        return check(file.load(), f"{file.path}:{file.member}" if file.member else str(file.path), self.sensor)

    def fingerprint(self) -> dict[str, Any]:  # noqa: D102
        formats = sorted({Path(file.member or file.path).suffix for file in self.files})
        readers = ("aedat", "tonic") if ".aedat4" in formats else ()
        require(*readers)
        return {
            "files": [[file.name, file.label, file.size] for file in self.files],
            "formats": formats,
            "readers": {name: version(name) for name in readers},
        }


def find_recordings(root: Path, class_names: Sequence[str]) -> tuple[list[RecordingFile], list[str]]:
    """All recordings below ``root``, by class and then by number, and the names of folders of no known class.

    The first of :data:`FOLDERS` that has a folder or a zip of a class is taken: the layouts that tonic and
    spikingjelly leave, and the plain one. A class may be a folder of recordings or, where there is none, a zip.

    Raises:
        FileNotFoundError: no recording of any class.
        ValueError: a class is missing or empty, a zip is damaged, or AEDAT 2.0 and AEDAT 4 lie side by side (the same
            recordings twice).
    """
    for folder in (root / name for name in FOLDERS):
        files = [file for label, name in enumerate(class_names) for file in _class_files(folder, name, label)]
        if files:
            break
    else:
        raise FileNotFoundError(f"root={str(root)!r}: no recordings of {class_names[0]}, {class_names[1]}, ... in it")
    missing = [name for label, name in enumerate(class_names) if label not in {file.label for file in files}]
    if missing:
        raise ValueError(f"root={str(root)!r}: {folder} has no recordings of {', '.join(missing)}")
    formats = sorted({PurePosixPath(file.member or file.path).suffix for file in files})
    if len(formats) > 1:
        raise ValueError(f"root={str(root)!r}: {folder} holds {' and '.join(formats)} files; keep one release")
    return files, _unknown_classes(folder, class_names)


def _class_files(folder: Path, name: str, label: int) -> list[RecordingFile]:
    files = [
        RecordingFile(path, None, f"{name}/{path.stem}", label, path.stat().st_size)
        for path in (folder / name).glob("*")
        if _is_recording(path.name)
    ]
    archive_path = folder / f"{name}.zip"
    if not files and archive_path.is_file():
        try:
            with zipfile.ZipFile(archive_path) as archive:
                members = [info for info in archive.infolist() if _is_recording(PurePosixPath(info.filename).name)]
        except zipfile.BadZipFile as error:
            raise ValueError(f"root={str(folder)!r}: {archive_path.name} is truncated or no zip archive") from error
        for info in members:
            path = PurePosixPath(info.filename)
            if path.parent.name not in ("", name):
                raise ValueError(f"root={str(folder)!r}: {archive_path.name} holds {path}, of no class {name!r}")
            files.append(RecordingFile(archive_path, info.filename, f"{name}/{path.stem}", label, info.file_size))
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _DIGITS.split(file.name)])


def _unknown_classes(folder: Path, class_names: Sequence[str]) -> list[str]:
    return sorted(
        str(path)
        for path in folder.iterdir()
        if path.is_dir() and path.name not in class_names and any(_is_recording(file.name) for file in path.iterdir())
    )


def _is_recording(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


_DIGITS = re.compile(r"(\d+)")
