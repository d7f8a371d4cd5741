"""AEDAT files in the official formats: 2.0 composed by hand, 4 written by dv-processing; and where they may lie."""

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tna_lightning.data import formats
from tna_lightning.data.aedat4 import DecodingError, _Decoder, decode
from tna_lightning.data.recordings import (
    BadRecording,
    Recording,
    RecordingFiles,
    check,
    find_recordings,
    parse_aedat2,
)

HEADER = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)
CLASSES = ["airplane", "automobile"]
SENSOR = (128, 128)


def aedat2(events):
    """AEDAT 2.0 bytes of (bits 1-7, bits 8-14, bit 0, time) as the format's definition places them."""
    return HEADER + b"".join(
        struct.pack(">II", second << 8 | first << 1 | polarity, time) for first, second, polarity, time in events
    )


def write_aedat4(path, t, x, y, p, sensor=SENSOR):
    dv = pytest.importorskip("dv_processing")
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.EventOnlyConfig("DVS128_0", sensor))
    events = dv.EventStore()
    for event in zip(t, x, y, p, strict=True):
        events.push_back(*(int(value) for value in event[:3]), bool(event[3]))
    if len(t):
        writer.writeEvents(events)
    del writer


def random_events(count, seed=0):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(1_600_000_000_000_000, 1_600_000_001_200_000, count))
    return t, rng.integers(0, 128, count), rng.integers(0, 128, count), rng.integers(0, 2, count).astype(bool)


def fill(folder, names=("cifar10_{}_0.aedat", "cifar10_{}_10.aedat", "cifar10_{}_2.aedat")):
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(names):
            (folder / name / file.format(name)).write_bytes(aedat2([(1, 2, 0, 100 + number)]))


def test_aedat2_events_are_turned_upright_and_on_is_bit_zero_clear():
    recording = parse_aedat2(aedat2([(0, 0, 0, 5), (127, 3, 1, 9), (10, 127, 0, 2**32 - 1)]), "r")
    assert recording.x.tolist() == [127, 124, 0]
    assert recording.y.tolist() == [127, 0, 117]
    assert recording.p.tolist() == [True, False, True]
    assert recording.t.tolist() == [5, 9, 2**32 - 1]
    assert recording.t.dtype == np.int64
    assert recording.duration_us == 2**32 - 6


def test_aedat2_external_events_are_no_pixels():
    content = aedat2([(4, 5, 0, 1)]) + struct.pack(">II", 0x8000, 2) + struct.pack(">II", 0xFFFF8001, 3)
    assert parse_aedat2(content, "r").t.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (aedat2([(1, 1, 0, 1), (1, 1, 0, 2)])[:-3], "r: truncated, 5 bytes after its last whole event"),
        (HEADER[:-10], "r: truncated in its header"),
        (b"#!AER-DAT1.0\r\n" + bytes(6), "r: no '#!AER-DAT2.0' line"),
        (b"", "r: no '#!AER-DAT2.0' line"),
        (HEADER + struct.pack(">II", 0x12345, 1), "r: address 0x00012345 of event 0 is none of a DVS128"),
    ],
)
def test_bad_aedat2_is_named(content, message):
    with pytest.raises(BadRecording, match=message):
        parse_aedat2(content, "r")


@pytest.mark.parametrize(
    ("t", "x", "y", "message"),
    [
        ([], [], [], "r: holds no events"),
        ([5, 4, 6, 5], [0] * 4, [0] * 4, "r: time goes backwards at event 1 .2 times"),
        ([1, 2], [0, 128], [0, 0], r"r: event 1 at x=128, y=0 is outside the sensor, \[H,W\]=\[128,128\]"),
        ([1, 2], [0, 0], [200, 0], "r: event 0 at x=0, y=200 is outside"),
    ],
)
def test_unusable_recordings_are_named(t, x, y, message):
    recording = Recording(
        np.array(t, np.int64), np.array(x, np.uint16), np.array(y, np.uint16), np.ones(len(t), dtype=bool)
    )
    with pytest.raises(BadRecording, match=message):
        check(recording, "r", SENSOR)


