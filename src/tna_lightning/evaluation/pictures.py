"""The pictures of an evaluation: confusion, reliability, accuracy over time steps and over corruptions; all as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tna_lightning.running.pictures import MATCH_COLOR, NETWORK_COLORS, write_png

MOST_NAMES = 40  # with more classes the axes are numbered
MOST_NUMBERS = 15  # with more the cells are coloured alone


def plot_confusion(confusion_KK: Tensor, names: Sequence[str], path: Path | str, title: str = "") -> None:
    """Save which classes (rows) were taken for which (columns), as shares of the row."""
    figure = _figure(title, side := min(12.0, 3.2 + 0.34 * len(names)), side * 0.9)
    axes = figure.subplots()
    counts = confusion_KK.double().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= MOST_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="answer of the network", ylabel="true class")
    write_png(figure, path)


def plot_calibration(calibration: Mapping[str, Any], path: Path | str, title: str = "") -> None:
    """Save the reliability diagram: accuracy over confidence, and how many samples each bin has."""
    figure = _figure(title, 4.6, 5.4)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration["bins"]
    starts, widths = [each["from"] for each in bins], [each["to"] - each["from"] for each in bins]
    bars: dict[str, Any] = {"width": widths, "align": "edge", "edgecolor": "white"}
    axes.bar(starts, [each["accuracy"] for each in bins], color=NETWORK_COLORS[0], label="accuracy", **bars)
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", label="perfectly calibrated")
    confidences = [each["confidence"] for each in bins]
    axes.plot(confidences, confidences, ".", color=NETWORK_COLORS[1], label="mean confidence")
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {calibration['ece']:.3f}", fontsize=9)
    axes.legend(fontsize=8, loc="upper left")
    counts.bar(starts, [each["samples"] for each in bins], color="0.6", **bars)
    counts.set(xlabel="confidence (probability of the answer)", ylabel="samples", yscale="log")
    write_png(figure, path)


def plot_time_steps(accuracies: Mapping[int, float], trained: int | None, path: Path | str, title: str = "") -> None:
    """Save accuracy over the number of time steps; that of training is marked."""
    figure = _figure(title, 4.6, 3.4)
    axes = figure.subplots()
    steps = sorted(accuracies)
    axes.plot(steps, [100 * accuracies[each] for each in steps], "o-", color=NETWORK_COLORS[0])
    if trained is not None:
        axes.axvline(trained, color=MATCH_COLOR, linestyle=":", label=f"trained with T = {trained}")
        axes.legend(fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(each) for each in steps])
    axes.set(xlabel="time steps T", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    write_png(figure, path)


def plot_corruptions(
    accuracies: Mapping[str, Mapping[int, float]], clean: float | None, path: Path | str, title: str = ""
) -> None:
    """Save accuracy over severity, a line a kind of corruption."""
    figure = _figure(title, 6.4, 3.8)
    axes = figure.subplots()
    markers = cycle("osv^D")
    for number, (kind, by_severity) in enumerate(accuracies.items()):
        severities = sorted(by_severity)
        color = NETWORK_COLORS[number % len(NETWORK_COLORS)]
        style = ("-", "--", ":", "-.")[number // len(NETWORK_COLORS) % 4]
        values = [100 * by_severity[each] for each in severities]
        axes.plot(severities, values, style, marker=next(markers), color=color, label=kind, markersize=4)
    if clean is not None:
        axes.axhline(100 * clean, color="0.4", linestyle="--", label="as they are")
    severities = sorted({severity for each in accuracies.values() for severity in each})
    axes.set_xticks(severities)
    axes.set(xlabel="severity", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    write_png(figure, path)


def _figure(title: str, width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, round(13 * width)), fontsize=9)
    return figure
