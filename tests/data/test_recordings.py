"""AEDAT files in the official formats: 2.0 composed by hand, 4 written by dv-processing; and where they may lie."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

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
        ([1, 2], [0, 128], [0, 0], "r: event 1 at x=128, y=0 is outside the 128x128 sensor"),
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
    assert sorted(from_folders.fingerprint()["readers"]) == (["aedat", "tonic"] if suffix == ".aedat4" else [])
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
    fill(tmp_path)
    (tmp_path / "automobile").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="has no recordings of automobile"):
        find_recordings(tmp_path, CLASSES)
    (tmp_path / "other").rename(tmp_path / "automobile")
    Path(tmp_path / "airplane" / "cifar10_airplane_0.aedat4").write_bytes(b"the same, converted")
    with pytest.raises(ValueError, match=r"holds \.aedat and \.aedat4 files"):
        find_recordings(tmp_path, CLASSES)
