"""The data module on files in both official formats: labels, splits, bad input, download, unpacking."""

import hashlib
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from test_recordings import HEADER, aedat2, random_events, write_aedat4

from tna_lightning.data import CIFAR10DVSDataModule, cifar10dvs
from tna_lightning.data.array_cache import BadSample
from tna_lightning.data.augment import NDA, Cutout, Flip
from tna_lightning.data.cifar import CLASSES
from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.loading import split_hash
from tna_lightning.data.recordings import RecordingFiles, find_recordings

NAMES = CLASSES["cifar10"]


def write_release(root, per_class=10, events=200):
    """A small release in AEDAT 2.0; recording n of class c is the same wherever it is written."""
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            first, second = rng.integers(0, 128, (2, events)).tolist()
            polarity, time = rng.integers(0, 2, events).tolist(), np.sort(rng.integers(0, 1_200_000, events)).tolist()
            content = aedat2(zip(first, second, polarity, time, strict=True))
            (root / name / f"cifar10_{name}_{number}.aedat").write_bytes(content)


def module(root, **settings):
    return CIFAR10DVSDataModule(root, download=False, batch_size=16, **settings)


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path)
    return tmp_path


def test_batches_are_the_frames_of_their_recordings(release):
    data = module(release, time_steps=4, size=64)
    data.setup("fit")
    source = RecordingFiles(find_recordings(release, NAMES)[0], (128, 128))
    order = data.test_set.subset.tolist()
    batch = next(iter(data.test_dataloader()))
    assert batch.index.tolist() == order
    x, target = batch
    assert x.dtype == torch.uint8
    assert x.shape == (10, 4, 2, 64, 64)
    assert target.tolist() == list(range(10))
    for frames, index in zip(x, order, strict=True):
        expected = to_frames(source.load(index), (128, 128), FrameSpec(4, "time", (64, 64)))
        np.testing.assert_array_equal(frames, expected)
    assert (data.num_classes, data.in_channels, data.time_steps) == (10, 2, 4)
    assert data.class_names == NAMES


def test_counts_are_evened_out_over_unequal_cells(release):
    data = module(release, time_steps=2, size=48)
    data.setup("fit")
    x, _ = next(iter(data.test_dataloader()))
    prepared = data.prepare(x)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared[..., 0, 0], x[..., 0, 0] * (128 / 48) ** 2 / 9)  # 3x3 pixels in the first cell
    torch.testing.assert_close(prepared[..., 2, 2], x[..., 2, 2] * (128 / 48) ** 2 / 4)  # 2x2 in the third
    assert torch.equal(data.prepare(prepared), prepared)
    assert torch.equal(data.normalization(x), prepared)
    even = module(release, time_steps=2, size=64)
    even.setup("fit")
    x, _ = next(iter(even.test_dataloader()))
    assert torch.equal(even.prepare(x), x.float())
    assert torch.equal(even.normalization(x), x.float())


def test_the_split_is_nine_to_one_in_each_class_and_disjoint(release):
    data = module(release, val_fraction=1 / 9)
    data.setup("fit")
    subsets = [samples.subset for samples in (data.train_set, data.val_set, data.test_set)]
    assert sorted(torch.cat(subsets).tolist()) == list(range(100))
    labels = data.train_set.targets
    assert [torch.bincount(labels[subset]).tolist() for subset in subsets] == [[8] * 10, [1] * 10, [1] * 10]
    assert data.split_hash == split_hash(*subsets)


def test_seeds_share_the_test_set_and_split_seeds_do_not(release):
    def split(**seeds):
        data = module(release, **seeds)
        data.setup("fit")
        return data.test_set.subset.tolist(), data.val_set.subset.tolist(), data.split_hash

    first, same, other_seed, other_split = split(), split(), split(seed=1), split(split_seed=1)
    assert first == same
    assert other_seed[0] == first[0]
    assert other_seed[1] != first[1]
    assert other_split[0] != first[0]
    assert len({first[2], other_seed[2], other_split[2]}) == 3


def test_a_split_file_decides(release):
    path = release / "split.json"
    names = {part: [f"{name}/cifar10_{name}_{n}" for name in NAMES for n in range(*where)]
             for part, where in (("test", (0, 2)), ("train", (2, 7)), ("val", (7, 8)))}  # fmt: skip
    path.write_text(json.dumps(names))
    data = module(release, split_file=path)
    data.setup("fit")
    assert (data.test_set.subset % 10).tolist() == [0, 1] * 10
    assert (data.train_set.subset % 10).tolist() == [2, 3, 4, 5, 6] * 10
    assert (data.val_set.subset % 10).tolist() == [7] * 10
    del names["val"]
    path.write_text(json.dumps(names))
    data = module(release, split_file=path, val_fraction=0.2)
    data.setup("fit")
    assert torch.bincount(data.train_set.targets[data.val_set.subset]).tolist() == [1] * 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"split_file='.*': must be a JSON file"),
        ("train: all", r"split_file='.*': must be JSON"),
        ('{"train": []}', r"split_file='.*': must hold lists under 'train', 'test'"),
        ('{"train": [], "test": 3}', r"split_file='.*': must hold lists under 'train', 'test'"),
        ('{"train": [["a"], 3], "test": []}', r"split_file='.*': train lists \"\['a'\]\", which is no recording here"),
        ("[" * 99999, r"split_file='.*': must be JSON"),
        ('{"train": ["cat/nap"], "test": []}', r"split_file='.*': train lists 'cat/nap', which is no recording here"),
        ('{"train": ["cat/cifar10_cat_1"], "test": ["cat/cifar10_cat_1"]}', "is listed in train and in test"),
    ],
)  # fmt: skip
def test_bad_split_files_are_named(release, content, message):
    path = release / "split.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(release, split_file=path).setup("fit")


