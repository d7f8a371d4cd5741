"""Products of every kind against counts by hand, and against torch's own counter where both mean the same."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tna_lightning.cost import CostCounter, MemoryModel, inference_cost
from tna_lightning.models import LIF, SpikingNeuron, sdt, spikingformer
from tna_lightning.quantization import Ternary, quantize_network, weight_report

B, T, N, F = 2, 3, 5, 8


class Of(nn.Module):
    """A module, and what is done with it."""

    def __init__(self, module, forward):
        super().__init__()
        self.module, self.does = module, forward

    def forward(self, x):
        return self.does(self.module, x)


def counted(network, x, no_grad=torch.inference_mode):
    """The report; the output and the backends' settings are what they are without a counter."""
    network.eval()
    with no_grad():
        plain = network(x)
        before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
        with CostCounter(network) as counter:
            output = network(x)
    first, second = (value[0] if isinstance(value, tuple) else value for value in (plain, output))
    assert torch.equal(first, second)
    assert before == (
        torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    )  # fmt: skip
    return counter.report()


def by_name(cost, key):
    sums = {}
    for entry in (*cost["layers"], *cost["products"]):
        sums[entry["name"]] = sums.get(entry["name"], 0) + entry[key]
    return sums


def not_counted(cost):
    return [(entry["name"], entry["operation"]) for entry in cost["not_counted"]]


def flops(network, x):
    """Multiply-accumulates an image, by torch's counter, which sees what is not fused."""
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.backends.mkldnn.enabled = True
    return counter.get_total_flops() / 2 / len(x)


