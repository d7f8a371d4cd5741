"""Codes whose axes have names, and a quantiser whose codes differ by time step from training to the exported file."""

import copy
import math

import lightning
import pytest
import torch
from torch import nn

from tna_lightning.cost import inference_cost
from tna_lightning.data import DigitsDataModule
from tna_lightning.export import export_nir, export_onnx, export_packed
from tna_lightning.learner import TwinLearner
from tna_lightning.models import PerStep, build
from tna_lightning.quantization import (
    Codes,
    Quantizer,
    TemporalTernary,
    Ternary,
    TernaryTTQ,
    WeightQuantization,
    decode,
    load_packed,
    network_bytes,
    plain_state_dict,
    quantize_network,
    save_network,
    weight_report,
)
from tna_lightning.quantization.codes import from_periods, to_periods
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.quantization.packing import read_packed
from tna_lightning.quantization.quantizers import twn
from tna_lightning.running.weights import load_weights

T = 3
SPEC = {
    "model": {"_target_": "tna_lightning.models.convnet", "width": 0.125, "time_steps": T},
    "neuron": {"_target_": "tna_lightning.models.LIF", "threshold": 0.5},
    "in_channels": 1,
    "num_classes": 10,
}


class Rising(Quantizer):
    """TWN with a threshold that rises from step to step, and a scale for each step."""

    name = "rising"
    bits = 2
    scales_by = ("step",)

    def __init__(self, time_steps=T, per="channel"):
        super().__init__(per)
        self.time_steps = time_steps

    def quantize(self, rows):
        codes, scales = zip(*(twn(rows, threshold=0.3 + 0.4 * t) for t in range(self.time_steps)), strict=True)
        return torch.stack(codes), torch.stack(scales)


def make_network():
    torch.manual_seed(0)
    network = build(SPEC)
    quantize_network(network, Rising(), skip=["classifier"])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    for _ in range(3):
        network(torch.randn(16, 1, 8, 8))
    return network.eval()


# ---- the object ------------------------------------------------------------------------------------------------------


def test_a_scale_is_read_by_the_names_of_its_axes():
    values = torch.tensor([[[1, -1], [0, 1]], [[-1, 0], [1, 1]]], dtype=torch.int8)  # two steps, two channels
    by_sign = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    assert Codes(values, by_sign, "x", 2, ("step", "channel"), ("sign",)).weight.tolist() == [
        [[3, -5], [0, 3]],
        [[-5, 0], [3, 3]],
    ]
    by_step = torch.tensor([2.0, 7.0]).view(2, 1, 1)
    codes = Codes(values, by_step, "x", 2, ("step", "channel"), ("step",))
    assert codes.weight.tolist() == [[[2, -2], [0, 2]], [[-7, 0], [7, 7]]]
    assert (codes.time_steps, codes.num_bytes) == (2, 2 + 8)
    unpacked, scale = codes
    assert unpacked is values
    assert scale is by_step
    # the same numbers, of a layer without time: its first axis is the channel
    by_channel = Codes(values, by_step, "x", 2, ("channel",), ("channel",))
    assert torch.equal(by_channel.weight, codes.weight)
    assert by_channel.time_steps is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": ("step",)}, "axes="),
        ({"axes": ("channel", "step")}, "axes="),
        ({"scale_axes": ("step",)}, r"scale_axes=\['step'\]: must be names of sign, channel"),
        ({"scale_axes": ("channel", "sign"), "scale": torch.ones(2, 2, 1)}, "in this order"),
        ({"scale_axes": ("sign",)}, r"its scale has the shape \[2, 1\], .* by sign"),
        ({"scale_axes": ()}, r"its scale has the shape \[2, 1\], .* by layer"),
        ({"scale": None}, "without a scale"),
        ({"scale": torch.full((2, 1), torch.nan)}, "must be finite"),
        ({"values": torch.ones(4, dtype=torch.int8), "axes": ("step", "channel")}, "without step and channel"),
    ],
)
def test_codes_that_do_not_fit_their_names_are_refused(changes, words):
    fields = {"values": torch.ones(2, 3, dtype=torch.int8), "scale": torch.ones(2, 1), "scheme": "x", "bits": 2}
    Codes(**fields, scale_axes=("channel",))
    with pytest.raises(ValueError, match=words):
        Codes(**({**fields, "scale_axes": ("channel",)} | changes))


