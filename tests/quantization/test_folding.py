"""Folded networks spike as the trained ones do, and are codes, scales, biases and neurons."""

import pytest
import torch
from torch import nn

from tna_lightning.export import spikes_of
from tna_lightning.models import build
from tna_lightning.quantization import Binary, Ternary, TernaryTTQ, Uniform, load_packed, quantize_network, save_network
from tna_lightning.quantization.folding import Scaled, ScaledConv2d, fold_batch_norm

SPEC = {
    "model": {"_target_": "tna_lightning.models.resnet20", "width": 0.5, "time_steps": 3},
    "neuron": {"_target_": "tna_lightning.models.LIF", "reset": "subtract"},
    "in_channels": 1,
    "num_classes": 10,
}
SCHEMES = {
    "ternary": Ternary(),
    "ternary_layer": Ternary(per="layer"),
    "ttq": TernaryTTQ(per="channel"),
    "binary": Binary(),
    "int4": Uniform(4),
    "none": None,
}


def compare_spikes(network, other, batches):
    """Spikes of the first, where only one of the two spikes, and images whose class is another."""
    spikes = differing = predictions_differing = 0
    for x in batches:
        with torch.inference_mode():
            (logits, ours), (other_logits, theirs) = spikes_of(network, x), spikes_of(other, x)
        predictions_differing += int((logits.mean(0).argmax(1) != other_logits.mean(0).argmax(1)).sum())
        spikes += sum(int(layer.sum()) for layer in ours)
        differing += sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
    return {"spikes": spikes, "differing": differing, "predictions_differing": predictions_differing}


def trained(scheme, spec=SPEC):
    """A network with running statistics, gains, shifts (some of them negative) and learned scales of its own."""
    torch.manual_seed(0)
    network = build(spec)
    if SCHEMES[scheme] is not None:
        quantize_network(network, SCHEMES[scheme])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    for name, parameter in network.named_parameters():
        if name.endswith("quantizer.scale"):
            parameter.data.uniform_(0.5, 1.5)
    for _ in range(5):
        network(torch.randn(32, 1, 8, 8))
    return network.eval()


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_folded_network_gives_the_same_spikes(scheme):
    network = trained(scheme)
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    result = compare_spikes(network, folded, [torch.randn(64, 1, 8, 8) for _ in range(2)])
    assert result["spikes"] > 10_000
    # a membrane within float32's rounding of the threshold may fall on either side: the tolerance of the export
    assert result["differing"] <= 1e-4 * result["spikes"]
    assert result["predictions_differing"] == 0
    # in float64 nothing comes near enough
    exact = compare_spikes(network.double(), fold_batch_norm(network), [torch.randn(64, 1, 8, 8).double()])
    assert exact["differing"] == 0
    assert exact["spikes"] > 10_000


def test_folded_convolutions_are_codes_with_a_scale_and_a_bias_per_channel():
    network = trained("ternary")
    folded = fold_batch_norm(network)
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 21
    for conv in convolutions:
        assert isinstance(conv, ScaledConv2d)
        assert set(conv.weight.unique().tolist()) == {-1.0, 0.0, 1.0}
        assert conv.scale.shape == conv.bias.shape == (conv.out_channels,)
    norm, weight = network.stem.norm, network.stem.conv.parametrizations.weight
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    _, scale = Ternary().encode(weight.original)
    torch.testing.assert_close(convolutions[0].scale, scale.flatten() * gain)
    torch.testing.assert_close(convolutions[0].bias, norm.bias - norm.running_mean * gain)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_folded_network_is_saved_and_loaded_to_the_bit(scheme, tmp_path):
    folded = fold_batch_norm(trained(scheme))
    save_network(tmp_path / "folded", folded, SPEC)
    loaded = load_packed(tmp_path / "folded")
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded(x), folded(x))
    save_network(tmp_path / "again", loaded, SPEC)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "folded").read_bytes()


def test_folding_the_kept_network_is_folding_the_trained_one(tmp_path):
    network = trained("ternary")
    save_network(tmp_path / "kept", network, SPEC)
    folded = fold_batch_norm(network).state_dict()
    from_kept = fold_batch_norm(load_packed(tmp_path / "kept")).state_dict()
    assert folded.keys() == from_kept.keys()
    assert all(torch.equal(folded[name], from_kept[name]) for name in folded)


def test_the_network_that_was_folded_stays_as_it_is():
    network = trained("ternary")
    x = torch.randn(4, 1, 8, 8)
    before, keys = network(x), list(network.state_dict())
    fold_batch_norm(network)
    assert torch.equal(network(x), before)
    assert list(network.state_dict()) == keys


LAYERS = {
    "Linear": (lambda: nn.Linear(8, 6, bias=False), nn.BatchNorm1d, (5, 8)),
    "Linear with bias": (lambda: nn.Linear(8, 6), nn.BatchNorm1d, (5, 8)),
    "Conv1d": (lambda: nn.Conv1d(8, 6, 3, groups=2), nn.BatchNorm1d, (5, 8, 7)),
    "Conv2d": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d, (5, 8, 7, 7)),
    "Conv3d": (lambda: nn.Conv3d(8, 6, 3, bias=False), nn.BatchNorm3d, (5, 8, 4, 4, 4)),
}


@pytest.mark.parametrize("scheme", ["ternary", "ttq", "none"])
@pytest.mark.parametrize("kind", LAYERS)
def test_norms_fold_into_every_kind_of_layer(kind, scheme, tmp_path):
    make, norm, shape = LAYERS[kind]
    torch.manual_seed(0)
    network, other = (nn.Sequential(make(), norm(6), nn.ReLU(), nn.Identity()) for _ in range(2))
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    if SCHEMES[scheme] is not None:
        quantize_network(network, SCHEMES[scheme])
    for _ in range(3):
        network(torch.randn(shape))
    x = (torch.rand(shape) < 0.4).float()
    expected = network.eval()(x)
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    torch.testing.assert_close(folded(x), expected)
    assert isinstance(folded[0], Scaled) == (scheme == "ternary")
    if scheme == "ternary":
        assert set(folded[0].weight.unique().tolist()) == {-1.0, 0.0, 1.0}
    save_network(tmp_path / "folded", folded)
    assert torch.equal(load_packed(tmp_path / "folded", other)(x), folded(x))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)),
            "2: not directly behind a convolution or linear layer in a Sequential",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
            r"1: it has no running statistics \(track_running_stats=False\)",
        ),
        (nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.BatchNorm2d(2)), "1: not directly behind a convolution"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)), "2: not directly behind"),
    ],
)
def test_a_norm_that_cannot_be_folded_is_named(network, message):
    with pytest.raises(ValueError, match=f"^network: cannot fold {message}"):
        fold_batch_norm(network)


def test_what_is_used_at_two_places_is_not_folded_at_one():
    layer, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    tied = nn.Linear(2, 2)
    tied.weight = layer.weight
    for network in (
        nn.Sequential(nn.Sequential(layer, norm), layer),
        nn.Sequential(nn.Sequential(layer, norm), nn.Sequential(nn.Linear(2, 2), norm)),
        nn.Sequential(layer, norm, tied),
    ):
        with pytest.raises(ValueError, match=r"^network: cannot fold .*1: it, or the layer before it, is used at"):
            fold_batch_norm(network)
