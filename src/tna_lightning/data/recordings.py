"""Event recordings: what one is, the formats that CIFAR10-DVS comes in, and where its files may lie.

Coordinates count from the top left of the scene, ``x`` to the right and ``y`` down; ``p`` is True where the pixel got
brighter (ON); times are microseconds. Reading AEDAT 4 needs the package aedat (:mod:`.aedat4`).
"""

from __future__ import annotations

import io
import lzma
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from tna_lightning.data.aedat4 import DecodingError, decode
from tna_lightning.data.array_cache import BadSample
from tna_lightning.packages import require

SUFFIXES = (".aedat", ".aedat4", ".npz")
UNREAD = (".mat", ".bin", ".raw", ".dat", ".npy", ".h5", ".hdf5")  # other formats in which recordings come
FOLDERS = (
    *(".", "CIFAR10DVS", "extract", "download", "events_np"),
    *(f"CIFAR10DVS/{folder}" for folder in ("extract", "download", "events_np")),
)
MOST_BYTES = 1 << 26  # of a member of an archive, unpacked: 8 million events


class BadRecording(BadSample):
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
    """The events of an AEDAT 4 file, of its first stream of events, with coordinates and polarity as the file has them.

    A file cut short is noticed. Changed bytes may be, or may give other events: the format has no checksum of its own.
    """
    require("aedat")
    try:
        events = decode(path)
    except DecodingError as error:
        raise BadRecording(f"{name}: truncated or damaged AEDAT 4 ({error})") from error
    return Recording(events["t"], events["x"], events["y"], events["p"].astype(bool))


def parse_npz(content: bytes, name: str) -> Recording:
    """The events of a numpy archive of ``t``, ``x``, ``y`` and ``p``, ``[N]`` each, as spikingjelly keeps them.

    It has turned them upright, and its ``p`` is 1 for ON.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_large(archive.infolist())
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            t, x, y, p = (np.asarray(arrays[column]) for column in "txyp")
    except (*_DAMAGE, KeyError, MemoryError) as error:
        raise BadRecording(f"{name}: damaged, or no numpy archive of t, x, y and p ({error})") from error
    if any(column.shape != (len(t),) or column.dtype.kind not in "biu" for column in (t, x, y, p)):
        raise BadRecording(f"{name}: its t, x, y and p must be whole numbers, equally many of each")
    if len(t) and (min(x.min(), y.min(), p.min()) < 0 or p.max() > 1):
        raise BadRecording(f"{name}: its x and y must not be negative, and its p 0 or 1")
    limit = np.iinfo(np.uint16).max  # what is beyond is off any sensor
    return Recording(
        t.astype(np.int64), np.minimum(x, limit).astype(np.uint16), np.minimum(y, limit).astype(np.uint16), p == 1
    )


# what a zip archive with changed bytes raises: NotImplementedError and RuntimeError for compressions and encryption
_OF_CODECS = (zlib.error, lzma.LZMAError, EOFError, struct.error)
_DAMAGE = (zipfile.BadZipFile, *_OF_CODECS, OSError, NotImplementedError, RuntimeError, ValueError)


def _refuse_large(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive that becomes too much when it is unpacked.

    Raises:
        ValueError: a member does.
    """
    for member in members:
        if member.file_size > MOST_BYTES:
            raise ValueError(f"{member.filename} has {member.file_size:,} bytes, more than {MOST_BYTES:,}")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise BadRecording(f"{where}: damaged in its archive ({error})") from error


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
            with _naming(where), zipfile.ZipFile(self.path) as archive:
                _refuse_large([archive.getinfo(self.member)])
                content = archive.read(self.member)
        else:
            content = self.path.read_bytes()
        if content.startswith(b"PK"):
            return parse_npz(content, where)
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
        formats = _formats(self.files)
        readers = ("aedat",) if ".aedat4" in formats else ()
        require(*readers)
        return {
            "files": [[file.name, file.label, file.size] for file in self.files],
            "formats": formats,
            "readers": {name: version(name) for name in readers},
        }


