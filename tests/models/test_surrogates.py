"""Surrogates against snntorch's own, and against closed forms where snntorch's cannot run."""

import copy
import inspect
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as reference

from tna_lightning.models import surrogates
from tna_lightning.models.surrogates import SURROGATES, CustomSurrogate, get_surrogate

PAIRS = [
    (surrogates.ATan(), reference.atan()),
    (surrogates.ATan(alpha=0.7), reference.atan(alpha=0.7)),
    (surrogates.FastSigmoid(), reference.fast_sigmoid()),
    (surrogates.FastSigmoid(slope=3.0), reference.fast_sigmoid(slope=3.0)),
    (surrogates.Triangular(), reference.triangular()),
    (surrogates.Triangular(threshold=0.3), reference.triangular(threshold=0.3)),
    (surrogates.Sigmoid(), reference.sigmoid()),
    (surrogates.Sigmoid(slope=4.0), reference.sigmoid(slope=4.0)),
    (surrogates.StraightThroughEstimator(), reference.straight_through_estimator()),
    (surrogates.Heaviside(), reference.heaviside()),
    (surrogates.SpikeRateEscape(), reference.spike_rate_escape()),
    (surrogates.SpikeRateEscape(beta=2.0, slope=3.0), reference.spike_rate_escape(beta=2.0, slope=3.0)),
    (surrogates.SparseFastSigmoid(), reference.SFS()),
    (surrogates.SparseFastSigmoid(slope=2.0, B=0.25), reference.SFS(slope=2.0, B=0.25)),
    (surrogates.StochasticSpikeOperator(), reference.SSO()),
    (surrogates.StochasticSpikeOperator(mean=0.4, variance=0.9), reference.SSO(mean=0.4, variance=0.9)),
]
# exact ties with the threshold and with B among them; snntorch's sigmoid is inf / inf where slope * exp(-slope * x)
# overflows float32: below -(88.7 - log(25)) / 25 = -3.42 for its slope of 25
SHIFTED = st.one_of(st.floats(-3.25, 20, width=32), st.sampled_from([0.0, -0.0, 0.25, 1.0, -1.0]))


def spikes_and_gradient(spike_grad, shifted, grad_spikes):
    shifted = shifted.clone().requires_grad_()
    torch.manual_seed(1)
    spikes = spike_grad(shifted)
    spikes.backward(grad_spikes)
    return spikes.detach(), shifted.grad


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda side: repr(side) if "(" in repr(side) else "")
@settings(deadline=None)
@given(pairs=st.lists(st.tuples(SHIFTED, st.floats(-10, 10, width=32)), min_size=1, max_size=20))
def test_equals_snntorch(ours, theirs, pairs):
    shifted, grad_spikes = torch.tensor(pairs).unbind(1)
    spikes, gradient = spikes_and_gradient(ours, shifted, grad_spikes)
    expected_spikes, expected = spikes_and_gradient(theirs, shifted, grad_spikes)
    assert torch.equal(spikes, expected_spikes)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-12)


def test_every_function_of_snntorch_has_its_name_and_defaults_here():
    functions = {name: function for name, function in vars(reference).items() if inspect.isfunction(function)}
    del functions["custom_surrogate"]  # takes a function, so it has no name in a configuration: CustomSurrogate
    assert functions.keys() <= SURROGATES.keys()
    for name, function in functions.items():
        defaults = {parameter.name: parameter.default for parameter in inspect.signature(function).parameters.values()}
        ours = {p.name: p.default for p in inspect.signature(SURROGATES[name]).parameters.values()}
        assert ours == defaults, name


# values and defaults as the library gave them: it is not installed here, since it asks for torchvision
SPIKINGJELLY = json.loads((Path(__file__).parent / "data" / "spikingjelly_surrogates.json").read_text())


@pytest.mark.parametrize("row", SPIKINGJELLY["gradients"], ids=lambda row: row["name"] + "-own" * bool(row["settings"]))
def test_equals_spikingjelly(row):
    surrogate = SURROGATES[row["name"]](**row["settings"])
    shifted = torch.tensor(SPIKINGJELLY["shifted"])
    spikes, gradient = spikes_and_gradient(surrogate, shifted, torch.full_like(shifted, 3.0))
    assert torch.equal(spikes, (shifted > 0).float())  # at the threshold itself it spikes there, and not here
    torch.testing.assert_close(gradient / 3, torch.tensor(row["gradient"]), rtol=1e-5, atol=1e-6)
    assert gradient.isfinite().all()


