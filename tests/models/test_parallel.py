"""Neurons without a loop against loops over time, written from the papers' equations, in float64."""

import copy
import pickle

import pytest
import torch

from tna_lightning.cost import inference_cost
from tna_lightning.models import IPSU, PSN, PSU, RPSU, MaskedPSN, SlidingPSN, convnet
from tna_lightning.models.surrogates import ATan

T = 5
SPIKE = ATan()


def psn(x, weight, bias):
    return [sum(weight[t, s] * x[s] for s in range(T)) + bias[t] for t in range(T)]


def masked_psn(x, weight, bias, order, share):
    mask = [[1.0 if 0 <= t - s < order else 1 - share for s in range(T)] for t in range(T)]
    return psn(x, torch.stack([torch.stack([weight[t, s] * mask[t][s] for s in range(T)]) for t in range(T)]), bias)


def sliding_psn(x, weight, bias):
    order = len(weight)
    return [sum(weight[order - 1 - i] * x[t - i] for i in range(order) if t >= i) + bias for t in range(len(x))]


def integrated(x, tau):
    steps = [x[0] / tau]
    for step in x[1:]:
        steps.append((steps[-1] + step) / tau)
    return steps


def resets(estimates, tau):
    """What each step must remember of the estimates before it."""
    steps = [torch.zeros_like(estimates[0])]
    for step in estimates[:-1]:
        steps.append((steps[-1] + step) / tau)
    return steps


def learned(x, weight, bias):
    return [sum(weight[t, s] * x[s] for s in range(t + 1)) + bias[t] for t in range(T)]


def less(first, second, threshold):
    return [one - other - threshold for one, other in zip(first, second, strict=True)]


def psu(x, tau, threshold):
    d = integrated(x, tau)
    return less(d, [threshold * reset for reset in resets([step.sigmoid() for step in d], tau)], threshold)


def ipsu(x, weight, bias, tau, threshold, as_coded):
    d = learned(x, weight, bias)
    return less(d, resets(list(x) if as_coded else [step.sigmoid() for step in d], tau), threshold)


def rpsu(x, weight, bias, tau, threshold):
    estimates = [step.sigmoid() for step in learned(x, weight, bias)]
    return less(integrated(x, tau), resets(estimates, tau), threshold)


def at(neuron, share):
    neuron.progress(share)
    return neuron


# the neuron, and the membranes less the threshold of its loop
NEURONS = {
    "psn": (PSN(T), psn),
    "masked 0": (MaskedPSN(T, 2), lambda x, w, b: masked_psn(x, w, b, 2, 0)),
    "masked 0.25": (at(MaskedPSN(T, 3), 0.25), lambda x, w, b: masked_psn(x, w, b, 3, 0.25)),
    "masked 1": (at(MaskedPSN(T, 2), 1), lambda x, w, b: masked_psn(x, w, b, 2, 1)),
    "sliding 1": (SlidingPSN(1), sliding_psn),
    "sliding 3": (SlidingPSN(3), sliding_psn),
    "sliding 7": (SlidingPSN(7), sliding_psn),
    "psu": (PSU(3.0, 0.5), lambda x: psu(x, 3.0, 0.5)),
    "ipsu": (IPSU(T, threshold=0.25), lambda x, w, b: ipsu(x, w, b, 2.0, 0.25, False)),
    "ipsu as coded": (IPSU(T, 1.5, 0.25, as_coded=True), lambda x, w, b: ipsu(x, w, b, 1.5, 0.25, True)),
    "rpsu": (RPSU(T, 1.5, 0.25), lambda x, w, b: rpsu(x, w, b, 1.5, 0.25)),
}
OF_ANY_T = ["sliding 1", "sliding 3", "sliding 7", "psu"]


@pytest.fixture(params=NEURONS)
def pair(request):
    torch.manual_seed(0)
    neuron, loop = copy.deepcopy(NEURONS[request.param])
    for parameter in neuron.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return neuron, loop


