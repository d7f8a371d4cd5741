"""Model x neuron x quantisation x baseline composes, instantiates and takes a training step; its network is exported.

So few combinations that every two choices of different groups meet. A slow test tries each model with each neuron, in
full precision and with ternary weights that are the same at every step or not, alone and with a twin.
"""

import itertools
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from tna_lightning.data import Batch, Inputs
from tna_lightning.export import checking, export_nir, export_onnx, export_packed
from tna_lightning.learner import DEFAULT_OPTIMIZER
from tna_lightning.models import SpikingNeuron
from tna_lightning.models import build as build_network
from tna_lightning.models.blocks import UNITS
from tna_lightning.quantization import Ternary, quantize_network
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build
from tna_lightning.running.home import options
from tna_lightning.running.train import build_learner

GROUPS = ("neuron", "baseline", "quant", "model")
WIDTH = {"convnet": 0.125}  # of the others' widest layer 16 channels are left
CHANNELS, CLASSES = 2, 6
DEEPER = {"resnet18", "resnet19", "resnet20", "vgg16", "maxresnet18"}  # of the same blocks as others
FURTHER = {"msresnet18", "sewresnet18", "sdt", "spikingformer"}  # whose packed files are tried with two neurons
SIZES = ("sdt_dvs", "spikingformer_dvs")  # the same networks as sdt and spikingformer
NO_SPIKES = ("relu", "quant_relu")
NIR_KNOWS = ("lif", "plif", "if")
OPTIONS = {group: [choice for choice in options(group) if choice not in SIZES] for group in GROUPS}
if find_spec("spikingjelly") is None:
    OPTIONS["neuron"].remove("spikingjelly")


@pytest.fixture(scope="module")
def choices():
    """The composed node of every choice, by group; each is composed once."""
    nodes = {group: {} for group in GROUPS}
    for group, composed in nodes.items():
        for choice in OPTIONS[group]:
            config = compose([f"{group}={choice}", "model.time_steps=2"])
            set_by_baseline = {key: config[key] for key in ("objective", "companion", "companions")}
            composed[choice] = set_by_baseline if group == "baseline" else config[group]
    return nodes | {"common": compose()}


def every_pair(columns):
    """Rows, one choice of each column, in which every two choices of different columns meet: greedily few."""
    cells = [[(position, choice) for choice in column] for position, column in enumerate(columns)]
    left = {pair for one, other in itertools.combinations(cells, 2) for pair in itertools.product(one, other)}
    rows = []

    def add(row):
        for cell in (column for position, column in enumerate(cells) if position not in dict(row)):
            row = [*row, max(cell, key=lambda new, row=row: sum(tuple(sorted((old, new))) in left for old in row))]
        row.sort()
        left.difference_update(itertools.combinations(row, 2))
        rows.append(tuple(choice for _, choice in row))

    for pair in itertools.product(*cells[:2]):  # the longest columns
        add(list(pair))
    while left:
        add(list(min(left)))
    return rows


ROWS = every_pair(list(OPTIONS.values()))


def test_every_two_choices_are_among_the_combinations_tried():
    every = list(OPTIONS.values())
    for first, second in itertools.combinations(range(len(GROUPS)), 2):
        assert {(row[first], row[second]) for row in ROWS} == set(itertools.product(every[first], every[second]))
    assert len(ROWS) < 1.3 * len(every[0]) * len(every[1])


@pytest.mark.parametrize("model", OPTIONS["model"])
def test_every_pair_takes_a_training_step(model, choices):
    for neuron, baseline, quant, its_model in ROWS:
        if its_model == model:
            take_a_training_step(model, neuron, quant, baseline, choices)


@pytest.mark.slow
@pytest.mark.parametrize("neuron", OPTIONS["neuron"])
@pytest.mark.parametrize("model", OPTIONS["model"])
def test_every_neuron_in_every_model_takes_a_training_step(model, neuron, choices):
    for quant, baseline in itertools.product(("none", "ternary", "tawq"), ("plain", "tna")):
        take_a_training_step(model, neuron, quant, baseline, choices)


