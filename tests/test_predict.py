"""A kept network asked about files, as a user types it: pictures, folders, arrays, recordings, and what is none."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tna_lightning import predict
from tna_lightning.data import Normalization
from tna_lightning.data.recordings import Recording
from tna_lightning.export import export_c
from tna_lightning.models import build
from tna_lightning.quantization import Ternary, load_packed, quantize_network, save_network
from tna_lightning.quantization.packing import read_packed, write_packed

NAMES = ["cat", "dog", "frog"]
IMAGES = {"kind": "images", "shape": [1, 8, 6], "mean": [0.4], "std": [0.2], "time_steps": 2, "class_names": NAMES}
EVENTS = {"kind": "events", "shape": [2, 8, 8], "time_steps": 3, "class_names": NAMES}
EVENTS["framing"] = {"sensor": [10, 12], "slicing": "count"}
LEVELS = np.random.default_rng(0).integers(0, 256, (70, 8, 6), dtype=np.uint8)


def keep(path, inputs):
    channels, height, width = inputs["shape"]
    model = {"_target_": "tna_lightning.models.convnet", "width": 0.1, "time_steps": inputs["time_steps"]}
    time_steps = inputs["time_steps"] if inputs["kind"] == "events" else None
    sizes = {"channels": channels, "height": height, "width": width, "time_steps": time_steps, "num_classes": 3}
    spec = {"model": model, "neuron": {"_target_": "tna_lightning.models.LIF", "threshold": 0.05}, "inputs": sizes}
    torch.manual_seed(1)
    network = build(spec).eval()
    quantize_network(network, Ternary())
    with torch.no_grad():
        network.classifier.bias.zero_()  # else one class is the answer to all
    path.parent.mkdir(exist_ok=True)
    save_network(path, network, spec, inputs=inputs)
    return load_packed(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of pictures and one of events, and files to ask them about."""
    folder = tmp_path_factory.mktemp("asked")
    keep(folder / "run" / "network.safetensors", IMAGES)
    keep(folder / "events.safetensors", EVENTS)
    keep(folder / "events by time", EVENTS | {"framing": {**EVENTS["framing"], "slicing": "time"}})
    (folder / "mine" / "deep").mkdir(parents=True)
    (folder / "mine" / ".hidden").mkdir()
    for number, name in enumerate(("deep/0.png", "1.bmp", ".hidden/2.png")):
        Image.fromarray(LEVELS[number]).save(folder / "mine" / name)
    Image.fromarray(LEVELS[3]).convert("RGBA").resize((12, 16)).save(folder / "colour.png")
    np.save(folder / "levels.npy", LEVELS)
    np.savez(folder / "named.npz", labels=np.arange(70), images=LEVELS[:, None])
    rng = np.random.default_rng(1)
    t, x, y, p = (
        np.sort(rng.integers(0, 9999, 200)),
        rng.integers(0, 12, 200),
        rng.integers(0, 10, 200),
        rng.integers(0, 2, 200),
    )
    np.savez(folder / "recording.npz", t=t, x=x, y=y, p=p)
    np.savez(folder / "off.npz", t=t, x=x + 1, y=y, p=p)
    np.save(folder / "columns.npy", np.stack([t, x, y, p], 1))
    np.savez(folder / "seconds.npz", t=t / 1e6, x=x, y=y, p=p)
    np.savez(folder / "milliseconds.npz", t=t // 1000, x=x, y=y, p=p)
    np.savez(folder / "whole_seconds.npz", t=t * 0, x=x, y=y, p=p)
    np.save(folder / "no_frames.npy", np.zeros((0, 3, 2, 8, 8), dtype=np.uint8))
    np.save(folder / "no_images.npy", LEVELS[:0])
    np.savez(folder / "no_events.npz", t=t[:0], x=x[:0], y=y[:0], p=p[:0])
    (folder / "mnist.bin").write_bytes(b"\1\1\0\0\1\1\1\0\0\2\1\1\0\0\3")
    np.save(folder / "frames.npy", rng.integers(0, 9, (5, 3, 2, 8, 8), dtype=np.uint8))
    np.save(folder / "few.npy", np.load(folder / "frames.npy")[:, :2])
    (folder / "no.png").write_text("no picture")
    (folder / "cut.npz").write_bytes((folder / "named.npz").read_bytes()[:300])
    np.savez(folder / "two.npz", first=LEVELS, second=LEVELS)
    np.save(folder / "floats.npy", LEVELS / 255)
    np.save(folder / "rgb.npy", np.zeros((4, 3, 8, 6), dtype=np.uint8))
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def ask(folder, monkeypatch, capsys):
    """Status, output and errors of the command, typed in the folder."""

    def ask(*words):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["predict", *words])
        with pytest.raises(SystemExit) as left:
            predict.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return ask


