"""The picture shows what the reports say."""

import matplotlib.figure
import pytest
import torch

from tna_lightning.callbacks.inspection import NUM_BINS, plot_inspection
from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF, convnet
from tna_lightning.quantization import Ternary, Uniform, quantize_network, weight_report


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are saved, to look at what was drawn."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    return figures


@pytest.mark.parametrize("quantizer", [Ternary(), Uniform(4), None])
def test_picture_of_weights_codes_and_rates(quantizer, tmp_path, drawn):
    torch.manual_seed(0)
    network = convnet(1, 10, LIF, time_steps=2, width=0.25)
    if quantizer is not None:
        quantize_network(network, quantizer, skip=["classifier"])
    cost = inference_cost(network, [torch.randn(8, 1, 8, 8)])
    path = tmp_path / "weights.png"
    plot_inspection(network, cost["neuron_layers"], path, title="a run")
    assert path.read_bytes().startswith(b"\x89PNG")

    top, bottom = drawn[0].subfigs
    *histograms, classifier = [axes for axes in top.axes if axes.axison]
    assert len(histograms) == 3
    stem = histograms[0]
    counts = [patch.get_height() for patch in stem.patches[:NUM_BINS]]
    assert sum(counts) == network.stem.conv.weight.numel()
    assert len(stem.patches) == NUM_BINS + (quantizer is not None)
    assert len(classifier.patches) == NUM_BINS
    codes, rates = bottom.axes
    report = weight_report(network)["layers"]
    first_bars = [patch.get_height() for patch in codes.patches[:3]]
    shares = report[0].get("code_shares", {"0": report[0]["zeros"] / report[0]["weights"]})
    assert first_bars == [shares.get(code, 0.0) for code in ("-1", "0", "1")]
    assert [patch.get_height() for patch in rates.patches] == [layer["firing_rate"] for layer in cost["neuron_layers"]]
