"""LIF against snntorch's Leaky and against hand counts; eager here, compiled in test_compiled.py.

On a CPU the eager loop runs in blocks; that they change no bit is tested against the plain loop.
"""

import copy
import logging
import pickle

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as reference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tna_lightning.models import LIF, compile_neurons, compiled, eager, fused, surrogates
from tna_lightning.models.surrogates import SURROGATES, get_surrogate
from tna_lightning.quantization import Ternary, load_packed, quantize_network, save_network

RESETS = ["zero", "subtract", "none"]
# ours, snntorch's: its sigmoid overflows far below threshold (so a flatter one), its leaky operator does not run
REFERENCES = {
    "atan": (surrogates.ATan(), reference.atan()),
    "fast_sigmoid": (surrogates.FastSigmoid(), reference.fast_sigmoid()),
    "triangular": (surrogates.Triangular(), reference.triangular()),
    "sigmoid": (surrogates.Sigmoid(slope=2.0), reference.sigmoid(slope=2.0)),
    "straight_through_estimator": (surrogates.StraightThroughEstimator(), reference.straight_through_estimator()),
    "heaviside": (surrogates.Heaviside(), reference.heaviside()),
    "spike_rate_escape": (surrogates.SpikeRateEscape(), reference.spike_rate_escape()),
    "SFS": (surrogates.SparseFastSigmoid(B=0.1), reference.SFS(B=0.1)),
    "SSO": (surrogates.StochasticSpikeOperator(), reference.SSO()),
    "LSO": (surrogates.LeakySpikeOperator(), surrogates.LeakySpikeOperator()),  # its formula: test_surrogates.py
}
# those that snntorch lacks serve it too; their formulas: test_surrogates.py
REFERENCES |= {name: (SURROGATES[name](),) * 2 for name in SURROGATES if name[0].isupper() and name not in REFERENCES}


class Leaky(torch.nn.Module):
    """snntorch's neuron in the loop over time that its users write."""

    def __init__(self, beta, threshold, reset, spike_grad):
        super().__init__()
        parameters = {"beta": beta, "threshold": threshold, "learn_beta": True, "learn_threshold": True}
        self.step = snntorch.Leaky(**parameters, spike_grad=spike_grad, reset_mechanism=reset)
        self.beta, self.threshold = self.step.beta, self.step.threshold

    def forward(self, current):
        membrane, spikes = torch.zeros_like(current[0]), []
        for current_t in current:
            spikes_t, membrane = self.step(current_t, membrane)
            spikes.append(spikes_t)
        return torch.stack(spikes)


def spikes_and_gradients(neuron, current, grad_spikes):
    """Spikes, and gradients of current, beta and threshold."""
    current = current.detach().requires_grad_()
    spikes = neuron(current)
    torch.manual_seed(7)  # the stochastic surrogate draws in the backward pass
    spikes.backward(grad_spikes)
    return spikes.detach(), current.grad, neuron.beta.grad, neuron.threshold.grad


def assert_equal_neurons(ours, theirs, current):
    grad_spikes = torch.randn(current.shape)
    spikes, *gradients = spikes_and_gradients(ours, current, grad_spikes)
    expected_spikes, *expected = spikes_and_gradients(theirs, current, grad_spikes)
    assert torch.equal(spikes, expected_spikes)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for gradient, other in zip(gradients, expected, strict=True):  # sums of up to 1,000 float32 terms
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=3e-6 * (1 + largest))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=25, deadline=None)
@given(
    time_steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    features=st.sampled_from([(), (5,), (3, 2, 2)]),
    beta=st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0])),
    threshold=st.one_of(st.floats(0.125, 2, width=32), st.just(1.0)),
    scale=st.floats(0.125, 3),
    on_a_grid=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_leaky(name, reset, time_steps, batch, features, beta, threshold, scale, on_a_grid, seed):
    torch.manual_seed(seed)
    current = scale * torch.randn(time_steps, batch, *features) + 0.3
    if on_a_grid:  # membranes meet the threshold exactly
        current = (current * 4).round() / 4
    surrogate, spike_grad = REFERENCES[name]
    ours = LIF(beta, threshold, reset, surrogate, learn_beta=True, learn_threshold=True)
    assert_equal_neurons(ours, Leaky(beta, threshold, reset, spike_grad), current)


def test_every_surrogate_is_compared():
    assert {type(ours) for ours, _ in REFERENCES.values()} == set(SURROGATES.values())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reset", RESETS)
