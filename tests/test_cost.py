"""Operations and energy against counts by hand and by brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tna_lightning.callbacks.inference_cost import InferenceCost
from tna_lightning.cost import CostCounter, inference_cost
from tna_lightning.models import LIF, build
from tna_lightning.quantization import Ternary, quantize_network


class TwoLayers(nn.Module):
    """Two steps of: 3 x 3 convolution of a 3 x 3 image with border, neurons, linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.neuron = LIF(beta=0.0, threshold=1.0)
        self.linear = nn.Linear(18, 4)

    def forward(self, x):
        current = self.conv(x).expand(2, -1, -1, -1, -1)
        return self.linear(self.neuron(current).flatten(2))


def test_two_layers_counted_by_hand():
    network = TwoLayers().requires_grad_(False)
    network.conv.weight.zero_()
    network.conv.weight[0, 0, 1, 1] = 2.0  # channel 0 copies the image times two, channel 1 is silent
    network.linear.weight.fill_(1.0)
    network.linear.weight[0] = 0.0
    x = torch.zeros(2, 1, 3, 3)
    x[0, 0, 0, 0] = 0.7  # fires in each of two steps; its corner feeds 4 of 9 windows
    x[1, 0, 1, 1] = 1.0  # fires likewise; the centre feeds 9 windows
    x[1, 0, 0, 1] = 0.2  # does not fire; this border feeds 6 windows
    cost = inference_cost(network, [(x, None)])

    assert cost["images"] == 2
    assert cost["weights"] == 18 + 72
    assert cost["zero_share"] == (17 + 18) / 90
    assert cost["neurons"] == 18
    assert cost["spikes"] == (2 + 2) / 2
    assert cost["firing_rate"] == 4 / (2 * 2 * 18)
    conv, linear = cost["layers"]
    assert conv["dense_macs"] == 2 * 9 * 9
    assert conv["input"] == "numbers"
    assert conv["macs"] == cost["first_layer_macs"] == cost["macs"] == 2 * (4 + 9 + 6) / 2
    assert conv["synaptic_operations"] == 0
    assert linear["input"] == "spikes"
    assert linear["dense_macs"] == 2 * 18 * 4
    assert linear["macs"] == 0
    assert linear["synaptic_operations"] == 4 * (2 + 2) / 2
    assert linear["on_nonzero_weights"] == 3 * (2 + 2) / 2
    assert linear["input_rate"] == 4 / 72
    assert cost["energy_uj"] == pytest.approx((19 * 4.6 + 8 * 0.9) / 1e6)
    assert cost["energy_dense_uj"] == pytest.approx((162 + 144) * 4.6 / 1e6)
    assert inference_cost(network, [x], pj_per_mac=1, pj_per_ac=0)["energy_uj"] == pytest.approx(19 / 1e6)