def test_aedat4_of_an_independent_writer_comes_back_event_for_event(tmp_path):
    t, x, y, p = random_events(3000)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        write_aedat4(tmp_path / name / f"cifar10_{name}_0.aedat4", t, x, y, p)
    files, _ = find_recordings(tmp_path, CLASSES)
    recording = RecordingFiles(files, SENSOR).load(1)
    for read, written in ((recording.t, t), (recording.x, x), (recording.y, y), (recording.p, p)):
        np.testing.assert_array_equal(read, written)
    assert recording.t.dtype == np.int64
    assert recording.p.dtype == bool


def test_aedat4_cut_short_anywhere_is_an_error_or_whole(tmp_path):
    path = tmp_path / "airplane" / "a.aedat4"
    path.parent.mkdir()
    (tmp_path / "automobile").mkdir()
    write_aedat4(path, *random_events(2000))
    content = path.read_bytes()
    (tmp_path / "automobile" / "a.aedat4").write_bytes(content)
    source = RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR)
    outcomes = []
    for length in [*range(20, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        try:
            outcomes.append(len(source.load(0)))
        except BadRecording as error:
            outcomes.append(str(error).partition("airplane/a.aedat4: ")[2][:20])
    assert set(outcomes) == {"truncated or damaged", 2000}
    assert outcomes[-1] == 2000  # only the file's last table is cut, after all events
    assert outcomes.count(2000) <= 2


def test_aedat4_without_events_is_named(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        write_aedat4(tmp_path / name / "a.aedat4", [], [], [], [])
    with pytest.raises(BadRecording, match=r"airplane/a\.aedat4: holds no events"):
        RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR).load(0)


def test_an_aedat4_file_on_which_the_decoder_aborts_is_named_and_the_next_one_is_read(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        write_aedat4(tmp_path / name / "a.aedat4", *random_events(300))
    source = RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR)
    path = tmp_path / "airplane" / "a.aedat4"
    content = bytearray(path.read_bytes())
    where = content.index(b"compression") - 1  # the quote before it, in the description of the streams
    for position in range(where, where + 40):  # until the decoder panics while it panics, which ends its process
        content[position] ^= 0xFF
        path.write_bytes(content)
        content[position] ^= 0xFF
        try:
            decode(path)
        except DecodingError as error:
            if str(error) == "its decoder breaks down":
                break
    with pytest.raises(BadRecording, match=r"airplane/a\.aedat4: .*AEDAT 4 \(its decoder breaks down\)"):
        source.load(0)
    assert len(source.load(1)) == 300


def test_the_decoder_ends_with_its_caller_and_one_that_left_idle_is_replaced(tmp_path):
    write_aedat4(tmp_path / "a.aedat4", *random_events(20))
    decoder = _Decoder()
    left = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    left.wait()
    decoder._process = left
    columns, sensor = decoder.read(tmp_path / "a.aedat4")
    assert (len(columns["t"]), sensor) == (20, SENSOR)
    assert decoder._process is not left
    assert decoder.close() == 0  # by the end of its input, which it sees when its caller dies


def write_npz(path, **changed):
    columns = {"t": np.array([5, 9]), "x": np.array([1, 2]), "y": np.array([3, 0]), "p": np.array([1, 0])} | changed
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})


def test_spikingjellys_arrays_are_read(tmp_path):
    for name in CLASSES:
        (tmp_path / "events_np" / name).mkdir(parents=True)
        write_npz(tmp_path / "events_np" / name / "cifar10_0.npz")
    source = RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR)
    assert source.names == ["airplane/cifar10_0", "automobile/cifar10_0"]
    recording = source.load(0)
    assert [recording.t.tolist(), recording.x.tolist(), recording.y.tolist()] == [[5, 9], [1, 2], [3, 0]]
    assert recording.p.tolist() == [True, False]
    write_npz(tmp_path / "events_np" / "airplane" / "cifar10_0.npz", x=np.array([1, 2**16 + 1]))
    with pytest.raises(BadRecording, match="event 1 at x=65535, y=0 is outside"):
        source.load(0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": None}, "no t, x, y and p by name, but t int64 .2., x int64 .2., y int64 .2.; numpy.savez"),
        ({"p": np.array([1, None])}, "no numpy file of numbers"),
        ({"t": np.array([0.5, 1.0])}, "must be whole numbers"),
        ({"t": np.array([5])}, "equally many"),
        ({"x": np.array([-1, 2])}, "must not be negative"),
        ({"p": np.array([1, 2])}, "its p 0 or 1"),
        ({"t": np.zeros(2**23 + 1, np.int64)}, "more than 67,108,864"),
    ],
)
def test_bad_arrays_are_named(tmp_path, changed, message):
    write_npz(tmp_path / "r.npz", **changed)
    with pytest.raises(BadRecording, match=rf"^r: .*{message}"):
        formats.parse_arrays((tmp_path / "r.npz").read_bytes(), "r")