def test_parameters_per_channel_equal_leaky(reset, memory_format):
    beta, threshold = torch.rand(3, 1, 1), 0.2 + torch.rand(3, 1, 1)
    current = torch.randn(4 * 2, 3, 4, 5).to(memory_format=memory_format).unflatten(0, (4, 2))
    ours = LIF(beta, threshold, reset, learn_beta=True, learn_threshold=True)
    assert_equal_neurons(ours, Leaky(beta.clone(), threshold.clone(), reset, reference.atan()), current)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("beta", "threshold"), [(1.3, 1.0), (-0.2, 1.0), (0.5, -0.1)])
def test_parameters_that_training_moved_out_of_range_equal_leaky(reset, beta, threshold):
    ours = LIF(0.5, 1.0, reset, learn_beta=True, learn_threshold=True)
    theirs = Leaky(0.5, 1.0, reset, reference.atan())
    for neuron in (ours, theirs):
        neuron.beta.data.fill_(beta)
        neuron.threshold.data.fill_(threshold)
    assert_equal_neurons(ours, theirs, torch.randn(5, 2, 7))
    assert (ours.beta.grad == 0) == (not 0 <= beta <= 1)


PLAIN_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_same_bits(results, expected):
    for result, other in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (other.dtype, other.shape)
        torch.testing.assert_close(result, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 neurons, so that a few hundred need several and leave a rest."""
    monkeypatch.setattr(eager, "_NEURONS", (64, 64))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", [ours for ours, _ in REFERENCES.values() if not ours.is_random], ids=str)
def test_blocks_change_no_bit(surrogate, reset, dtype):
    """Of spikes, and of the gradients of current, beta and threshold; one value for all or one for each neuron."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    current, grad_spikes = (2 * torch.randn(2, 4, 200)).to(dtype)
    for beta, threshold in [(0.7, 0.9), (0.7, -0.1), torch.rand(2, 200) + 0.2]:
        inputs = current, torch.as_tensor(beta, dtype=wide), torch.as_tensor(threshold, dtype=wide)
        results = []
        for module in (eager, fused):
            gradients = module.time_loop_gradients(*inputs, grad_spikes, reset, surrogate, True, True)
            (alone,) = module.time_loop_gradients(*inputs, grad_spikes, reset, surrogate, False, False)
            results.append([module.time_loop(*inputs, reset), *gradients, alone])
        if not isinstance(surrogate, surrogates.Sigmoid | surrogates.SpikeRateEscape):
            assert_same_bits(*results)
            continue
        for result, other in zip(*results, strict=True):  # exp rounds otherwise where a vector register is not full
            torch.testing.assert_close(result, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reset", RESETS)
def test_blocks_change_nothing_of_what_is_not_finite(reset):
    current, grad_spikes = torch.randn(2, 5, 200)
    for number in (torch.inf, -torch.inf, torch.nan):
        current[torch.rand(5, 200) < 0.1] = number
    inputs, surrogate = (current, torch.tensor(0.7), torch.tensor(1.0)), get_surrogate("straight_through_estimator")
    assert torch.equal(eager.time_loop(*inputs, reset), fused.time_loop(*inputs, reset))
    results = [
        module.time_loop_gradients(*inputs, grad_spikes, reset, surrogate, False, False)[0] for module in (eager, fused)
    ]
    assert_same_bits(*[[result] for result in results])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reset", RESETS)
def test_a_membrane_at_the_threshold_does_not_spike_in_blocks_either(reset):
    current, grad_spikes = torch.randint(-2, 5, (2, 5, 200)) / 4
    assert (current == 0.75).any()
    for threshold in (0.75, 0.0):
        tensors = current, torch.tensor(0.5), torch.tensor(threshold), grad_spikes, reset, surrogates.ATan()
        results = [module.time_loop_gradients(*tensors, False, False) for module in (eager, fused)]
        assert_same_bits(*results)


@pytest.mark.usefixtures("small_blocks")
def test_a_surrogate_that_derives_from_another_keeps_its_own_formula():
    class Flat(surrogates.ATan):
        def derivative(self, shifted):
            return torch.full_like(shifted, 0.25)

    current = torch.randn(1, 1, 200, requires_grad=True)
    LIF(surrogate=Flat())(current).sum().backward()
    assert torch.equal(current.grad, torch.full((1, 1, 200), 0.25))


@pytest.mark.usefixtures("small_blocks")
def test_blocks_need_no_memory_beside_what_they_return_but_one_block():
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not function.is_view and not function._schema.is_mutable:
                allocated.append(result.numel())
            return result

    allocated = []
    current, grad_spikes = torch.randn(2, 4, 500)
    tensors = current, torch.tensor(0.5), torch.tensor(1.0)
    with Sizes():
        eager.time_loop(*tensors, "zero")
    assert sum(allocated) == 4 * 500 + 2 * 64
    allocated.clear()
    with Sizes():
        eager.time_loop_gradients(*tensors, grad_spikes, "zero", surrogates.ATan(), False, False)
    assert sum(allocated) == 4 * 500 + 3 * 64


def test_a_second_derivative_is_refused():
    current = torch.randn(3, 2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(LIF()(current).square().sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("learned", [False, True])
def test_state_moves_to_leaky_and_back(learned):
    ours = LIF(0.7, 0.4, "subtract", learn_beta=learned, learn_threshold=learned)
    leaky = snntorch.Leaky(0.1, 3.0, learn_beta=learned, learn_threshold=learned)
    loaded = leaky.load_state_dict(ours.state_dict(), strict=False)
    assert (leaky.beta, leaky.threshold) == (torch.tensor(0.7), torch.tensor(0.4))
    assert not loaded.unexpected_keys
    back = LIF(learn_beta=learned, learn_threshold=learned)
    assert not back.load_state_dict(leaky.state_dict(), strict=False).missing_keys
    assert (back.beta, back.threshold) == (ours.beta, ours.threshold)
    assert [name for name, _ in back.named_parameters()] == (["beta", "threshold"] if learned else [])


def test_a_kept_network_gives_its_state_to_one_of_snntorch(tmp_path):
    class Net(nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(16, 32), neuron(), nn.Linear(32, 10), neuron()

        def forward(self, x):
            return self.lif2(self.fc2(self.lif1(self.fc1(x))))

    class InSnntorch(Net):
        def forward(self, x):
            first, second, spikes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for step in x:
                hidden, first = self.lif1(self.fc1(step), first)
                out, second = self.lif2(self.fc2(hidden), second)
                spikes.append(out)
            return torch.stack(spikes)

    torch.manual_seed(0)
    trained = Net(lambda: LIF(0.8, 0.5, "zero"))
    quantize_network(trained, Ternary())
    save_network(tmp_path / "kept.safetensors", trained)
    kept = load_packed(tmp_path / "kept.safetensors", Net(LIF))
    theirs = InSnntorch(lambda: snntorch.Leaky(0.1, reset_mechanism="zero")).eval()
    loaded = theirs.load_state_dict(kept.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    x = torch.randn(6, 5, 16)
    with torch.no_grad():
        spikes = kept(x)
        assert torch.equal(theirs(x), spikes)
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize(
    ("reset", "spikes"),
    [
        ("zero", [1, 0, 1]),  # U = 1.25 | 0.75 | 0.375 + 0.75
        ("subtract", [1, 0, 0]),  # U = 1.25 | 0.625 + 0.75 - 1 = 0.375 | 0.1875 + 0.75
        ("none", [1, 1, 1]),  # U = 1.25 | 0.625 + 0.75 | 0.6875 + 0.75
    ],
)
def test_hand_count(reset, spikes):
    current = torch.tensor([1.25, 0.75, 0.75]).reshape(3, 1)
    assert LIF(0.5, 1.0, reset)(current).flatten().tolist() == spikes


def test_a_membrane_at_the_threshold_does_not_spike():
    assert LIF(1.0, 1.0)(torch.full((3, 1), 0.5)).flatten().tolist() == [0, 0, 1]


def test_gradient_hand_count():
    """Straight-through spikes, hard reset: a spike cuts the path to earlier currents, silence passes beta on."""
    current = torch.tensor([0.5, 0.9, 0.1]).reshape(3, 1).requires_grad_()  # U = 0.5 | 1.15, spike | 0.1
    lif = LIF(0.5, 1.0, "zero", "straight_through_estimator", learn_beta=True, learn_threshold=True)
    lif(current).sum().backward()
    assert current.grad.flatten().tolist() == [1.5, 1.0, 1.0]
    assert lif.beta.grad.item() == 0.5  # g[1] U[0]; U[1] was reset
    assert lif.threshold.grad.item() == -3.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_spikes_and_gradient_is_that_of_the_current(dtype):
    current = torch.randn(4, 3, 10).to(dtype).requires_grad_()
    lif = LIF(0.7, learn_beta=True)
    spikes = lif(current)
    assert spikes.dtype == dtype
    assert spikes.unique().tolist() == [0, 1]
    spikes.backward(torch.ones_like(spikes))
    assert (current.grad.dtype, lif.beta.grad.dtype) == (dtype, torch.float32)
    if dtype != torch.float64:  # integrated in float32: nothing is lost but the rounding of the current itself
        assert torch.equal(spikes.float(), lif(current.float()))


def test_half_precision_module():
    lif = LIF(0.7, learn_beta=True).bfloat16()
    current = torch.randn(4, 3, 10, dtype=torch.bfloat16, requires_grad=True)
    lif(current).sum().backward()
    assert lif.beta.grad.dtype == current.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_is_that_of_the_current(memory_format):
    current = torch.randn(8, 3, 4, 5).to(memory_format=memory_format).unflatten(0, (4, 2))
    spikes = LIF()(current)
    assert spikes.stride() == current.stride()
    assert torch.equal(spikes, LIF()(current.contiguous()))


def test_one_current_for_all_steps_gets_the_sum_of_their_gradients():
    image = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    LIF()(image.expand(4, -1, -1, -1, -1)).sum().backward()
    copied = image.detach().repeat(4, 1, 1, 1, 1).requires_grad_()
    LIF()(copied).sum().backward()
    torch.testing.assert_close(image.grad[0], copied.grad.sum(0))


def test_nothing_outlives_a_forward():
    lif, current = LIF(1.0, 5.0), torch.ones(3, 2, 4)
    assert not lif(current).any()
    assert not lif(current).any()  # 6 of charge altogether, had the first call left its 3
    lif(torch.ones(7, 5, 4))
    assert not lif(current).any()
    assert lif.state_dict().keys() == {"beta", "threshold"}


def test_the_current_is_all_that_is_kept_for_backward():
    kept = []
    current = torch.randn(4, 2, 50, dtype=torch.bfloat16, requires_grad=True)
    lif = LIF()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lif(current)
    assert sorted(tensor.numel() for tensor in kept) == [1, 1, current.numel()]
    assert current.data_ptr() in {tensor.data_ptr() for tensor in kept}  # no copy of it


def test_copy_and_pickle():
    lif = LIF(0.3, 0.7, "subtract", surrogates.FastSigmoid(slope=5.0), learn_beta=True)
    current = torch.randn(4, 2, 9)
    spikes = lif(current)
    for twin in (copy.deepcopy(lif), pickle.loads(pickle.dumps(lif))):
        assert torch.equal(twin(current), spikes)
        assert repr(twin) == repr(lif)
    assert repr(lif) == (
        "LIF(beta=0.3, threshold=0.7, reset=subtract, surrogate=FastSigmoid(slope=5.0), learn_beta=True)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.5}, r"^beta=1\.5: must lie in \[0, 1\]"),
        ({"beta": -0.1}, r"^beta=-0\.1: "),
        ({"beta": float("nan")}, r"^beta=nan: "),
        ({"beta": torch.tensor([0.5, 2.0])}, r"^beta=tensor"),
        ({"threshold": 0.0}, r"^threshold=0\.0: must be above 0"),
        ({"threshold": -1}, r"^threshold=-1: "),
        ({"reset": "hard"}, r"^reset='hard': must be one of zero, subtract, none"),
        ({"per": "neuron"}, r"^per='neuron': must be one of layer, channel"),
        ({"per": "channel"}, r"^per='channel': needs channels="),
        ({"per": "channel", "channels": 3, "beta": torch.ones(2)}, r"^beta of shape \[2\]: must be one number, or \[3"),
        ({"surrogate": "arctan"}, r"^surrogate='arctan': must be one of atan, "),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LIF(**settings)


@pytest.mark.parametrize("shape", [(), (4,), (0, 3)])
def test_bad_input(shape):
    with pytest.raises(ValueError, match=r"^current=\[.*\]: must have .*\[T, B, \.\.\.\]"):
        LIF()(torch.zeros(shape))


def test_export_sees_plain_operations():
    lif = LIF(0.7, reset="subtract", learn_beta=True)
    current = torch.randn(3, 2, 8, requires_grad=True)
    batch = torch.export.Dim("batch")
    program = torch.export.export(lif, (current,), dynamic_shapes=({1: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names
    assert all(name.startswith("aten.") or "getitem" in name for name in names)
    for size in (1, 2, 5):
        current = torch.randn(3, size, 8)
        assert torch.equal(program.module()(current), lif(current))


@pytest.fixture
def forget_compilers():
    compiled.has_compiler.cache_clear()
    yield
    compiled.has_compiler.cache_clear()


@pytest.mark.usefixtures("forget_compilers")
def test_without_a_compiler_neurons_stay_eager_and_the_log_says_so_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    current, grad_spikes = torch.randn(2, 3, 4, 5)
    eager, asked = (LIF(learn_beta=True, learn_threshold=True) for _ in range(2))
    compile_neurons(asked)
    with caplog.at_level(logging.WARNING):
        results = spikes_and_gradients(asked, current, grad_spikes)
        asked(current)
    assert [record.getMessage() for record in caplog.records] == [
        "Neurons run uncompiled on cpu: a C++ compiler (g++ or clang++) not found"
    ]
    expected = spikes_and_gradients(eager, current, grad_spikes)
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_compile_neurons_reaches_every_neuron_of_this_network_only():
    network = torch.nn.Sequential(LIF(), torch.nn.Sequential(LIF()), torch.nn.ReLU())
    other = copy.deepcopy(network)
    compile_neurons(network)
    assert [module.compiled for module in network.modules() if isinstance(module, LIF)] == [True, True]
    assert [module.compiled for module in other.modules() if isinstance(module, LIF)] == [False, False]
    compile_neurons(network, enabled=False)
    assert not network[0].compiled


def test_names_and_objects_of_surrogates_are_the_same():
    assert LIF(surrogate="fast_sigmoid").surrogate == get_surrogate("fast_sigmoid") == surrogates.FastSigmoid()


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("shape", [(5, 2, 3, 4, 2), (5, 2, 3)])
def test_per_channel_equals_a_loop_over_channels(shape, reset):
    settings = {"reset": reset, "learn_beta": True, "learn_threshold": True}
    beta, threshold = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.4, 1.0, 0.7])
    lif = LIF(beta, threshold, **settings, per="channel", channels=3)
    single = [LIF(beta[c], threshold[c], **settings) for c in range(3)]
    current, grad_spikes = torch.randn(2, *shape)
    spikes, *gradients = spikes_and_gradients(lif, current, grad_spikes)
    expected = [spikes_and_gradients(single[c], current[:, :, c], grad_spikes[:, :, c]) for c in range(3)]
    assert torch.equal(spikes, torch.stack([results[0] for results in expected], 2))
    torch.testing.assert_close(gradients[0], torch.stack([results[1] for results in expected], 2))
    for number, gradient in enumerate(gradients[1:], 2):
        torch.testing.assert_close(gradient, torch.stack([results[number] for results in expected]))


def test_per_channel_keeps_a_value_for_each_channel():
    lif = LIF(0.3, learn_beta=True, per="channel", channels=4)
    assert lif.state_dict().keys() == LIF().state_dict().keys()
    assert [value.tolist() for value in lif.state_dict().values()] == [pytest.approx([0.3] * 4), [1.0] * 4]
    assert lif.beta.is_contiguous()
    with pytest.raises(ValueError, match=r"^current=\[T, 2, 3, 4\]: must be \[T, B, 4, \.\.\.\]"):
        lif(torch.randn(5, 2, 3, 4))
    with pytest.raises(ValueError, match=r"^current=\[T, 4\]: must be \[T, B, 4"):
        lif(torch.randn(5, 4))


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_sequence_in_chunks_is_the_whole_sequence(reset, per):
    lif, current = LIF(0.8, 0.6, reset, per=per, channels=3), torch.randn(7, 2, 3, 5)
    state, parts = None, []
    for part in current.split([3, 1, 3]):
        spikes, state = lif.chunk(part, state)
        parts.append(spikes)
    assert torch.equal(torch.cat(parts), lif(current))
    assert not torch.equal(torch.cat([lif(part) for part in current.split([3, 1, 3])]), lif(current))
    half = current.bfloat16()
    spikes, state = lif.chunk(half[:4])
    assert (spikes.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(torch.cat([spikes, lif.chunk(half[4:], state)[0]]), lif(half))
