"""Compiled time loops give what eager ones give, bit for bit.

Only an exponential in a surrogate may be rounded otherwise.
"""

import copy
import dataclasses
import os
import re
import shutil

import pytest
import torch

from tna_lightning.models import LIF, compile_neurons, compiled, convnet, fused, resnet18, surrogates

pytestmark = [
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"),
    # torch's own, inside of torch.compile
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
]


def assert_compiled_equals_eager(lif, current):
    lif, other = copy.deepcopy(lif), copy.deepcopy(lif)
    compile_neurons(other)
    grad_spikes = torch.randn(current.shape).to(current.dtype)
    results = []
    for neuron in (lif, other):
        leaf = current.detach().requires_grad_()
        spikes = neuron(leaf)
        spikes.backward(grad_spikes)
        results.append((spikes.detach(), leaf.grad, [parameter.grad for parameter in neuron.parameters()]))
    (spikes, gradient, parameters), (compiled_spikes, compiled_gradient, compiled_parameters) = results
    assert torch.equal(spikes, compiled_spikes)
    assert spikes.stride() == compiled_spikes.stride()
    for ours, theirs in zip([compiled_gradient, *compiled_parameters], [gradient, *parameters], strict=True):
        if isinstance(lif.surrogate, surrogates.S2NN):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(ours, theirs)


def num_codes():
    return compiled.at_once.cache_info().currsize


@pytest.mark.parametrize(
    "lif",
    [
        LIF(0.5),
        LIF(0.7, 0.8, "subtract", "fast_sigmoid", learn_beta=True, learn_threshold=True),
        pytest.param(LIF(0.9, 1.1, "none", surrogates.Triangular(0.3), learn_threshold=True), marks=pytest.mark.slow),
        pytest.param(LIF(0.8, 0.9, "zero", surrogates.S2NN(), learn_beta=True), marks=pytest.mark.slow),
    ],
    ids=lambda lif: lif.reset,
)
def test_compiled_equals_eager_and_is_compiled_once_for_all_batches_and_layouts(lif):
    before = num_codes()
    for batch in (3, 5, 2):
        assert_compiled_equals_eager(lif, torch.randn(4, batch, 6, 5, 5) + 0.3)
    channels_last = torch.randn(4 * 3, 6, 5, 5).to(memory_format=torch.channels_last).unflatten(0, (4, 3))
    assert_compiled_equals_eager(lif, channels_last)
    assert num_codes() <= before + 2  # forward and backward, unless another test had them compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [(torch.bfloat16, torch.float32), (torch.float64, torch.float32), (torch.float64, torch.float64)],
)
def test_other_dtypes(dtype, parameters):
    lif = LIF(0.7, learn_beta=True).to(parameters)
    assert_compiled_equals_eager(lif, torch.randn(3, 2, 50).to(dtype))


@pytest.mark.slow
def test_parameters_per_channel():
    lif = LIF(torch.rand(3), 0.5 + torch.rand(3), learn_beta=True, learn_threshold=True, per="channel", channels=3)
    assert_compiled_equals_eager(lif, torch.randn(3, 2, 3, 4, 4))


def test_random_surrogates_stay_eager_so_that_the_seed_gives_the_same_gradient():
    lif, current = LIF(surrogate="SSO"), torch.randn(3, 2, 50)
    gradients = []
    for enabled in (False, True):
        compile_neurons(lif, enabled)
        leaf = current.clone().requires_grad_()
        torch.manual_seed(1)
        lif(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("shape", [(4, 1), (4, 0, 3), (4, 70, 3)], ids=["one", "none", "others"])
def test_one_code_for_every_number_of_neurons(shape):
    assert_compiled_equals_eager(LIF(0.5), torch.randn(4, 3, 5))
    before = num_codes()
    assert_compiled_equals_eager(LIF(0.5), torch.randn(shape))
    assert num_codes() == before


def test_one_current_for_all_steps_gets_the_sum_of_their_gradients():
    """As a static image's is, of which no copies are made: other code, which reads the one row T times."""
    lif = LIF(0.5)
    compile_neurons(lif)
    image = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    lif(image.expand(4, -1, -1, -1, -1)).sum().backward()
    copied = image.detach().repeat(4, 1, 1, 1, 1).requires_grad_()
    LIF(0.5)(copied).sum().backward()
    torch.testing.assert_close(image.grad[0], copied.grad.sum(0))


def test_code_made_in_inference_mode_trains():
    lif = LIF(0.5, reset="none")
    compile_neurons(lif)
    with torch.inference_mode():
        lif(torch.randn(2, 3, 5))
    assert_compiled_equals_eager(lif, torch.randn(2, 3, 5))


def test_compiled_spikes_may_be_changed_in_place():
    lif, leaf = LIF(0.5), torch.randn(4, 3, 5, requires_grad=True)
    gradients = []
    for enabled in (False, True):
        compile_neurons(lif, enabled)
        (gradient,) = torch.autograd.grad(lif(leaf).mul_(2).sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_more_time_steps_than_torch_recompiles_for():
    """torch.compile gives a function up for eager after eight compilations; each T has its own."""
    before = num_codes()
    lif = LIF(0.6)
    compile_neurons(lif)
    with torch.no_grad():
        for time_steps in range(11, 21):
            lif(torch.randn(time_steps, 2, 8))
    assert num_codes() == before + 10


def test_network_after_copy_with_compiled_neurons():
    network = convnet(1, 10, LIF, time_steps=4, width=0.25)
    compiled = copy.deepcopy(network)
    compile_neurons(compiled)
    images = torch.randn(5, 1, 8, 8)
    for net in (network, compiled):
        net(images).square().sum().backward()
    for parameter, other in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 1, 8, 8)], ids=["images", "frames"])