def test_two_scales_are_not_guessed_from_the_rank():
    codes, scale = TernaryTTQ(per="channel").encode(torch.randn(4, 3))
    assert torch.equal(decode(codes, scale, ("sign", "channel")), codes.float())
    with pytest.raises(ValueError, match=r"^scale of shape \[2, 4, 1\]: must broadcast against codes of \[4, 3\]"):
        decode(codes, scale)


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_codes_by_step_are_those_of_each_step(per):
    weight = torch.randn(4, 2, 3, 3, requires_grad=True)
    quantizer = Rising(per=per).for_weight(weight)
    codes = quantizer.encode(weight)
    assert codes.axes == ("step", "channel")
    assert codes.scale_axes == (("step", "channel") if per == "channel" else ("step",))
    value = quantizer(weight)
    assert torch.equal(value, codes.weight)
    for t in range(T):
        assert torch.equal(value[t], Ternary(threshold=0.3 + 0.4 * t, per=per)(weight))
    grad = torch.randn_like(value)
    value.backward(grad)
    torch.testing.assert_close(weight.grad, grad.sum(0))


def test_a_quantiser_that_gives_other_shapes_is_named():
    class Wrong(Rising):
        scales_by = ()

    with pytest.raises(
        ValueError, match=r"^Wrong.quantize: gave codes \[3, 4, 5\] and a scale \[3, 4, 1\]; .*\[4, 1\]$"
    ):
        Wrong()(torch.randn(4, 5))


# ---- TaWQ ------------------------------------------------------------------------------------------------------------


class Sign(torch.autograd.Function):
    """The authors' sign, whose derivative is that of a sigmoid of slope 4."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        s = (4 * ctx.saved_tensors[0]).sigmoid()
        return grad * 4 * s * (1 - s)


def tawq_step_by_step(weight, time_steps):
    """The rule of arXiv 2511.17567 as a loop over time, autograd's own gradient."""
    x = (weight - weight.mean()) / weight.std()
    rest, steps = torch.zeros_like(x), []
    for _ in range(time_steps):
        membrane = rest + (x - rest) / 2
        code = (Sign.apply(membrane - 0.25) + Sign.apply(membrane + 0.25)) / 2
        rest = (1 - code.detach().abs()) * membrane
        steps.append(code)
    codes = torch.stack(steps)
    return codes / (codes.abs().mean(tuple(range(2, codes.ndim)), keepdim=True) + 1e-6)


@pytest.mark.parametrize("time_steps", [1, 2, 4, 7, 11])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7)])
def test_tawq_is_the_step_by_step_rule_in_values_and_gradients(shape, time_steps):
    weight = (0.3 * torch.randn(shape, dtype=torch.float64) + 0.05).requires_grad_()
    other = weight.detach().clone().requires_grad_()
    value, expected = TemporalTernary(time_steps)(weight), tawq_step_by_step(other, time_steps)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    grad = torch.randn_like(value)
    value.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-9, atol=1e-13)


def test_tawq_of_one_step_is_a_static_ternary_quantiser():
    weight = torch.randn(6, 4, 3, 3) + 0.2
    (value,) = TemporalTernary(1)(weight)
    x = (weight - weight.mean()) / weight.std()
    codes = x.sign() * (x.abs() > 0.5)
    torch.testing.assert_close(value, codes / codes.abs().mean((1, 2, 3), keepdim=True).add(1e-6))


