"""The backbones: shapes, parameter counts by hand, structure others rely on, and nothing kept between forwards."""

import copy
import pickle
import re
from dataclasses import asdict
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from tna_lightning import models
from tna_lightning.data import Inputs
from tna_lightning.models import (
    LIF,
    build,
    convnet,
    is_spiking,
    maxresnet18,
    msresnet18,
    resnet8,
    resnet18,
    resnet19,
    resnet20,
    sdt,
    sewresnet18,
    spikingformer,
    vgg11,
    vgg16,
    vggsnn,
)
from tna_lightning.models.spec import sizes_for
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.running.config import compose
from tna_lightning.running.home import options

SIZES = ("sdt_dvs", "spikingformer_dvs")  # YAMLs that make another size of a backbone
BACKBONES, NEURONS = [name for name in options("model") if name not in SIZES], list(options("neuron"))
if find_spec("spikingjelly") is None:
    NEURONS.remove("spikingjelly")
OF_ONE_T = ("psn", "masked_psn", "ipsu", "rpsu")  # with weights for each step
NO_SPIKES = ("relu", "quant_relu")


@cache
def node(group, choice):
    return compose([f"{group}={choice}"])[group]


def composed(model, neuron="lif", in_channels=3, num_classes=7, **settings):
    """The network as the front door makes it: from the two YAML files."""
    factory = instantiate(node("neuron", neuron))
    return instantiate(
        node("model", model), in_channels=in_channels, num_classes=num_classes, neuron=factory, **settings
    )


def settled(backbone, neuron="lif", **settings):
    """The network in eval mode with the norms' statistics of a batch, so that every layer spikes."""
    network = composed(backbone, neuron, **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.randn(16, 3, 16, 16))
    return network.eval()


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def conv_norm(channels_in, channels_out, kernel=3):
    return channels_in * channels_out * kernel**2 + 2 * channels_out


def blocks(channels_in, channels_out, count):
    """Basic blocks of one stage, the first with a shortcut convolution where channels change."""
    shortcut = conv_norm(channels_in, channels_out, 1) if channels_in != channels_out else 0
    first = conv_norm(channels_in, channels_out) + conv_norm(channels_out, channels_out) + shortcut
    return first + (count - 1) * 2 * conv_norm(channels_out, channels_out)


def linear(features, outputs):
    return features * outputs + outputs


def test_one_yaml_for_each_backbone_and_neuron():
    assert {getattr(models, name) for name in BACKBONES} == {
        convnet, resnet8, resnet18, resnet19, resnet20, vgg11, vgg16, vggsnn,
        maxresnet18, msresnet18, sewresnet18, sdt, spikingformer,
    }  # fmt: skip
    loops = {"lif", "plif", "if", "alif", "ternary_lif", "integer_lif", "snntorch", "spikingjelly"}
    assert set(options("neuron")) == loops | {*OF_ONE_T, "sliding_psn", "psu", *NO_SPIKES}


FIRST_OF_ITS_BLOCKS = ("convnet", "resnet8", "vggsnn", "sdt")  # with every neuron; the others with three


@pytest.mark.parametrize(
    ("backbone", "neuron"),
    [
        (backbone, neuron)
        for backbone in BACKBONES
        for neuron in (NEURONS if backbone in FIRST_OF_ITS_BLOCKS else ("lif", "psn", "relu"))
    ],
)
def test_shapes_and_gradients(backbone, neuron):
    network = composed(backbone, neuron, in_channels=2, width=0.05, time_steps=3)
    spiking = neuron not in NO_SPIKES
    assert is_spiking(network) == spiking
    assert network(torch.randn(2, 2, 8, 8)).shape == (3 if spiking else 1, 2, 7)
    frames = 3 if neuron in OF_ONE_T else 5
    logits = network(torch.rand(2, frames, 2, 48, 48))
    assert logits.shape == (frames, 2, 7)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    assert network.stem.conv.weight.grad.abs().sum() > 0