class SpikingAttention(nn.Module):
    """Tokens ``[B, N, F]`` that spike at T steps, q, k and v as spikes, (q k^T) v without softmax, a classifier."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(F, F)
        self.neuron = LIF(beta=0.5, threshold=0.2)
        self.q, self.k, self.v = (nn.Linear(F, F, bias=False) for _ in range(3))
        self.neuron_q, self.neuron_k, self.neuron_v = (LIF(beta=0.0, threshold=0.05) for _ in range(3))
        self.classifier = nn.Linear(F, 4)

    def forward(self, x):
        spikes = self.neuron(self.embed(x).expand(T, *x.shape))
        self.spikes = q, k, v = [
            getattr(self, f"neuron_{name}")(getattr(self, name)(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2]))
            for name in "qkv"
        ]
        return self.classifier((q @ k.mT @ v * 0.125).mean(2))


def test_attention_of_spikes_by_hand():
    torch.manual_seed(0)
    network, x = SpikingAttention().requires_grad_(False), torch.randn(B, N, F)
    cost = counted(network, x)
    q, k, v = (spikes.double() for spikes in network.spikes)
    assert 0.1 < q.mean() < 0.9
    scores = q @ k.mT
    met = scores.sum() + ((scores != 0).double() @ (v != 0).double()).sum()  # products of two ones; of two not 0
    (product,) = cost["products"]
    assert (product["name"], product["operation"], product["input"]) == ("", "aten.bmm", "whole numbers x spikes")
    assert product["synaptic_operations"] == met.item() / B
    assert product["macs"] == 0
    assert product["dense_macs"] == T * 2 * N * N * F
    assert product["ann_macs"] == 2 * N * N * F  # once, without time
    dense, once = by_name(cost, "dense_macs"), by_name(cost, "ann_macs")
    assert dense["embed"] == once["embed"] == N * F * F  # before the neurons: each token once
    assert (dense["q"], once["q"]) == (T * N * F * F, N * F * F)
    assert (dense["classifier"], once["classifier"]) == (T * F * 4, F * 4)
    assert cost["not_counted"] == []
    assert cost["synaptic_operations"] == sum(by_name(cost, "synaptic_operations").values())


@pytest.mark.parametrize("no_grad", [torch.inference_mode, torch.no_grad])
def test_tokens_of_a_linear_layer_are_no_time(no_grad):
    network = nn.Linear(32, 32)
    assert counted(network, torch.randn(4, 16, 32), no_grad)["ann_macs"] == 16 * 32 * 32 == 16_384


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("no_grad", [torch.inference_mode, torch.no_grad])
def test_multihead_attention_on_both_paths(batch_first, masked, no_grad):
    mask = torch.ones(B, B, dtype=torch.bool).triu(1) if masked else None  # only where the images are the tokens

    def attend(module, x):
        if not batch_first:
            return module(x, x, x, attn_mask=mask)[0]
        return module(x, x, x, need_weights=False)[0]

    network = Of(nn.MultiheadAttention(F, 2, batch_first=batch_first), attend).requires_grad_(False)
    cost = counted(network, torch.randn(B, N, F), no_grad)
    tokens, groups = (N, 1) if batch_first else (B, N / B)
    dense = by_name(cost, "dense_macs")
    assert dense["module.in_proj_weight"] == N * F * 3 * F
    assert dense["module.out_proj"] == N * F * F
    assert dense["module"] == 2 * groups * tokens * tokens * F
    seen = 3 / 4 if masked and not batch_first else 1  # of two tokens, one sees the other
    assert by_name(cost, "macs")["module"] == (1 + seen) * groups * tokens * tokens * F
    assert cost["not_counted"] == []


def test_an_encoder_on_its_fast_path_agrees_with_torchs_counter():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(F, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)
    x = torch.randn(B, N, F)
    cost = counted(network, x)
    assert cost["dense_macs"] == flops(network, x)
    assert cost["macs"] < cost["dense_macs"]  # ReLU between the linear layers


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers(kind, gates):
    torch.manual_seed(0)
    network = kind(F, 6, num_layers=2, bidirectional=True, batch_first=True).requires_grad_(False)
    cost = counted(network, (torch.rand(B, N, F) < 0.4).float())
    dense = by_name(cost, "dense_macs")
    assert dense["weight_ih_l0"] == dense["weight_ih_l0_reverse"] == N * F * gates * 6
    assert dense["weight_hh_l0"] == dense["weight_hh_l1_reverse"] == N * 6 * gates * 6
    assert dense["weight_ih_l1"] == N * 12 * gates * 6
    first = {layer["name"]: layer for layer in cost["layers"]}
    assert first["weight_ih_l0"]["input"] == "spikes"
    assert first["weight_hh_l0"]["macs"] == (N - 1) * 6 * gates * 6  # the first state is 0
    assert not_counted(cost) == ([] if kind is nn.RNN else [("", "aten.mul")])  # gates times states


def test_transposed_and_grouped_convolutions():
    torch.manual_seed(0)
    for network in (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        nn.ConvTranspose1d(4, 2, 3, bias=False),
    ):
        spikes = (torch.rand(B, 4, *(5,) * (network.weight.ndim - 2)) < 0.3).float()
        cost = counted(network, spikes)
        assert cost["dense_macs"] == flops(network, spikes)
        nn.init.ones_(network.weight)  # each product of a spike with a weight, counted by the layer itself
        assert cost["synaptic_operations"] == network(spikes).sum().item() / B


def test_an_input_is_counted_as_what_it_is():
    network = nn.Linear(4, 3)
    for x, kind, is_ac in (
        ([[0, 1, 1, 0]], "spikes", True),
        ([[0, -1, 1, 0]], "ternary spikes", True),
        ([[0, 2, 1, 0]], "whole numbers", False),
        ([[0, 0.5, 1, 0]], "numbers", False),
    ):
        cost = inference_cost(network, [torch.tensor(x, dtype=torch.float32)])
        assert cost["layers"][0]["input"] == kind
        assert (cost["synaptic_operations"], cost["macs"]) == ((6, 0) if is_ac else (0, 6))


def test_what_is_not_understood_is_named():
    x = torch.randn(B, N, F)
    spikes = (x > 0).float()
    bilinear = Of(nn.Bilinear(F, F, 3), lambda module, x: module(x, x))
    assert not_counted(counted(bilinear, x)) == [("module", "aten._trilinear")]
    linear = nn.Linear(F, F)
    gate = Of(linear, lambda module, x: module(x) * x.sigmoid())
    assert not_counted(counted(gate, x)) == [("", "aten.mul")]
    assert not_counted(counted(Of(linear, lambda module, x: module(x).cumprod(1)), x)) == [("", "aten.cumprod")]
    assert not_counted(counted(Of(linear, lambda module, x: torch.fft.rfft(module(x)).abs()), x)) == [
        ("", "aten.fft_rfft")
    ]
    # spikes select, one number for all folds, and what takes no data is computed once
    mask = Of(linear, lambda module, x: module(x) * x * 0.3)
    assert counted(mask, spikes)["not_counted"] == []
    prepared = Of(linear, lambda module, x: nn.functional.linear(x, (module.weight @ module.weight) * module.weight))
    assert counted(prepared, spikes)["dense_macs"] == N * F * F


def test_products_with_parts_of_buffers_and_states_are_seen():
    """What data are written into is data, whatever it was before."""

    def write(module, x):
        buffer = torch.zeros(len(x), N, F)
        for n in range(N):
            buffer[:, n] = x[:, n]
        return module(buffer)

    assert counted(Of(nn.Linear(F, 4), write), torch.randn(B, N, F))["dense_macs"] == N * F * 4
    network = Of(nn.Linear(F, 4), lambda module, x: torch.einsum("bnf,fk->bnk", module(x), torch.eye(4)))
    cost = counted(network, torch.randn(B, N, F))
    (product,) = cost["products"]
    assert (product["operation"], product["dense_macs"]) == ("aten.bmm", N * 16)


def test_all_weights_are_reported_and_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Parameter(torch.zeros(1, N, F))
            self.attention = nn.MultiheadAttention(F, 2)
            self.norm = nn.LayerNorm([N, F])
            self.neuron = LIF(beta=torch.full((F, 1), 0.5), learn_beta=True)
            self.rnn = nn.RNN(F, 3)
            self.up = nn.ConvTranspose1d(3, 2, 3)

    network = Net()
    quantize_network(network, Ternary())
    report = weight_report(network)
    assert [(layer["name"], layer["is_quantized"]) for layer in report["layers"]] == [
        ("tokens", False),
        ("attention.in_proj_weight", False),
        ("attention.out_proj", True),
        ("rnn.weight_ih_l0", False),
        ("rnn.weight_hh_l0", False),
        ("up", False),
    ]
    assert report["weights"] == N * F + 4 * F * F + 3 * F + 9 + 18
    assert report["quantized_share"] == F * F / report["weights"]
    assert report["layers"][1]["bytes"] == 4 * 3 * F * F


def test_memory_is_priced_by_size():
    model = MemoryModel()
    assert [model.access_pj(size) for size in (1, 8 * 1024, 20 * 1024, 32 * 1024, 1024**2, 1024**2 + 1)] == [
        10.0, 10.0, 15.0, 20.0, 100.0, 1300.0
    ]  # fmt: skip
    assert model.energy_uj(6.4e6, 100) == pytest.approx(1.0)  # 100,000 accesses of 64 bits at 10 pJ
    for wrong, message in (
        ({"sram": ((2, 1.0), (1, 2.0))}, "sram="),
        ({"dram": -1.0}, r"dram=-1.0: must be 0"),
        ({"access_bits": 0}, "access_bits=0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            MemoryModel(**wrong)


def test_memory_and_the_yardstick_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.neuron, self.last = nn.Linear(4, 6, bias=False), LIF(0.0), nn.Linear(6, 2, bias=False)

        def forward(self, x):
            return self.last(self.neuron(self.first(x).expand(T, -1, -1)))

    network = Net().requires_grad_(False)
    nn.init.constant_(network.first.weight, 2.0)
    nn.init.constant_(network.last.weight, 1.0)
    network.last.weight[0, 0] = 0.0
    quantize_network(network.last, Ternary())
    cost = inference_cost(network, [torch.tensor([[0.7, 0.2, 0.0, 0.1]])])  # all six fire at all three steps

    def moved(bits):
        return bits / 64 * 10.0 / 1e6  # everything is small

    operations = 3 * 6, T * 6 * 2
    assert (cost["macs"], cost["synaptic_operations"]) == operations
    assert cost["memory_weights_uj"] == pytest.approx(moved(operations[0] * 32 + operations[1] * 2))
    assert cost["memory_membranes_uj"] == pytest.approx(moved(2 * 32 * T * 6))
    read, written = 4 * 32 + T * 6, T * 6
    assert cost["memory_activations_uj"] == pytest.approx(moved(read + written))
    parts = [cost[f"memory_{part}_uj"] for part in ("weights", "membranes", "activations")]
    assert cost["energy_memory_uj"] == pytest.approx(sum(parts))

    ann = cost["quantized_ann"]
    assert ann["activation_bits"] == 2  # of 0 to 3 spikes
    assert (ann["macs"], ann["acs"], ann["operations"], ann["on_nonzero_weights"]) == (24, 12, 36, 24 + 11)
    assert ann["energy_uj"] == pytest.approx((24 * 4.6 + 12 * 0.9) / 1e6)
    assert ann["energy_memory_uj"] == pytest.approx(moved(24 * 32 + 12 * 2 + 4 * 32 + 6 * 2 + 6 * 2))
    doubled = inference_cost(network, [torch.ones(1, 4)], memory=MemoryModel(sram=((8192, 20.0),)))
    assert doubled["memory_membranes_uj"] == pytest.approx(2 * cost["memory_membranes_uj"])
    assert inference_cost(nn.Linear(2, 2), [torch.ones(1, 2)])["quantized_ann"] is None


def test_half_precision_finds_its_weights():
    network = Of(nn.Linear(F, 4), lambda module, x: module(module(x) @ torch.ones(4, F)))
    x = torch.randn(B, F)
    network.eval()
    with CostCounter(network) as counter, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x)
        network(x)  # in the same context torch would keep the weight that it cast
    assert by_name(counter.report(), "dense_macs")["module"] == 2 * F * 4


def test_a_pass_that_fails_is_not_counted_and_hides_no_later_one():
    network = Of(nn.Sequential(nn.Linear(F, 4), LIF()), lambda module, x: module(x if x.ndim == 3 else x[0]))
    with CostCounter(network) as counter, torch.inference_mode():
        with pytest.raises(ValueError, match="current"):
            network(torch.ones(1, F))
        network(torch.ones(T, B, F))
    assert counter.report()["dense_macs"] == B * F * 4  # its first dimension is taken for images
    from torch.nn.modules import module
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
    assert not module._global_forward_hooks_with_kwargs
    assert _get_current_dispatch_mode() is None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["attention", "encoder layer", "recurrent"])
def test_time_folded_into_images_is_time_in_layers_that_transpose(kind, batch_first):
    torch.manual_seed(0)
    module, run = {
        "attention": (nn.MultiheadAttention(F, 2, batch_first=batch_first), lambda module, x: module(x, x, x)[0]),
        "encoder layer": (
            nn.TransformerEncoderLayer(F, 2, 16, batch_first=batch_first), lambda module, x: module(x)
        ),
        "recurrent": (nn.GRU(F, 6, batch_first=batch_first), lambda module, x: module(input=x)[0]),
    }[kind]  # fmt: skip

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.neuron, self.mix = nn.Linear(F, F), LIF(), module

        def forward(self, x):
            x = self.neuron(self.embed(x).expand(4, *x.shape)).flatten(0, 1)
            return run(self.mix, x if batch_first else x.transpose(0, 1))

    cost = counted(Net().requires_grad_(False), torch.randn(B, N, F))
    dense, once = by_name(cost, "dense_macs"), by_name(cost, "ann_macs")
    within = [name for name in once if name.startswith("mix") and dense[name]]
    assert [dense[name] for name in within] == [4 * once[name] for name in within]
    projection = {"attention": 3 * F * F, "encoder layer": 3 * F * F, "recurrent": F * 18}[kind]
    assert once[{"attention": "mix.in_proj_weight", "encoder layer": "mix.self_attn.in_proj_weight"}.get(
        kind, "mix.weight_ih_l0"
    )] == N * projection  # fmt: skip


def test_each_weight_made_of_one_parameter_counts_with_its_own_zeros():
    masks = torch.zeros(2, 4, F)
    masks[0, :, 0], masks[1] = 1.0, 1.0

    def masked(module, x):
        return sum(nn.functional.linear(x, module.weight * mask) for mask in masks)

    network = Of(nn.Linear(F, 4, bias=False), masked)
    for network.does in (masked, lambda module, x: masked(module, x) + masked(module, x)):
        cost = counted(network, torch.ones(B, F))
        assert cost["on_nonzero_weights"] == cost["synaptic_operations"] * (4 + 4 * F) / (2 * 4 * F)


def test_flags_of_training_come_back_by_module_and_after_a_failure():
    network = nn.Sequential(nn.Linear(F, F), nn.Dropout(), nn.Linear(F, 2))
    network[1].eval()
    before = [module.training for module in network.modules()]
    inference_cost(network, [torch.ones(B, F)])
    assert [module.training for module in network.modules()] == before == [True, True, False, True]
    with pytest.raises(RuntimeError, match="shapes"):
        inference_cost(network, [torch.ones(B, F + 1)])
    assert [module.training for module in network.modules()] == before


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_layer_that_others_parametrise_has_the_weight_it_computes(norm):
    network = nn.Sequential(norm(nn.Linear(F, 4, bias=False)), nn.Linear(4, 2, bias=False))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    cost = inference_cost(network, [torch.ones(1, F)])
    assert [(layer["weights"], layer["is_quantized"]) for layer in cost["layers"]] == [(4 * F, False), (8, False)]
    assert (cost["synaptic_operations"], cost["macs"]) == (4 * F, 8)
    assert cost["bytes_float32"] == cost["bytes_kept"] == 4 * sum(value.numel() for value in state.values())
    with pytest.raises(ValueError, match=r"^network: the weights of 0 are parametrized already.*skip=\[0\]$"):
        quantize_network(network, Ternary())
    quantize_network(network, Ternary(), skip=["0"])
    assert [layer["is_quantized"] for layer in weight_report(network)["layers"]] == [False, True]
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in state if name.startswith("0"))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_tied_weights_count_once(is_quantized):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.a, self.b = nn.Embedding(F, F), nn.Linear(F, F, bias=False), nn.Linear(F, F)
            self.a.weight = self.b.weight
            self.again = self.b

        def forward(self, x):
            return self.again(self.b(self.a(x)))

    network = Net()
    if is_quantized:
        quantize_network(network, Ternary())
    else:
        network.embedding.weight = network.a.weight
    report, cost = weight_report(network), counted(network, torch.ones(1, F))
    assert report["weights"] == (2 if is_quantized else 1) * F * F
    assert cost["bytes_float32"] == 4 * (report["weights"] + F)
    assert cost["bytes_kept"] == report["bytes"] + 4 * F
    assert cost["dense_macs"] == 3 * F * F


def test_a_network_without_weights_has_shares_of_0():
    report = weight_report(nn.Sequential(nn.BatchNorm1d(F), LIF()))
    assert (report["weights"], report["quantized_share"], report["zero_share"]) == (0, 0.0, 0.0)


def test_a_network_may_be_called_by_keyword():
    class Net(nn.Linear):
        def forward(self, x, scale=2.0):
            return super().forward(x * scale)

    network = Net(F, 4)
    with CostCounter(network) as counter, torch.inference_mode():
        network(x=torch.ones(B, F))
        network(torch.ones(B, F), scale=1.0)
        network(scale=1.0, x=torch.ones(B, F))
    cost = counter.report()
    assert (cost["images"], cost["dense_macs"]) == (3 * B, F * 4)
    assert not network._forward_pre_hooks
    for network, call in ((Net(F, 4), {}), (nn.GRU(F, 4), {"input": torch.ones(B, F)})):
        with CostCounter(network), pytest.raises(ValueError, match=r"^network: must be called with a tensor"):
            network(**call)


def test_complex_products_are_named():
    weight = torch.randn(F, 4, dtype=torch.complex64)
    network = Of(nn.Linear(F, F), lambda module, x: (module(x).to(torch.complex64) @ weight).abs())
    assert not_counted(counted(network, torch.randn(B, F))) == [("", "aten.mm")]
    network.does = lambda module, x: (torch.fft.fft(module(x)) * weight.mT[0].repeat(2)[:F]).real
    assert not_counted(counted(network, torch.randn(B, F))) == [("", "aten.fft_fft"), ("", "aten.mul")]


def test_layers_within_a_neuron_are_counted():
    class Recurrent(SpikingNeuron):
        def __init__(self):
            super().__init__()
            self.back = nn.Linear(6, 6, bias=False)

        def forward(self, current):
            spikes = [(current[0] > 0).float()]
            for step in current[1:]:
                spikes.append((step * 0.5 + self.back(spikes[-1]) > 0).float())
            self.back(spikes[-1])  # a step each
            return torch.stack(spikes)

    network = Of(
        nn.Sequential(nn.Linear(4, 6), Recurrent()), lambda module, x: module[1](module[0](x).expand(T, *[-1] * 2))
    )
    cost = counted(network, torch.randn(B, 4))
    _, back = cost["layers"]
    assert (back["name"], back["weights"], back["input"]) == ("module.1.back", 36, "spikes")
    assert (back["dense_macs"], back["ann_macs"]) == (T * 36, 36)
    assert back["synaptic_operations"] == cost["spikes"] * 6
    assert cost["not_counted"] == []


def test_tokens_of_as_many_images_as_steps_are_no_time():
    class Net(nn.Module):
        def __init__(self, repeat):
            super().__init__()
            self.embed, self.attend, self.neuron = nn.Linear(F, F), nn.MultiheadAttention(F, 2, batch_first=True), LIF()
            self.repeat = repeat

        def forward(self, x):
            if self.repeat is not None:
                return self.neuron(self.embed(self.repeat(x)))
            x = self.embed(x)
            return self.neuron(self.attend(x, x, x)[0].expand(T, *x.shape))

    static = [by_name(counted(Net(None).requires_grad_(False), torch.randn(b, T, F)), "ann_macs") for b in (1, 2, T)]
    assert static[0] == static[1] == static[2]
    assert static[0]["embed"] == T * F * F
    for repeat in (
        lambda x: x.expand(T, *x.shape),
        lambda x: x.repeat(T, 1, 1),
        lambda x: x[None].repeat(T, 1, 1, 1),
        lambda x: torch.stack([x] * T),
        lambda x: (torch.rand(T, *x.shape) < x).float(),
        lambda x: x.unsqueeze(1).expand(-1, T, -1, -1).transpose(0, 1),
        lambda x: x.unsqueeze(1).repeat(1, T, 1, 1).permute(1, 0, 2, 3),
    ):
        torch.manual_seed(0)
        network, x = Net(repeat).requires_grad_(False).eval(), torch.rand(T, 2, F)
        if repeat(x).ndim == 3:
            repeat = network.repeat = lambda x: x.repeat(T, 1, 1, 1)
        cost = inference_cost(network, [x])
        assert (cost["dense_macs"], cost["ann_macs"]) == (T * 2 * F * F, 2 * F * F)


def test_layers_may_be_called_by_keyword_or_not_at_all():
    network = Of(nn.Linear(F, 4), lambda module, x: module(input=x) + nn.functional.linear(x, module.weight))
    cost = counted(network, torch.ones(B, F))
    assert (cost["dense_macs"], cost["synaptic_operations"], cost["not_counted"]) == (2 * F * 4, 2 * F * 4, [])


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning")  # which is why it is tried
def test_products_under_other_names_are_named():
    linear = nn.Linear(F, 4)
    index = torch.zeros(B, 4, dtype=torch.long)
    for does, operation in (
        (lambda module, x: torch.matrix_exp(module(x).view(-1, 2, 2)), "aten.matrix_exp"),
        (lambda module, x: torch.linalg.inv(module(x).view(-1, 2, 2)), "aten.linalg_inv"),
        (lambda module, x: torch.ones(B, 4).scatter(1, index, module(x), reduce="multiply"), "aten.scatter"),
        (lambda module, x: torch.ones(B, 4).scatter_(1, index, module(x), reduce="multiply"), "aten.scatter_"),
        (lambda module, x: torch.ones(B, 4).scatter_reduce(1, index, module(x), "prod"), "aten.scatter_reduce"),
        (lambda module, x: torch.det(module(x).view(-1, 2, 2)), "aten.det"),
    ):
        cost = counted(Of(linear, does), torch.randn(B, F))
        assert operation in [entry["operation"] for entry in cost["not_counted"]]
        assert cost["dense_macs"] == F * 4
    added = Of(linear, lambda module, x: torch.ones(B, 4).scatter(1, index, module(x), reduce="add"))
    assert counted(added, torch.randn(B, F))["not_counted"] == []


def test_a_matrix_that_a_neuron_uses_itself_is_counted_beside_its_layers():
    class Recurrent(SpikingNeuron):
        def __init__(self, takes_part):
            super().__init__()
            self.back, self.takes_part = nn.Parameter(torch.randn(6, 6)), takes_part
            self.layer = nn.Linear(6, 6, bias=False)

        def forward(self, current):
            spikes = [(current[0] > 0).float()]
            for step in current[1:]:
                back = spikes[-1] @ self.back if self.takes_part else 0
                spikes.append((step + back + self.layer(spikes[-1]) > 0).float())
            return torch.stack(spikes)

    for takes_part in (False, True):
        network = Of(
            nn.Sequential(nn.Linear(4, 6), Recurrent(takes_part), nn.Linear(6, 2)),
            lambda module, x: module[2](module[1](module[0](x).expand(T, *[-1] * 2))),
        )
        cost = counted(network, torch.randn(B, 4))
        assert not_counted(cost) == []
        dense = by_name(cost, "dense_macs")
        back = {"module.1": (T - 1) * 36} if takes_part else {}
        assert dense == {"module.0": 24, "module.1.layer": (T - 1) * 36, "module.2": T * 12} | back
        own = [(entry["name"], entry["operation"], entry["dense_macs"]) for entry in cost["products"]]
        assert own == ([("module.1", "aten.mm", (T - 1) * 36)] if takes_part else [])


def test_what_passes_by_torch_is_named():
    words = "what passes by torch (numpy, lists)"
    by_numpy = Of(nn.Linear(F, 4), lambda module, x: module(torch.from_numpy(x.numpy().copy())))
    assert not_counted(counted(by_numpy, torch.randn(B, F))) == [("module", words), ("", words)]
    by_list = Of(nn.Linear(F, 4), lambda module, x: module(torch.tensor(x.tolist())) + module(x))
    cost = counted(by_list, torch.randn(B, F))
    assert (not_counted(cost), cost["dense_macs"]) == ([("module", words)], F * 4)
    at_the_end = Of(nn.Linear(F, 4), lambda module, x: torch.tensor(module(x).tolist()))
    assert not_counted(counted(at_the_end, torch.randn(B, F))) == [("", words)]
    # what is computed from weights alone is computed once, and is no such thing
    learned = Of(nn.ModuleList([nn.Linear(F, 4), nn.Embedding(B, F)]), lambda m, x: m[0](x) + m[0](m[1].weight))
    assert counted(learned, torch.randn(B, F))["not_counted"] == []


def test_neurons_of_a_module_at_several_places_add_up():
    layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3), LIF()])
    network = Of(layers, lambda m, x: m[2](m[1](m[2](m[0](x).expand(T, -1, -1)))))
    cost = counted(network, torch.randn(B, 4))
    assert cost["neurons"] == cost["neuron_layers"][0]["neurons"] == 6 + 3
    square = Of(nn.ModuleList([nn.Linear(4, 4), LIF()]), lambda m, x: m[1](m[0](m[1](m[0](x).expand(T, -1, -1)))))
    assert counted(square, torch.randn(B, 4))["neurons"] == 4 + 4

    def by_step(m, x):
        return torch.cat([m[1](m[0](x)[None]) for _ in range(T)])

    assert counted(Of(nn.ModuleList([nn.Linear(4, 4), LIF()]), by_step), torch.randn(B, 4))["neurons"] == 4


def test_volumes_are_no_event_frames():
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2 * 2, 3))
    cost = counted(network, torch.randn(2, 2, 4, 4, 4))  # [B, C, D, H, W]
    assert cost["ann_macs"] == cost["dense_macs"] == 4 * 2 * 27 * 8 + 32 * 3
    frames = Of(nn.Conv2d(2, 4, 3), lambda module, x: module(x.flatten(0, 1)))
    cost = counted(frames, torch.randn(2, T, 2, 4, 4))
    assert cost["dense_macs"] == T * cost["ann_macs"] == T * 4 * 2 * 9 * 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_scripted_and_traced_networks_are_refused(how):
    layer = nn.Linear(F, 4)
    scripted = torch.jit.script(layer) if how == "script" else torch.jit.trace(layer, torch.ones(1, F))
    for network, place in ((scripted, ""), (nn.Sequential(scripted, nn.Linear(4, 2)), ".0")):
        with pytest.raises(ValueError, match=rf"^network{place}: is scripted or traced \(torch.jit\)"):
            inference_cost(network, [torch.ones(1, F)])
    report = weight_report(nn.Sequential(scripted, nn.Linear(4, 2)))
    assert [(entry["name"], entry["weights"]) for entry in report["layers"]] == [("0", 4 * F), ("1", 8)]


def test_a_failure_that_the_network_catches_drops_no_pass():
    def tries(module, x):
        try:
            return module[0](x)
        except (RuntimeError, ValueError):
            return module[1](x)

    fails = nn.Sequential(nn.Linear(F, F), nn.Linear(F + 1, F))
    cost = counted(Of(nn.ModuleList([fails, nn.Linear(F, 4)]), tries), torch.randn(B, F))
    assert by_name(cost, "dense_macs") == {"module.0.0": F * F, "module.0.1": 0, "module.1": 4 * F}
    assert (cost["images"], cost["not_counted"]) == (B, [])
    in_a_neuron = nn.Sequential(nn.Linear(F, F), LIF(per="channel", channels=F + 1))  # refuses these channels
    network = Of(nn.ModuleList([in_a_neuron, nn.Linear(F, 4)]), lambda module, x: tries(module, x[None]))
    cost = counted(network, torch.randn(B, F))
    assert by_name(cost, "dense_macs") == {"module.0.0": F * F, "module.1": 4 * F}
    assert cost["firing_rate"] is None


@pytest.mark.parametrize("backbone", [sdt, spikingformer])
def test_attention_of_spikes_costs_an_accumulate_where_both_fire(backbone):
    settings = {"num_heads": 2} if backbone is spikingformer else {}
    network = backbone(3, 10, LIF, channels=16, num_blocks=1, time_steps=2, **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.6)  # so that queries, keys and values fire
    (attention,) = (module for module in network.body if hasattr(module, "attend"))
    seen = {}
    for name in ("query", "key", "value"):
        attention.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output.flatten(3))  # [T, B, D, N]
        )
    cost = inference_cost(network, [torch.rand(4, 3, 16, 16)])
    query, key, value = (seen[name].double() for name in ("query", "key", "value"))
    both = (key * value).sum()
    if backbone is spikingformer:
        q, k, v = (each.unflatten(2, (2, 8)) for each in (query, key, value))
        scores = k.mT @ q
        both = scores.sum() + (v.ne(0).double() @ scores.ne(0).double()).sum()
    (product,) = cost["products"]
    assert both > 0
    assert product["synaptic_operations"] == pytest.approx(float(both) / 4)
    assert product["macs"] == 0
    assert cost["not_counted"] == []
