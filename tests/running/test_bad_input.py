"""Bad input of a user's own is refused before training begins, in one line that begins with the setting."""

import copy
import re

import numpy as np
import pytest
from PIL import Image

from tna_lightning.data import DigitsDataModule
from tna_lightning.quantization.packing import save_network
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build_network, network_spec
from tna_lightning.running.train import train

EVENTS = {"t": np.arange(50), "x": np.arange(50) % 20, "y": np.arange(50) % 12, "p": np.arange(50) % 2}
IMAGES, LABELS = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2


@pytest.fixture(scope="module")
def configs():
    """Of small runs, by data, without where these are."""
    small = ["model.width=0.1", "epochs=1", "compile=none", "trainer.enable_progress_bar=false"]
    words = {
        "event_folder": ["data.root=there", "data.sensor=[12,20]", "data.size=12", "data.time_steps=2"],
        "image_folder": ["data.root=there", "data.size=8"],
        "arrays": ["data.file=there"],
    }
    return {data: compose([f"data={data}", *small, *further]) for data, further in words.items()}


def recording(path, **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **EVENTS | changed)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def fill(root, write, ending):
    for name in ("cat", "dog"):
        for number in range(5):
            write(root / name / f"{number}.{ending}")


def empty_class(root):
    fill(root, recording, "npz")
    (root / "bird").mkdir()
    return "event_folder", {}, r"data.root='.*': bird: holds no recordings"


def empty_class_of_pictures(root):
    fill(root, picture, "png")
    (root / "bird").mkdir()
    return "image_folder", {}, r"data.root='.*': bird: holds no pictures"


def one_class(root):
    recording(root / "cat" / "0.npz")
    return "event_folder", {}, r"data.root='.*': holds one class alone \(cat\), there is nothing to tell apart"


def no_picture(root):
    fill(root, picture, "png")
    (root / "dog" / "page.jpg").write_text("<html>not found</html>")
    return "image_folder", {}, r"data.root='.*': .*page.jpg: is damaged or no picture .*skip_bad=true"


def a_picture_a_class(root):
    for name in ("cat", "dog"):
        picture(root / name / "0.png")
    return "image_folder", {}, "data: 2 images of 2 classes: none is left to train"


def arrays_of_two_lengths(root):
    np.savez(root / "mine.npz", images=IMAGES, labels=LABELS[:9])
    return "arrays", {"data.file": root / "mine.npz"}, "data.file='.*': holds 20 images and 9 labels"


def labels_that_are_no_integers(root):
    np.savez(root / "mine.npz", images=IMAGES, labels=LABELS / 2)
    return (
        "arrays",
        {"data.file": root / "mine.npz"},
        r"data.file='.*': labels is float64 \[20\]; must hold whole numbers",
    )


def columns_of_two_lengths(root):
    fill(root, recording, "npz")
    recording(root / "dog" / "5.npz", x=EVENTS["x"][:9])
    return "event_folder", {}, r"data: .*dog/5.npz: its t, x, y and p must be equally many, and are 50 t, 9 x"


def off_the_sensor(root):
    fill(root, recording, "npz")
    recording(root / "dog" / "5.npz", x=EVENTS["x"] + 1)
    return (
        "event_folder",
        {},
        r"data: .*dog/5.npz: event 19 at x=20, y=7 is outside the sensor, \[H,W\]=\[12,20\] \(2 in",
    )


def more_time_steps_than_the_neuron(root):
    fill(root, recording, "npz")
    psn = {"_target_": "tna_lightning.models.PSN", "_partial_": True, "time_steps": 1}
    return "event_folder", {"neuron": psn}, "neuron.time_steps=1: follows T, which is 2; leave it out"


def other_channels_than_the_network(root):
    fill(root, recording, "npz")
    data, grey = DigitsDataModule(), compose(["model.width=0.1"])
    save_network(root.parent / "grey.safetensors", build_network(spec := network_spec(grey, data)), spec)
    message = r"init_from='.*grey.safetensors': .*\[3, 1, 3, 3\].*\[3, 2, 3, 3\]"
    return "event_folder", {"init_from": str(root.parent / "grey.safetensors")}, message


@pytest.mark.parametrize(
    "case",
    [
        *(empty_class, empty_class_of_pictures, one_class, no_picture, a_picture_a_class, arrays_of_two_lengths),
        *(labels_that_are_no_integers, columns_of_two_lengths, off_the_sensor, more_time_steps_than_the_neuron),
        other_channels_than_the_network,
    ],
    ids=lambda case: case.__name__,
)
def test_bad_input_is_refused_in_one_line_before_training(case, configs, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    data, settings, message = case(root)
    config = copy.deepcopy(configs[data])
    config["data"] |= {"root": str(root)} if data != "arrays" else {}
    for key, value in settings.items():
        node, _, name = key.rpartition(".")
        (config[node] if node else config)[name] = str(value) if name == "file" else value
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}") as error:
        train(config, tmp_path / "run")
    assert not re.search("\n", str(error.value))
    assert not (tmp_path / "run").exists()