ADDED = {  # where currents are added, if not behind conv2 and shortcut
    "msresnet18": "conv2|shortcut|stem",
    "maxresnet18": "conv2|shortcut|stem",
    "sewresnet18": "nowhere",
    "sdt": r"conv2|project|body\.(6|8\.conv)\.",  # the fourth convolution, and the one added to it
    "spikingformer": r"conv2|project|body\.9\.",
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_norms(backbone):
    """tdBN starts at the threshold, where two currents are added at 1 / sqrt 2 of it; TEBN scales each step."""
    torch.manual_seed(0)
    plain = composed(backbone, width=0.05, time_steps=3)
    torch.manual_seed(0)
    settings = {"width": 0.05, "time_steps": 3}
    factory = partial(LIF, threshold=0.5)
    tdbn = getattr(models, backbone)(3, 7, factory, norm="tdbn", **settings)
    norms = {name: module for name, module in tdbn.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        expected = 0.5 * (0.5**0.5 if re.search(ADDED.get(backbone, "conv2|shortcut"), name) else 1)
        torch.testing.assert_close(norm.weight, torch.full_like(norm.weight, expected))
        assert not norm.bias.any()
    torch.manual_seed(0)
    tebn = composed(backbone, norm="tebn", **settings)
    assert num_parameters(tebn) == num_parameters(plain) + 3 * len(norms)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(tebn(x), plain(x))  # every scale starts at 1
    stem = tebn.stem
    stem.norm.step_scale.data.copy_(torch.tensor([1.0, 2.0, -0.5]))
    alike = plain.stem(x[None])[0].detach()
    currents = stem(x.expand(3, -1, -1, -1, -1))
    torch.testing.assert_close(currents, torch.stack([alike, 2 * alike, -0.5 * alike]), rtol=1e-4, atol=1e-5)
    tebn(x).square().sum().backward()
    assert stem.norm.step_scale.grad.shape == (3,)
    with pytest.raises(ValueError, match=r"^network: cannot fold stem.norm: its scale differs by time step"):
        fold_batch_norm(tebn)
    with pytest.raises(ValueError, match=r"^x=\[4, .*must have the 3 time steps of the norm's scale"):
        tebn(torch.randn(2, 4, 3, 16, 16))
    with pytest.raises(ValueError, match=r"^norm='batch': must be one of bn, tdbn, tebn"):
        getattr(models, backbone)(3, 7, LIF, norm="batch", **settings)


# layer by layer, for 3 input channels and 10 classes
RESNET18 = (
    conv_norm(3, 64)
    + blocks(64, 64, 2) + blocks(64, 128, 2) + blocks(128, 256, 2) + blocks(256, 512, 2)
    + linear(512, 10)
)  # fmt: skip


def spiking_transformer(channels_in, channels, count):
    """Stem, blocks of query, key, value, projection and two layers of an MLP, classifier."""
    stem = conv_norm(channels_in, channels // 8) + conv_norm(channels // 8, channels // 4)
    stem += conv_norm(channels // 4, channels // 2) + conv_norm(channels // 2, channels) + conv_norm(channels, channels)
    mlp = conv_norm(channels, 4 * channels, 1) + conv_norm(4 * channels, channels, 1)
    return stem + count * (4 * conv_norm(channels, channels, 1) + mlp) + linear(channels, 10)


COUNTS = {
    "convnet": conv_norm(3, 32) + conv_norm(32, 64) + conv_norm(64, 64) + linear(64, 10),
    "resnet8": conv_norm(3, 16) + blocks(16, 16, 1) + blocks(16, 32, 1) + blocks(32, 64, 1) + linear(64, 10),
    **dict.fromkeys(("resnet18", "msresnet18", "maxresnet18", "sewresnet18"), RESNET18),
    "sdt": spiking_transformer(3, 512, 2),
    "spikingformer": spiking_transformer(3, 384, 4),
    "resnet19": conv_norm(3, 128)
    + blocks(128, 128, 3) + blocks(128, 256, 3) + blocks(256, 512, 2)
    + conv_norm(512, 256, 1) + linear(256, 10),
    "resnet20": conv_norm(3, 16) + blocks(16, 16, 3) + blocks(16, 32, 3) + blocks(32, 64, 3) + linear(64, 10),
    "vgg11": conv_norm(3, 64) + conv_norm(64, 128) + conv_norm(128, 256) + conv_norm(256, 256)
    + conv_norm(256, 512) + 3 * conv_norm(512, 512) + linear(512, 10),
    "vgg16": conv_norm(3, 64) + conv_norm(64, 64) + conv_norm(64, 128) + conv_norm(128, 128)
    + conv_norm(128, 256) + 2 * conv_norm(256, 256) + conv_norm(256, 512) + 5 * conv_norm(512, 512) + linear(512, 10),
    "vggsnn": conv_norm(3, 64) + conv_norm(64, 128) + conv_norm(128, 256) + conv_norm(256, 256)
    + conv_norm(256, 512) + 3 * conv_norm(512, 512) + linear(512 * 3 * 3, 10),
}  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameters_by_hand_count(backbone):
    assert num_parameters(composed(backbone, num_classes=10)) == COUNTS[backbone]


def test_parameter_counts_of_the_literature():
    assert COUNTS["resnet18"] == 11_173_962  # the CIFAR ResNet-18 everyone trains
    assert round(COUNTS["resnet19"] / 1e6, 1) == 12.7  # tdBN's
    assert round(COUNTS["resnet20"] / 1e6, 2) == 0.27  # arXiv 1512.03385, Table 6


@pytest.mark.parametrize(
    ("model", "settings", "in_channels", "num_classes", "millions"),
    [
        ("sdt", {}, 3, 100, 10.28),
        ("sdt_dvs", {}, 2, 10, 2.57),
        ("spikingformer", {"num_heads": 8, "channels": 256}, 3, 10, 4.15),
        ("spikingformer", {"num_blocks": 2}, 3, 10, 5.76),
        ("spikingformer", {}, 3, 10, 9.32),
        ("spikingformer_dvs", {}, 2, 10, 2.57),
    ],
)
def test_transformers_have_the_published_parameters_but_for_biases_that_norms_take_out(
    model, settings, in_channels, num_classes, millions
):
    """Spikingformer's README; for the Spike-driven Transformer what its authors' layers sum up to."""
    network = composed(model, in_channels=in_channels, num_classes=num_classes, **settings)
    attentions = [block for block in network.body if isinstance(block, models.attention.Attention)]
    biases = sum(6 * block.project.conv.out_channels for block in attentions)  # of project and of the MLP's two
    assert round((num_parameters(network) + biases) / 1e6, 2) == millions


def test_stem_stride_halves_the_pixels_of_every_layer():
    whole, halved = composed("resnet8"), composed("resnet8", stem_stride=2)
    images, sizes = torch.randn(1, 3, 16, 16), []
    for network in (whole, halved):
        network.body.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
        network(images)
    assert sizes == [4, 2]
    assert num_parameters(whole) == num_parameters(halved)
    with pytest.raises(ValueError, match=r"^stem_stride=0: must be a whole number of at least 1"):
        resnet8(3, 10, LIF, stem_stride=0)


def test_learned_decay_adds_one_parameter_for_each_layer():
    extra = num_parameters(composed("resnet19", "plif", num_classes=10)) - COUNTS["resnet19"]
    assert extra == 1 + 2 * (3 + 3 + 2) + 1  # after the stem, two a block, the hidden ones


@pytest.mark.parametrize(
    ("backbone", "channels", "strides", "neurons"),
    [
        ("resnet8", [16, 32, 64], [1, 2, 2], 7),
        ("resnet18", [64, 64, 128, 128, 256, 256, 512, 512], [1, 1, 2, 1, 2, 1, 2, 1], 17),
        ("resnet19", [128, 128, 128, 256, 256, 256, 512, 512], [1, 1, 1, 2, 1, 1, 2, 1], 18),
        ("resnet20", [16, 16, 16, 32, 32, 32, 64, 64, 64], [1, 1, 1, 2, 1, 1, 2, 1, 1], 19),
    ],
)
def test_residual_structure(backbone, channels, strides, neurons):
    network = composed(backbone)
    found = [module for module in network.body if isinstance(module, models.BasicBlock)]
    assert [block.conv1.conv.out_channels for block in found] == channels
    assert [block.conv2.conv.out_channels for block in found] == channels
    assert [block.conv1.conv.stride[0] for block in found] == strides
    assert sum(isinstance(module, LIF) for module in network.modules()) == neurons
    for block, stride in zip(found, strides, strict=True):
        assert isinstance(block.shortcut, nn.Identity) == (stride == 1)


def test_a_block_adds_its_input_before_the_second_neuron():
    block = models.BasicBlock(4, 4, 1, lambda: LIF(0.5))
    x = (torch.rand(3, 2, 4, 6, 6) > 0.5).float()
    inner = block.neuron1(block.conv1.norm(block.conv1.conv(x.flatten(0, 1))).unflatten(0, (3, 2)))
    residual = block.conv2.norm(block.conv2.conv(inner.flatten(0, 1))).unflatten(0, (3, 2))
    assert torch.equal(block(x), block.neuron2(residual + x))


def spikes_like(*shape):
    return (torch.rand(shape) > 0.5).float()


@pytest.mark.parametrize("kind", [models.MSBlock, models.MaxBlock])
def test_a_block_of_membranes_adds_currents(kind):
    block = kind(4, 6, 2, LIF)
    x = 2 * torch.randn(3, 2, 4, 6, 6)
    torch.testing.assert_close(block(x), block.shortcut(block.pool(x)))  # the last norm starts at 0
    nn.init.ones_(block.conv2.norm.weight)
    spikes = block.neuron1(x)
    if kind is models.MaxBlock:
        padded = nn.functional.pad(spikes, (1, 1, 1, 1))
        spikes = torch.stack([padded[..., i : i + 5 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)]).amax(0)
        assert block.conv1.conv.stride == block.shortcut.conv.stride == (1, 1)
    residual = block.conv2(block.neuron2(block.conv1(spikes)))
    torch.testing.assert_close(block(x), residual + block.shortcut(block.pool(x)))
    assert block(x).shape == (3, 2, 6, 3, 3)


@pytest.mark.parametrize("connect", ["add", "and", "iand"])
def test_a_block_of_spikes_joins_them(connect):
    block = models.SEWBlock(4, 4, 1, partial(LIF, threshold=0.8), connect=connect)
    x = spikes_like(3, 2, 4, 6, 6)
    assert torch.equal(block(x), x)  # at first it hands its input on
    nn.init.ones_(block.conv2.norm.weight)
    spikes = block.neuron2(block.conv2(block.neuron1(block.conv1(x))))
    assert 0 < spikes.mean() < 1
    joined = {"add": spikes + x, "and": spikes * x, "iand": (1 - spikes) * x}[connect]
    assert torch.equal(block(x), joined)
    wider = models.SEWBlock(4, 6, 2, LIF, connect=connect)
    assert wider.shortcut(x).unique().tolist() == [0, 1]  # spikes too
    with pytest.raises(ValueError, match=r"^connect='or': must be one of add, and, iand"):
        models.SEWBlock(4, 4, 1, LIF, connect="or")


@pytest.mark.parametrize("kind", ["sdt", "spikingformer"])
def test_attention_by_its_loops(kind):
    attention = {
        "sdt": models.attention.SpikeDrivenAttention(6, LIF),
        "spikingformer": models.attention.SpikingSelfAttention(6, LIF, num_heads=2),
    }[kind]
    query, key, value = (spikes_like(2, 3, 6, 2, 4) for _ in range(3))
    currents = torch.zeros(2, 3, 6, *((1, 1) if kind == "sdt" else (2, 4)))
    tokens = [(i, j) for i in range(2) for j in range(4)]
    for channel in range(6):
        for i, j in tokens:
            if kind == "sdt":
                currents[:, :, channel, 0, 0] += key[:, :, channel, i, j] * value[:, :, channel, i, j]
                continue
            head = slice(0, 3) if channel < 3 else slice(3, 6)
            for k, m in tokens:
                score = (query[:, :, head, i, j] * key[:, :, head, k, m]).sum(2)
                currents[:, :, channel, i, j] += 0.125 * score * value[:, :, channel, k, m]
    fires = LIF(threshold=0.5)(currents)
    expected = query * fires if kind == "sdt" else fires
    assert torch.equal(attention.attend(query, key, value), expected)
    x = torch.randn(2, 3, 6, 2, 4)
    spikes = attention.neuron(x)
    attended = attention.attend(attention.query(spikes), attention.key(spikes), attention.value(spikes))
    torch.testing.assert_close(attention(x), x + attention.project(attended))
    assert float(models.attention.half_as_high(partial(LIF, threshold=2.0), 6).threshold) == 1.0
    assert models.attention.half_as_high(partial(models.SlidingPSN, order=2), 6).order == 2


def test_a_transformers_tokens_and_heads():
    network = composed("spikingformer", width=0.1)  # of 12 heads of 3.2 channels
    maps = []
    for block in network.body:
        if isinstance(block, models.attention.Attention):
            block.register_forward_hook(lambda module, inputs, output: maps.append(tuple(output.shape[2:])))
    network(torch.randn(1, 3, 32, 32))
    assert maps == [(36, 8, 8)] * 4  # 64 tokens
    for settings, message in (
        ({"num_heads": 7}, r"num_heads=7: must divide the channels, 384"),
        ({"halve": [True]}, r"halve=\[True\]: must be 4 times true or false"),
        ({"num_blocks": 0}, r"num_blocks=0: must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            spikingformer(3, 10, LIF, **settings)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_structure_that_other_floors_walk(backbone):
    network = composed(backbone, width=0.05)
    layers = [module for module in network.modules() if not list(module.children())]
    allowed = (nn.Conv2d, nn.BatchNorm2d, LIF, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear, nn.Identity)
    assert all(isinstance(layer, (*allowed, nn.Sequential)) for layer in layers)  # an empty head is a Sequential
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None
            assert isinstance(following, nn.BatchNorm2d)
            assert following.num_features == layer.out_channels
    assert network.stem.conv is layers[0]
    assert network.classifier is layers[-1]
    assert network.classifier.out_features == 7


@pytest.mark.parametrize("backbone", ["convnet", "vgg11", "vgg16", "vggsnn"])
def test_pool_setting(backbone):
    default = nn.AvgPool2d if backbone in ("convnet", "vggsnn") else nn.MaxPool2d
    for network, kind in (
        (composed(backbone, width=0.05), default),
        (composed(backbone, width=0.05, pool="avg"), nn.AvgPool2d),
        (composed(backbone, width=0.05, pool="max"), nn.MaxPool2d),
    ):
        pools = [module for module in network.modules() if isinstance(module, nn.AvgPool2d | nn.MaxPool2d)]
        assert {type(pool) for pool in pools} == {kind}
        assert len(pools) == {"convnet": 2, "vgg11": 5, "vgg16": 5, "vggsnn": 4}[backbone]


def test_vggsnn_gives_its_classifier_the_3_by_3_pixels_of_48_by_48_frames():
    network = composed("vggsnn", in_channels=2, width=0.05)
    seen = {}
    network.pool.register_forward_hook(lambda module, args, output: seen.update(before=args[0], after=output))
    network(torch.rand(1, 2, 2, 48, 48))
    assert torch.equal(seen["before"], seen["after"])
    assert seen["after"].shape == (2, 1, 26, 3, 3)


def test_width_multiplies_every_layer():
    widths = [layer.out_channels for layer in composed("vgg11", width=0.1).modules() if isinstance(layer, nn.Conv2d)]
    assert widths == [6, 13, 26, 26, 51, 51, 51, 51]
    assert composed("convnet", width=1e-6).classifier.in_features == 1
    assert composed("resnet19", width=0.25).head[0].conv.out_channels == 64


@pytest.mark.parametrize("backbone", ["convnet", "resnet19", "vggsnn"])
def test_a_static_image_is_that_image_at_every_step(backbone):
    network = settled(backbone, width=0.1, time_steps=4)
    images = torch.randn(3, 3, 16, 16)
    runs = []
    network.stem.register_forward_hook(lambda module, args, output: runs.append(len(args[0].flatten(0, 1))))
    logits = network(images)
    assert (logits[1:] != logits[:-1]).any()  # time matters
    assert torch.equal(logits, network(images.unsqueeze(1).repeat(1, 4, 1, 1, 1)))
    assert runs == [3, 12]  # the stem sees a static image once


def test_time_moves_forward():
    """A frame changes the logits of its own step and of later ones only."""
    network = settled("convnet", width=0.5)
    frames = torch.randn(2, 6, 3, 8, 8)
    changed = frames.clone()
    changed[:, 3] = torch.randn(2, 3, 8, 8)
    same = (network(frames) == network(changed)).all(dim=2).all(dim=1)
    assert same.tolist()[:3] == [True, True, True]
    assert not same[3]


@pytest.mark.parametrize("backbone", ["convnet", "resnet20"])
def test_nothing_outlives_a_forward(backbone):
    base, twin = settled(backbone, width=0.25), settled(backbone, width=0.25)
    images, others = torch.randn(3, 3, 8, 8), torch.randn(5, 3, 8, 8)
    logits = base(images)
    twin(images)
    base(others)
    twin(others)
    assert torch.equal(base(images), logits)
    assert not torch.equal(twin(images), logits)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_copy_and_pickle_after_a_forward(backbone):
    network = settled(backbone, "plif", width=0.1)
    images = torch.randn(2, 3, 16, 16)
    logits = network(images)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(images), logits)
        assert twin.stem.conv.weight.data_ptr() != network.stem.conv.weight.data_ptr()


def test_channels_last_gives_the_same_logits_and_stays_channels_last():
    network = settled("resnet20", width=0.5)
    images = torch.randn(2, 3, 16, 16)
    logits = network(images)
    network.to(memory_format=torch.channels_last)
    layouts = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            module.register_forward_hook(lambda module, args, output: layouts.append(args[0]))
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), logits)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in layouts)


def test_blocks_hand_the_spikes_of_their_input_on_at_first():
    """Rates stay level through the depth, and a spike on the shortcut mostly is one behind the block."""
    network = composed("resnet20", width=1.0)
    blocks_seen = []
    for block in network.body:
        if isinstance(block, models.BasicBlock) and isinstance(block.shortcut, nn.Identity):
            block.register_forward_hook(lambda module, args, output: blocks_seen.append((args[0], output)))
    network(torch.randn(16, 3, 16, 16))
    for before, after in blocks_seen:
        assert 0.1 < after.mean() < 0.4
        assert (before == after).float().mean() > 0.9


def test_convolutions_start_as_kaiming_fan_out():
    weight = composed("resnet18").body[1].conv1.conv.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_steps": 0}, r"^time_steps=0: must be a whole number of at least 1"),
        ({"time_steps": 2.5}, r"^time_steps=2\.5: "),
        ({"width": 0}, r"^width=0: must be above 0"),
        ({"width": -1.0}, r"^width=-1\.0: "),
        ({"width": float("nan")}, r"^width=nan: "),
    ],
)
@pytest.mark.parametrize("backbone", [convnet, resnet20, vggsnn], ids=lambda backbone: backbone.__name__)
def test_bad_settings(backbone, settings, message):
    with pytest.raises(ValueError, match=message):
        backbone(3, 10, LIF, **settings)