BAD = {
    "truncated": (HEADER + bytes(13), "truncated, 5 bytes after its last whole event"),
    "empty": (HEADER, "holds no events"),
    "backwards": (aedat2([(1, 1, 0, 9), (1, 1, 0, 8)]), "time goes backwards at event 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_recordings_stop_with_their_name_or_are_left_out(release, kind):
    content, message = BAD[kind]
    clean = module(release)
    clean.setup("fit")
    (release / "dog" / "cifar10_dog_3.aedat").write_bytes(content)
    with pytest.raises(BadSample, match=rf"dog/cifar10_dog_3\.aedat: {message}"):
        module(release).setup("fit")
    data = module(release, skip_bad=True)
    with pytest.warns(UserWarning, match=rf"1 bad recording\(s\) left out: .*cifar10_dog_3\.aedat: {message}"):
        data.setup("fit")
    gone = NAMES.index("dog") * 10 + 3
    for samples, before in ((data.train_set, clean.train_set), (data.test_set, clean.test_set)):
        assert samples.subset.tolist() == [index for index in before.subset.tolist() if index != gone]
    assert data.describe()["bad_recordings"][0].endswith(message) or message in data.describe()["bad_recordings"][0]


def test_a_coordinate_outside_the_sensor_is_named(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(2):
            t, x, y, p = random_events(40)
            if (name, number) == ("frog", 1):
                x = x + 100
            write_aedat4(tmp_path / name / f"r_{number}.aedat4", t, x, y, p, sensor=(346, 260))
    with pytest.raises(
        BadSample, match=r"frog/r_1\.aedat4: event \d+ at x=\d+, y=\d+ is outside the sensor, \[H,W\]=\[128,128\]"
    ):
        module(tmp_path, test_fraction=0.5).setup("fit")


def test_a_folder_of_no_class_stops_or_is_left_out(release):
    (release / "airplane").rename(release / "aeroplane")
    with pytest.raises(ValueError, match="has no recordings of airplane"):
        module(release).setup("fit")
    write_release(release / "more", per_class=1)
    (release / "more" / "airplane").rename(release / "airplane")
    with pytest.raises(
        BadSample, match="aeroplane: holds recordings of no class; the classes are airplane, automobile"
    ):
        module(release).setup("fit")
    with pytest.warns(UserWarning, match=r"1 folder\(s\) left out: .*aeroplane"):
        module(release, skip_bad=True).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_steps": 0}, "time_steps=0: must be at least 1"),
        ({"slicing": "events"}, "slicing='events': must be one of time, count"),
        ({"size": 0}, "size=0: must be at least 1"),
        ({"size": 200}, "size=200: must be at most the sensor's 128 pixels"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0: must lie in \[0, 1\)"),
        ({"test_fraction": 0.0}, r"test_fraction=0\.0: leaves no recording to test"),
        ({"val_fraction": -0.1}, r"val_fraction=-0\.1: must lie in \[0, 1\)"),
        ({"build_workers": -1}, "build_workers=-1: must not be negative"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_bad_settings_are_named(release, settings, message):
    with pytest.raises(ValueError, match=message):
        CIFAR10DVSDataModule(release, download=False, **settings).setup("fit")


def test_nothing_there_says_which_file_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        module(tmp_path).prepare_data()
    message = str(error.value)
    assert message.startswith(
        f"root={str(tmp_path)!r}: no recordings of airplane, automobile, ... in it, and download=false"
    )
    for part in (cifar10dvs.PAGE, str(tmp_path / "CIFAR10DVS.zip"), cifar10dvs.MD5, "browser"):
        assert part in message


def test_a_host_that_refuses_scripts_leads_to_the_same_advice(tmp_path):
    with pytest.raises(FileNotFoundError) as error:  # the tests' own guard refuses the connection
        CIFAR10DVSDataModule(tmp_path).prepare_data()
    assert "its host gave none" in str(error.value)
    assert f"save it as {tmp_path / 'CIFAR10DVS.zip'}" in str(error.value)


def test_a_page_that_asks_whether_one_is_human_leads_to_the_same_advice(tmp_path, monkeypatch, serve):
    monkeypatch.setattr(cifar10dvs, "URL", serve({"/38023437": b""}, status=202).address + "/38023437")
    with pytest.raises(FileNotFoundError, match=r"the server answers with a web page for people .status 202"):
        CIFAR10DVSDataModule(tmp_path).prepare_data()
    assert not (tmp_path / "CIFAR10DVS.zip").exists()


def test_a_download_that_breaks_off_goes_on_and_is_unpacked(tmp_path, monkeypatch, serve):
    write_release(tmp_path / "unpacked", per_class=2)
    archive = tmp_path / "archive.zip"
    release_archive(archive, tmp_path / "unpacked")
    content = archive.read_bytes()
    server = serve({"/38023437": content}, stop_after=len(content) // 3)
    monkeypatch.setattr(cifar10dvs, "URL", server.address + "/38023437")
    monkeypatch.setattr(cifar10dvs, "MD5", hashlib.md5(content).hexdigest())
    data = CIFAR10DVSDataModule(tmp_path / "root", test_fraction=0.5)
    data.setup("fit")
    assert data.describe()["test_samples"] == 10
    assert len(server.requests) >= 3


def release_archive(path, root):
    """tonic's layout: a zip of one zip per class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as outer:
        for name in NAMES:
            inner = root / f"{name}.zip"
            with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted((root / name).iterdir()):
                    archive.write(file, f"{name}/{file.name}")
            outer.write(inner, inner.name)


@pytest.mark.parametrize(
    "place", ["CIFAR10DVS.zip", "CIFAR10DVS/CIFAR10DVS.zip", "CIFAR10DVS (1).zip", "CIFAR10DVS/38023437"]
)
def test_the_archive_put_there_by_hand_is_checked_and_unpacked(tmp_path, monkeypatch, place):
    write_release(tmp_path / "unpacked", per_class=2)
    root = tmp_path / "root"
    release_archive(root / place, tmp_path / "unpacked")
    (root / "CIFAR10DVS").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=rf"{re.escape(place)}: md5 is \w+, must be ce3a4a0682dc0943703bd8f749a7701c"):
        module(root).prepare_data()
    monkeypatch.setattr(cifar10dvs, "MD5", hashlib.md5((root / place).read_bytes()).hexdigest())
    (root / "CIFAR10DVS" / "cat.zip.part").write_bytes(b"left by a killed run")
    data = module(root, test_fraction=0.5, val_fraction=0.0)
    data.setup("fit")
    plain = module(tmp_path / "unpacked", test_fraction=0.5, val_fraction=0.0)
    plain.setup("fit")
    assert torch.equal(data.train_set.inputs, plain.train_set.inputs)
    assert not list((root / "CIFAR10DVS").glob("*.part"))
    (root / place).write_bytes(b"no longer needed, so no longer looked into")
    module(root).prepare_data()


def test_both_releases_of_the_same_events_give_the_same_frames(release, tmp_path_factory):
    converted = tmp_path_factory.mktemp("converted")
    source = RecordingFiles(find_recordings(release, NAMES)[0], (128, 128))
    for index in range(0, 100, 5):
        name = NAMES[index // 10]
        (converted / name).mkdir(exist_ok=True)
        recording = source.load(index)
        path = converted / name / f"cifar10_{name}_{index % 10}.aedat4"
        write_aedat4(path, recording.t + 1_600_000_000_000_000, recording.x, recording.y, recording.p)
    first, second = module(release), module(converted)
    first.setup("fit")
    second.setup("fit")
    assert torch.equal(first.train_set.inputs[::5], second.train_set.inputs)


def test_it_trains_under_a_plain_trainer(release, trainer, probe):
    operations = {"nda": NDA(), "flip": Flip(), "cutout": Cutout(4)}
    data = module(release, time_steps=6, size=16, augment=operations, val_fraction=0.1)
    model = probe(data)
    run = trainer(max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert [len(batch) for batch, _ in model.seen["test"]] == [10]
    x, _ = model.seen["train"][0]
    assert x.dtype == torch.float32
    assert x.shape == (16, 6, 2, 16, 16)
    assert len(model.seen["train"]) == 2 * 5  # of 81, the last single sample is left out


def test_frames_go_where_they_are_told(release, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    module(release, frames_root=elsewhere / "frames").setup("fit")
    assert len(list(elsewhere.glob("frames/cifar10dvs-*/frames.npy"))) == 1
    assert not (release / "frames").exists()


def test_describe_is_json_and_counts(release):
    data = module(release)
    data.setup("fit")
    described = json.loads(json.dumps(data.describe()))
    assert described["simulated"] is False
    assert described["events_per_recording"] == 200
    assert (described["train_samples"], described["val_samples"], described["test_samples"]) == (81, 9, 10)
    assert described["split_hash"] == data.split_hash
    assert 0.45 < described["on_share"] < 0.55
