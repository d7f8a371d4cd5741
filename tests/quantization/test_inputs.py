"""Raw inputs asked of a kept network: prepared as in training to the bit, and refused where they cannot be."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tna_lightning.data import DigitsDataModule, DigitsDVSDataModule, EventCamera
from tna_lightning.data.array_cache import BadSample
from tna_lightning.data.pictures import read_picture
from tna_lightning.data.recordings import Recording
from tna_lightning.models import LIF, build, convnet
from tna_lightning.quantization import load_packed, save_network
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.running.factory import expected_inputs

IMAGES = {"kind": "images", "shape": [3, 8, 6], "mean": [0.1, 0.5, 0.9], "std": [0.2, 0.3, 0.1], "time_steps": 2}
NAMES = ["cat", "dog", "frog"]


def kept(path, inputs, time_steps=None):
    """A network of the package that was kept with these inputs."""
    shape = (inputs or {}).get("shape") or [3, 8, 6]
    sizes = dict(zip(("channels", "height", "width"), shape, strict=True))
    model = {"_target_": "tna_lightning.models.convnet", "width": 0.1, "time_steps": 2}
    spec = {
        "model": model,
        "neuron": {"_target_": "tna_lightning.models.LIF"},
        "inputs": sizes | {"time_steps": time_steps, "num_classes": 3},
    }
    torch.manual_seed(3)
    save_network(path, build(spec).eval(), spec, inputs=inputs)
    return load_packed(path)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return kept(tmp_path_factory.mktemp("kept") / "network", IMAGES | {"class_names": NAMES})


LEVELS = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "count"),
    [
        (LEVELS, 2),
        (torch.from_numpy(LEVELS), 2),
        (LEVELS[0], 1),
        (LEVELS.transpose(0, 2, 3, 1), 2),
        (LEVELS[0].transpose(1, 2, 0), 1),
        (list(LEVELS), 2),
        ([LEVELS[0], Image.fromarray(np.ascontiguousarray(LEVELS[1].transpose(1, 2, 0)))], 2),
    ],
    ids=["array", "tensor", "one", "channels last", "one, channels last", "list", "list of both"],
)
def test_uint8_in_every_layout_becomes_the_same(network, x, count):
    mean, std = (np.array(IMAGES[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    prepared = network.preprocess(x)
    assert prepared.dtype == torch.float32
    np.testing.assert_allclose(prepared.numpy(), ((LEVELS / 255 - mean) / std)[:count], rtol=1e-5, atol=1e-5)


def test_answers_are_the_softmax_of_the_mean_over_time(network):
    with torch.no_grad():
        expected = network(network.preprocess(LEVELS)).mean(0).softmax(-1)
    answers = network.predict(LEVELS)
    for answer, probabilities in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer.probabilities, probabilities)
        assert answer.probability == probabilities.max()
        assert answer.name == NAMES[int(probabilities.argmax())]
    assert network.classes == NAMES
    prepared = network.predict(network.preprocess(LEVELS))
    assert [answer.probability for answer in prepared] == [answer.probability for answer in answers]


def test_a_picture_becomes_what_an_image_folder_makes_of_it(tmp_path, network):
    Image.fromarray(LEVELS[0, 0].repeat(4, 0)).save(tmp_path / "grey.png")  # 32 x 6, of one channel
    with Image.open(tmp_path / "grey.png") as picture:
        prepared = network.preprocess(picture)
    as_trained = read_picture(tmp_path / "grey.png", (8, 6), grey=False)
    assert torch.equal(prepared, network.preprocess(np.ascontiguousarray(as_trained)))


def test_images_and_events_are_prepared_as_their_data_modules_do_to_the_bit(tmp_path):
    class Few(DigitsDVSDataModule):
        def pictures(self):
            pictures, labels = super().pictures()
            return pictures[:40], labels[:40]

    events = Few(tmp_path, camera=EventCamera(sensor=16, display=32, leg=4, loops=1), size=6)  # cells of unequal size
    digits = DigitsDataModule()
    for data in (digits, events):
        data.setup("test")
        model = convnet(in_channels=data.in_channels, num_classes=10, neuron=LIF, width=0.1)
        save_network(tmp_path / "kept", model, inputs=(expected := expected_inputs(model, data)))
        network = load_packed(tmp_path / "kept", model)
        batch = next(iter(data.test_dataloader()))
        assert torch.equal(network.preprocess(batch.x), data.prepare(batch.x))
        assert network.classes == data.class_names
    assert expected["framing"] == {"sensor": [16, 16], "slicing": "time"}
    source = events.source()
    recordings = [source.load(int(index)) for index in batch.index[:3]]
    assert torch.equal(network.preprocess(recordings), data.prepare(batch.x[:3]))
    assert len(network.predict(recordings)) == 3
    off = Recording(*(np.array([value]) for value in (0, 16, 0, True)))
    with pytest.raises(BadSample, match=r"x=16, y=0 is outside the sensor, \[H,W\]=\[16,16\]"):
        network.preprocess(off)
    short = Recording(*(np.array([value]) for value in (0, 3, 0, True)))
    with pytest.raises(BadSample, match=r"too short, its 1 event\(s\) in 0 us give 4 frames"):
        network.preprocess(short)
    for x, message in ((batch.x[0, :2], "must be .T, 2, H, W. .4, 2, 6, 6."), ("x", "must be a Recording, or a uint8")):
        with pytest.raises(ValueError, match=message):
            network.preprocess(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (LEVELS[:, :1], r"x=\[2, 1, 8, 6\]: must be \[C, H, W\] \[3, 8, 6\] or \[H, W, C\] \[8, 6, 3\]"),
        (LEVELS[0, 0], r"x=\[8, 6\]: must be"),
        (
            LEVELS[:, :, :4],
            r"x=\[2, 3, 4, 6\]: must be .* pictures of another size are scaled if they come as Pillow's",
        ),
        (LEVELS / 255, r"x=float64: must be uint8, 0 to 255; floats that are prepared already go into network\(x\)"),
        (LEVELS.astype(np.int64), r"x=int64: must be uint8"),
        ("cat.png", r"x=str: must be a Pillow picture, or a uint8 array or tensor"),
        ([], r"x=\[\]: must hold at least one input"),
    ],
)
def test_what_is_no_raw_input_is_refused(network, x, message):
    for ask in (network.preprocess, network.predict):
        with pytest.raises(ValueError, match=f"^{message}"):
            ask(x)


def test_raw_inputs_given_to_the_network_itself_are_refused_with_what_to_do(network, tmp_path):
    copy = fold_batch_norm(network)  # a deep copy, which asks itself
    for each in (network, copy):
        with pytest.raises(
            ValueError, match=r"x of torch\.uint8: must be floating-point.*network\.preprocess\(x\) makes them so"
        ):
            each(torch.from_numpy(LEVELS))
    with torch.no_grad():
        copy.classifier.bias += torch.tensor([0.0, 1e3, 0.0])
    assert (
        {answer.name for answer in copy.predict(LEVELS)} == {"dog"} != {each.name for each in network.predict(LEVELS)}
    )


@pytest.mark.parametrize(
    "inputs", [None, {"kind": "images", "shape": [3, 8, 6]}, {"kind": "events", "shape": [2, 8, 8]}]
)
def test_a_file_that_does_not_know_says_so(tmp_path, inputs):
    network = kept(tmp_path / "kept", inputs, time_steps=2 if inputs and inputs["kind"] == "events" else None)
    with pytest.raises(ValueError, match=r"^path=.*kept': does not know what its network expects"):
        network.preprocess(LEVELS)
    with pytest.raises(ValueError, match=r"normalised as in training; this file does not know what"):
        network(torch.from_numpy(LEVELS))
    if inputs is None:
        assert network.classes is None
        assert {answer.name for answer in network.predict(torch.randn(9, 3, 8, 6))} <= {"0", "1", "2"}


def test_a_network_of_ones_own_keeps_what_it_has_itself(tmp_path):
    class Own(nn.Linear):
        def predict(self, x):
            return "mine"

        def forward(self, x):
            return super().forward(x.float())

    save_network(tmp_path / "own", Own(3, 2))
    network = load_packed(tmp_path / "own", Own(3, 2))
    assert network.predict(1) == "mine"
    assert network(torch.ones(1, 3, dtype=torch.uint8)).shape == (1, 2)  # what it takes, nobody knows
