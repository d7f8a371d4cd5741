"""Folded networks spike as the trained ones do, and are codes, scales, biases and neurons."""

import pytest
import torch
from torch import nn

from tna_lightning.export import spikes_of
from tna_lightning.models import build
from tna_lightning.quantization import Binary, Ternary, TernaryTTQ, Uniform, load_packed, quantize_network, save_network
from tna_lightning.quantization.folding import ScaledConv2d, fold_batch_norm

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


def test_a_norm_that_cannot_be_folded_is_named():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match=r"^network: cannot fold 2: not directly behind a convolution"):
        fold_batch_norm(network)