@pytest.mark.parametrize(("time_steps", "bits"), [(1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (15, 5), (16, 6)])
def test_tawq_is_stored_as_sign_and_period(time_steps, bits):
    weight = torch.randn(40, 40)
    codes = TemporalTernary(time_steps).encode(weight)
    if time_steps <= 4:  # longer periods are rare
        assert len(codes.values.flatten(1).unique(dim=1).T) == 2 * time_steps + 1
    assert codes.information == pytest.approx(math.log2(2 * time_steps + 1))
    assert codes.bits_per_weight == bits
    assert codes.num_bytes == 1600 * bits // 8 + 4 * 40 * time_steps
    periods = to_periods(codes.values)
    for t in range(1, time_steps + 1):  # a weight is not 0 at the multiples of its period
        is_due = (periods != 0) & (t % periods.abs().clamp_min(1) == 0)
        assert torch.equal(codes.values[t - 1], periods.sign() * is_due)
    assert torch.equal(from_periods(periods, time_steps), codes.values)


def test_equal_weights_and_one_weight_give_zeros_and_no_gradient():
    for weight in (torch.ones(3, 2, requires_grad=True), torch.ones(1, 1, requires_grad=True)):
        value = TemporalTernary(3)(weight)
        value.sum().backward()
        assert not value.any()
        assert not weight.grad.any()


def test_codes_without_a_period_are_refused_as_such():
    values = torch.tensor([[[1]], [[0]]], dtype=torch.int8)  # of step 1 alone
    with pytest.raises(ValueError, match=r"^encoding='periods': its codes do not recur by a period each"):
        Codes(values, None, "x", 2, ("step", "channel"), encoding="periods")
    with pytest.raises(ValueError, match=r"^encoding='periods': must be of 2-bit codes that differ by step"):
        Codes(values[0], None, "x", 2, encoding="periods")


@pytest.mark.parametrize("time_steps", [0, 128, 2.5])
def test_tawq_asks_for_a_whole_number_of_steps(time_steps):
    with pytest.raises(ValueError, match=rf"^time_steps={time_steps}: must be a whole number from 1 to 127"):
        TemporalTernary(time_steps)


def test_a_tawq_network_is_packed_to_the_bit_at_four_bits_a_weight_and_reported_truly(tmp_path):
    torch.manual_seed(0)
    spec = SPEC | {"model": SPEC["model"] | {"time_steps": 4}}
    network = build(spec)
    quantize_network(network, TemporalTernary(4), skip=["stem", "classifier"])
    x = torch.randn(8, 1, 8, 8)
    for _ in range(3):
        network(x)
    network.eval()
    path = tmp_path / "network.safetensors"
    save_network(path, network, spec)
    loaded = load_packed(path)
    assert torch.equal(loaded(x), network(x))
    for layers in (weight_report(network)["layers"], weight_report(loaded)["layers"]):
        quantized = [layer for layer in layers if layer["is_quantized"]]
        assert [layer["name"] for layer in quantized] == ["body.1.conv", "body.4.conv"]
        for layer in quantized:
            assert (layer["bits"], layer["time_steps"], layer["encoding"]) == (4, 4, "periods")
            assert layer["information"] == pytest.approx(3.17, abs=0.005)
            channels = network.get_submodule(layer["name"]).out_channels
            assert layer["bytes"] == -(-layer["weights"] * 4 // 8) + 4 * 4 * channels
    tensors, _ = read_packed(path)
    weights = network.get_submodule("body.1.conv").weight[0].numel()
    assert tensors["body.1.conv.weight.codes"].numel() == -(-weights // 2)
    cost = inference_cost(network, [x])
    assert cost["layers"][1]["input"] == "spikes"
    # TWN reads 2 bits an operation, this one all 4, which say the code of every step
    operations = cost["layers"][1]["synaptic_operations"]
    assert cost["layers"][1]["memory_weights_uj"] == pytest.approx(operations * 4 / 64 * 10 / 1e6)
    with pytest.raises(
        ValueError, match=r"^network.body.1.conv: NIR has no node for a weight that differs by time step"
    ):
        export_nir(network, tmp_path / "network.nir", [x])


def test_tawq_of_another_t_than_the_networks_is_refused():
    with pytest.raises(ValueError, match=r"^quantizer.time_steps=5: the network is built for time_steps=3; must be"):
        quantize_network(build(SPEC), TemporalTernary(5), skip=["stem", "classifier"])


# ---- in a network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [False, True])
def test_each_step_is_computed_with_its_own_weight(events):
    network = make_network()
    x = torch.randn(2, T, 1, 8, 8) if events else torch.randn(2, 1, 8, 8)
    seen = {}
    for name, module in network.named_modules():
        if name in ("stem.conv", "body.1.conv", "body.1.norm"):
            module.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: (inputs[0], out)}))
    assert network(x).shape == (T, 2, 10)
    frames = x.transpose(0, 1) if events else x.expand(T, -1, -1, -1, -1)
    for name, inputs in {"stem.conv": frames, "body.1.conv": seen["body.1.conv"][0]}.items():
        weight = network.get_submodule(name).weight
        assert len({tuple(step.flatten().tolist()) for step in weight}) == T
        expected = [nn.functional.conv2d(inputs[t], weight[t], padding=1) for t in range(T)]
        assert torch.equal(seen[name][1], torch.stack(expected))
    assert seen["body.1.norm"][0].ndim == 4  # layers beside it see [T * B, ...]
    with pytest.raises(ValueError, match=r"^x=\[5, 2, 1, 8, 8\]: must have the 3 time steps of the layer's weight"):
        network(torch.randn(2, 5, 1, 8, 8))