@pytest.mark.parametrize("backbone", [convnet, vgg11, vgg16, vggsnn], ids=lambda backbone: backbone.__name__)
def test_unknown_pool(backbone):
    with pytest.raises(ValueError, match=r"^pool='mean': must be one of avg, max"):
        backbone(3, 10, LIF, pool="mean")


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 4, 1, 8, 8), (1, 2, 4, 3, 8, 8)])
def test_bad_input_names_what_came_and_what_is_allowed(shape):
    message = f"x={list(shape)}: must be images [B, 3, H, W] or event frames [B, T, 3, H, W]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        convnet(3, 10, LIF)(torch.zeros(shape))


def test_is_spiking():
    assert is_spiking(nn.Sequential(nn.ReLU(), nn.Sequential(LIF())))
    assert not is_spiking(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


SPEC = {
    "model": {"_target_": "tna_lightning.models.resnet20", "width": 0.25, "time_steps": 2},
    "neuron": {
        "_target_": "tna_lightning.models.LIF",
        "_partial_": True,
        "beta": 0.7,
        "reset": "subtract",
        "surrogate": {"_target_": "tna_lightning.models.surrogates.ATan", "alpha": 4.0},
    },
    "in_channels": 3,
    "num_classes": 10,
}


def test_build_gives_the_network_described():
    network = build(SPEC)
    factory = instantiate(SPEC["neuron"])
    same = resnet20(3, 10, factory, time_steps=2, width=0.25)
    network.load_state_dict(same.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert repr(network) == repr(same)
    assert torch.equal(network.eval()(images), same.eval()(images))


@pytest.mark.parametrize("is_static", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_long_sequence_in_chunks_is_the_whole_sequence(backbone, is_static, monkeypatch):
    network = settled(backbone, width=0.1, time_steps=19).double()
    nn.utils.parametrizations.weight_norm(network.stem.conv)  # its weight is computed, by a module within the layer
    x = torch.randn(2, *([] if is_static else [19]), 3, 16, 16, dtype=torch.float64)
    lengths = []
    handle = network.pool[0].register_forward_pre_hook(lambda module, inputs: lengths.append(len(inputs[0]) // 2))
    with torch.no_grad():
        whole = network(x)  # a hook wants it so
    handle.remove()
    assert lengths == [19]
    monkeypatch.setattr(LIF, "forward", lambda *_: pytest.fail("the whole sequence at once"))
    if backbone in ("resnet19", "sdt"):  # whose head has seen pooled features alone
        monkeypatch.undo()
    with torch.inference_mode():
        torch.testing.assert_close(network(x), whole)
    assert not any("forward" in vars(module) for module in network.modules())


class Backwards(nn.Module):
    def forward(self, x):
        return x.flip(0)


class BackwardsLIF(LIF):
    def forward(self, current):
        return super().forward(current.flip(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.train(),
        lambda network: network.body.append(Backwards()),
        lambda network: network.body.append(BackwardsLIF()),  # it inherits a chunk that is not its own
        lambda network: models.over_time.weigh_over_time(network.body[1].conv),
    ],
    ids=["training", "layer", "neuron", "weights"],
)
def test_what_may_mix_time_is_not_cut_into_chunks(change):
    network = settled("convnet", width=0.1, time_steps=19)
    assert not network._goes_in_chunks(19)  # gradients are wanted
    with torch.no_grad():
        assert [network._goes_in_chunks(time_steps) for time_steps in (16, 17)] == [False, True]
        change(network)
        assert not network._goes_in_chunks(19)


class Counting(nn.Module):
    """Changes a buffer in each forward, and computes with it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpointed_stages_change_nothing(backbone):
    """Nor do random numbers, of dropout and of the stochastic surrogate, and buffers that a forward changes."""
    torch.manual_seed(0)
    network = composed(backbone, width=0.1)
    for module in network.modules():
        if isinstance(module, LIF):
            module.surrogate = models.surrogates.StochasticSpikeOperator()
    network.body.insert(1, nn.Dropout(0.1))
    network.body.insert(1, Counting())
    checkpointed = copy.deepcopy(network)
    checkpointed.checkpoint_stages = True
    images, results = torch.randn(2, 3, 16, 16), []
    for net in (network, checkpointed):
        torch.manual_seed(1)
        for _ in range(2):
            logits = net(images)
            logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in net.parameters()), *net.buffers(), torch.rand(3)])
    assert all(torch.equal(result, other) for result, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (resnet18, [2, 1, 1, 1, 1, 1, 1, 1]),  # the stem's neuron with the first block
        (vgg11, [2, 3, 5, 5, 5]),  # up to each pooling
        (lambda *settings, **_: convnet(*settings), [4, 3]),
    ],
)
def test_a_stage_ends_with_a_block_or_with_pooling(make, sizes):
    network = make(3, 10, LIF, width=0.1)
    assert [len(stage) for stage in network.stages()] == sizes
    assert [layer for stage in network.stages() for layer in stage] == list(network.body)


def test_of_checkpointed_stages_the_inputs_are_kept():
    network = resnet8(3, 10, LIF, width=0.25, time_steps=4)
    images, kept = torch.randn(2, 3, 16, 16), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    # the stem's current; spikes, convolution, norm, twice, and the residual; for two convolutions that see the spikes
    for network.checkpoint_stages, expected in ((False, 1 + 6 + 2), (True, 2)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images)
        assert kept.count(4 * 2 * 4 * 16 * 16) == expected


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_build_reads_what_the_configuration_holds(backbone, neuron):
    spec = {
        "model": node("model", backbone) | {"width": 0.05},
        "neuron": node("neuron", neuron),
        "inputs": {"channels": 3, "height": 8, "width": 8, "time_steps": None, "num_classes": 7},
    }
    assert repr(build(spec)) == repr(composed(backbone, neuron, width=0.05))


@pytest.mark.parametrize(
    "target",
    [
        "os.getcwd",
        "builtins.exec",
        "torch.nn.Linear",
        "torch.load",
        "tna_lightning.models.neurons.os.getcwd",
        "tna_lightning.models.neurons.shutil",
        "tna_lightning.models.spec.importlib.import_module",
        "tna_lightning.models.blocks.OrderedDict",
        "tna_lightning.models.fused._call",
        "tna_lightning.models.nothing",
        "tna_lightning.models.nothing.Network",
        "tna_lightning.modelsx.Network",
        "convnet",
        "",
        None,
        3,
    ],
)
@pytest.mark.parametrize("key", ["model", "neuron"])
def test_build_calls_nothing_from_elsewhere(key, target):
    with pytest.raises(ValueError, match=rf"^{key}\._target_=.*: must be a network or neuron of tna_lightning\.models"):
        build({**SPEC, key: {"_target_": target}})


def test_build_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^spec=.*: must also have inputs, neuron"):
        build({"model": {}, "num_classes": 3})
    with pytest.raises(ValueError, match=r"^spec=.*: must also have num_classes"):
        build({"model": {}, "neuron": {}, "in_channels": 3})
    with pytest.raises(ValueError, match=r"^inputs=\{'channels': 3\}: must be those of tna_lightning.data.Inputs"):
        build({"model": SPEC["model"], "neuron": SPEC["neuron"], "inputs": {"channels": 3}})
    with pytest.raises(ValueError, match=r"^model=.*: must be settings of resnet20 .*'wide'"):
        build({**SPEC, "model": {"_target_": "tna_lightning.models.resnet20", "wide": 2}})
    with pytest.raises(ValueError, match=r"^neuron=.*: must be settings of LIF .*'tau'"):
        build({**SPEC, "neuron": {"_target_": "tna_lightning.models.LIF", "tau": 2}})
    with pytest.raises(ValueError, match=r"^model=.*: must be settings of is_spiking"):
        build({**SPEC, "model": {"_target_": "tna_lightning.models.is_spiking"}})


class Asking(LIF):
    """Remembers its hints; what it does not know it hands on, as `**settings` do."""

    def __init__(self, time_steps=None, **settings):
        super().__init__(**settings)
        self.told = time_steps, settings.get("channels")


@pytest.mark.parametrize("backbone", [convnet, resnet19])
def test_neurons_are_told_time_and_channels(backbone):
    network = backbone(3, 10, partial(Asking, beta=0.25), width=0.1, time_steps=3)
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, Asking):
            module.register_forward_hook(lambda _, x, spikes, name=name: shapes.update({name: spikes.shape}))
    network(torch.randn(2, 3, 8, 8))
    told = {name: network.get_submodule(name).told for name in shapes}
    assert told == {name: (shape[0], shape[2]) for name, shape in shapes.items()}
    assert {network.get_submodule(name).beta.item() for name in shapes} == {0.25}


def test_a_factory_gets_those_hints_that_it_takes():
    class Bare(models.SpikingNeuron):
        pass

    hints = {"channels": 4, "time_steps": 2}
    assert isinstance(models.new_neuron(Bare, **hints), Bare)
    assert isinstance(models.new_neuron(nn.ReLU, **hints), nn.ReLU)
    assert models.new_neuron(lambda: LIF(0.25), **hints).beta == 0.25
    assert models.new_neuron(lambda **taken: LIF(taken["channels"] / 8), **hints).beta == 0.5
    assert models.new_neuron(lambda *, time_steps: LIF(time_steps / 8), **hints).beta == 0.25
    assert models.new_neuron(partial(LIF, 0.75, threshold=3.0), **hints).threshold == 3
    assert models.new_neuron(partial(LIF, threshold=3.0), **hints, threshold=0.5).threshold == 0.5


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.Softmax(-1), nn.PReLU()])
def test_what_is_no_neuron_and_no_unit_without_time_is_refused_by_name(module):
    message = rf"^neuron={type(module).__name__}: must derive from tna_lightning\.models\.SpikingNeuron, or be an elem"
    with pytest.raises(ValueError, match=message):
        convnet(1, 10, lambda: module)


class Sized(nn.Module):
    def __init__(self, inputs, num_classes, neuron):
        super().__init__()
        self.inputs, self.num_classes = inputs, num_classes


def test_a_backbone_gets_the_inputs_that_its_signature_takes():
    inputs = Inputs(channels=3, height=8, width=6, time_steps=None, num_classes=7)
    spec = {"inputs": asdict(inputs)}
    assert sizes_for(Sized, spec) == {"inputs": inputs, "num_classes": 7}
    assert sizes_for(resnet8, spec) == sizes_for(resnet8, {"in_channels": 3, "num_classes": 7})
    with pytest.raises(ValueError, match=r"^spec=.*: must also have inputs"):
        sizes_for(Sized, {"in_channels": 3, "num_classes": 7})
