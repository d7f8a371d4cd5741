"""The picture shows what the reports say."""

import matplotlib.figure
import pytest
import torch

from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF, convnet
from tna_lightning.quantization import Binary, Ternary, Uniform, quantize_network, weight_report
from tna_lightning.quantization.kept import kept_weights
from tna_lightning.running.pictures import NUM_BINS, plot_curves, plot_inspection

ALPHABETS = {1: [-1, 1], 2: [-1, 0, 1], 3: [-3, -2, -1, 0, 1, 2, 3]}


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are saved, to look at what was drawn."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    return figures


def test_each_network_has_its_curves_in_a_colour_of_its_own(tmp_path, drawn):
    history = {"epoch": [0, 1]}
    names = ("base", "companion", "third_one")
    for number, prefix in enumerate(("", "companion_", "third_one_")):
        for stage in ("train", "val"):
            history |= {f"{stage}/{prefix}acc": [0.1 * number, 0.5], f"{stage}/{prefix}cross_entropy": [2.0, 1.0]}
    plot_curves(history | {"train/match": [3.0, 2.0]}, tmp_path / "curves.png")
    *both, match = drawn[0].axes
    for axes in both:
        labels = [line.get_label() for line in axes.lines]
        assert labels == [f"{name}, {stage}" for name in names for stage in ("validation", "training")]
        assert len({line.get_color() for line in axes.lines}) == 3
    assert [(line.get_label(), [*line.get_ydata()]) for line in match.lines] == [("training", [3.0, 2.0])]
    assert match.get_ylabel().startswith("match term")
    plot_curves(history, tmp_path / "curves.png")  # without a companion there is no such panel
    assert len(drawn[1].axes) == 2
    assert [line.get_ydata()[0] for line in drawn[0].axes[0].lines[::2]] == pytest.approx([0, 10, 20])
    gaps = {"epoch": [0, 1, 2, 3], "train/acc": [0.1] * 4, "train/cross_entropy": [1.0] * 4, "train/match": [1.0] * 4}
    gaps |= {"val/acc": [None, 0.5, None, 0.7], "val/cross_entropy": [None] * 4}  # validated every second epoch, or not
    plot_curves(gaps, tmp_path / "curves.png")
    validation, training = drawn[2].axes[0].lines
    assert ([*validation.get_xdata()], [*validation.get_ydata()]) == ([2, 4], pytest.approx([50, 70]))
    assert (validation.get_marker(), [*training.get_xdata()]) == ("o", [1, 2, 3, 4])
    assert [line.get_label() for line in drawn[2].axes[1].lines] == ["base, training"]


@pytest.mark.parametrize("quantizer", [Binary(), Ternary(), Uniform(3), Uniform(4), None])
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
    of_stem = [patch for patch in codes.patches if patch.get_x() < 0.5]
    labels = [text.get_text() for text in codes.get_legend().get_texts()]
    zeros_only = "zeros alone (float, or 4 bits and more)"
    if quantizer is not None and quantizer.bits <= 3:
        _, _, kept = next(kept_weights(network))
        values, counts = kept.values.unique(return_counts=True)
        expected = dict(zip(values.tolist(), (counts / kept.values.numel()).tolist(), strict=True))
        drawn_shares = {
            code: patch.get_height() for code, patch in zip(ALPHABETS[quantizer.bits], of_stem, strict=True)
        }
        assert {code: share for code, share in drawn_shares.items() if share} == pytest.approx(expected)
        assert sum(drawn_shares.values()) == pytest.approx(1)
        assert labels == [*(f"code {code}" for code in ALPHABETS[quantizer.bits]), zeros_only]  # the classifier's
    else:
        assert [patch.get_height() for patch in of_stem] == [report[0]["zeros"] / report[0]["weights"]]
        assert labels == [zeros_only]
    assert [patch.get_height() for patch in rates.patches] == [layer["firing_rate"] for layer in cost["neuron_layers"]]