def test_whole_network_compiles_without_a_break(shape):
    torch.manual_seed(0)
    torch.compiler.reset()  # after the other kind it would take every size for open, channels too, and fail
    images = torch.randn(shape)
    network = convnet(1, 10, lambda: LIF(learn_beta=True), time_steps=3, width=0.25)
    whole = torch.compile(copy.deepcopy(network), fullgraph=True)
    torch.testing.assert_close(whole(images), network(images))
    for net in (network, whole):
        net(images).square().sum().backward()
    for parameter, other in zip(network.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(other.grad / 2, parameter.grad / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_whole_network_stores_no_masks_and_transposes_at_its_ends_alone():
    """Inductor's convolutions are channels-last on a CPU, so what lies in another order is transposed."""
    from torch._inductor.utils import run_and_get_code

    network = resnet18(3, 10, LIF, time_steps=2, width=0.25)  # 16 channels at least
    whole = torch.compile(network, fullgraph=True)
    _, codes = run_and_get_code(lambda: whole(torch.randn(2, 3, 16, 16)).sum().backward())
    assert len(codes) == 2  # forward and backward
    for code in codes:
        assert "bool*" not in code
        kernels = dict(re.findall(r"^(cpp_fused\w*) = async_compile\.cpp_pybinding(.*?)^'''\)", code, re.M | re.S))
        loops = [kernel for name, kernel in kernels.items() if "stack" in name and "batch_norm" in name]
        assert loops
        assert sum("transpose" in loop for loop in loops) <= 2 < len(loops)


@pytest.mark.slow
def test_a_library_that_was_cut_short_is_built_again(cache, caplog):
    compiled.build(A_CODE)
    (library,) = cache.glob("loop-*.so")
    os.truncate(library, 100)
    compiled.at_once(A_CODE)
    assert [message for message in caplog.messages if "built again" in message] == [
        f"{library}: cannot be loaded; built again"
    ]


A_CODE = compiled.Code(
    fused.time_loop,
    ("zero",),
    3,
    ((torch.float32, 2, False), (torch.float32, 1, True), (torch.float32, 1, True)),
    torch.device("cpu"),
    1,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache without anything in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = compiled.at_once, compiled._library, compiled._waiting
    for each in caches:
        each.cache_clear()
    yield tmp_path / "tna_lightning"
    for each in caches:
        each.cache_clear()


def test_auto_runs_eagerly_while_another_process_builds(cache, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_WORTH", 2 * 40)
    monkeypatch.setattr(compiled, "_LOOK", 1)
    caplog.set_level("INFO")
    lif, current = LIF(0.5), torch.randn(3, 40)
    compile_neurons(lif, "auto")
    expected = LIF(0.5)(current)
    seen = []
    monkeypatch.setattr(fused, "now", lambda code, values: seen.append(code) or compiled.now(code, values))
    with torch.no_grad():
        assert torch.equal(lif(current), expected)
        assert not cache.exists()  # not worth it yet
        assert torch.equal(lif(current), expected)
    waiting = compiled._waiting(seen[0])
    assert waiting.builder is not None
    assert waiting.run is None
    assert waiting.builder.wait() == 0
    with torch.no_grad():
        assert torch.equal(lif(current), expected)
    assert waiting.run is compiled.at_once(seen[0])
    assert caplog.messages == [
        "Compiling a time loop of the neurons beside the training",
        "The neurons' time loop is compiled: same spikes, less time",
    ]
    compiled._waiting.cache_clear()
    assert compiled.now(seen[0], 1) is not None  # the next process begins with it
    assert compiled._seconds(waiting.library).isdecimal()


@pytest.mark.slow
def test_auto_goes_on_eagerly_where_the_compiler_fails(cache, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_WORTH", 0)
    monkeypatch.setattr(compiled, "_LOOK", 1)
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    assert compiled.now(A_CODE, 1) is None
    assert compiled._waiting(A_CODE).builder.wait() != 0
    assert [compiled.now(A_CODE, 1) for _ in range(2)] == [None, None]
    assert caplog.messages == ["Neurons go on uncompiled: the compiler failed, see compile=neurons"]


@dataclasses.dataclass(frozen=True)
class Slanted(surrogates.Surrogate):
    """One of a user's own."""

    def derivative(self, shifted):
        return SLANT * shifted.abs()


SLANT = 1.0


@pytest.mark.slow
def test_a_surrogate_of_ones_own_is_compiled_at_once_and_anew_when_it_changes(cache, monkeypatch):
    lif, leaf = LIF(0.5, surrogate=Slanted()), torch.randn(3, 40, requires_grad=True)
    compile_neurons(lif, "auto")
    (gradient,) = torch.autograd.grad(lif(leaf).sum(), leaf)
    assert len([*cache.glob("loop-*.so")]) == 1  # its gradient's; spikes need no surrogate
    monkeypatch.setitem(globals(), "SLANT", 2.0)
    compiled.at_once.cache_clear()
    compiled._library.cache_clear()
    (steeper,) = torch.autograd.grad(lif(leaf).sum(), leaf)
    torch.testing.assert_close(steeper[-1], 2 * gradient[-1])
    assert len([*cache.glob("loop-*.so")]) == 2
