"""Event recordings of one's own, in each format, and the sets of others as tonic and spikingjelly leave them."""

import json
import logging
import re
import struct

import numpy as np
import pytest
import torch
from test_recordings import aedat2, write_aedat4

from tna_lightning.data import (
    DVSGestureDataModule,
    EventFolderDataModule,
    NCaltech101DataModule,
    NMNISTDataModule,
)
from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.known_events import GESTURES
from tna_lightning.data.loading import ordered_split
from tna_lightning.data.recordings import BadRecording, RecordingFile
from tna_lightning.running.config import compose
from tna_lightning.running.identity import identity
from tna_lightning.running.own import own_digests

SENSOR = (12, 20)  # H and W


def events(seed=0, count=200, sensor=SENSOR):
    """Columns t (int64, whole milliseconds in microseconds), x, y and p (bool)."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 300, count)) * 1000
    return t, rng.integers(0, sensor[1], count), rng.integers(0, sensor[0], count), rng.random(count) < 0.4


def as_bin(t, x, y, p):
    head = (p.astype(int) << 23) | t
    rows = np.stack([x, y, head >> 16, head >> 8 & 255, head & 255], 1)
    return rows.astype(np.uint8).tobytes()


def as_dat(t, x, y, p, head=b"% Data file containing CD events\n% Version 2\n% Width 20\n% Height 12\n"):
    word = p.astype(np.uint32) << 28 | y.astype(np.uint32) << 14 | x.astype(np.uint32)
    return head + bytes([12, 8]) + np.stack([t.astype(np.uint32), word], 1).astype("<u4").tobytes()


def as_aedat3(t, x, y, p, valid=None):
    """Two packets of polarity events around one of another type, and one event that is not valid."""
    valid = np.ones(len(t), int) if valid is None else valid
    data = x << 17 | y << 2 | p.astype(int) << 1 | valid
    halves = [np.stack([data, t], 1).astype("<u4")[part] for part in (slice(0, 50), slice(50, None))]
    packets = [struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, len(half), len(half), len(half)) for half in halves]
    special = struct.pack("<HHIIIIII", 0, 0, 8, 4, 0, 1, 1, 1) + bytes(8)
    head = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    return head + packets[0] + halves[0].tobytes() + special + packets[1] + halves[1].tobytes()


def structured(t, x, y, p, names=("t", "x", "y", "p"), kind="f8"):
    array = np.zeros(len(t), [(name, kind) for name in names])
    for name, column in zip(names, (t, x, y, p), strict=True):
        array[name] = column
    return array


def write(path, t, x, y, p, way):
    path.parent.mkdir(parents=True, exist_ok=True)
    signed = np.where(p, 1, -1)
    if way == "named":
        np.savez(path, t=t, x=x, y=y, p=p.astype(np.uint8))
    elif way == "other names":
        np.savez_compressed(path, Timestamps=t.astype(np.uint64), X=x.astype(np.int16), y=y, polarity=signed)
    elif way == "structured in .npz":
        np.savez(path, events=structured(t, x, y, p, ("ts", "x", "y", "pol"), "i8"))
    elif way == "columns":
        np.save(path, np.stack([t, x, y, signed], 1))
    elif way == "columns in .npz":
        np.savez_compressed(path, mine=np.stack([t, x, y, p], 1).astype(np.float64))
    elif way == "structured":
        np.save(path, structured(t, x, y, signed))
    elif way == "bool":
        np.savez(path, t=t.astype(float), x=x.astype(np.float32), y=y, p=p)
    else:
        path.write_bytes({".bin": as_bin, ".dat": as_dat, ".aedat": as_aedat3}[path.suffix](t, x, y, p))


WAYS = {
    "named": "r.npz", "other names": "r.npz", "structured in .npz": "r.npz", "structured": "r.npy", "bool": "r.npz",
    "columns": "r.npy", "columns in .npz": "r.npz",
    "N-MNIST": "r.bin", "Prophesee": "r.dat", "AEDAT 3.1": "r.aedat",
}  # fmt: skip


def load(path, **settings):
    return RecordingFile(path, None, path.stem, 0, path.stat().st_size).load(**settings)


def assert_same(recording, t, x, y, p):
    for name, column in zip("txyp", (t, x, y, p), strict=True):
        assert getattr(recording, name).tolist() == column.tolist(), name
    assert [str(getattr(recording, name).dtype) for name in "txyp"] == ["int64", "uint16", "uint16", "bool"]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_events_come_out_of_every_format(tmp_path, way):
    path = tmp_path / WAYS[way]
    write(path, *events(), way)
    assert_same(load(path), *events())


@pytest.mark.parametrize(
    ("unit", "change"),
    [
        ("s", lambda t: t / 1e6),
        ("ms", lambda t: t // 1000),
        ("ns", lambda t: t * 1000 + 999),
        ("us", lambda t: t + 0.0),
    ],
)
def test_times_in_any_unit_become_microseconds(tmp_path, unit, change):
    t, x, y, p = events()
    np.savez(tmp_path / "r.npz", t=change(t), x=x, y=y, p=p)
    assert_same(load(tmp_path / "r.npz", time_unit=unit), t, x, y, p)


def test_other_libraries_read_or_write_the_same(tmp_path):
    from expelliarmus import Wizard
    from tonic.io import get_aer_events_from_file, read_mnist_file

    t, x, y, p = events()
    y[[3, 90]] = 240  # time has passed 8192 us more, twice
    path = tmp_path / "r.bin"
    path.write_bytes(as_bin(t, x, y, p))
    theirs = read_mnist_file(str(path), np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
    assert len(theirs) == len(t) - 2
    assert_same(load(path), theirs["t"], theirs["x"], theirs["y"], theirs["p"].astype(bool))

    t, x, y, p = events()
    array = structured(t, x, y, p, kind="i8").astype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    Wizard(encoding="dat").save(fpath=str(tmp_path / "r.dat"), arr=array)
    assert_same(load(tmp_path / "r.dat"), t, x, y, p)

    valid = np.ones(len(t), int)
    valid[7] = 0
    content = as_aedat3(t, x, y, p, valid)
    (tmp_path / "r.aedat").write_bytes(content)
    theirs = get_aer_events_from_file(str(tmp_path / "r.aedat"), 3.1, content.index(b"END-HEADER\r\n") + 12)
    theirs = theirs[(theirs["address"] & 1) == 1]  # their reader keeps what is not valid, and packets of other types
    assert_same(
        load(tmp_path / "r.aedat"), theirs["timeStamp"], theirs["address"] >> 17 & 0x7FFF,
        theirs["address"] >> 2 & 0x7FFF, theirs["address"] >> 1 & 1 == 1,
    )  # fmt: skip


COLUMNS = dict(zip("txyp", events(count=3), strict=True))
FOUR = np.stack(events(), 1)
ORDER = r"the columns of an array \[N, 4\] are t, x, y, p"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.npz", COLUMNS | {"x": COLUMNS["x"][:2]}, "must be equally many, and are 3 t, 2 x, 3 y, 3 p"),
        ("r.npz", COLUMNS | {"p": np.array([0, 1, -1])}, "its p 0 or 1, or -1 or 1"),
        ("r.npz", COLUMNS | {"p": np.array([0, 1, 2])}, "its p 0 or 1, or -1 or 1"),
        ("r.npz", COLUMNS | {"y": np.array([0.5, 1, 2])}, "must be whole numbers"),
        ("r.npz", COLUMNS | {"t": np.array([0.5, 1, 2])}, "fractions of us, must be whole numbers; time_unit=s or ms"),
        ("r.npz", COLUMNS | {"t": np.array([0, np.nan, 2])}, "its t must be finite"),
        ("r.npz", COLUMNS | {"t": np.array(["a", "b", "c"])}, "must be numbers"),
        ("r.npz", {"events": np.zeros((3, 5))}, r"no t, x, y and p by name, but events float64 \[3, 5\]; numpy.savez"),
        ("r.npy", np.zeros((3, 3)), r"no t, x, y and p by name, but an array float64 \[3, 3\]"),
        ("r.npy", FOUR[:, [1, 2, 0, 3]], rf"its t goes backwards at event \d+; {ORDER}"),
        ("r.npz", {"events": FOUR[:, [0, 3, 1, 2]]}, rf"its p 0 or 1, or -1 or 1; {ORDER}"),
        ("r.npy", FOUR / 2, rf"its x, y and p must be whole numbers; {ORDER}"),
        ("r.npy", np.add(FOUR, [0.5, 0, 0, 0]), rf"its t has fractions of us, .*; time_unit=s or ms .*; {ORDER}"),
        ("r.npy", FOUR - [0, 1, 0, 0], rf"its x and y must not be negative.*; {ORDER}"),
        ("r.npz", b"PK cut off", "damaged, or no numpy file of numbers"),
        ("r.npy", b"\x93NUMPY", "damaged, or no numpy file of numbers"),
        ("r.bin", bytes(7), "truncated, 2 bytes after its last whole event"),
        ("r.dat", as_dat(*events())[:-3], "truncated, 5 bytes after its last whole event"),
        ("r.dat", as_dat(*events(), head=b"% Version 1\n"), "is a .dat file of version 1, must be 2"),
        ("r.dat", b"% Version 2\n\x0e\x08", "of type 14 in 8 bytes"),
        ("r.dat", b"% Version 2\n", "truncated in its header"),
        ("r.aedat", as_aedat3(*events())[:-3], "truncated or damaged in a packet"),
        ("r.aedat", b"#!AER-DAT3.1\r\n", "truncated in its header"),
        ("r.aedat", b"#!AER-DAT3.1\r\n#!END-HEADER\r\n", "holds no events"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(BadRecording, match=f"^{re.escape(str(path))}: .*{message}") as error:
        load(path)
    assert "\n" not in str(error.value)


# ---- folders of recordings -------------------------------------------------------------------------------------------


def folder_of(root, parts=(".",), per_class=5, way="named", file="{}.npz"):
    """Recordings 8, 9, 10, ... of two classes; recording n of class c is the same wherever it is written."""
    for part in parts:
        for label, name in enumerate(("left", "right")):
            for number in range(8, 8 + per_class):
                write(root / part / name / file.format(number), *events(100 * label + number), way)
    return root


def module(root, **settings):
    return EventFolderDataModule(root, **{"sensor": SENSOR, "size": (6, 10), "time_steps": 4, **settings})


def test_a_folder_a_class_on_a_sensor_that_is_not_square(tmp_path):
    folder_of(tmp_path)
    write(tmp_path / "right" / "evening" / "1.bin", *events(7), "N-MNIST")
    (tmp_path / "left" / ".DS_Store").write_text("hidden")
    data = module(tmp_path, val_fraction=0.25)
    data.setup("fit")
    assert data.class_names == ["left", "right"]
    assert (data.inputs.height, data.inputs.width, data.inputs.time_steps) == (6, 10, 4)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 2, 3]
    names = [f"left/{number}" for number in range(8, 13)] + [f"right/{number}" for number in range(8, 13)]
    assert data.source().names == [*names, "right/evening/1"]
    assert data.train_set.targets.tolist() == [0] * 5 + [1] * 6
    spec = FrameSpec(4, "time", (6, 10))
    for index, seed in ((0, 8), (4, 12), (6, 109), (10, 7)):
        path = tmp_path / "other.npz"
        write(path, *events(seed), "named")
        assert np.array_equal(data.train_set.inputs[index].numpy(), to_frames(load(path), SENSOR, spec))
    about = data.describe()
    assert json.loads(json.dumps(about)) == about
    assert (about["size"], about["sensor"], about["split"], about["simulated"]) == ([6, 10], [12, 20], "random", False)
    assert data.prepare(data.train_set.inputs[:1]).shape == (1, 4, 2, 6, 10)


@pytest.mark.parametrize("way", ["AEDAT 4", "Prophesee", "AEDAT 2.0"])
def test_the_sensor_is_read_where_the_files_say_it(tmp_path, way):
    if way == "Prophesee":
        folder_of(tmp_path, way=way, file="{}.dat", per_class=2)
    for name in ("left", "right"):
        for number in range(2):
            path = tmp_path / name / f"{number}.aedat{'4' if way == 'AEDAT 4' else ''}"
            path.parent.mkdir(exist_ok=True)
            if way == "AEDAT 4":
                write_aedat4(path, *events(number), sensor=SENSOR[::-1])
            elif way == "AEDAT 2.0":
                path.write_bytes(aedat2([(1, 2, 0, 100), (5, 6, 1, 900)]))
    data = module(tmp_path, sensor=None, test_fraction=0.5)
    assert data.source().sensor == ((128, 128) if way == "AEDAT 2.0" else SENSOR)
    assert data.source().load(0).x.tolist() == (
        [125, 121] if way == "AEDAT 2.0" else events(8 if way == "Prophesee" else 0)[1].tolist()
    )


def test_the_sensor_is_that_of_the_first_recording_that_can_be_read(tmp_path):
    folder_of(tmp_path, way="Prophesee", file="{}.dat")
    (tmp_path / "left" / "8.dat").write_bytes(b"% Version 2")
    with pytest.raises(ValueError, match=r"left/8.dat: truncated in its header; data.skip_bad=true leaves"):
        module(tmp_path, sensor=None).source()
    assert module(tmp_path, sensor=None, skip_bad=True).source().sensor == SENSOR


@pytest.mark.parametrize(
    ("times", "unit", "hint"),
    [
        (lambda t: t // 1000, "us", "lasts 0.00029"),
        (lambda t: t * 1000_000, "us", "lasts 29"),
        (lambda t: t, "us", None),
        (lambda t: t // 1000, "ms", None),
    ],
)
def test_times_that_look_like_another_unit_are_told(tmp_path, caplog, times, unit, hint):
    for name in ("left", "right"):
        for number in range(3):
            t, x, y, p = events(number)
            write(tmp_path / name / f"{number}.npz", times(t), x, y, p, "named")
    data = module(tmp_path, time_unit=unit, slicing="count")
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        data.setup("test")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (hint is not None)
    if hint:
        units = "ns" if "lasts 29" in hint else "s or ms"
        assert told[0].startswith(f"data: the median recording {hint}")
        assert told[0].endswith(f"; time_unit={units}, if its times are in those")


def test_an_edited_recording_makes_new_frames_and_another_run(tmp_path):
    folder_of(tmp_path)
    first = module(tmp_path)
    first.setup("fit")
    config = {"data": {"_target_": "tna_lightning.data.EventFolderDataModule", "root": str(tmp_path)}}
    before = own_digests(config)
    t, x, y, p = events(8)
    write(tmp_path / "left" / "8.npz", t, x, y, ~p, "named")  # as many bytes
    again = module(tmp_path)
    again.setup("fit")
    assert torch.equal(again.train_set.inputs[0], first.train_set.inputs[0].flip(1))
    assert own_digests(config) != before


SPLITS = {
    "random": None,
    "first": {"left/8", "right/8"},
    "last": {"left/12", "right/12"},
    "file": {"left/9", "right/8"},
}


@pytest.mark.parametrize("rule", SPLITS)
def test_a_split_has_a_name_that_the_record_says(tmp_path, rule):
    root = folder_of(tmp_path / "mine")
    settings = {"split": rule}
    if rule == "file":
        listed = {"train": ["left/10", "right/10"], "val": ["left/8"], "test": sorted(SPLITS[rule])}
        (tmp_path / "split.json").write_text(json.dumps(listed))
        settings["split_file"] = tmp_path / "split.json"
    tests = []
    for seed in (0, 1):
        data = module(root, seed=seed, **settings)
        data.setup("fit")
        names = data.source().names
        tests.append({names[index] for index in data.test_set.subset.tolist()})
        assert data.describe()["split"] == rule
    assert tests[0] == tests[1] == (SPLITS[rule] or tests[0])
    assert len(tests[0]) == 2


def test_train_and_test_folders_are_the_split_unless_another_is_asked_for(tmp_path, caplog):
    folder_of(tmp_path, ("Train", "test"), per_class=3)
    data = module(tmp_path)
    data.setup("fit")
    assert data.describe()["split"] == "folders"
    assert data.test_set.subset.tolist() == list(range(6, 12))
    fewer = module(tmp_path, train_subset=2, test_subset=4)
    fewer.setup("fit")
    assert fewer.train_set.targets[fewer.train_set.subset].tolist() == [0, 1]
    assert fewer.test_set.targets[fewer.test_set.subset].tolist() == [0, 0, 1, 1]
    assert fewer.describe()["of_samples"] == {"train": len(data.train_set), "test": 6}
    pooled = module(tmp_path, split="last", test_fraction=0.25)
    pooled.setup("fit")
    assert [pooled.source().names[index] for index in pooled.test_set.subset] == ["test/left/10", "test/right/10"]
    # a folder of a class that the test has none of, and a subset that leaves a class out
    for path in (tmp_path / "test" / "right").iterdir():
        path.unlink()
    for settings, lost in (({}, "right"), ({"test_subset": 1, "train_subset": 1}, "right")):
        caplog.clear()
        module(tmp_path, **settings).setup("fit")
        told = [record.getMessage() for record in caplog.records]
        assert f"data: no sample is left to test of {lost}" in told
        assert len(told) == 1 + len(settings) // 2
    with pytest.raises(ValueError, match=r"^split='folders': there are no folders of train and test"):
        module(folder_of(tmp_path / "other"), split="folders").setup("fit")


def test_first_and_last_count_as_the_field_does():
    labels = torch.arange(2).repeat_interleave(torch.tensor([1000, 31]))
    for first, expected in (
        (True, [*range(100), *range(1000, 1003)]),
        (False, [*range(900, 1000), *range(1028, 1031)]),
    ):
        rest, chosen = ordered_split(labels, 0.1, first=first)
        assert chosen.tolist() == expected
        assert sorted([*rest.tolist(), *expected]) == list(range(1031))


def test_the_split_is_part_of_a_runs_identity(tmp_path):
    config = compose(["data=cifar10dvs"])

    def run(**settings):
        data = config["data"] | settings
        return identity({**config, "data": data, "own": own_digests({"data": data})})

    path = tmp_path / "split.json"
    path.write_text('{"train": [], "test": []}')
    assert run() == run(split="random") != run(split="first") != run(split="last")
    before = run(split_file=str(path))
    assert run(split_file=str(path), split="file") == before != run()
    path.write_text('{"train": [], "test": [""]}')
    assert run(split_file=str(path)) != before


NO_SENSOR = r"sensor=null: .npz files do not say it; set data.sensor=\[H,W\], in pixels; left/0 reaches \[12,20\]"
OFF_SENSOR = r"left/0.npz: event \d+ at x=\d+, y=11 is outside the sensor, \[H,W\]=\[11,20\] .*skip_bad=true"


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {}, "root=.*: holds no folders of classes"),
        (["left/0.npz"], {}, r"root=.*: holds one class alone \(left\)"),
        (["left/0.npz", "right/notes.txt"], {}, r"root=.*: right: holds no recordings \(\.npz, "),
        (["train/left/0.npz", "train/right/0.npz"], {}, "has a folder train, and none called test beside it"),
        (["left/0.npz", "right/0.npz", "right/0.npy"], {}, "holds right/0 twice"),
        (["left/0.npz", "right/0.npz"], {"sensor": None}, NO_SENSOR),
        (["left/0.npz", "right/0.npz"], {"sensor": (11, 20)}, OFF_SENSOR),
        (["left/0.npz", "right/0.npz"], {"size": 48}, r"size=48: must be at most the sensor's pixels, \[12,20\]"),
        (["left/0.bin", "right/0.npz"], {"time_unit": "ms"}, "time_unit='ms': .bin have microseconds, must be us"),
        ([], {"time_unit": "min"}, "time_unit='min': must be one of s, ms, us, ns"),
        ([], {"sensor": 0}, "sensor=0: must be null, or from 1 to"),
        ([], {"split": "random", "split_file": "x.json"}, "split='random': file, and no other, goes with split_file"),
        ([], {"split": "file"}, "split='file': file, and no other, goes with split_file=FILE"),
        ([], {"split": "tebn"}, "split='tebn': must be null or one of random, first, last, file, folders"),
    ],
)  # fmt: skip
def test_folders_and_settings_that_are_not_right_are_named(tmp_path, files, settings, message):
    for name in files:
        if name.endswith("txt"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text("mine")
        else:
            write(tmp_path / name, *events(), {"z": "named", "y": "structured", "n": "N-MNIST"}[name[-1]])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        module(tmp_path, **settings).setup("fit")
    assert "\n" not in str(error.value)


def test_bad_recordings_are_left_out_where_that_is_asked_for(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "left" / "9.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"left/9.npz: damaged.*skip_bad=true leaves"):
        module(tmp_path).setup("fit")
    data = module(tmp_path, skip_bad=True)
    with pytest.warns(UserWarning, match=r"1 bad recording\(s\) left out"):
        data.setup("fit")
    (bad,) = data.describe()["bad_recordings"]
    assert bad.startswith(str(tmp_path / "left" / "9.npz"))
    assert 1 not in torch.cat([data.train_set.subset, data.val_set.subset, data.test_set.subset]).tolist()


# ---- sets of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "parts", "file", "way"),
    [
        ("NMNIST", ("Train", "Test"), "{}.bin", "N-MNIST"),
        ("extract", ("Train", "Test"), "{}.bin", "N-MNIST"),
        ("events_np", ("train", "test"), "{}.npz", "named"),
    ],
    ids=["tonic", "spikingjelly", "spikingjelly's arrays"],
)
def test_n_mnist_is_read_where_others_left_it(tmp_path, place, parts, file, way, caplog):
    for part in parts:
        for digit in range(10):
            for number in range(2):
                path = tmp_path / place / part / str(digit) / file.format(f"0000{number}")
                write(path, *events(digit + 10 * number + 100 * (part == parts[1]), sensor=(34, 34)), way)
    data = NMNISTDataModule(tmp_path, time_steps=2)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "nmnist has 40 recordings here, and 70000 elsewhere" in caplog.text
    assert (data.describe()["split"], data.inputs.height) == ("folders", 34)
    assert data.test_set.subset.tolist() == list(range(20, 40))
    assert data.test_set.targets[20:].tolist() == [digit for digit in range(10) for _ in range(2)]
    assert_same(data.source().load(33), *events(116, sensor=(34, 34)))


def test_gestures_are_read_in_both_cuts(tmp_path):
    for part, users in (("ibmGestureTrain", (1, 2)), ("ibmGestureTest", (24,))):
        for user in users:
            for label in range(11):
                folder = tmp_path / "DVSGesture" / part / f"user{user:02}_fluorescent"
                folder.mkdir(parents=True, exist_ok=True)
                t, x, y, p = events(100 * user + label, sensor=(128, 128))
                np.save(folder / f"{label}.npy", np.stack([x, y, p, t // 1000], 1))
    for part, user in (("train", 1), ("test", 24)):
        for label in range(11):
            path = tmp_path / "jelly" / "events_np" / part / str(label) / f"user{user:02}_fluorescent_0.npz"
            write(path, *events(100 * user + label, sensor=(128, 128)), "named")
    tonic, jelly = DVSGestureDataModule(tmp_path), DVSGestureDataModule(tmp_path / "jelly")
    assert tonic.class_names == jelly.class_names == list(GESTURES)
    assert (tonic.own_test(), jelly.own_test()) == (list(range(22, 33)), list(range(11, 22)))
    for data, name in ((tonic, "ibmGestureTest/user24_fluorescent/10"), (jelly, "test/10/user24_fluorescent_0")):
        source = data.source()
        index = source.names.index(name)
        assert source.labels[index] == 10
        assert_same(source.load(index), *events(2410, sensor=(128, 128)))


@pytest.mark.parametrize("place", ["NCALTECH101/Caltech101", "extract/Caltech101", "events_np"])
def test_n_caltech101_is_read_and_split_by_a_rule(tmp_path, place):
    arrays = place == "events_np"
    for name in ("BACKGROUND_Google", "airplanes", "yin_yang"):
        for number in range(4):
            path = tmp_path / place / name / f"image_000{number}.{'npz' if arrays else 'bin'}"
            write(path, *events(number, sensor=(180, 240)), "named" if arrays else "N-MNIST")
    data = NCaltech101DataModule(tmp_path, split="last", test_fraction=0.25, size=(45, 60), time_steps=2)
    data.setup("fit")
    assert data.class_names == ["BACKGROUND_Google", "airplanes", "yin_yang"]
    for _ in ("the folder of the classes itself", "with frames in it"):
        inner = NCaltech101DataModule(tmp_path / place, size=12, time_steps=2)
        inner.setup("fit")
        assert inner.class_names == data.class_names
    assert (data.inputs.height, data.inputs.width, data.inputs.num_classes) == (45, 60, 3)
    assert [data.source().names[index] for index in data.test_set.subset] == [
        f"{name}/image_0003" for name in data.class_names
    ]


@pytest.mark.parametrize("kind", [NMNISTDataModule, DVSGestureDataModule, NCaltech101DataModule])
def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=r"^root='.*': holds no .*; tonic.datasets.*\(ROOT\) fetches"):
        kind(tmp_path).setup("fit")