@given(
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_synapses_are_counted_exactly_at_borders_strides_and_groups(stride, padding, dilation, groups, size, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 6, 3, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False)
    quantize_network(conv, Ternary())
    spikes = (torch.rand(3, 4, *size) < 0.3).float()
    cost = inference_cost(conv, [spikes])
    # each product of a spike with a weight, counted by the convolution itself
    every, nonzero = torch.ones_like(conv.weight), (conv.weight != 0).float()
    assert cost["synaptic_operations"] == pytest.approx(conv._conv_forward(spikes, every, None).sum().item() / 3)
    assert cost["on_nonzero_weights"] == pytest.approx(conv._conv_forward(spikes, nonzero, None).sum().item() / 3)
    assert cost["macs"] == 0


def make(neuron="LIF", **model):
    target = {"LIF": "tna_lightning.models.LIF", "ReLU": "torch.nn.ReLU"}[neuron]
    spec = {"model": model, "neuron": {"_target_": target}, "in_channels": 2, "num_classes": 3}
    torch.manual_seed(0)
    return build(spec)


def test_the_stem_runs_once_for_an_image_and_every_step_for_events():
    network = make(_target_="tna_lightning.models.convnet", width=0.1, time_steps=3)
    stem_macs = 8 * 8 * 3 * 2 * 9
    image = inference_cost(network, [torch.randn(2, 2, 8, 8)])
    assert image["layers"][0]["dense_macs"] == stem_macs
    events = inference_cost(network, [torch.randn(2, 5, 2, 8, 8)])
    assert events["layers"][0]["dense_macs"] == 5 * stem_macs
    ann = inference_cost(make("ReLU", _target_="tna_lightning.models.convnet", width=0.1), [torch.randn(2, 2, 8, 8)])
    assert image["ann_macs"] == events["ann_macs"] == ann["dense_macs"] < image["dense_macs"]
    assert image["energy_ann_uj"] == ann["energy_dense_uj"] == pytest.approx(4.6e-6 * image["ann_macs"])
    assert image["neurons"] == events["neurons"] == 8 * 8 * (3 + 6) + 4 * 4 * 6


def test_averages_of_spikes_cost_multiplications():
    network = make(_target_="tna_lightning.models.convnet", width=0.2, time_steps=3, pool="avg")
    for module in network.modules():
        if isinstance(module, LIF):
            module.threshold.fill_(0.1)
    cost = inference_cost(network, [torch.randn(4, 2, 8, 8)])
    by_name = {layer["name"]: layer for layer in cost["layers"]}
    assert cost["macs"] > cost["first_layer_macs"] > 0
    assert by_name["body.1.conv"]["macs"] == 0  # its inputs are spikes
    assert by_name["body.4.conv"]["macs"] > 0  # behind average pooling
    assert by_name["body.4.conv"]["synaptic_operations"] == 0
    assert by_name["classifier"]["macs"] > 0
    assert cost["synaptic_operations"] > 0


def test_a_network_without_spikes_costs_multiplications_only():
    cost = inference_cost(make("ReLU", _target_="tna_lightning.models.convnet", width=0.2), [torch.randn(2, 2, 8, 8)])
    assert cost["firing_rate"] is None
    assert cost["synaptic_operations"] == 0
    assert 0 < cost["macs"] < cost["dense_macs"]


def test_batches_add_up_and_nothing_stays_behind():
    network = make(_target_="tna_lightning.models.convnet", width=0.2, time_steps=2).train()
    x = torch.randn(6, 2, 8, 8)
    assert inference_cost(network, [x[:2], x[2:]]) == inference_cost(network, [x])
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_cannot_be_counted_is_said():
    with pytest.raises(ValueError, match=r"^pj_per_mac=-1: must be 0 or more"):
        CostCounter(nn.Linear(2, 2), pj_per_mac=-1)
    with pytest.raises(ValueError, match=r"^pj_per_ac=inf: must be 0 or more"):
        InferenceCost(pj_per_ac=float("inf"))
    with pytest.raises(ValueError, match=r"^batches: the network has seen no image"):
        inference_cost(nn.Linear(2, 2), [])


# by name: weights, neurons, dense_macs, ann_macs, bytes kept and in float32; then of two random inputs, rounded by the
# machine: synaptic operations, those on nonzero weights, MACs
STOCK = {
    "convnet": ((558, 672, 65736, 19026, 513, 2520), (14616, 8536.5, 16570.5)),
    "resnet8": ((771, 528, 37896, 11202, 1008, 3716), (12244.5, 7062.5, 1991.5)),
    "resnet20": ((16984, 2944, 635584, 162352, 8510, 71320), (238454, 136865, 3872)),
    "vgg11": ((36168, 640, 207744, 55392, 12634, 147532), (26526, 15169, 3872)),
    "vggsnn": ((8532, 3160, 447687, 149229, 3928, 35548), (76044.5, 44713, 91586.5)),
}


@pytest.mark.parametrize("name", STOCK)
def test_figures_of_the_stock_backbones_stay(name):
    width = {"resnet20": 0.25, "vgg11": 0.0625, "vggsnn": 0.03}.get(name, 0.1)
    torch.manual_seed(0)
    spec = {
        "model": {"_target_": f"tna_lightning.models.{name}", "width": width},
        "neuron": {"_target_": "tna_lightning.models.LIF", "threshold": 0.2},
        "in_channels": 2,
        "num_classes": 3,
    }
    network = build(spec)
    quantize_network(network, Ternary())
    x = torch.randn(2, *([3, 2, 16, 16] if name == "vggsnn" else [2, 8, 8]), generator=torch.Generator().manual_seed(1))
    cost = inference_cost(network, [x])
    of_its_shape, measured = STOCK[name]
    shape = ("weights", "neurons", "dense_macs", "ann_macs", "bytes_kept", "bytes_float32")
    assert tuple(cost[key] for key in shape) == of_its_shape
    assert cost["quantized_ann"]["operations"] == cost["ann_macs"]
    assert cost["not_counted"] == []
    operations = tuple(cost[key] for key in ("synaptic_operations", "on_nonzero_weights", "macs"))
    assert operations == pytest.approx(measured, rel=0.02)