@pytest.mark.parametrize("layout", [".", "CIFAR10DVS", "extract", "download", "CIFAR10DVS/extract"])
def test_recordings_are_found_by_class_and_number(tmp_path, layout):
    fill(tmp_path / layout)
    files, unknown = find_recordings(tmp_path, CLASSES)
    assert [file.name for file in files] == [f"{c}/cifar10_{c}_{n}" for c in CLASSES for n in (0, 2, 10)]
    assert [file.label for file in files] == [0, 0, 0, 1, 1, 1]
    assert files[0].size == len(HEADER) + 8
    assert not unknown
    assert RecordingFiles(files, SENSOR).load(1).t.tolist() == [102]


@pytest.mark.parametrize("suffix", [".aedat", ".aedat4"])
@pytest.mark.parametrize("inner", ["{}/", ""])
def test_zips_of_classes_read_the_same_as_folders(tmp_path, suffix, inner):
    unpacked, zipped = tmp_path / "unpacked", tmp_path / "zipped" / "CIFAR10DVS"
    zipped.mkdir(parents=True)
    for number, name in enumerate(CLASSES):
        (unpacked / name).mkdir(parents=True)
        path = unpacked / name / f"r_0{suffix}"
        if suffix == ".aedat":
            path.write_bytes(aedat2([(number, 2, 1, 7)]))
        else:
            write_aedat4(path, *random_events(50, seed=number))
        with zipfile.ZipFile(zipped / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, inner.format(name) + path.name)
            archive.writestr(f"__MACOSX/{name}/._{path.name}", b"finder's leftovers")
    from_folders, from_zips = (
        RecordingFiles(find_recordings(root, CLASSES)[0], SENSOR) for root in (unpacked, tmp_path / "zipped")
    )
    assert from_folders.fingerprint() == from_zips.fingerprint()
    assert sorted(from_folders.fingerprint()["readers"]) == (["aedat"] if suffix == ".aedat4" else [])
    for index in range(2):
        expected, got = from_folders.load(index), from_zips.load(index)
        for column in ("t", "x", "y", "p"):
            np.testing.assert_array_equal(getattr(expected, column), getattr(got, column))


def test_a_zip_beside_its_unpacked_folder_is_not_read_twice(tmp_path):
    fill(tmp_path)
    with zipfile.ZipFile(tmp_path / "airplane.zip", "w") as archive:
        archive.writestr("airplane/other.aedat", aedat2([(1, 1, 1, 1)]))
    assert len(find_recordings(tmp_path, CLASSES)[0]) == 6


def test_a_damaged_zip_member_is_named(tmp_path):
    fill(tmp_path / "automobile_only")
    (tmp_path / "automobile_only" / "automobile").rename(tmp_path / "automobile")
    path = tmp_path / "airplane.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("airplane/r_0.aedat", aedat2([(1, 1, 1, 1)] * 100))
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)
    source = RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR)
    with pytest.raises(BadRecording, match=r"airplane\.zip:airplane/r_0\.aedat: damaged in its archive"):
        source.load(0)
    path.write_bytes(content[:-40])
    with pytest.raises(ValueError, match=r"airplane\.zip is truncated or no zip"):
        find_recordings(tmp_path, CLASSES)


