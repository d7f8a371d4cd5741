"""The two pictures of a run: its learning curves, and its kept network layer by layer."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tna_lightning.files import write_bytes
from tna_lightning.quantization.kept import kept_weights, weight_report
from tna_lightning.quantization.parametrized import weighted_layers

History = Mapping[str, Sequence[float | int | None]]

# the base's colour and the companions', which stay apart for the colour-blind (Okabe and Ito), and the match term's
NETWORK_COLORS, MATCH_COLOR = ("#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9"), "#009E73"
FEW_POINTS = 10  # of a curve that has a marker at each


def plot_curves(history: History, path: Path | str, title: str = "") -> None:
    """Save accuracy and cross-entropy over epochs, training dashed and validation solid, and the match term, as PNG.

    Args:
        history: columns by metric name, as :meth:`tna_lightning.callbacks.History.columns` gives them.
        path: the file to write.
        title: stands above the picture.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    has_match = "train/match" in history  # a quantity of its own, with a scale of its own
    figure = Figure(figsize=(13, 3.6) if has_match else (9, 3.6), layout="constrained")
    panels = list(figure.subplots(1, 3 if has_match else 2))
    accuracy, loss = panels[:2]
    figure.suptitle(title, fontsize=10)

    def curve(axes: Any, name: str, scale: float = 1.0, **style: Any) -> None:
        """Through the epochs that have a value, which are not all where not each is validated."""
        columns = zip(history["epoch"], history.get(name, ()), strict=False)
        points = [(epoch, value) for epoch, value in columns if epoch is not None and value is not None]
        if points:
            epochs = [epoch + 1 for epoch, _ in points]  # counted from 1, as the table does
            marker = "o" if len(points) <= FEW_POINTS else ""
            axes.plot(epochs, [scale * value for _, value in points], marker=marker, markersize=3, **style)

    companions = (match[1] for name in history if (match := re.fullmatch(r"train/(\w+)_acc", name)))
    for color, network in zip(cycle(NETWORK_COLORS), ("base", *companions), strict=False):
        prefix = "" if network == "base" else f"{network}_"
        for axes, quantity, scale in ((accuracy, "acc", 100), (loss, "cross_entropy", 1)):
            curve(axes, f"val/{prefix}{quantity}", scale, color=color, label=f"{network}, validation")
            curve(axes, f"train/{prefix}{quantity}", scale, color=color, linestyle="--", label=f"{network}, training")
    accuracy.set(ylabel="accuracy (%)")
    loss.set(ylabel="cross-entropy")
    for match in panels[2:]:
        curve(match, "val/match", color=MATCH_COLOR, label="validation")
        curve(match, "train/match", color=MATCH_COLOR, linestyle="--", label="training")
        match.set(ylabel="match term, before its weight")
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_png(figure, path)


def write_png(figure: Any, path: Path | str, dpi: int = 130) -> None:
    """Save a figure as PNG, as a whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_bytes(path, content.getvalue())


# blue below and orange above zero, as Okabe and Ito's colours, which stay apart for the colour-blind; darker outwards
CODE_COLORS = {
    **{"-3": "#003B5C", "-2": "#0072B2", "-1": "#7FB8DA"},
    "0": "#DDDDDD",
    **{"1": "#F0AE7C", "2": "#D55E00", "3": "#7A3600"},
}
COLUMNS, NUM_BINS = 6, 41


def plot_inspection(
    network: nn.Module, neuron_layers: Sequence[Mapping[str, Any]], path: Path | str, title: str = ""
) -> None:
    """Save the picture as PNG: a histogram for each layer, code shares by layer, firing rate by layer of neurons.

    Args:
        network: as trained, so that it still has its full-precision weights; or one from
            :func:`~tna_lightning.quantization.load_packed`, which only has the quantised ones.
        neuron_layers: of :meth:`tna_lightning.cost.CostCounter.report`.
        path: the file to write.
        title: stands above the picture.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    report = weight_report(network)["layers"]
    num_rows = math.ceil(len(report) / COLUMNS)
    figure = Figure(figsize=(13, 1.5 * num_rows + 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    subfigures: Any = figure.subfigures(2, 1, height_ratios=[1.5 * num_rows, 3.2])
    top, bottom = subfigures
    _histograms(top, network, num_rows)
    codes, rates = bottom.subplots(1, 2, width_ratios=[max(4, len(report)), max(4, len(neuron_layers))])
    _code_shares(codes, report)
    if neuron_layers:
        rates.bar(range(len(neuron_layers)), [layer["firing_rate"] for layer in neuron_layers], color="#009E73")
        rates.set(ylabel="spikes a neuron and step", title="firing rate")
        _name_bars(rates, [layer["name"] for layer in neuron_layers])
    else:  # an ANN
        rates.set_axis_off()
    write_png(figure, path, dpi=110)


def _histograms(figure: Any, network: nn.Module, num_rows: int) -> None:
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False).flatten()
    layers = zip(weighted_layers(network), kept_weights(network), strict=True)
    for axes, ((name, before, _), (_, after, kept)) in zip(grid, layers, strict=False):
        values, quantized = (weight.detach().float().flatten().cpu().numpy() for weight in (before, after))
        limit = max(np.abs(values).max(), np.abs(quantized).max()) or 1.0
        edges = np.linspace(-limit, limit, NUM_BINS + 1)
        axes.hist(values, edges, color="#999999", label="full precision")
        if kept is not None:
            axes.hist(quantized, edges, histtype="step", color="#D55E00", label="quantised")
        axes.set_title(f"{name}: {'float' if kept is None else kept.scheme}", fontsize=7)
        axes.set_yscale("log")  # a quantised weight stands in a few bins, high above the others
        axes.tick_params(labelsize=6)
    for axes in grid[sum(1 for _ in weighted_layers(network)) :]:
        axes.set_axis_off()
    grid[0].legend(fontsize=6)


def _code_shares(axes: Any, report: Sequence[Mapping[str, Any]]) -> None:
    """Stacked shares of all codes up to three bits; of other layers the zeros alone, hatched and said to be so."""
    labelled: set[str] = set()
    for position, layer in enumerate(report):
        if "code_shares" not in layer:
            label = "" if "zeros" in labelled else "zeros alone (float, or 4 bits and more)"
            labelled.add("zeros")
            axes.bar(
                position,
                layer["zeros"] / layer["weights"],
                color="white",
                edgecolor="#555555",
                hatch="///",
                label=label,
            )
            continue
        bottom = 0.0
        for code, share in layer["code_shares"].items():
            label = "" if code in labelled else f"code {code}"
            labelled.add(code)
            axes.bar(position, share, bottom=bottom, color=CODE_COLORS[code], label=label)
            bottom += share
    axes.set(ylabel="share of the weights", ylim=(0, 1), title="codes")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _name_bars(axes, [layer["name"] for layer in report])


def _name_bars(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
