"""Other LIF neurons, and those of other libraries: against loops from their equations, and against their libraries."""

import copy
import pickle
import sys
from functools import partial

import pytest
import snntorch
import torch
from torch import nn

from tna_lightning.cost import inference_cost
from tna_lightning.models import (
    ALIF,
    IntegerLIF,
    QuantReLU,
    Stepwise,
    TernaryLIF,
    build,
    convnet,
    snntorch_neuron,
    spikingjelly_neuron,
)
from tna_lightning.models.surrogates import ATan
from tna_lightning.packages import MissingPackage
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build_network, compile_network

T = 4
S = ATan()


def current(*shape, scale=2.0):
    return (scale * torch.randn(T, 3, *shape, dtype=torch.float64)).requires_grad_()


def alif(x):
    spikes, membranes, thresholds, a = [torch.zeros_like(x[0])], [0.0], [0.75], [0.0]
    for step in x:
        a.append(0.75 * a[-1] + 0.25 * spikes[-1])
        membranes.append(0.5 * membranes[-1] + step - spikes[-1].detach() * thresholds[-1])
        thresholds.append(0.75 + 1.5 * a[-1])
        spikes.append(S(membranes[-1] - thresholds[-1]))
    return torch.stack(spikes[1:])


def ternary(x):
    membrane, spikes = torch.zeros_like(x[0]), []
    for step in x:
        membrane = 0.5 * membrane + step
        spikes.append(S(membrane - 0.75) - S(-membrane - 0.75))
        membrane = torch.where(spikes[-1] == 0, membrane, 0.0)
    return torch.stack(spikes)


def integer(x):
    membrane, spikes = torch.zeros_like(x[0]), []
    for step in x:
        membrane = 0.5 * membrane + step
        clipped = (membrane / 0.75).clamp(0, 3)
        spikes.append(clipped + (clipped.round() - clipped).detach())
        membrane = membrane - spikes[-1].detach() * 0.75
    return torch.stack(spikes)


LOOPS = {
    "alif": (ALIF(0.5, 0.75, 1.5, 0.75), alif, {0, 1}),
    "ternary": (TernaryLIF(0.5, 0.75), ternary, {-1, 0, 1}),
    "integer": (IntegerLIF(0.5, 0.75, 3), integer, {0, 1, 2, 3}),
}


@pytest.mark.parametrize(("neuron", "loop", "values"), LOOPS.values(), ids=LOOPS)
def test_spikes_and_gradients_are_those_of_a_loop(neuron, loop, values):
    torch.manual_seed(0)
    ours = current(40)
    theirs = ours.detach().clone().requires_grad_()
    spikes, expected = neuron(ours), loop(theirs)
    torch.testing.assert_close(spikes, expected)
    assert set(spikes.unique().tolist()) == values
    grad = torch.randn_like(spikes)
    spikes.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)
    first, state = neuron.chunk(ours[:1])
    assert torch.equal(torch.cat([first, neuron.chunk(ours[1:], state)[0]]), spikes)
    assert neuron(ours.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"^current=\[4\]: must have at least two dimensions"):
        neuron(torch.zeros(4))


