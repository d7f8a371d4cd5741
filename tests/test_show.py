"""The picture and the figures of a data set, as a user asks for them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from tna_lightning.data import DigitsDataModule, DigitsDVSDataModule, EventCamera
from tna_lightning.show import OFF, ON, event_colors, figures, image_colors, main, picture


def test_event_colors_tell_polarities_apart():
    frames = torch.zeros(2, 1, 3, dtype=torch.uint8)  # OFF and ON in one row of three pixels
    frames[1, 0, 0] = frames[0, 0, 2] = 10
    colors = event_colors(frames)
    np.testing.assert_allclose(colors[0], [ON, (1, 1, 1), OFF], atol=1e-6)
    np.testing.assert_allclose(event_colors(torch.zeros(2, 1, 1, dtype=torch.uint8))[0, 0], (1, 1, 1))


def test_image_colors_are_the_pixels_in_grey_or_colour():
    image = torch.tensor([[[0, 255]], [[51, 255]], [[102, 255]]], dtype=torch.uint8)
    np.testing.assert_allclose(image_colors(image), [[[0, 0.2, 0.4], [1, 1, 1]]])
    np.testing.assert_allclose(image_colors(image[1:2])[0, 0], [0.2, 0.2, 0.2])


def test_a_row_per_class_of_the_right_pictures():
    data = DigitsDataModule()
    data.setup("fit")
    figure = picture(data, "digits")
    axes = np.array(figure.axes).reshape(10, 10)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == data.class_names
    inputs, targets, subset = data.train_set.inputs, data.train_set.targets, data.train_set.subset
    for label in (0, 7):
        third = subset[targets[subset] == label][2]
        np.testing.assert_allclose(axes[label, 2].images[0].get_array()[..., 0], inputs[third, 0] / 255, atol=1e-6)


def test_a_class_of_which_a_small_subset_has_none_gets_no_row():
    data = DigitsDataModule(train_subset=5)
    data.setup("fit")
    labels = sorted(set(data.train_set.targets[data.train_set.subset].tolist()))
    figure = picture(data, "digits")
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == list(map(str, labels))
    assert dict(figures(data))["training samples of a class"].startswith("0 to ")


def test_many_classes_get_one_picture_each():
    class ThirtyOne(DigitsDataModule):
        class_names = [str(number) for number in range(31)]

        def load(self):
            labels = torch.arange(310) % 31
            images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
            return images, labels, torch.arange(248, 310)

    data = ThirtyOne(val_fraction=0.0)
    data.setup("fit")
    axes = picture(data, "many").axes
    assert len(axes) == 36
    assert [axis.get_title() for axis in axes[:31]] == data.class_names
    assert [round(float(axis.images[0].get_array()[0, 0, 0]) * 255) for axis in axes[:31]] == list(range(31))
    assert not axes[31].images


def test_the_figures_of_event_recordings_are_theirs(tmp_path):
    class Few(DigitsDVSDataModule):
        def pictures(self):
            pictures, labels = super().pictures()
            return pictures[:60], labels[:60]

    camera = EventCamera(sensor=16, display=32, leg=4, loops=1)
    data = Few(tmp_path, camera=camera, size=8)
    data.setup("fit")
    rows = dict(figures(data))
    pictures, _ = data.pictures()
    events = [len(camera.record(pictures[index].numpy() / 255, index)) for index in range(60)]
    assert rows["events of a recording"].startswith(
        f"mean {np.mean(events):,.0f}, from {min(events):,} to {max(events):,};"
    )
    assert rows["shape of a sample"] == "4 x 2 x 8 x 8"
    assert rows["samples"] == "43 train, 5 val, 12 test"
    axes = np.array(picture(data, "few (SIMULATED events)").axes).reshape(10, 4)
    assert [axis.get_title() for axis in axes[0]] == ["frame 1", "frame 2", "frame 3", "frame 4"]


def run_show(*arguments, folder):
    command = [sys.executable, "-m", "tna_lightning.show", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_saves_one_picture_and_prints_figures(tmp_path):
    done = run_show("data=digits", "--out", "mine", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    assert imread(tmp_path / "mine.png").std() > 0.1
    for part in ("1,293 train, 144 val, 360 test", "1 x 8 x 8", "picture: mine.png"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=cifar10dvs", "data.download=false"], "no recordings of airplane, automobile"),
        (["data=nothing"], "data=nothing: allowed are"),
        (["data=digits_dvs", "data.camera.threshold=0"], "data.camera.threshold=0: must be at least 0.01"),
    ],
)
def test_bad_input_is_one_error_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["show", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