def find_recordings(root: Path, class_names: Sequence[str]) -> tuple[list[RecordingFile], list[str]]:
    """All recordings below ``root``, by class and then by number, and the names of folders of no known class.

    The first of :data:`FOLDERS` that has a folder or a zip of a class is taken: the layouts that tonic and
    spikingjelly leave, and the plain one. A class may be a folder of recordings, such a folder in one of its own name,
    or, where there is none, a zip. Capitals do not matter.

    Raises:
        FileNotFoundError: no recording of any class; the message names what comes close.
        ValueError: a class is missing or empty, a folder cannot be read, a zip is damaged, or two formats lie side by
            side (the same recordings twice).
    """
    for folder in (root / name for name in FOLDERS):
        entries = _entries(root, folder)
        files = [file for label, name in enumerate(class_names) for file in _class_files(root, entries, name, label)]
        if files:
            break
    else:
        close = _what_comes_close(root, class_names)
        raise FileNotFoundError(
            f"root={str(root)!r}: no recordings of {class_names[0]}, {class_names[1]}, ... in it{close}"
        )
    missing = [name for label, name in enumerate(class_names) if label not in {file.label for file in files}]
    if missing:
        raise ValueError(f"root={str(root)!r}: {folder} has no recordings of {', '.join(missing)}")
    formats = _formats(files)
    if len(formats) > 1:
        raise ValueError(f"root={str(root)!r}: {folder} holds {' and '.join(formats)} files; keep one release")
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise ValueError(f"root={str(root)!r}: {folder} holds {twice[0]} twice; keep one copy")
    return files, _unknown_classes(entries, class_names)


def _formats(files: Sequence[RecordingFile]) -> list[str]:
    return sorted({PurePosixPath(file.member or file.path).suffix.lower() for file in files})


def _entries(root: Path, folder: Path | None) -> dict[str, Path]:
    """What lies in a folder, by name in small letters where that is unique; nothing where there is no such folder."""
    try:
        paths = sorted(folder.iterdir()) if folder is not None else []
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"root={str(root)!r}: {folder} cannot be read ({error.strerror})") from error
    small = Counter(path.name.lower() for path in paths)
    return {path.name if small[path.name.lower()] > 1 else path.name.lower(): path for path in paths}


def _class_files(root: Path, entries: dict[str, Path], name: str, label: int) -> list[RecordingFile]:
    own = _entries(root, entries.get(name.lower()))
    files = [
        RecordingFile(path, None, f"{name}/{path.stem}", label, path.stat().st_size)
        for inner in (own, _entries(root, own.get(name.lower())))  # "Extract all" leaves one in the other
        for path in inner.values()
        if _is_recording(path.name) and path.is_file()
    ]
    archive_path = entries.get(f"{name.lower()}.zip")
    if not files and archive_path is not None and archive_path.is_file():
        try:
            with zipfile.ZipFile(archive_path) as archive:
                members = [info for info in archive.infolist() if _is_recording(PurePosixPath(info.filename).name)]
        except _DAMAGE as error:
            raise ValueError(f"root={str(root)!r}: {archive_path} is truncated or no zip archive ({error})") from error
        for info in members:
            path = PurePosixPath(info.filename)
            if path.parent.name.lower() not in ("", name.lower()):
                raise ValueError(f"root={str(root)!r}: {archive_path} holds {path}, of no class {name!r}")
            files.append(RecordingFile(archive_path, info.filename, f"{name}/{path.stem}", label, info.file_size))
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _DIGITS.split(file.name)])


def _unknown_classes(entries: dict[str, Path], class_names: Sequence[str]) -> list[str]:
    known = {name.lower() for name in class_names}
    return sorted(
        str(path)
        for name, path in entries.items()
        if path.is_dir() and name not in known and any(_is_recording(file.name) for file in path.iterdir())
    )


def _what_comes_close(root: Path, class_names: Sequence[str]) -> str:
    """Words on the first recording that lies elsewhere below ``root``, or is in a format that nothing here reads."""
    classes = {name.lower() for name in class_names}
    for folder, folders, files in islice(os.walk(root), 1000):
        folders[:] = [] if len(Path(folder).relative_to(root).parts) > 3 else sorted(folders)
        is_class = Path(folder).name.lower() in classes
        for file in sorted(files):
            path = Path(folder, file)
            if _is_recording(file) and path.suffix.lower() != ".npz":
                return f"; there is {path}, but a folder of each class must lie in data.root"
            if is_class and path.suffix.lower() in (*UNREAD, ".npz"):
                return f"; there is {path}, but what is read is {', '.join(SUFFIXES)}, in a folder of each class"
    return ""


def _is_recording(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


_DIGITS = re.compile(r"(\d+)")
