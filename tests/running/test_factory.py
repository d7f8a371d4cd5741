"""Networks from config nodes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tna_lightning.data import Inputs
from tna_lightning.models import LIF, SpikingNeuron, build
from tna_lightning.running import factory
from tna_lightning.running.factory import (
    build_network,
    check_time_steps,
    checkpoint_network,
    compile_network,
    network_spec,
)
from tna_lightning.running.neuron_trial import try_network

IMAGES = Inputs(channels=2, height=8, width=6, time_steps=None, num_classes=3)
EVENTS = Inputs(channels=2, height=8, width=6, time_steps=5, num_classes=3)


def a_resnet8(width):
    lif = {"_target_": "tna_lightning.models.LIF", "_partial_": True}
    model = {"_target_": "tna_lightning.models.resnet8", "width": width, "time_steps": 1}
    return {"model": model, "neuron": lif, "in_channels": 3, "num_classes": 2}


def test_channels_last_is_left_out_where_a_strided_shortcut_is_too_narrow_for_it(caplog):
    """oneDNN writes past the end of such a layer's weight gradient: the steps below would end the process."""
    for width, is_channels_last in ((0.25, False), (1.0, True)):
        network = build_network(a_resnet8(width), channels_last=True)
        assert network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last) is is_channels_last
        for _ in range(5):
            network(torch.randn(4, 3, 32, 32)).sum().backward()
    (warning,) = caplog.messages
    assert warning == "channels_last=true: left out, since body.2.shortcut.conv has too few channels for it"