def answers(out):
    return {each["input"]: each for each in json.loads(out)}


def test_pictures_folders_and_arrays_are_answered_as_the_network_does(folder, ask):
    network = load_packed(folder / "run" / "network.safetensors")
    status, out, err = ask("run", "mine", "levels.npy", "named.npz", "colour.png", "--json")
    assert (status, err) == (0, "")
    given = answers(out)
    assert [*given][:2] == ["mine/1.bmp", "mine/deep/0.png"]
    assert len(given) == 2 + 70 + 70 + 1
    expected = network.predict(list(LEVELS))
    for number, each in enumerate(expected):
        for name in (f"levels.npy[{number}]", f"named.npz[{number}]"):
            assert given[name]["class"] == each.name
            assert given[name]["probability"] == pytest.approx(each.probability, abs=1e-6)
            assert given[name]["probabilities"] == pytest.approx(
                dict(zip(NAMES, each.probabilities.tolist(), strict=True)), abs=1e-6
            )
    assert given["mine/deep/0.png"]["probabilities"] == given["levels.npy[0]"]["probabilities"]
    with Image.open(folder / "colour.png") as picture:
        (each,) = network.predict(picture)
    assert given["colour.png"]["probability"] == pytest.approx(each.probability, abs=1e-6)
    assert len({each.probability for each in expected}) > 10


def test_recordings_and_frames_are_answered_as_the_network_does(folder, ask):
    network = load_packed(folder / "events.safetensors")
    status, out, err = ask("events.safetensors", "recording.npz", "frames.npy", "--json")
    assert (status, err) == (0, "")
    with np.load(folder / "recording.npz") as held:
        t, x, y, p = (held[column] for column in "txyp")
    recording = Recording(t, x.astype(np.uint16), y.astype(np.uint16), p == 1)
    expected = [*network.predict(recording), *network.predict(np.load(folder / "frames.npy"))]
    given = answers(out)
    assert [*given] == ["recording.npz", *(f"frames.npy[{number}]" for number in range(5))]
    assert [each["probability"] for each in given.values()] == pytest.approx([each.probability for each in expected])


def test_times_in_another_unit_are_told_and_can_be_said(ask, caplog):
    status, out, err = ask("events.safetensors", "recording.npz", "columns.npy", "milliseconds.npz", "--json")
    given = answers(out)
    assert (status, err) == (0, "")
    assert given["columns.npy"]["probabilities"] == given["recording.npz"]["probabilities"]
    told = "milliseconds.npz: lasts 9e-06 s; time_unit=s or ms, if its times are in those"  # 9 of them
    assert [record.getMessage() for record in caplog.records] == [told]
    status, out, err = ask("events.safetensors", "seconds.npz", "--time-unit", "s", "--json")
    assert (status, err) == (0, "")
    assert answers(out)["seconds.npz"]["probabilities"] == given["recording.npz"]["probabilities"]


def test_a_table_and_csv_say_the_same(folder, ask):
    _, table, _ = ask("run/network.safetensors", "mine")
    _, listed, _ = ask("run/network.safetensors", "mine", "--csv")
    rows = list(csv.DictReader(io.StringIO(listed)))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["input", "class", "probability"]
    assert lines[1:] == [[row["input"], row["class"], f"{float(row['probability']):.1%}"] for row in rows]


