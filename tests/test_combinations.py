"""Model x neuron x quantisation x baseline composes, instantiates and takes a training step; its network is exported.

Of one model of each family, a few combinations that hold each pair of neuron, quantisation and baseline; of its deeper
relatives a few that hold each choice. Slow tests try all.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch

from tna_lightning.data import Batch, Inputs
from tna_lightning.export import checking, export_nir, export_onnx, export_packed
from tna_lightning.learner import DEFAULT_OPTIMIZER
from tna_lightning.models import build as build_network
from tna_lightning.quantization import Ternary, quantize_network
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build
from tna_lightning.running.home import options
from tna_lightning.running.train import build_learner

DEEPER = {"resnet18", "resnet19", "resnet20", "vgg16"}  # of the same blocks as resnet8 and vgg11
WIDTH = {"convnet": 0.125}  # of the others' widest layer 16 channels are left
CHANNELS, CLASSES = 2, 6


@pytest.fixture(scope="module")
def choices():
    """The composed node of every choice, by group; each is composed once."""
    nodes = {"model": {}, "neuron": {}, "quant": {}, "baseline": {}}
    for group, composed in nodes.items():
        for choice in options(group):
            config = compose([f"{group}={choice}"])
            set_by_baseline = {key: config[key] for key in ("objective", "companion", "companions")}
            composed[choice] = set_by_baseline if group == "baseline" else config[group]
    return nodes | {"common": compose()}


def combinations(choices):
    return list(itertools.product(choices["neuron"], choices["quant"], choices["baseline"]))


def every_pair(choices):
    """Each quantisation with each baseline, and the neurons in turn, shifted by one from row to row."""
    neurons = list(choices["neuron"])
    return [
        (neurons[(row + column) % len(neurons)], quant, baseline)
        for row, quant in enumerate(choices["quant"])
        for column, baseline in enumerate(choices["baseline"])
    ]


def every_choice(choices):
    """As many combinations as the longest group has choices; the others' come round again."""
    columns = [list(choices[group]) for group in ("neuron", "quant", "baseline")]
    return [tuple(column[row % len(column)] for column in columns) for row in range(max(map(len, columns)))]


def test_every_pair_and_every_choice_are_among_the_combinations_tried(choices):
    tried, every = every_pair(choices), combinations(choices)
    assert len(tried) < len(every) / 3
    for position, group in enumerate(("neuron", "quant", "baseline")):
        assert {combination[position] for combination in every_choice(choices)} == set(choices[group])
    for first, second in itertools.combinations(range(3), 2):
        assert {(c[first], c[second]) for c in tried} == {(c[first], c[second]) for c in every}


@pytest.mark.parametrize("model", options("model"))
def test_every_pair_or_choice_takes_a_training_step(model, choices):
    for neuron, quant, baseline in every_choice(choices) if model in DEEPER else every_pair(choices):
        take_a_training_step(model, neuron, quant, baseline, choices)


@pytest.mark.slow
@pytest.mark.parametrize("model", options("model"))
def test_every_combination_takes_a_training_step(model, choices):
    for neuron, quant, baseline in combinations(choices):
        take_a_training_step(model, neuron, quant, baseline, choices)


def take_a_training_step(model, neuron, quant, baseline, choices):
    torch.manual_seed(0)
    inputs = Inputs(CHANNELS, 8, 8, None, CLASSES)
    datamodule = SimpleNamespace(inputs=inputs, num_classes=CLASSES)
    x, target = torch.randn(4, CHANNELS, 8, 8), torch.tensor([0, 5, 2, 2])
    node = {**choices["model"][model], "width": WIDTH.get(model, 1 / 32), "time_steps": 2}
    config = {**choices["common"], "model": node, "neuron": choices["neuron"][neuron], **choices["baseline"][baseline]}
    learner = build_learner(config, datamodule)
    if choices["quant"][quant]:
        build("quant", choices["quant"][quant]).setup(
            SimpleNamespace(max_epochs=1, callbacks=[], fast_dev_run=False), learner, "fit"
        )
    optimizer = DEFAULT_OPTIMIZER(list(learner.parameter_groups()))
    before = [parameter.detach().clone() for parameter in learner.base.parameters()]

    losses, logits = learner.train().losses(Batch(x, target))
    losses["loss"].backward()
    optimizer.step()

    what = f"{model} {neuron} {quant} {baseline}"
    steps = 1 if neuron == "relu" else 2
    assert logits["base"].shape == (steps, 4, CLASSES), what
    assert all(output.shape[1:] == (4, CLASSES) for output in logits.values()), what  # an ANN twin has one step
    names = ["base", "companion", "third"][: 1 if baseline.startswith("plain") else 3 if baseline == "cohort" else 2]
    assert list(logits) == names, what
    assert torch.isfinite(losses["loss"]), what
    moved = [bool((old != new).any()) for old, new in zip(before, learner.base.parameters(), strict=True)]
    assert sum(moved) > 0.5 * len(moved), what
    assert all(parameter.isfinite().all() for parameter in learner.parameters()), what


def trained(model, neuron, choices):
    """A ternary network of two steps whose batch norm has seen images, its spec, and images to check with."""
    torch.manual_seed(0)
    pixels = 48 if model == "vggsnn" else 16  # of which its pool leaves whole windows
    spec = {
        "model": {**choices["model"][model], "width": WIDTH.get(model, 1 / 32), "time_steps": 2},
        "neuron": choices["neuron"][neuron],
        "inputs": {"channels": CHANNELS, "height": pixels, "width": pixels, "time_steps": None, "num_classes": CLASSES},
    }
    network = build_network(spec)
    quantize_network(network, Ternary())
    images = torch.rand(4, CHANNELS, pixels, pixels)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.45)  # with 0.5 two steps of a silent channel meet the threshold
            module.momentum = 0.5
    for _ in range(2):
        network(images)
    return network.eval(), spec, images


@pytest.mark.parametrize("model", options("model"))
def test_every_export_is_right_or_refused_by_the_modules_name(model, choices, tmp_path, monkeypatch):
    # of so few spikes one that rounding moves over the edge, and what follows from it, is more than one in 10,000
    monkeypatch.setattr(checking, "SPIKE_TOLERANCE", 0.01)
    monkeypatch.setattr(checking, "PREDICTION_TOLERANCE", 0.25)
    for neuron in ("plif",) if model in DEEPER else choices["neuron"]:
        network, spec, images = trained(model, neuron, choices)
        has_max_pool = any(isinstance(module, torch.nn.MaxPool2d) for module in network.modules())
        for fold in (False, True):
            counts = export_packed(network, tmp_path / "packed", [images], spec, fold)
            assert counts["images"] == 4
        if neuron == "relu" or has_max_pool:  # of both the module comes first that stands first
            kind = "ReLU" if neuron == "relu" else "MaxPool2d"
            with pytest.raises(ValueError, match=rf"^network\.body\.[\d.]+: NIR has no node for {kind}$"):
                export_nir(network, tmp_path / "nir", [images])
            assert not (tmp_path / "nir").exists()
        else:
            counts = export_nir(network, tmp_path / "nir", [images])
            assert (counts["images"], counts["spikes"] > 0) == (4, True)
            (tmp_path / "nir").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "neuron"),
    [*((model, "lif") for model in options("model")), *(("convnet", each) for each in options("neuron"))],
)
def test_every_model_and_neuron_is_right_as_onnx(model, neuron, choices, tmp_path):
    network, _, images = trained(model, neuron, choices)
    assert export_onnx(network, tmp_path / "onnx", [images])["images"] == 4