def change(path, offset, value):
    """Write bytes into a zip archive, counted from its central directory's only entry."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (42, b"\xff\xff\xff\x7f"),  # where the member lies
        (10, b"\x63"),  # its compression: AES
        (10, b"\x0e"),  # LZMA
        (8, b"\x01"),  # encrypted
        (20, b"\x00\x00\x00\x00"),  # its packed size
        (24, b"\x00\x00\x00\x40"),  # its size: a gigabyte
    ],
)
def test_whatever_a_zip_says_of_a_member_a_bad_one_is_named(tmp_path, offset, value):
    fill(tmp_path / "whole")
    (tmp_path / "whole" / "automobile").rename(tmp_path / "automobile")
    path = tmp_path / "airplane.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("airplane/r_0.aedat", aedat2([(1, 1, 1, 1)] * 100))
    change(path, offset, value)
    with pytest.raises(ValueError, match=r"airplane\.zip(:airplane/r_0\.aedat: | is truncated)"):
        RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR).load(0)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    fill(tmp_path / "whole")
    (tmp_path / "whole" / "automobile").rename(tmp_path / "automobile")
    monkeypatch.setattr(formats, "MOST_BYTES", 800)
    with zipfile.ZipFile(tmp_path / "airplane.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("airplane/r_0.aedat", aedat2([(1, 1, 1, 1)] * 100))
    with pytest.raises(BadRecording, match=r"airplane/r_0\.aedat has 975 bytes, more than 800"):
        RecordingFiles(find_recordings(tmp_path, CLASSES)[0], SENSOR).load(0)


def test_what_extract_all_leaves_and_capitals_are_found(tmp_path):
    fill(tmp_path / "aside")
    (tmp_path / "airplane").mkdir()
    (tmp_path / "aside" / "airplane").rename(tmp_path / "airplane" / "airplane")
    (tmp_path / "aside" / "automobile").rename(tmp_path / "Automobile")
    for path in (tmp_path / "Automobile").iterdir():
        path.rename(path.with_suffix(".AEDAT"))
    files, unknown = find_recordings(tmp_path, CLASSES)
    assert [file.name for file in files] == [f"{c}/cifar10_{c}_{n}" for c in CLASSES for n in (0, 2, 10)]
    assert not unknown
    source = RecordingFiles(files, SENSOR)
    assert source.load(5).t.tolist() == [101]
    assert source.fingerprint()["formats"] == [".aedat"]
    (tmp_path / "airplane" / "cifar10_airplane_2.aedat").write_bytes(HEADER)
    with pytest.raises(ValueError, match="holds airplane/cifar10_airplane_2 twice; keep one copy"):
        find_recordings(tmp_path, CLASSES)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("airplane/a_0.mat", "but what is read is .aedat, .aedat4, .npz, in a folder of each class"),
        ("dvs/Airplane/a_0.bin", "but what is read is"),
        ("dvs/train/airplane/a_0.aedat", "but a folder of each class must lie in data.root"),
        ("airplane/a_0.txt", None),
    ],
)
def test_what_comes_close_is_named(tmp_path, place, words):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"?")
    with pytest.raises(FileNotFoundError) as error:
        find_recordings(tmp_path, CLASSES)
    told = f"root={str(tmp_path)!r}: no recordings of airplane, automobile in it"
    assert str(error.value).startswith(f"{told}; there is {path}, {words}" if words else told)
    assert words or str(error.value) == told


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path)
    iterdir = Path.iterdir

    def closed(path):
        if path.name == "automobile":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)  # root, who may read all, runs the tests too
    with pytest.raises(ValueError, match=r"^root=.*automobile cannot be read .Permission denied."):
        find_recordings(tmp_path, CLASSES)


def test_a_folder_of_no_class_is_reported(tmp_path):
    fill(tmp_path)
    (tmp_path / "plane").mkdir()
    (tmp_path / "plane" / "p_0.aedat").write_bytes(aedat2([(1, 1, 1, 1)]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("no recording")
    assert find_recordings(tmp_path, CLASSES)[1] == [str(tmp_path / "plane")]


def test_missing_mixed_and_absent_recordings_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='.*': no recordings of airplane, automobile"):
        find_recordings(tmp_path, CLASSES)
    with pytest.raises(FileNotFoundError, match=r"root='.*': no recordings of truck in it"):
        find_recordings(tmp_path, ["truck"])
    fill(tmp_path)
    (tmp_path / "automobile").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="has no recordings of automobile"):
        find_recordings(tmp_path, CLASSES)
    (tmp_path / "other").rename(tmp_path / "automobile")
    Path(tmp_path / "airplane" / "cifar10_airplane_0.aedat4").write_bytes(b"the same, converted")
    with pytest.raises(ValueError, match=r"holds \.aedat and \.aedat4 files"):
        find_recordings(tmp_path, CLASSES)