def test_surrogates_of_spikingjelly_have_its_defaults_and_bounds():
    for name, defaults in SPIKINGJELLY["defaults"].items():
        surrogate = SURROGATES[name]
        assert {p.name: p.default for p in inspect.signature(surrogate).parameters.values()} == defaults, name
        for parameter, limit in surrogate.above.items():
            with pytest.raises(ValueError, match=rf"^{parameter}={limit}: must be above {limit:g}$"):
                surrogate(**{parameter: limit})


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(SHIFTED, st.floats(-10, 10, width=32)), min_size=1, max_size=20))
def test_leaky_spike_operator_is_the_formula_snntorch_documents(pairs):
    shifted, grad_spikes = torch.tensor(pairs).unbind(1)
    _, gradient = spikes_and_gradient(surrogates.LeakySpikeOperator(slope=0.3), shifted, grad_spikes)
    assert torch.equal(gradient, torch.where(shifted > 0, grad_spikes, grad_spikes * 0.3))
    # snntorch's class returns too few gradients for autograd to take it, but its arithmetic can be called alone
    saved = SimpleNamespace(saved_tensors=((shifted > 0).float(),), slope=0.3)
    torch.testing.assert_close(gradient, reference.LeakySpikeOperator.backward(saved, grad_spikes))


def test_leaky_spike_operator_of_snntorch_is_still_broken():
    with pytest.raises(TypeError):
        reference.LSO()(torch.zeros(1))


def test_sigmoid_is_finite_where_snntorch_gives_nan():
    shifted = torch.tensor([-4.0, -40.0, 40.0])
    assert reference_nan(reference.sigmoid(), shifted)
    exact = 25 * torch.special.expit(25 * shifted.double()) * torch.special.expit(-25 * shifted.double())
    torch.testing.assert_close(surrogates.Sigmoid().derivative(shifted).double(), exact, rtol=1e-4, atol=1e-40)


def reference_nan(spike_grad, shifted):
    return spikes_and_gradient(spike_grad, shifted, torch.ones_like(shifted))[1].isnan().any()


def halved_in_silence(shifted, grad_spikes, spikes):
    return grad_spikes * (0.5 + 0.5 * spikes) * shifted.abs()


def test_custom_surrogate_takes_the_function_that_snntorch_takes():
    shifted, grad_spikes = torch.randn(2, 50)
    ours = spikes_and_gradient(CustomSurrogate(halved_in_silence), shifted, grad_spikes)
    theirs = spikes_and_gradient(reference.custom_surrogate(halved_in_silence), shifted, grad_spikes)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^function='torch.sin': must be a function"):
        CustomSurrogate("torch.sin")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SURROGATES)
def test_dtype_of_spikes_and_derivative_is_that_of_the_membrane(name, dtype):
    shifted = torch.linspace(-1, 1, 5, dtype=dtype)
    assert SURROGATES[name]()(shifted).dtype == dtype
    assert SURROGATES[name]().derivative(shifted).dtype == dtype


@pytest.mark.parametrize("name", SURROGATES)
def test_objects_are_equal_after_copy_and_pickle(name):
    surrogate = get_surrogate(name)
    for twin in (copy.deepcopy(surrogate), pickle.loads(pickle.dumps(surrogate)), get_surrogate(surrogate)):
        assert twin == surrogate
        assert hash(twin) == hash(surrogate)


def test_serves_as_spike_grad_of_snntorch():
    current = torch.randn(3, 8, requires_grad=True)
    membrane = snntorch.Leaky(0.9, spike_grad=surrogates.LeakySpikeOperator())
    spikes, _ = membrane(current)
    spikes.sum().backward()
    torch.testing.assert_close(current.grad, torch.where(current > 1, 1.0, 0.1))


@pytest.mark.parametrize("surrogate", ["Atan", "", None, 3, surrogates.ATan])
def test_unknown_surrogate_names_the_allowed_ones(surrogate):
    with pytest.raises(ValueError, match=r"^surrogate=.*: must be one of atan, fast_sigmoid, .*SSO") as error:
        get_surrogate(surrogate)
    assert repr(surrogate) in str(error.value)
