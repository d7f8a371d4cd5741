"""Event recordings in files: which there are, where those of CIFAR10-DVS may lie, and reading one."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tna_lightning.data.formats import (
    DAMAGE,
    BadRecording,
    Recording,
    aedat4_sensor,
    check,
    dat_sensor,
    parse_aedat2,
    parse_aedat3,
    parse_arrays,
    parse_bin,
    parse_dat,
    read_aedat4,
    refuse_large,
)
from tna_lightning.packages import require

SUFFIXES = (".aedat", ".aedat4", ".npz")
UNREAD = (".mat", ".bin", ".raw", ".dat", ".npy", ".h5", ".hdf5")  # other formats in which recordings come
FOLDERS = (
    *(".", "CIFAR10DVS", "extract", "download", "events_np"),
    *(f"CIFAR10DVS/{folder}" for folder in ("extract", "download", "events_np")),
)
ARRAYS = (".npz", ".npy")
READ = (*ARRAYS, ".aedat", ".aedat4", ".dat", ".bin")
"""What is read of recordings of one's own."""
AEDAT2_SENSOR = (128, 128)


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


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
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

    @property
    def suffix(self) -> str:
        """Of the file's name, in small letters."""
        return PurePosixPath(self.member or self.path).suffix.lower()

    @property
    def where(self) -> str:
        """Its place in words."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def load(self, time_unit: str = "us", columns: str | None = None) -> Recording:
        """Read it, by the format that its name says, and of AEDAT its first bytes.

        Args:
            time_unit: of arrays, see :func:`~tna_lightning.data.formats.parse_arrays`.
            columns: likewise.
        """
        where, content = self.where, self._content()
        if content.startswith(b"PK") or self.suffix in ARRAYS:
            return parse_arrays(content, where, time_unit, columns)
        if self.suffix in (".bin", ".dat"):
            return (parse_bin if self.suffix == ".bin" else parse_dat)(content, where)
        if content.startswith(b"#!AER-DAT3"):
            return parse_aedat3(content, where)
        if not content.startswith(b"#!AER-DAT4"):
            return parse_aedat2(content, where)
        with self._unpacked(content) as path:
            return read_aedat4(path, where)

    def sensor(self) -> tuple[int, int] | None:
        """``(H, W)`` where its format says it, else None."""
        if self.suffix not in (".dat", ".aedat", ".aedat4"):
            return None
        content = self._content()
        if self.suffix == ".dat":
            return dat_sensor(content, self.where)
        if content.startswith(b"#!AER-DAT4"):
            with self._unpacked(content) as path:
                return aedat4_sensor(path, self.where)
        return None if content.startswith(b"#!AER-DAT3") else AEDAT2_SENSOR

    def _content(self) -> bytes:
        if not self.member:
            return self.path.read_bytes()
        with _naming(self.where), zipfile.ZipFile(self.path) as archive:
            refuse_large([archive.getinfo(self.member)])
            return archive.read(self.member)

    @contextmanager
    def _unpacked(self, content: bytes) -> Iterator[Path]:
        """A file with the content: its own, where it is no member of an archive."""
        if not self.member:
            yield self.path
            return
        with tempfile.NamedTemporaryFile(suffix=".aedat4") as unpacked:
            unpacked.write(content)
            unpacked.flush()
            yield Path(unpacked.name)


class RecordingFiles:
    """A :class:`RecordingSource` over files.

    Args:
        files: which recordings.
        sensor: ``(H, W)``; events outside make a recording bad.
        time_unit: of arrays, see :func:`~tna_lightning.data.formats.parse_arrays`.
        columns: likewise.
        changed: when each file was last changed, in nanoseconds; None for releases, which nobody edits.
    """

    def __init__(
        self,
        files: Sequence[RecordingFile],
        sensor: tuple[int, int],
        time_unit: str = "us",
        columns: str | None = None,
        changed: Sequence[int] | None = None,
    ) -> None:
        self.files = files
        self.sensor = sensor
        self.time_unit = time_unit
        self.columns = columns
        self.changed = changed
        self.names = [file.name for file in files]
        self.labels = [file.label for file in files]

    def load(self, index: int) -> Recording:  # noqa: D102
        file = self.files[index]
        recording = file.load(self.time_unit, self.columns)
        recording = recording if self.changed else replace(recording, unit=None)  # that of a release is known
        return check(recording, file.where, self.sensor)

    def fingerprint(self) -> dict[str, Any]:  # noqa: D102
        formats = _formats(self.files)
        readers = ("aedat",) if ".aedat4" in formats else ()
        require(*readers)
        further = {"time_unit": self.time_unit, "columns": self.columns, "changed": self.changed}
        return {
            **{name: value for name, value in further.items() if value not in (None, "us")},
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
        wanted = ", ".join([*class_names[:2], *(["..."] if len(class_names) > 2 else [])])
        raise FileNotFoundError(f"root={str(root)!r}: no recordings of {wanted} in it{close}")
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
    return sorted({file.suffix for file in files})


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
        except DAMAGE as error:
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
