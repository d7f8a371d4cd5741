"""What is asked of kept networks, as a user types it: figures, other time steps, data and corruptions, ensembles."""

import colorsys
import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.classification import multiclass_calibration_error

from tna_lightning import evaluate, record, show
from tna_lightning.data import DigitsDataModule, DigitsDVSDataModule, EventCamera
from tna_lightning.data.corruptions import KINDS, CorruptedFiles, corrupt
from tna_lightning.evaluation import figures
from tna_lightning.evaluation.inside import draw, look_inside
from tna_lightning.models import LIF, build
from tna_lightning.quantization import Ternary, load_packed, quantize_network, save_network
from tna_lightning.running.config import compose
from tna_lightning.running.record import NETWORK, finished_record
from tna_lightning.running.train import train

# ---- what follows from logits ----------------------------------------------------------------------------------------


LOGITS = torch.tensor([[4.0, 0, 0], [0, 1, 0], [0, 0, 3], [2, 0, 0], [0, 2.5, 0]])
LABELS = torch.tensor([0, 1, 1, 1, 0])


def test_confusion_and_the_accuracy_of_each_class_are_counted():
    confusion = figures.confusion_matrix(LOGITS, LABELS)
    assert confusion.tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert figures.class_accuracies(confusion) == [0.5, pytest.approx(1 / 3), None]
    assert figures.accuracy(LOGITS, LABELS) == pytest.approx(0.4)