def test_a_linear_layer_in_a_perstep_meets_time_too():
    network = nn.Sequential(PerStep(nn.Linear(4, 2)))
    quantize_network(network, Rising())
    x = torch.randn(T, 5, 4)
    layer = network[0][0]
    expected = torch.stack([x[t] @ layer.weight[t].T + layer.bias for t in range(T)])
    torch.testing.assert_close(network(x), expected)
    spikes = (x > 0).float()
    cost = inference_cost(network, [spikes])
    by_hand = sum((spikes[t] @ (layer.weight[t] != 0).float().T).sum() for t in range(T))
    assert cost["on_nonzero_weights"] * T == pytest.approx(by_hand.item())  # its first dimension is taken for images
    assert cost["synaptic_operations"] * T == pytest.approx(2 * spikes.sum().item())


def test_weights_that_training_does_not_see_quantised_are_the_same_at_every_step():
    network = PerStep(nn.Linear(4, 2))
    quantize_network(network, Rising())
    parametrization = network[0].parametrizations.weight
    original = parametrization.original
    parametrization[0].set_share(original, 0.5)
    quantised = Rising()(original)
    is_large = original.abs() >= original.abs().flatten().sort(descending=True).values[3]
    for t in range(T):
        assert torch.equal(network[0].weight[t], torch.where(is_large, quantised[t], original))
    parametrization[0].set_share(original, 0.0)
    assert torch.equal(network[0].weight, original.expand(T, -1, -1))
    assert torch.equal(network.eval()[0].weight, quantised)


def test_where_weights_do_not_meet_time_the_layer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^quantizer=rising: .*right in a PerStep; .* skip=\[stem,classifier\]$"):
        quantize_network(build(SPEC), Rising(), skip=["stem"])
    for network in (nn.Conv2d(1, 2, 3), PerStep(nn.Sequential(nn.Linear(2, 2))), PerStep(nn.Conv1d(1, 2, 3))):
        before = [type(module) for module in network.modules()]
        with pytest.raises(ValueError, match=r"^quantizer=rising: "):
            quantize_network(network, Rising())
        assert [type(module) for module in network.modules()] == before
    learner = TwinLearner(build(SPEC), num_classes=10)
    with pytest.raises(ValueError, match=r"skip=\[classifier\]$"):
        WeightQuantization(Rising()).check(learner, max_epochs=1)
    steps = PerStep(nn.Linear(2, 2))
    quantize_network(steps, Rising())
    save_network(tmp_path / "steps", steps)
    with pytest.raises(ValueError, match=r"fits another network \(0: its weight differs by time step"):
        load_packed(tmp_path / "steps", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"fits another network \(size mismatch for 0\.weight"):
        load_packed(tmp_path / "steps", PerStep(nn.Linear(2, 3)))


def test_reports_count_a_weight_once():
    network = make_network()
    stem, first, _, classifier = weight_report(network)["layers"]
    assert (stem["weights"], stem["bits"], stem["time_steps"]) == (4 * 9, 2 * T, T)
    assert first["weights"] == 8 * 4 * 9
    assert first["bytes"] == 8 * 4 * 9 * T * 2 // 8 + 4 * T * 8
    weight = network.body[1].conv.weight
    assert first["zeros"] == (weight == 0).sum().item() / T
    assert first["code_shares"]["0"] == pytest.approx(first["zeros"] / first["weights"])
    assert "time_steps" not in classifier
    plain = build(SPEC)
    assert network_bytes(network)["float32"] == network_bytes(plain)["float32"]
    assert weight_report(network)["bytes_float32"] == weight_report(plain)["bytes_float32"]