@pytest.mark.parametrize(
    ("neuron", "currents", "spikes"),
    [
        # U and A: 1.5, 1 | 0.75 + 2.5 - 1, 2 | 1.125 + 2.25 - 2, 2.5; with a reset that decays the last would fire
        (ALIF(0.5, 1.0, 2.0, 0.5), [1.5, 2.5, 2.25], [1, 1, 0]),
        (TernaryLIF(0.5), [-1.5, 0.75, 0.75], [-1, 0, 1]),  # U: -1.5 | 0.75 | 0.375 + 0.75
        (IntegerLIF(0.5, max_spikes=2), [1.75, 0.75, 9.0], [2, 1, 2]),  # U: 1.75 | -0.125 + 0.75 | -0.1875 + 9
    ],
)
def test_hand_counts(neuron, currents, spikes):
    assert neuron(torch.tensor(currents).view(3, 1)).flatten().tolist() == spikes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ALIF(beta=1.5), r"^beta=1\.5: must lie in \[0, 1\]"),
        (lambda: ALIF(rho=-1), r"^rho=-1: "),
        (lambda: ALIF(adaptation=-0.1), r"^adaptation=-0\.1: must be 0 or more"),
        (lambda: TernaryLIF(threshold=0), r"^threshold=0: must be above 0"),
        (lambda: IntegerLIF(max_spikes=0), r"^max_spikes=0: must be at least 1"),
        (lambda: QuantReLU(0), r"^time_steps=0: must be a whole number"),
        (lambda: QuantReLU(4, maximum=0), r"^maximum=0: must be above 0"),
        (lambda: snntorch_neuron("Leak"), r"^cell='Leak': must be a neuron of snntorch that is stepped: Alpha, "),
        (lambda: snntorch_neuron("SLSTM"), r"^cell='SLSTM': must be "),
        (lambda: snntorch_neuron(), r"^settings=\{\}: Leaky: .*missing.*'beta'"),
        (lambda: snntorch_neuron(settings={"beta": 0.5, "output": True}), r"^settings\.output: Leaky takes beta, "),
        (lambda: snntorch_neuron(settings={"beta": 5}), r"^settings\.beta=5: must lie in \[0, 1\]"),
        (
            lambda: snntorch_neuron(settings={"beta": 1, "threshold": 0}),
            r"^settings\.threshold=0: must be above 0",
        ),
        (lambda: snntorch_neuron("RLeaky", {"beta": 0.5}), r"^settings=\{'beta': 0.5\}: RLeaky: When `all_to_all"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- an activation of few bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("time_steps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (16, 5)])
def test_an_activation_carries_as_much_as_the_steps(time_steps, bits):
    relu = QuantReLU(time_steps, maximum=3.0).double()
    assert relu.bits == bits
    x = torch.linspace(-1.0003, 4, 1001, dtype=torch.float64, requires_grad=True)
    y = relu(x)
    levels = 2**bits
    torch.testing.assert_close(y.unique(), torch.linspace(0, 3, levels, dtype=torch.float64))
    torch.testing.assert_close(y, (x.clamp(0, 3) * (levels - 1) / 3).round() * 3 / (levels - 1))
    y.sum().backward()
    assert torch.equal(x.grad.round(decimals=12), ((x >= 0) & (x <= 3)).double())
    # dy/dmaximum: 1 above it, the rounding error within (y - x) / maximum, 0 below
    within = (x > 0) & (x <= 3)
    expected = (x > 3).sum() + ((y - x) / 3)[within].sum()
    torch.testing.assert_close(relu.maximum.grad, expected.detach(), rtol=1e-6, atol=1e-6)


# ---- other libraries -------------------------------------------------------------------------------------------------

SNNTORCH = {
    "Leaky": {"beta": 0.5},
    "Synaptic": {"alpha": 0.75, "beta": 0.5},
    "Alpha": {"alpha": 0.75, "beta": 0.5},
    "Lapicque": {"beta": 0.5},
    "RLeaky": {"beta": 0.5, "all_to_all": False},
    "RSynaptic": {"alpha": 0.75, "beta": 0.5, "kernel_size": 3},
}


@pytest.mark.parametrize("cell", SNNTORCH)
def test_a_cell_of_snntorch_is_stepped_as_its_users_do(cell):
    known = list(snntorch.SpikingNeuron.instances)
    settings = SNNTORCH[cell] | {"learn_beta": cell != "Lapicque"}  # whose learned one trains for one step alone
    neuron = snntorch_neuron(cell, settings, channels=2).double()
    assert snntorch.SpikingNeuron.instances == known
    kind = getattr(snntorch, cell)
    wide = {"conv2d_channels": 2} if "kernel_size" in SNNTORCH[cell] else {}
    theirs = kind(**settings, **wide, spike_grad=ATan()).double()
    theirs.load_state_dict(neuron.cell.state_dict())
    x = current(2, 3, 3)
    other = x.detach().clone().requires_grad_()
    states, spikes = theirs.reset_mem(), []
    states = states if isinstance(states, tuple) else (states,)
    for step in other:
        fired, *states = theirs(step, *(torch.zeros_like(step) if not state.numel() else state for state in states))
        spikes.append(fired)
    result = neuron(x)
    assert torch.equal(result, torch.stack(spikes))
    assert 0 < result.mean() < 1
    result.sum().backward()
    torch.stack(spikes).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    if settings["learn_beta"]:
        torch.testing.assert_close(neuron.cell.beta.grad, theirs.beta.grad)
    # nothing is left of a forward, of another batch either
    neuron(current(2, 3, 3)[:, :1])
    assert torch.equal(neuron(x), result)
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(twin(x), result)
        assert repr(twin) == repr(neuron)
    assert all(buffer.numel() <= 1 for buffer in neuron.buffers())
    assert neuron.no_weight_decay() == {name for name, value in neuron.named_parameters() if value.ndim < 2}


def test_cells_of_ones_own_are_stepped_with_their_state():
    class Counts(nn.Module):
        """As norse's: the state is handed in and out, at first None."""

        def forward(self, current, state):
            state = current if state is None else state + current
            return (state > 1).to(current), state

    class Keeps(nn.Module):
        """As spikingjelly's: the state is kept until it is reset."""

        def __init__(self):
            super().__init__()
            self.reset()

        def reset(self):
            self.total = [0.0]

        def forward(self, current):
            self.total[0] = self.total[0] + current
            return (self.total[0] > 1).to(current)

    x = current(5)
    expected = (x.cumsum(0) > 1).to(x)
    for cell in (Counts, Keeps, partial(Counts), Counts()):
        neuron = Stepwise(cell)
        assert torch.equal(neuron(x), expected)
        assert torch.equal(neuron(x), expected)
        assert neuron(x.half()).dtype == torch.half
    assert Stepwise(Keeps).cell.total == [0.0]


def test_a_recurrent_cell_is_chosen_and_its_weights_are_counted_and_built_again():
    config = compose(["neuron=snntorch", "neuron.cell=RLeaky", "+neuron.settings.kernel_size=3"])
    spec = {
        "model": config["model"] | {"width": 0.1, "time_steps": 3},
        "neuron": config["neuron"],
        "inputs": {"channels": 1, "height": 8, "width": 8, "time_steps": None, "num_classes": 3},
    }
    network = build_network(spec)
    assert repr(build(spec)) == repr(network)
    cost = inference_cost(network, [torch.randn(2, 1, 8, 8)])
    recurrent = [layer for layer in cost["layers"] if layer["name"].endswith("cell.recurrent")]
    assert len(recurrent) == len(cost["neuron_layers"]) == 3
    assert all(layer["dense_macs"] == 3 * layer["ann_macs"] > 0 for layer in recurrent)


def test_a_network_of_stepped_cells_is_not_compiled_and_a_line_says_so(caplog):
    network = convnet(1, 3, partial(snntorch_neuron, settings={"beta": 0.5}), width=0.1)
    compile_network(network, "network")
    assert network._compiled_call_impl is None
    assert "compile=network: left out, since the neurons of another library" in caplog.text


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    with pytest.raises(MissingPackage, match=r"needs the package spikingjelly.*: pip install --no-deps spikingjelly$"):
        spikingjelly_neuron()


@pytest.mark.parametrize(
    ("cell", "settings"), [("IFNode", {}), ("LIFNode", {"tau": 4.0, "detach_reset": True}), ("ParametricLIFNode", {})]
)
def test_a_cell_of_spikingjelly_is_stepped_as_its_multi_step_mode(cell, settings):
    library = pytest.importorskip("spikingjelly.activation_based.neuron")
    neuron = spikingjelly_neuron(cell, settings)
    theirs = getattr(library, cell)(**settings, step_mode="m")
    x = current(5).float().detach().requires_grad_()
    other = x.detach().clone().requires_grad_()
    result, expected = neuron(x), theirs(other)
    assert torch.equal(result, expected)
    assert torch.equal(neuron(x), result)
    result.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(twin(x), result)


@pytest.mark.parametrize(
    ("ours", "name", "settings"),
    [
        (TernaryLIF(0.25), "TernaryLIFNode", {"tau": 4 / 3, "decay_input": False, "v_reset": 0.0}),
        (IntegerLIF(0.25), "ILIFNode", {"tau": 4 / 3}),
    ],
)
def test_spikes_equal_spikingjellys(ours, name, settings):
    library = pytest.importorskip("spikingjelly.activation_based.neuron")
    x = current(50).float()
    assert torch.equal(ours(x), getattr(library, name)(**settings, step_mode="m")(x))


# ---- what is not binary, in the cost ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neuron", "output", "read", "bits"),
    [
        (ALIF, "spikes", "spikes", 2),
        (TernaryLIF, "ternary spikes", "ternary spikes", 3),
        (partial(IntegerLIF, max_spikes=3), "whole numbers", "whole numbers", 4),
    ],
)
def test_what_is_not_binary_is_counted_as_such(neuron, output, read, bits):
    torch.manual_seed(0)
    network = convnet(1, 3, partial(neuron, threshold=0.25), time_steps=3, width=0.2)
    network(torch.randn(64, 1, 8, 8))
    cost = inference_cost(network.eval(), [torch.randn(8, 1, 8, 8)])
    assert {layer["output"] for layer in cost["neuron_layers"]} == {output}
    second = cost["layers"][1]
    assert second["input"] == read
    assert (second["macs"] > 0) == (output == "whole numbers")
    assert (second["synaptic_operations"] > 0) == (output != "whole numbers")
    assert cost["quantized_ann"]["activation_bits"] == bits  # 3 + 1, 2 * 3 + 1 and 3 * 3 + 1 numbers
    assert cost["not_counted"] == []
