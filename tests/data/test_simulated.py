"""The simulated sets: which pictures, which recordings, and that they say what they are."""

import json

import numpy as np
import pytest
import torch

from tna_lightning.data import CIFAR10SimDVSDataModule, DigitsDVSDataModule, EventCamera
from tna_lightning.data.digits import load_digits
from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.simulated import SimulatedRecordings

CAMERA = EventCamera(sensor=16, display=32, leg=4, loops=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = DigitsDVSDataModule(tmp_path_factory.mktemp("data"), camera=CAMERA, size=8, build_workers=1)
    data.setup("fit")
    return data


def test_digits_keep_their_labels_and_their_test_set(digits):
    images, labels, test = load_digits()
    assert torch.equal(digits.test_set.targets, labels)
    assert torch.equal(digits.test_set.subset, test)
    assert len(digits.train_set) + len(digits.val_set) == 1437
    recording = CAMERA.record(np.pad(images[5, 0].numpy(), 2) / 255, 5)
    expected = to_frames(recording, (16, 16), FrameSpec(4, "time", (8, 8)))
    np.testing.assert_array_equal(digits.test_set.inputs[5], expected)


def test_the_record_says_simulated_and_how(digits):
    described = json.loads(json.dumps(digits.describe()))
    assert described["simulated"] is True
    assert described["name"] == "digits_dvs"
    assert described["camera"]["sensor"] == 16
    assert described["seconds_per_recording"] == pytest.approx(0.08, rel=0.02)
    for module in (DigitsDVSDataModule, CIFAR10SimDVSDataModule):
        assert module.__doc__.startswith("SIMULATED events")


def test_cifar_pictures_are_the_first_of_each_class_in_grey(cifar_files):
    cifar_files.write("cifar10", "binary")
    data = CIFAR10SimDVSDataModule(cifar_files.root, download=False, per_class=3, camera=CAMERA, time_steps=2, size=8)
    pictures, labels = data.pictures()
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    pixels, of_class = cifar_files.content("cifar10", 0)
    first = pixels[np.flatnonzero(of_class == 4)[1]].reshape(3, 32, 32)
    grey = np.round(np.tensordot([0.299, 0.587, 0.114], first, axes=1))
    np.testing.assert_allclose(pictures[4 * 3 + 1], grey, atol=1)
    data.setup("fit")
    x, target = next(iter(data.train_dataloader()))
    assert x.shape[1:] == (2, 2, 8, 8)
    assert int(x.sum()) > 0
    assert target.max() < 10
    with pytest.raises(ValueError, match="per_class=11: must be at most 10, the images of a class"):
        CIFAR10SimDVSDataModule(cifar_files.root, download=False, per_class=11).pictures()
    with pytest.raises(ValueError, match="per_class=0: must be at least 1"):
        CIFAR10SimDVSDataModule(cifar_files.root, per_class=0)


def test_the_fingerprint_holds_camera_pictures_and_labels():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)

    def fingerprint(pictures=pictures, labels=(0, 1), camera=CAMERA):
        return json.dumps(SimulatedRecordings(pictures, labels, ["a/0", "b/1"], camera).fingerprint())

    other_camera = EventCamera(sensor=16, display=32, leg=4, loops=1, threshold=0.3)
    assert (
        len({fingerprint(), fingerprint(pictures[::-1]), fingerprint(labels=(1, 0)), fingerprint(camera=other_camera)})
        == 4
    )
    assert fingerprint() == fingerprint()


def test_a_blank_picture_without_noise_is_left_out_by_name(tmp_path):
    class Blank(DigitsDVSDataModule):
        def pictures(self):
            images, labels, _ = load_digits()
            images = images[:40, 0].clone()
            images[7] = 0
            return images, labels[:40]

    camera = EventCamera(sensor=16, display=32, leg=4, loops=1, shot_noise_hz=0)
    data = Blank(tmp_path, camera=camera, size=8)
    with pytest.warns(UserWarning, match=r"1 bad recording\(s\) left out: 7/simulated_7: holds no events"):
        data.setup("fit")
    assert 7 not in torch.cat([s.subset for s in (data.train_set, data.val_set, data.test_set)]).tolist()