def take_a_training_step(model, neuron, quant, baseline, choices):
    torch.manual_seed(0)
    inputs = Inputs(CHANNELS, 8, 8, None, CLASSES)
    datamodule = SimpleNamespace(inputs=inputs, num_classes=CLASSES)
    x, target = torch.randn(4, CHANNELS, 8, 8), torch.tensor([0, 5, 2, 2])
    node = {**choices["model"][model], "width": WIDTH.get(model, 1 / 32), "time_steps": 2}
    config = {**choices["common"], "model": node, "neuron": choices["neuron"][neuron], **choices["baseline"][baseline]}
    learner = build_learner(config, datamodule)
    for module in learner.base.modules():  # what a block starts with at 0 hands no gradient on
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.constant_(module.weight, 0.5)
    if choices["quant"][quant]:
        build("quant", choices["quant"][quant]).setup(
            SimpleNamespace(max_epochs=1, callbacks=[], fast_dev_run=False), learner, "fit"
        )
    optimizer = DEFAULT_OPTIMIZER(list(learner.parameter_groups()))
    before = [parameter.detach().clone() for parameter in learner.base.parameters()]

    if neuron in NO_SPIKES and quant == "tawq" and baseline == "tna_per_step":
        # the base sees each step by its own weights, its twin of full precision the image once
        with pytest.raises(ValueError, match=r"^per_step_match=True: the networks need the same number of time steps"):
            learner.train().losses(Batch(x, target))
        return
    losses, logits = learner.train().losses(Batch(x, target))
    losses["loss"].backward()
    optimizer.step()

    what = f"{model} {neuron} {quant} {baseline}"
    steps = 1 if neuron in NO_SPIKES and quant != "tawq" else 2
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
            if not module.weight.any():
                torch.nn.init.ones_(module.weight)
            torch.nn.init.constant_(module.bias, 0.45)  # with 0.5 two steps of a silent channel meet the threshold
            module.momentum = 0.5
    for _ in range(2):
        network(images)
    return network.eval(), spec, images


def first_neuron(network):
    return next(module for module in network.body.modules() if isinstance(module, (SpikingNeuron, *UNITS)))


@pytest.mark.parametrize("model", OPTIONS["model"])
def test_every_export_is_right_or_refused_by_the_modules_name(model, choices, tmp_path, monkeypatch):
    # of so few spikes one that rounding moves over the edge, and what follows from it, is more than one in 10,000
    monkeypatch.setattr(checking, "SPIKE_TOLERANCE", 0.01)
    monkeypatch.setattr(checking, "PREDICTION_TOLERANCE", 0.25)
    for neuron in ("plif",) if model in DEEPER else ("plif", "psn") if model in FURTHER else choices["neuron"]:
        network, spec, images = trained(model, neuron, choices)
        has_max_pool = any(isinstance(module, torch.nn.MaxPool2d) for module in network.modules())
        for fold in (False, True):
            counts = export_packed(network, tmp_path / "packed", [images], spec, fold)
            assert counts["images"] == 4
        if neuron not in NIR_KNOWS or has_max_pool:  # of both the neuron comes first
            kind = "MaxPool2d" if neuron in NIR_KNOWS else type(first_neuron(network)).__name__
            with pytest.raises(ValueError, match=rf"^network\.body\.[\w.]+: NIR has no node for {kind}$"):
                export_nir(network, tmp_path / "nir", [images])
            assert not (tmp_path / "nir").exists()
        else:
            counts = export_nir(network, tmp_path / "nir", [images])
            assert (counts["images"], counts["spikes"] > 0) == (4, True)
            (tmp_path / "nir").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "neuron"),
    [*((model, "lif") for model in OPTIONS["model"]), *(("convnet", each) for each in OPTIONS["neuron"])],
)
def test_every_model_and_neuron_is_right_as_onnx(model, neuron, choices, tmp_path):
    network, _, images = trained(model, neuron, choices)
    assert export_onnx(network, tmp_path / "onnx", [images])["images"] == 4
