"""Event recordings: what one is, and the formats in which they come.

Coordinates count from the top left of the scene, ``x`` to the right and ``y`` down; ``p`` is True where the pixel got
brighter (ON); times are microseconds. Reading AEDAT 4 needs the package aedat (:mod:`.aedat4`).
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tna_lightning.data.aedat4 import DecodingError, decode, sensor_of
from tna_lightning.data.array_cache import BadSample
from tna_lightning.packages import require

TIME_UNITS = {"s": 1_000_000.0, "ms": 1000.0, "us": 1.0, "ns": 0.001}
"""Microseconds of each."""
COLUMNS = {
    "t": ("t", "ts", "timestamp", "timestamps", "time"),
    "x": ("x",),
    "y": ("y",),
    "p": ("p", "pol", "polarity", "polarities"),
}
"""What arrays and fields of events are called, in small letters."""
ORDER = "txyp"
"""Of the columns of an array ``[N, 4]``."""
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
        unit: in which t came, where nothing but who calls says it; None where the format does.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    unit: str | None = None

    def __len__(self) -> int:
        return len(self.t)

    @property
    def duration_us(self) -> int:
        """Time from the first to the last event."""
        return int(self.t[-1] - self.t[0]) if len(self) else 0

    @property
    def unit_hint(self) -> str:
        """``; time_unit=ms or s, if t is in those`` where :func:`unit_hint` has some, else empty."""
        return "" if self.unit is None else unit_hint(self.duration_us, self.unit)


def unit_hint(duration_us: float, unit: str) -> str:
    """Which units are likelier where a recording lasts less than a millisecond, or more than an hour; else empty.

    Args:
        duration_us: with times read in ``unit``.
        unit: one of :data:`TIME_UNITS`.
    """
    coarser = [name for name, factor in TIME_UNITS.items() if factor > TIME_UNITS[unit]]
    finer = [name for name, factor in TIME_UNITS.items() if factor < TIME_UNITS[unit]]
    likelier = coarser if duration_us < 1e3 else finer if duration_us > 3.6e9 else []
    return f"; time_unit={' or '.join(likelier)}, if its times are in those" if likelier else ""


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
            f"{name}: event {outside[0]} at x={x}, y={y} is outside the sensor, [H,W]=[{height},{width}] "
            f"({len(outside)} in all)"
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


def aedat4_sensor(path: Path, name: str) -> tuple[int, int]:
    """``(H, W)`` as an AEDAT 4 file says it."""
    require("aedat")
    try:
        return sensor_of(path)
    except DecodingError as error:
        raise BadRecording(f"{name}: truncated or damaged AEDAT 4 ({error})") from error


def parse_aedat3(content: bytes, name: str) -> Recording:
    """The polarity events of an AEDAT 3.1 file, with coordinates as the file has them.

    After header lines, the last of them ``#!END-HEADER``: packets, each with a header of 28 bytes, little-endian: type
    and source (16 bits), event size, two of offsets, time overflows, capacity, number of events and of valid ones (32
    bits). A polarity event (type 1) is 32 bits of data, bit 0 valid, bit 1 ON, bits 2-16 y, bits 17-31 x, and 32 bits
    of time in microseconds, to which each overflow adds 2**31 (docs.inivation.com, "AEDAT 3.1").
    """
    marker = b"#!END-HEADER\r\n"
    start = content.find(marker) + len(marker)
    if start < len(marker):
        raise BadRecording(f"{name}: truncated in its header")
    packets = []
    while start < len(content):
        if start + 28 > len(content):
            raise BadRecording(f"{name}: truncated in the header of a packet")
        kind, _, size, _, overflows, capacity, number, _ = struct.unpack_from("<HHIIIIII", content, start)
        end = start + 28 + capacity * size
        if size < 1 or end > len(content) or number > capacity or (kind == 1 and size != 8):
            raise BadRecording(f"{name}: truncated or damaged in a packet at byte {start}")
        if kind == 1:
            data, time = np.frombuffer(content, "<u4", 2 * number, start + 28).reshape(-1, 2).T
            is_valid = (data & 1) == 1
            packets.append((data[is_valid], time[is_valid].astype(np.int64) + (overflows << 31)))
        start = end
    if not packets:
        raise BadRecording(f"{name}: holds no events")
    data, t = (np.concatenate(column) for column in zip(*packets, strict=True))
    x, y = (data >> 17).astype(np.uint16), (data >> 2 & 0x7FFF).astype(np.uint16)
    return Recording(t, x, y, (data >> 1 & 1) == 1)


def parse_bin(content: bytes, name: str) -> Recording:
    """The events of a ``.bin`` file of N-MNIST or N-Caltech101, as :func:`tonic.io.read_mnist_file` reads them.

    Five bytes an event: x, y, and a bit of polarity (1 is ON) before 23 bits of microseconds, big-endian. A y of 240
    is no pixel: time has passed 2**13 microseconds more, for that event and all that follow.
    """
    if len(content) % 5:
        raise BadRecording(f"{name}: truncated, {len(content) % 5} bytes after its last whole event")
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, 5).T.astype(np.int64)
    is_overflow = y == 240
    t = ((high & 127) << 16 | middle << 8 | low) + (np.cumsum(is_overflow) << 13)
    of_pixel = ~is_overflow
    return Recording(
        t[of_pixel], x[of_pixel].astype(np.uint16), y[of_pixel].astype(np.uint16), high[of_pixel] >> 7 == 1
    )


def parse_dat(content: bytes, name: str) -> Recording:
    """The events of a ``.dat`` file of version 2 of Prophesee's (or ATIS) cameras.

    After header lines that start with ``%``, a byte of event type (0 or 12) and one of event size (8): little-endian,
    32 bits of microseconds, 14 bits of x, 14 of y, one of polarity (1 is ON) (docs.prophesee.ai, "DAT file format").
    """
    start, said = _dat_header(content, name)
    if said.get("version", 2) != 2:
        raise BadRecording(f"{name}: is a .dat file of version {said['version']}, must be 2")
    if len(content) < start + 2:
        raise BadRecording(f"{name}: truncated in its header")
    if content[start] not in (0, 12) or content[start + 1] != 8:
        raise BadRecording(f"{name}: its events are of type {content[start]} in {content[start + 1]} bytes, must be "
                           "type 0 or 12 in 8")  # fmt: skip
    start += 2
    if (len(content) - start) % 8:
        raise BadRecording(f"{name}: truncated, {(len(content) - start) % 8} bytes after its last whole event")
    t, word = np.frombuffer(content, "<u4", offset=start).reshape(-1, 2).T
    x, y = (word & 0x3FFF).astype(np.uint16), (word >> 14 & 0x3FFF).astype(np.uint16)
    return Recording(t.astype(np.int64), x, y, (word >> 28 & 1) == 1)


def dat_sensor(content: bytes, name: str) -> tuple[int, int] | None:
    """``(H, W)`` as the header of a ``.dat`` file says it, else None."""
    _, said = _dat_header(content, name)
    return (said["height"], said["width"]) if {"height", "width"} <= said.keys() else None


def _dat_header(content: bytes, name: str) -> tuple[int, dict[str, int]]:
    """Where the lines end, and the whole numbers that they say by a word in small letters."""
    start, said = 0, {}
    while content[start : start + 1] == b"%":
        line_end = content.find(b"\n", start) + 1
        if line_end == 0:
            raise BadRecording(f"{name}: truncated in its header")
        if match := re.match(rb"%\s*(\w+)\s*[:=]?\s*(\d+)\s*$", content[start:line_end]):
            said[match[1].decode("latin1").lower()] = int(match[2])
        start = line_end
    return start, said


def parse_arrays(content: bytes, name: str, time_unit: str = "us", columns: str | None = None) -> Recording:
    """The events of a numpy file: ``.npz`` of t, x, y and p, ``[N]`` each, or one array (``.npy``, ``.npz``).

    Names are those of :data:`COLUMNS`; one array has them as its fields, or is ``[N, 4]``, with the columns t, x, y, p.
    Numbers are whole, of any type; p is 0 and 1, -1 and 1, or false and true.

    Args:
        content: of the file.
        name: of the recording, for errors.
        time_unit: of t, one of :data:`TIME_UNITS`; seconds and milliseconds may have fractions.
        columns: another order of the columns of an array ``[N, 4]`` in a known set, such as ``xypt``.

    Raises:
        BadRecording: it is damaged, or its columns cannot be what they should be.
    """
    try:
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                refuse_large(archive.infolist())
        with io.BytesIO(content) as file:
            held = np.load(file, allow_pickle=False)
            arrays = {"": held} if isinstance(held, np.ndarray) else {key: held[key] for key in held.files}
    except (*DAMAGE, KeyError, MemoryError) as error:
        raise BadRecording(f"{name}: damaged, or no numpy file of numbers ({error})") from error
    if found := _named_columns(arrays):
        return _recording(found, name, time_unit)
    if (array := _four_columns(arrays)) is None:
        there = ", ".join(f"{key or 'an array'} {array.dtype} {list(array.shape)}" for key, array in arrays.items())
        raise BadRecording(
            f"{name}: holds no t, x, y and p by name, but {there or 'nothing'}; "
            "numpy.savez(FILE, t=, x=, y=, p=) names them, or one array [N, 4] has them as columns"
        )
    order = columns or ORDER
    try:
        recording = _recording({key: array[:, index] for index, key in enumerate(order)}, name, time_unit)
        if len(backwards := np.flatnonzero(recording.t[1:] < recording.t[:-1])):
            raise BadRecording(f"{name}: its t goes backwards at event {backwards[0] + 1}")
    except BadRecording as error:
        raise BadRecording(f"{error}; the columns of an array [N, 4] are {', '.join(order)}") from None
    return recording


def _recording(found: Mapping[str, np.ndarray], name: str, time_unit: str) -> Recording:
    """The recording of these columns, t, x, y and p."""
    t, x, y, p = (found[column] for column in ORDER)
    if any(column.shape != (len(t),) for column in (t, x, y, p)):
        lengths = ", ".join(f"{len(found[column]) if found[column].ndim else 0} {column}" for column in ORDER)
        raise BadRecording(f"{name}: its t, x, y and p must be equally many, and are {lengths}")
    if any(column.dtype.kind not in "biuf" for column in (t, x, y, p)):
        raise BadRecording(f"{name}: its t, x, y and p must be numbers")
    if not all(_are_whole(column) for column in (x, y, p)):
        raise BadRecording(f"{name}: its x, y and p must be whole numbers")
    codes = set(np.unique(p).tolist()) if len(p) else set()
    if len(t) and (min(x.min(), y.min()) < 0 or not (codes <= {0, 1} or codes <= {-1, 1})):
        raise BadRecording(f"{name}: its x and y must not be negative, and its p 0 or 1, or -1 or 1")
    limit = np.iinfo(np.uint16).max  # what is beyond is off any sensor
    x, y = (np.minimum(axis.astype(np.int64), limit).astype(np.uint16) for axis in (x, y))
    return Recording(_microseconds(t, time_unit, name), x, y, p == 1, time_unit)


def _four_columns(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The only array, if it is ``[N, 4]``."""
    array = next(iter(arrays.values()), None) if len(arrays) == 1 else None
    return array if array is not None and array.ndim == 2 and array.shape[1] == len(ORDER) else None