@pytest.mark.parametrize(
    ("network", "place", "message"),
    [
        ("run", "no.png", "no.png: is damaged or no picture (cannot identify image file"),
        ("run", "none.png", "none.png: there is no such file or folder"),
        ("run", "empty", "empty: holds nothing to ask about, by their names (.png, .jpg"),
        ("run", "cut.npz", "cut.npz: is damaged or no array (File is not a zip file)"),
        ("run", "two.npz", "two.npz: holds first, second; must hold one array, or one called images"),
        ("run", "floats.npy", "floats.npy: x=float64: must be uint8, 0 to 255"),
        ("run", "rgb.npy", "rgb.npy: x=[4, 3, 8, 6]: must be [C, H, W] [1, 8, 6] or [H, W, C] [8, 6, 1]"),
        ("run", "events.safetensors", "events.safetensors: this network takes pictures or arrays (.png"),
        ("events.safetensors", "off.npz", "off.npz: event "),
        (
            "events.safetensors",
            "levels.npy",
            "levels.npy: holds no t, x, y and p by name, but an array uint8 [70, 8, 6]",
        ),
        ("events.safetensors", "few.npy", "few.npy: x=[5, 2, 2, 8, 8]: must be [T, 2, H, W] [3, 2, 8, 8]"),
        ("events.safetensors", "cut.npz", "cut.npz: is damaged or no array"),
        ("events.safetensors", "seconds.npz", "seconds.npz: its t has fractions of us, must be whole numbers; time_u"),
        ("events by time", "whole_seconds.npz", "whole_seconds.npz: too short, its 200 event(s) in 0 us give 3 frames"),
        ("events.safetensors", "no_events.npz", "no_events.npz: holds no events"),
        ("events.safetensors", "no_frames.npy", "no_frames.npy: holds nothing, its array is [0, 3, 2, 8, 8]"),
        ("run", "no_images.npy", "no_images.npy: holds nothing, its array is [0, 8, 6]"),
        (
            "events.safetensors",
            "mine/1.bmp",
            "mine/1.bmp: this network takes event recordings or arrays (.npz, .npy, .aedat",
        ),
    ],
)
def test_bad_input_is_one_line_each_and_the_others_are_answered(ask, network, place, message):
    good = "mine" if network == "run" else "recording.npz"
    status, out, err = ask(network, place, good, "--json")
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")
    assert line.endswith("; time_unit=s or ms, if its times are in those") == (place == "whole_seconds.npz")
    assert len(answers(out)) == (2 if network == "run" else 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "mine"], "--time-unit: is for recordings, and this network takes images"),
        (["events.safetensors", "mnist.bin"], "mnist.bin: time_unit=ms: .bin files have microseconds"),
    ],
)
def test_a_unit_of_times_where_there_is_none_to_say_is_refused(ask, words, message):
    assert ask(*words, "--time-unit", "ms") == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("empty", "network='empty': has no network.safetensors, neither a run's folder nor one of C"),
        ("nothing", "path='nothing': there is no such file"),
        ("levels.npy", "path='levels.npy': cut short, damaged or not a packed network"),
        ("unknown", "path='unknown': does not know what its network expects (kind)"),
    ],
)
def test_what_is_no_network_is_refused(folder, ask, network, message):
    keep(folder / "unknown", IMAGES)
    tensors, header = read_packed(folder / "unknown")
    del header["sha256"]
    write_packed(folder / "unknown", tensors, header | {"inputs": {}})
    status, out, err = ask(network, "mine")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_folder_of_c_is_asked_too(folder, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = load_packed(folder / "run" / "network.safetensors")
    normalization = Normalization(torch.tensor(0.4 * 255).view(1, 1, 1), torch.tensor(1 / (0.2 * 255)).view(1, 1, 1))
    levels = torch.from_numpy(LEVELS[:, None])
    export_c(network, tmp_path / "c", [levels], normalization, NAMES, network.preprocess)
    status, out, _ = ask(str(tmp_path / "c"), "levels.npy", "--json")
    assert status == 0
    expected = network.predict(levels)
    assert [each["class"] for each in answers(out).values()] == [each.name for each in expected]


def test_neither_lightning_nor_hydra_is_imported(folder):
    program = """
import sys
from tna_lightning import predict
sys.argv = ["predict", "run", "mine"]
try:
    predict.main()
except SystemExit as left:
    assert left.code == 0
print(*{name.partition(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    *table, modules = done.stdout.splitlines()
    assert table[1].startswith("mine/1.bmp")
    assert not {"lightning", "hydra", "omegaconf", "torchmetrics", "pydantic", "matplotlib"} & {*modules.split()}