# torch's own, inside of torch.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "width", "compiler", "whole", "neurons"),
    [
        ("none", 1.0, True, False, False),
        ("neurons", 1.0, True, False, True),
        ("auto", 1.0, True, False, "auto"),
        ("network", 1.0, True, True, False),
        ("network", 1.0, False, False, True),  # which stay eager and say so
        ("network", 0.25, True, False, True),  # the compiler would choose channels-last
    ],
)
def test_what_is_compiled(how, width, compiler, whole, neurons, monkeypatch, caplog):
    monkeypatch.setattr(factory, "has_compiler", lambda device_type: compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = build_network(a_resnet8(width))
    compile_network(network, how)
    assert (network._compiled_call_impl is not None) is whole
    assert all(module.compiled is neurons for module in network.modules() if hasattr(module, "compiled"))
    warning = "compile=network: the neurons alone are compiled, since body.2.shortcut.conv has too few channels for it"
    assert caplog.messages == ([warning] if width == 0.25 else [])


class Sized(nn.Module):
    """A backbone that is told its inputs, and calls `neuron()` without a hint."""

    def __init__(self, inputs, neuron, hidden=4):
        super().__init__()
        pixels = inputs.channels * inputs.height * inputs.width
        self.stem, self.neuron = nn.Linear(pixels, hidden), neuron()
        self.classifier = nn.Linear(hidden, inputs.num_classes)

    def forward(self, x):
        x = x.transpose(0, 1) if x.ndim == 5 else x.expand(2, *x.shape)
        return self.classifier(self.neuron(self.stem(x.flatten(2))))


class Timed(LIF):
    def __init__(self, time_steps=None):
        super().__init__(beta=0.9, threshold=0.1)
        self.time_steps = time_steps


class Keeping(LIF):
    """Its membrane outlives a forward."""

    def forward(self, current):
        self.register_buffer("kept", getattr(self, "kept", 0) + current.detach().sum(0))
        return super().forward(current + self.kept)


class KeepingInTraining(Keeping):
    def forward(self, current):
        return super().forward(current) if self.training else LIF.forward(self, current)


class Drawing(LIF):
    def forward(self, current):
        return (torch.rand_like(current) < 0.5).to(current.dtype)


class Writing(LIF):
    def forward(self, current):
        return super().forward(current.mul_(2))


class DrawingOpenly(Drawing):
    is_random = True


class Flat(LIF):
    def forward(self, current):
        return super().forward(current).flatten(1)


class Double(LIF):
    def forward(self, current):
        return super().forward(current).double()


class Memoryless(nn.Module):
    """What somebody took for a neuron."""

    def forward(self, current):
        return (current > 1).to(current.dtype)


def config_of(neuron, model=Sized, **settings):
    nodes = {"model": model, "neuron": neuron}
    config = {key: {"_target_": f"{target.__module__}.{target.__qualname__}"} for key, target in nodes.items()}
    config["neuron"]["_partial_"] = True
    config["model"] |= settings
    return config


def network_of(neuron, inputs=IMAGES, **settings):
    return build_network(network_spec(config_of(neuron, **settings), SimpleNamespace(inputs=inputs)))


def test_a_backbone_is_told_its_inputs_and_its_neurons_the_time():
    network = network_of(Timed, EVENTS)
    assert network.stem.in_features == 2 * 8 * 6
    assert network.neuron.time_steps == 5  # of the data, since the backbone has no such setting
    resnet = {"_target_": "tna_lightning.models.resnet8", "width": 0.25, "time_steps": 4}
    for inputs, time_steps in ((IMAGES, 4), (EVENTS, 5)):
        spec = network_spec({**config_of(Timed), "model": resnet}, SimpleNamespace(inputs=inputs))
        assert spec["model"]["time_steps"] == time_steps
        neurons = [module for module in build_network(spec).modules() if isinstance(module, Timed)]
        assert {neuron.time_steps for neuron in neurons} == {time_steps}


def test_a_model_without_time_steps_is_not_given_those_of_events():
    spec = network_spec(config_of(Timed, time_steps=5), SimpleNamespace(inputs=EVENTS))
    assert "time_steps" not in spec["model"]


def test_a_spec_rebuilds_the_network_of_either_builder():
    lif = {"_target_": "tna_lightning.models.LIF", "_partial_": True, "learn_beta": True, "per": "channel"}
    model = {"_target_": "tna_lightning.models.convnet", "width": 0.25, "time_steps": 4}
    spec = network_spec({"model": model, "neuron": lif}, SimpleNamespace(inputs=EVENTS))
    network, other = build_network(spec).eval(), build(spec).eval()
    other.load_state_dict(network.state_dict())
    frames = torch.rand(2, 5, 2, 8, 6)
    assert torch.equal(network(frames), other(frames))


def test_data_that_do_not_say_what_they_yield_are_refused():
    class Mute:
        in_channels, num_classes = 1, 10

    with pytest.raises(ValueError, match=r"^data=Mute: must say what it yields, in a property inputs"):
        network_spec({}, Mute())


def test_the_time_steps_that_do_not_count_are_refused():
    for model, inputs in (({"time_steps": 5}, EVENTS), ({}, EVENTS), ({"time_steps": 3}, IMAGES)):
        check_time_steps("model", model, inputs)
    with pytest.raises(
        ValueError, match=r"^companion\.model\.time_steps=8: .* their own T; set data\.time_steps \(5\)"
    ):
        check_time_steps("companion.model", {"time_steps": 8}, EVENTS)


@pytest.mark.parametrize("prefix", ["", "companion."])
def test_a_module_that_is_no_neuron_is_refused_by_name(prefix):
    spec = network_spec(config_of(Memoryless), SimpleNamespace(inputs=IMAGES))
    with pytest.raises(ValueError, match=rf"^{prefix}neuron=Memoryless: must derive from tna_lightning\.models\.Spik"):
        build_network(spec, prefix=prefix)


def test_a_network_without_stages_cannot_checkpoint_them():
    with pytest.raises(ValueError, match=r"^checkpoint_stages=true: companion\.model must be .*Network.* a Linear"):
        checkpoint_network(nn.Linear(2, 3), prefix="companion.")


@pytest.mark.parametrize("inputs", [IMAGES, EVENTS])
def test_a_neuron_of_ones_own_is_tried(inputs):
    with pytest.raises(ValueError, match=r"^companion\.neuron=Keeping: .* other spikes in a second forward \(neuron\)"):
        try_network(network_of(Keeping, inputs), inputs, prefix="companion.")
    with pytest.raises(ValueError, match=r"^neuron=KeepingInTraining: the same currents give other spikes"):
        try_network(network_of(KeepingInTraining, inputs), inputs)
    with pytest.raises(ValueError, match=r"^neuron=Drawing: draws random numbers in eval mode .*is_random = True"):
        try_network(network_of(Drawing, inputs), inputs)
    with pytest.raises(ValueError, match=r"^neuron=Writing: writes into the currents that it is given \(neuron\)"):
        try_network(network_of(Writing, inputs), inputs)
    for neuron in (Flat, Double) if inputs is EVENTS else (Double,):
        with pytest.raises(
            ValueError, match=rf"^neuron={neuron.__name__}: must give spikes of the shape .*, \[., 32, 4\]"
        ):
            try_network(network_of(neuron, inputs), inputs)
    for neuron in (DrawingOpenly, Timed):
        network = network_of(neuron, inputs).train()
        before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
        try_network(network, inputs)
        assert network.training
        assert network.neuron.training
        assert torch.equal(torch.get_rng_state(), state)
        assert network.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_layer_is_not_blamed_for_the_one_before_it():
    class Between(SpikingNeuron):
        def forward(self, current):
            return (current > 0).to(current.dtype)

    with pytest.raises(ValueError, match=r"^model=Sequential: its logits are \["):  # which the neurons do not make
        try_network(nn.Sequential(DrawingOpenly(), Between()), IMAGES)
    with pytest.raises(ValueError, match=r"^neuron=Keeping: .*\(0\)"):
        try_network(nn.Sequential(Keeping(), Between()), IMAGES)


class BatchFirst(Sized):
    def forward(self, x):
        return super().forward(x).transpose(0, 1)


class AFewClasses(Sized):
    def forward(self, x):
        return super().forward(x)[..., :1]


class Remembering(Sized):
    """Carries a sum of its logits from batch to batch, in training."""

    total = 0.0

    def forward(self, x):
        self.total = super().forward(x).detach() + (self.total if self.training else 0.0)
        return self.total


class Failing(Sized):
    def forward(self, x):
        return self.classifier(x)


class Pair(Sized):
    def forward(self, x):
        return super().forward(x), None


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (BatchFirst, IMAGES, "its logits are [B, T, K], [1, 2, 3] for one sample; must be [T, B, K], time first"),
        (BatchFirst, EVENTS, "its logits are [2, 5, 3], must be [T, 2, 3] ([T, B, K]) or [2, 3] ([B, K]); time"),
        (AFewClasses, IMAGES, "its logits are [2, 2, 1], must be [T, 2, 3] ([T, B, K]) or [2, 3] ([B, K]); K of the"),
        (Remembering, IMAGES, "the same inputs give other logits in a second forward"),
        (Failing, IMAGES, "fails for inputs [2, "),
        (Pair, EVENTS, "returns a tuple; must be [T, 2, 3]"),
    ],
)
def test_a_network_of_ones_own_is_tried(model, inputs, message):
    network = build_network(network_spec(config_of(Timed, model), SimpleNamespace(inputs=inputs)))
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        try_network(network, inputs, prefix="companion.")
    assert str(refused.value).startswith(f"companion.model={model.__name__}: {message}")
    assert "\n" not in str(refused.value)