def test_operations_are_counted_with_the_weight_of_their_step():
    network = make_network()
    x = torch.randn(6, 1, 8, 8)
    seen = []
    handle = network.body[1].conv.register_forward_hook(lambda layer, inputs, _: seen.append((layer.weight, *inputs)))
    cost = inference_cost(network, [x[:6]])
    handle.remove()
    ((weight, spikes),) = seen
    every, some = (
        sum(nn.functional.conv2d(spikes[t], synapses[t], padding=1).sum().item() for t in range(T)) / 6
        for synapses in (torch.ones_like(weight), (weight != 0).float())
    )
    layers = {layer["name"]: layer for layer in cost["layers"]}
    assert 0 < some < every
    assert layers["body.1.conv"]["synaptic_operations"] == pytest.approx(every)
    assert layers["body.1.conv"]["on_nonzero_weights"] == pytest.approx(some)
    assert layers["body.1.conv"]["input_rate"] == pytest.approx((spikes != 0).float().mean().item())
    assert layers["body.1.conv"]["dense_macs"] == T * 8 * 4 * 9 * 64
    assert layers["body.1.conv"]["ann_macs"] == 8 * 4 * 9 * 64
    assert layers["stem.conv"]["dense_macs"] == T * 4 * 9 * 64  # the stem runs at every step
    assert inference_cost(network, [x[:2], x[2:]]) == cost


# ---- from training to the exported file ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_it_trains_and_is_kept_to_the_bit(tmp_path):
    torch.manual_seed(0)
    learner = TwinLearner(build(SPEC), num_classes=10)
    quantization = WeightQuantization(Rising(), skip=["classifier"], start_epoch=1)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    settings |= {"enable_progress_bar": False, "limit_val_batches": 1, "limit_test_batches": 2}
    trainer = lightning.Trainer(max_epochs=2, limit_train_batches=4, callbacks=[quantization], **settings)
    data = DigitsDataModule()
    start = {name: value.clone() for name, value in learner.base.state_dict().items()}
    trainer.fit(learner, data)
    network = learner.base.eval()
    trained = plain_state_dict(network.state_dict())
    assert {name: value.shape for name, value in trained.items()} == {n: v.shape for n, v in start.items()}
    assert all((trained[name] != start[name]).any() for name in ("stem.conv.weight", "body.1.conv.weight"))
    assert torch.equal(copy.deepcopy(network).stem.conv.weight, network.stem.conv.weight)
    (results,) = trainer.test(learner, data, verbose=False)

    save_network(tmp_path / "kept", network, SPEC)
    kept = load_packed(tmp_path / "kept")
    x = torch.randn(20, 1, 8, 8)
    assert torch.equal(kept(x), network(x))
    assert kept(x).std() > 0
    alone = TwinLearner(kept, num_classes=10)
    assert lightning.Trainer(**settings).test(alone, data, verbose=False) == [results]
    assert weight_report(kept) == weight_report(network)
    assert network_bytes(kept) == network_bytes(network)
    assert inference_cost(kept, [x]) == inference_cost(network, [x])
    save_network(tmp_path / "again", kept, SPEC)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "kept").read_bytes()
    assert torch.equal(load_packed(tmp_path / "kept", kept)(x), network(x))  # into one that has such weights already

    kept.stem.conv.weight.data[1, 0] += 0.5  # trained on: its weights are no codes any more
    assert [layer["is_quantized"] for layer in weight_report(kept)["layers"]] == [False, True, True, False]
    with pytest.raises(ValueError, match=r"^network: the weights of stem\.conv, .* differ by time step already"):
        quantize_network(kept, Ternary(), skip=["classifier"])
    with pytest.raises(
        ValueError, match=r"^init_from='.*': stem\.conv\.weight differs by time step there; name the run"
    ):
        load_weights("init_from", build(SPEC), tmp_path / "kept")


def test_exports_run_it_or_refuse_it_by_name(tmp_path):
    network = make_network()
    batches = [torch.randn(size, 1, 8, 8) for size in (8, 3)]
    counts = export_packed(network, tmp_path / "network.safetensors", batches, SPEC)
    assert counts["images"] == 11
    assert counts["spikes"] > 500
    assert counts["spikes_differing"] == 0
    assert export_onnx(network, tmp_path / "network.onnx", batches)["images"] == 11
    with pytest.raises(
        ValueError, match=r"^network\.stem\.conv: NIR has no node for a weight that differs by time step$"
    ):
        export_nir(network, tmp_path / "network.nir", batches)
    for candidate in (network, load_packed(tmp_path / "network.safetensors")):
        with pytest.raises(ValueError, match=r"^network: cannot fold stem\.norm: the weight before it differs by time"):
            fold_batch_norm(candidate)
    assert {path.name for path in tmp_path.iterdir()} == {"network.safetensors", "network.onnx"}