def test_calibration_is_the_gap_between_confidence_and_accuracy_bin_by_bin():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(400, 3), torch.randint(3, (400,))
    found = figures.calibration(logits, labels)
    gaps = [each["samples"] / 400 * abs(each["accuracy"] - each["confidence"]) for each in found["bins"]]
    assert found["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=3, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected))
    assert sum(each["samples"] for each in found["bins"]) == 400
    assert found["nll"] == pytest.approx(-logits.log_softmax(1)[torch.arange(400), labels].mean().item(), rel=1e-5)
    sure = figures.calibration(torch.tensor([[60.0, 0.0]]), torch.tensor([1]))  # of probability 1
    assert (sure["ece"], sure["bins"][0]["to"]) == (pytest.approx(1.0), 1.0)


def test_an_ensemble_has_the_mean_of_the_probabilities():
    together = figures.ensemble([LOGITS, -LOGITS, LOGITS.flip(1)])
    expected = torch.stack([each.softmax(1) for each in (LOGITS, -LOGITS, LOGITS.flip(1))]).mean(0)
    torch.testing.assert_close(together.softmax(1), expected)
    torch.testing.assert_close(together.exp(), expected)


# ---- corruptions -----------------------------------------------------------------------------------------------------


GREY = torch.full((8, 3, 40, 40), 128, dtype=torch.uint8)
DRAWN = torch.randint(256, (4, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_noise_is_of_the_strength_that_cifar_10_c_has():
    for severity, deviation in ((1, 0.04), (5, 0.10)):
        noise = corrupt(GREY, "gaussian_noise", severity).float() / 255 - 128 / 255
        assert noise.std().item() == pytest.approx(deviation, rel=0.03)
    for severity, photons in ((1, 500), (5, 50)):
        counts = corrupt(GREY, "shot_noise", severity).float() / 255
        assert counts.std().item() == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.03)
    changed = corrupt(GREY, "impulse_noise", 5)
    assert set(changed.unique().tolist()) == {0, 128, 255}
    for extreme in (0, 255):
        assert (changed == extreme).float().mean().item() == pytest.approx(0.035, rel=0.1)


def test_what_is_not_drawn_is_as_its_definition_says():
    x = DRAWN.double().div(255).numpy()
    expected = {
        "gaussian_blur": gaussian_filter(x, (0, 0, 1.0, 1.0), mode="nearest", truncate=4),
        "contrast": (x - x.mean((2, 3), keepdims=True)) * 0.15 + x.mean((2, 3), keepdims=True),
        "brightness": np.zeros_like(x),
    }
    for place in np.ndindex(4, 9, 7):
        image, *pixel = place
        hue, saturation, value = colorsys.rgb_to_hsv(*x[image, :, pixel[0], pixel[1]])
        expected["brightness"][image, :, pixel[0], pixel[1]] = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
    for kind, values in expected.items():
        levels = corrupt(DRAWN, kind, 5).double().numpy()
        assert np.abs(levels - np.floor(values * 255)).max() <= 1, kind
        assert np.abs(levels - DRAWN.numpy()).mean() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_those_of_their_seed_and_grow_with_severity(kind):
    levels = [corrupt(DRAWN, kind, severity, seed=1) for severity in (1, 5)]
    assert torch.equal(levels[0], corrupt(DRAWN, kind, 1, seed=1))
    assert torch.equal(levels[0], corrupt(DRAWN, kind, 1, seed=2)) == (not kind.endswith("noise"))
    assert corrupt(DRAWN[:, :1], kind, 3).shape == DRAWN[:, :1].shape
    far = [(each.int() - DRAWN.int()).abs().float().mean() for each in levels]
    assert far[0] < far[1]


def test_files_in_the_layout_of_cifar_10_c_are_read_by_severity(tmp_path):
    rng = np.random.default_rng(0)
    fog = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", fog)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(6, dtype=np.uint8), 5))
    files = CorruptedFiles(tmp_path)
    assert files.kinds == ["fog"]
    assert files.labels.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(files.images("fog", 2).numpy(), fog[6:12].transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"corrupt='snow': allowed are all, fog"):
        files.images("snow", 1)
    np.save(tmp_path / "snow.npy", fog[:7])
    with pytest.raises(ValueError, match=r"snow\.npy is uint8 \[7, 8, 8, 3\], must be uint8 \[30, H, W, C\]"):
        CorruptedFiles(tmp_path).images("snow", 1)
    for labels in (np.arange(30), np.arange(7), np.zeros(0)):
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(ValueError, match=r"labels\.npy must hold the labels of the same images 5 times"):
            CorruptedFiles(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must be a folder of KIND\.npy and labels\.npy"):
        CorruptedFiles(tmp_path / "none")


# ---- the command -----------------------------------------------------------------------------------------------------


SMALL = ["data.train_subset=400", "data.batch_size=40", "model.width=0.25", "model.time_steps=3", "epochs=2"]
SMALL += ["trainer.enable_progress_bar=false", "neuron.threshold=0.2", "optimizer.lr=0.02"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two networks, the base ternary."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(compose(SMALL), folder)
    assert finished_record(folder)["results"]["test/acc"] > 0.25
    return folder


def written_run(folder, neuron="LIF", seed=3, data=None, **settings):
    """A folder with the least that a finished run leaves, of a network that nobody has trained."""
    folder.mkdir(parents=True)
    model = {"_target_": "tna_lightning.models.convnet", "width": 0.1, "time_steps": 3}
    inputs = {"channels": 2 if data else 1, "height": 8, "width": 8, "num_classes": 10}
    inputs["time_steps"] = data["time_steps"] if data else None
    spec = {"model": model, "neuron": {"_target_": f"tna_lightning.models.{neuron}", **settings}, "inputs": inputs}
    torch.manual_seed(seed)
    network = build(spec).eval()
    quantize_network(network, Ternary())
    expected = {"time_steps": 3}
    if data is None:
        expected |= {"kind": "images", "shape": [1, 8, 8], "mean": [0.3051], "std": [0.3758]}
    save_network(
        folder / NETWORK, network, spec, inputs=expected | {"class_names": [str(digit) for digit in range(10)]}
    )
    config = {
        "data": data or {"_target_": "tna_lightning.data.DigitsDataModule", "seed": 0},
        "model": model,
        "neuron": {**spec["neuron"], "_partial_": True},
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "objective": {},
        "companion": None,
        "companions": {},
    }
    record = {"format": 1, "status": "done", "identity": "0", "config": config, "seed": 0, "results": {}, "weights": {}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def ask(monkeypatch, capsys):
    """Status, output and errors of the command."""

    def ask(*words, door=evaluate):
        monkeypatch.setattr(sys, "argv", [door.__name__, *map(str, words)])
        status = 0
        try:
            door.main()
        except SystemExit as left:
            status = left.code
        out, err = capsys.readouterr()
        return status, out, err

    return ask


def digits():
    data = DigitsDataModule()
    data.setup("test")
    subset = data.test_set.subset
    return data.test_set.inputs[subset], data.test_set.targets[subset]


def accuracy_of(folder, x, labels, time_steps=None):
    """By hand: the kept network's answers, without Lightning."""
    network = load_packed(folder / NETWORK)
    if time_steps is not None:
        network.time_steps = time_steps
    with torch.no_grad():
        logits = network(network.preprocess(x)).mean(0)
    return (logits.argmax(1) == labels).float().mean().item()


def test_figures_pictures_and_logits_are_of_the_recorded_answers(run, ask, tmp_path):
    status, out, err = ask(run, "--out", tmp_path / "out", "--save-logits", tmp_path / "kept.npz")
    assert (status, err) == (0, "")
    record = finished_record(run)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["class_accuracy"] == pytest.approx(record["class_accuracy"])
    assert found["accuracy"] == pytest.approx(record["results"]["test/acc"])
    confusion = np.array(found["confusion"])
    _, labels = digits()
    assert confusion.sum(1).tolist() == labels.bincount().tolist()
    assert confusion.trace() / 360 == pytest.approx(record["results"]["test/acc"])
    assert f"calibration error {found['calibration']['ece']:.4f} (ECE)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("calibration.png", "confusion.png", "evaluation.json")
    ]
    for name in ("calibration", "confusion"):
        assert imread(tmp_path / "out" / f"{name}.png").std() > 0.05
    with np.load(tmp_path / "kept.npz") as kept:
        assert kept["labels"].tolist() == labels.tolist()
        assert (kept["logits"].argmax(1) == kept["labels"]).mean() == pytest.approx(record["results"]["test/acc"])
        assert list(kept["class_names"]) == [str(digit) for digit in range(10)]


def test_other_time_steps_give_the_accuracy_of_a_network_that_is_shown_as_many(run, ask, tmp_path):
    status, out, err = ask(run, "--time-steps", "1,3,6", "--out", tmp_path)
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    expected = {str(steps): accuracy_of(run, *digits(), steps) for steps in (1, 3, 6)}
    assert found["time_steps"] == pytest.approx(expected, abs=1e-6)
    assert expected["3"] == pytest.approx(finished_record(run)["results"]["test/acc"])
    assert len({*expected.values()}) == 3
    assert "   3  " in out
    assert "(trained so)" in out
    assert imread(tmp_path / "time_steps.png").std() > 0.05
    assert evaluate.evaluate(run, settings={"model.time_steps": 6})["test/acc"] == pytest.approx(expected["6"])
    trained = f"(as trained: {expected['3']:.2%})"
    for setting, line in (
        ("model.time_steps=6", f"test/acc {expected['6']:.2%} {trained}"),
        ("data.eval_batch_size=100", f"test/acc {expected['3']:.2%} {trained}"),
        ("data.test_subset=40", "asked about 40 test samples"),  # with which nothing recorded is to be compared
    ):
        _, out, _ = ask(run, "--set", setting)
        assert line in out.splitlines()
    assert "trained" not in out


@pytest.mark.slow
def test_events_are_cut_into_other_frames(ask, tmp_path):
    camera = {"_target_": "tna_lightning.data.EventCamera", "sensor": 12, "display": 24, "leg": 4, "loops": 1}
    data = {"_target_": "tna_lightning.data.DigitsDVSDataModule", "root": str(tmp_path), "size": 8, "time_steps": 3}
    folder = written_run(tmp_path / "run", threshold=0.2, data=data | {"camera": camera})
    words = ("--time-steps", "2,3", "--set", "data.slicing=count", "--out", tmp_path / "out")
    assert ask(folder, *words)[0] == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["time_steps"]
    for steps in (2, 3):
        module = DigitsDVSDataModule(
            tmp_path,
            camera=EventCamera(sensor=12, display=24, leg=4, loops=1),
            size=8,
            time_steps=steps,
            slicing="count",
        )
        module.setup("test")
        network = load_packed(folder / NETWORK)
        x, labels = (each[module.test_set.subset] for each in (module.test_set.inputs, module.test_set.targets))
        with torch.no_grad():
            right = network(module.prepare(x)).mean(0).argmax(1) == labels
        assert found[str(steps)] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("neuron", ["PSN", "MaskedPSN", "IPSU"])
def test_neurons_that_have_learned_their_time_steps_say_that_others_cannot_be(neuron, ask, tmp_path):
    folder = written_run(tmp_path / "run", neuron)
    status, out, err = ask(folder, "--time-steps", "2,3")
    assert (status, err) == (0, "")
    cannot = "what it has learned is for T = 3 alone (the shape of body.0.weight); LIF, IF and the like take any"
    assert f"   2  cannot: {cannot}" in out
    assert "   3  " in out
    status, _, err = ask(folder, "--time-steps", "2,4")
    assert status == 2
    assert err.startswith("error: time-steps: none of these can be done; time_steps=2: what it has learned")


def test_corrupted_images_are_those_of_their_kind_and_severity(run, ask, tmp_path):
    words = ("--corrupt", "contrast,shot_noise", "--severity", "1,5", "--seed", "4", "--out", tmp_path)
    status, out, err = ask(run, *words)
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    x, labels = digits()
    expected = {
        kind: {str(level): accuracy_of(run, corrupt(x, kind, level, seed=4), labels) for level in (1, 5)}
        for kind in ("contrast", "shot_noise")
    }
    assert found["corruptions"] == {kind: pytest.approx(each, abs=1e-6) for kind, each in expected.items()}
    assert found["clean"] == pytest.approx(finished_record(run)["results"]["test/acc"])
    assert f"mean over kinds: {found['mean']:.2%}" in out
    assert imread(tmp_path / "corruptions.png").std() > 0.05


def test_the_files_of_cifar_10_c_are_asked_about(run, ask, tmp_path):
    x, labels = digits()
    channels_last = x.numpy().transpose(0, 2, 3, 1)
    np.save(tmp_path / "nothing.npy", np.tile(channels_last, (5, 1, 1, 1)))
    np.save(tmp_path / "black.npy", np.concatenate([channels_last, *[0 * channels_last] * 4]))
    np.save(tmp_path / "labels.npy", np.tile(labels.numpy().astype(np.uint8), 5))
    status, _, err = ask(run, "--corrupt-root", tmp_path, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["corruptions"]
    recorded = finished_record(run)["results"]["test/acc"]
    assert found["nothing"] == dict.fromkeys("12345", pytest.approx(recorded))
    assert found["black"]["1"] == pytest.approx(recorded)
    assert found["black"]["2"] == pytest.approx(accuracy_of(run, 0 * x, labels), abs=1e-6)


def test_other_data_are_prepared_as_the_runs_and_go_by_the_names_of_their_classes(run, ask, tmp_path):
    x, labels = digits()
    chosen = (labels == 7) | (labels == 3)
    for number in chosen.nonzero().flatten().tolist():
        folder = tmp_path / "mine" / str(int(labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[number, 0].numpy()).save(folder / f"{number}.png")
    status, out, err = ask(run, "--data", "image_folder", "--data-root", tmp_path / "mine", "--all", "--out", tmp_path)
    assert (status, "error" in err) == (0, False)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert f"test/acc {found['accuracy']:.2%}\n" in out
    assert "recorded" not in out  # of other samples
    assert found["samples"] == int(chosen.sum())
    assert found["accuracy"] == pytest.approx(accuracy_of(run, x[chosen], labels[chosen]), abs=1e-6)
    assert f"data=image_folder: {int(chosen.sum())} samples, all of them; none is of 0, 1, 2" in out
    (tmp_path / "mine" / "7").rename(tmp_path / "mine" / "seven")
    status, _, err = ask(run, "--data", "image_folder", "--data-root", tmp_path / "mine")
    assert status == 2
    assert "error: data=image_folder: has the class 'seven', which the network does not know; its classes are 0" in err


def test_several_runs_answer_as_an_ensemble(run, ask, tmp_path):
    other = written_run(tmp_path / "other", threshold=0.1)
    status, out, _ = ask(run, other, "--save-logits", tmp_path / "kept.npz")
    assert status == 0
    x, labels = digits()
    networks = [load_packed(folder / NETWORK) for folder in (run, other)]
    probabilities = sum(torch.stack([each.probabilities for each in network.predict(x)]) for network in networks) / 2
    with np.load(tmp_path / "kept.npz") as kept:
        np.testing.assert_allclose(torch.from_numpy(kept["logits"]).softmax(1).numpy(), probabilities, atol=1e-5)
    accuracy = (probabilities.argmax(1) == labels).float().mean().item()
    (together,) = [line for line in out.splitlines() if line.startswith("together test/acc")]
    assert together == f"together test/acc {accuracy:.2%}"
    record = json.loads((other / "run.json").read_text())
    record["config"]["trainer"]["limit_test_batches"] = 1
    record["config"]["data"]["eval_batch_size"] = 100
    (other / "run.json").write_text(json.dumps(record))
    status, out, err = ask(run, other)
    assert (status, out) == (2, "")
    assert f"run={str(other)!r}: has another test set than {run}" in err


def test_base_and_twin_of_a_checkpoint_answer_as_recorded_and_together(run, ask, tmp_path):
    status, out, err = ask(run, "--twin", "--save-logits", tmp_path / "kept.npz")
    assert (status, err) == (0, "")
    results = finished_record(run)["results"]
    for name in ("test/acc", "test/companion_acc"):
        assert f"{name} {results[name]:.2%} (recorded: {results[name]:.2%})" in out
    assert results["test/acc"] != results["test/companion_acc"]
    with np.load(tmp_path / "kept.npz") as kept:
        accuracy = (kept["logits"].argmax(1) == kept["labels"]).mean()
    (together,) = [line for line in out.splitlines() if line.startswith("together test/acc")]
    assert together == f"together test/acc {accuracy:.2%}"
    alone = written_run(tmp_path / "alone")
    status, _, err = ask(alone, "--twin")
    assert (status, err) == (2, f"error: run={str(alone)!r}: has no companion, that was trained along or is kept\n")


# ---- a look inside ---------------------------------------------------------------------------------------------------


def test_the_picture_of_a_run_shows_one_sample_of_its_test_set(run, ask, tmp_path):
    status, out, err = ask(run, "--sample", 7, "--out", tmp_path / "inside.png", door=show)
    assert (status, err) == (0, "")
    x, labels = digits()
    network = load_packed(run / NETWORK)
    (answer,) = network.predict(x[7:8])
    first, *layers, last = out.splitlines()
    assert first.endswith(f"test sample 7 of {labels[7]}, answered {answer.name} with {answer.probability:.1%}")
    _, recorded = record(network, network.preprocess(x[7:8]))
    assert layers == [f"{each.name}: {each.spikes.mean():.3f} spikes a neuron and step" for each in recorded]
    assert last == f"picture: {tmp_path / 'inside.png'}"
    assert imread(tmp_path / "inside.png").std() > 0.1
    for words, message in (
        ([run, "--sample", 360], "sample=360: must lie in 0 to 359, the test set has 360"),
        ([run, "data=digits"], f"run={str(run)!r}: a run's folder stands alone, without settings"),
        (["data=digits", "--sample", 1], "--sample: is for a run's folder"),
        (
            [written_run(tmp_path / "ann", "QuantReLU")],
            f"run={str(tmp_path / 'ann')!r}: its network has no spiking",
        ),
    ):
        status, _, err = ask(*words, door=show)
        assert status == 2
        assert err.startswith(f"error: {message}")


def test_what_is_seen_inside_is_what_was_recorded():
    class Attending(torch.nn.Module):
        """A layer with the parts of attention, of 2 channels on 1 x 3 pixels."""

        def __init__(self):
            super().__init__()
            self.query = self.key = self.value = torch.nn.Identity()
            self.neuron, self.project = LIF(beta=0.5, threshold=0.75), torch.nn.Flatten(2)

        def forward(self, x):
            return self.project(self.neuron(x.expand(2, *x.shape)))

    x = torch.tensor([[[[1.0, 0.5, 0.0]], [[0.0, 0.5, 0.0]]]])
    inside = look_inside(Attending(), x)
    # 1 fires at once and again; 0.5 reaches 0.75 at the second step, which is not above
    assert inside.maps[""].tolist() == [[0.5, 0.0, 0.0]]
    logits = torch.tensor([1.0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(inside.probabilities, logits.softmax(0).expand(2, 6))
    figure = draw(inside, np.zeros((1, 1, 3, 3)), list("abcdef"), 0, "title")
    titles = [axes.get_title() for axes in figure.axes]
    assert {"sample: a", "answer", "firing rates", "neuron\n6 neurons"} <= {*titles}
    (raster,) = [axes for axes in figure.axes if axes.get_title().startswith("neuron\n")]
    assert raster.images[0].get_array().sum(1).tolist() == [2, 0, 0, 0, 0, 0]


# ---- what cannot be asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set", "model.width=2"],
            "set=model.width: cannot be changed once a network is trained; what can be is model",
        ),
        (["--set", "data.test_fraction=0"], "set=data.test_fraction: cannot be changed"),
        (["--set", "model.time_steps"], "set='model.time_steps': must be KEY=VALUE"),
        (["--set", "data.time_steps=2"], "set=data.time_steps: these are static images, shown model.time_steps times"),
        (["--set", "data.slicing=count"], "data.slicing: nothing reads such a setting"),
        (["--set", "data.eval_batch_size=x"], "data.eval_batch_size='x': must be a whole number"),
        (["--set", "channels_last=2"], "set=channels_last=2: allowed are true, false"),
        (["--corrupt", "fog"], "corrupt='fog': allowed are all, gaussian_noise"),
        (["--corrupt", "all", "--severity", "6"], "severity=6: allowed are 1, 2, 3, 4, 5"),
        (["--severity", "1"], "--severity: needs --corrupt"),
        (["--all"], "--all: needs --data"),
        (["--time-steps", "1", "--save-logits", "x.npz"], "--time-steps: does not go with --save-logits"),
        (["--c", "folder", "--out", "x"], "--c: does not go with --out"),
        (["--save-logits", "x.csv"], "--save-logits='x.csv': must end in .npz"),
        (["--data", "nothing"], "data=nothing: allowed are"),
        (["--data", "cifar10", "--data-root", "none", "--set", "data.download=false"], "data."),
        (
            ["--data", "digits", "--data-root", "x"],
            "data-root='x': must be left out, these data come from no folder and no file",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(run, ask, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = ask(run, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1