def _named_columns(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The arrays of t, x, y and p by name, or as fields of one structured array."""
    by_name = {key.lower(): array for key, array in arrays.items()}
    if len(arrays) == 1:
        (array,) = arrays.values()
        if array.dtype.names is not None and array.ndim == 1:
            by_name = {key.lower(): array[key] for key in array.dtype.names}
    found = {
        column: next((by_name[name] for name in names if name in by_name), None) for column, names in COLUMNS.items()
    }
    named = {column: array for column, array in found.items() if array is not None}
    return named if len(named) == len(COLUMNS) else None


def _are_whole(numbers: np.ndarray) -> bool:
    return numbers.dtype.kind != "f" or bool((np.isfinite(numbers) & (numbers == np.rint(numbers))).all())


def _microseconds(t: np.ndarray, time_unit: str, name: str) -> np.ndarray:
    """Int64; of nanoseconds the whole microseconds."""
    factor = TIME_UNITS[time_unit]
    if t.dtype.kind != "f":
        return t.astype(np.int64) * int(factor) if factor >= 1 else t.astype(np.int64) // round(1 / factor)
    if not np.isfinite(t).all():
        raise BadRecording(f"{name}: its t must be finite")
    if factor <= 1 and not _are_whole(t):
        raise BadRecording(
            f"{name}: its t has fractions of {time_unit}, must be whole numbers; time_unit=s or ms if it is those"
        )
    return (np.floor(t * factor) if factor < 1 else np.rint(t * factor)).astype(np.int64)


# what a zip archive with changed bytes raises: NotImplementedError and RuntimeError for compressions and encryption
_OF_CODECS = (zlib.error, lzma.LZMAError, EOFError, struct.error)
DAMAGE = (zipfile.BadZipFile, *_OF_CODECS, OSError, NotImplementedError, RuntimeError, ValueError)


def refuse_large(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive that becomes too much when it is unpacked.

    Raises:
        ValueError: a member does.
    """
    for member in members:
        if member.file_size > MOST_BYTES:
            raise ValueError(f"{member.filename} has {member.file_size:,} bytes, more than {MOST_BYTES:,}")