def test_spikes_and_gradients_are_those_of_a_loop(pair):
    neuron, loop = pair
    current = 2 * torch.randn(T * 3, 4, 3, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(neuron(torch.ones(T, 1, 2).double()), neuron(torch.ones(T, 1, 2, 1).double())[..., 0])
    current = current.unflatten(0, (T, 3)).requires_grad_()
    spikes = neuron(current)
    leaf = current.detach().requires_grad_()
    parameters = [parameter.detach().clone().requires_grad_() for parameter in neuron.parameters()]
    expected = torch.stack([SPIKE(step) for step in loop(leaf, *parameters)])
    assert torch.equal(spikes, expected)
    assert 0 < spikes.mean() < 1
    assert spikes.stride() == current.stride()
    grad = torch.randn_like(spikes)
    spikes.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(current.grad, leaf.grad, rtol=1e-12, atol=1e-13)
    for ours, other in zip(neuron.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_first_values_are_the_authors():
    torch.manual_seed(0)
    neuron = PSN(400)
    bound = 400**-0.5
    assert 0.9 * bound < neuron.weight.abs().max() <= bound
    assert torch.equal(neuron.bias, -torch.ones(400, 1))
    assert SlidingPSN(4).weight.tolist() == [0.125, 0.25, 0.5, 1.0]
    assert SlidingPSN(4).bias.item() == -1
    for unit in (IPSU(400), RPSU(400)):
        assert unit.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
        assert torch.equal(unit.bias, torch.zeros(400, 1))
    assert not list(PSU().parameters())
    assert {name for name, _ in neuron.named_parameters()} == neuron.no_weight_decay() == {"weight", "bias"}


def test_hand_count():
    """Order 2 from 1/2 and 1: H = 0.8 | 0.4 + 0.9 | 0.45 - 1 | 2 - 0.5, a spike above 1."""
    assert SlidingPSN(2)(torch.tensor([[0.8], [0.9], [-1.0], [2.0]])).flatten().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_narrow_currents_are_multiplied_in_float32_under_autocast_too(pair, dtype):
    neuron, _ = pair
    neuron, current = neuron.float(), torch.randn(T, 3, 4).to(dtype)
    spikes = neuron(current)
    assert spikes.dtype == dtype
    wide = neuron(current.float())
    assert dtype == torch.float64 or torch.equal(spikes.float(), wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neuron(current.float()), wide)


def test_copies_export_and_one_current_for_all_steps(pair):
    neuron, _ = pair
    image = torch.randn(1, 3, 4, dtype=torch.float64)
    current = image.expand(T, -1, -1)
    spikes = neuron(current)
    assert torch.equal(spikes, neuron(current.clone()))
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(twin(current), spikes)
        assert repr(twin) == repr(neuron)
    if type(neuron) not in (MaskedPSN, SlidingPSN, RPSU):  # the slow part
        return
    program = torch.export.export(neuron, (current.clone(),), dynamic_shapes=({1: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(current[:, :2]), spikes[:, :2])


@pytest.mark.parametrize("name", NEURONS)
def test_another_t_is_taken_or_the_neuron_says_why_not(name):
    neuron = NEURONS[name][0]
    if name in OF_ANY_T:
        assert neuron(torch.randn(T + 2, 3)).shape == (T + 2, 3)
    else:
        with pytest.raises(ValueError, match=r"^current=\[7, 3\]: must have the 5 time steps .* psu take any T$"):
            neuron(torch.randn(T + 2, 3))
    with pytest.raises(ValueError, match=r"^current=\[5\]: must have at least two dimensions"):
        neuron(torch.randn(T))


@pytest.mark.parametrize("name", OF_ANY_T)
def test_a_sequence_in_chunks_is_the_whole_sequence(name):
    torch.manual_seed(0)
    neuron, current = copy.deepcopy(NEURONS[name][0]).double(), 2 * torch.randn(9, 2, 3, dtype=torch.float64)
    state, parts = None, []
    for part in current.split([2, 1, 6]):
        spikes, state = neuron.chunk(part, state)
        parts.append(spikes)
    assert torch.equal(torch.cat(parts), neuron(current))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PSN(0), r"^time_steps=0: must be a whole number of at least 1"),
        (lambda: RPSU(2.5), r"^time_steps=2.5: "),
        (lambda: SlidingPSN(0), r"^order=0: "),
        (lambda: MaskedPSN(4, 0), r"^order=0: "),
        (lambda: PSU(tau=0), r"^tau=0: must be above 0"),
        (lambda: IPSU(4, threshold=-1.0), r"^threshold=-1.0: must be above 0"),
        (lambda: PSN(4, "arctan"), r"^surrogate='arctan'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("neuron", "weights"),
    [  # of the matrices over time; their zeros are their shape, and cost nothing
        (lambda time_steps: PSN(time_steps), 4 * 4),
        (lambda time_steps: at(MaskedPSN(time_steps, 2), 1), 4 + 3),
        (lambda: SlidingPSN(2), 4 + 3),
        (lambda: SlidingPSN(9), 4 + 3 + 2 + 1),
        (lambda: PSU(), (4 + 3 + 2 + 1) + (3 + 2 + 1)),
        (lambda time_steps: RPSU(time_steps), 2 * (4 + 3 + 2 + 1) + (3 + 2 + 1)),
    ],
    ids=["psn", "masked", "sliding", "wide", "psu", "rpsu"],
)
def test_what_they_multiply_is_counted(neuron, weights):
    torch.manual_seed(0)
    network = convnet(1, 3, neuron, time_steps=4, width=0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
            torch.nn.init.constant_(module.bias, 1.0)  # no current is 0
    network(torch.randn(16, 1, 8, 8))
    cost = inference_cost(network.eval(), [torch.randn(6, 1, 8, 8)])
    mine = {}
    for entry in cost["products"]:
        mine[entry["name"]] = mine.get(entry["name"], 0) + entry["macs"]
    assert mine == {layer["name"]: pytest.approx(weights * layer["neurons"]) for layer in cost["neuron_layers"]}
    assert cost["ann_macs"] == sum(layer["ann_macs"] for layer in cost["layers"]) > 0  # no ANN has it
    assert cost["quantized_ann"]["operations"] == cost["ann_macs"]
    assert cost["macs"] == sum(layer["macs"] for layer in [*cost["layers"], *cost["products"]])
    assert cost["not_counted"] == []


@pytest.mark.parametrize("name", ["psn", "masked 0", "masked 0.25", "masked 1", "sliding 1", "sliding 3"])
def test_psn_kinds_equal_spikingjelly(name):
    theirs = pytest.importorskip("spikingjelly.activation_based.neuron")
    torch.manual_seed(0)
    ours = copy.deepcopy(NEURONS[name][0])
    if isinstance(ours, MaskedPSN):
        reference = theirs.MaskedPSN(ours.order, T, step_mode="m")
        reference.lambda_ = ours.lambda_.item()
    else:
        reference = theirs.PSN(T) if isinstance(ours, PSN) else theirs.SlidingPSN(ours.order, step_mode="m")
    if isinstance(ours, SlidingPSN):
        assert torch.equal(reference.weight, ours.weight)
        assert torch.equal(reference.bias, ours.bias)
    reference.load_state_dict(dict(ours.named_parameters()), strict=False)
    reference.surrogate_function = torch.nn.Identity()  # the membranes themselves
    current = torch.randn(T, 3, 4)
    torch.testing.assert_close(ours.shifted(current.flatten(1)).view(T, 3, 4), reference(current))
