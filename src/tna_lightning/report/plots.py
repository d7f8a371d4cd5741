"""The plots of a report, as matplotlib figures; none is made where there is nothing to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tna_lightning.report.statistics import Record, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito: colours that stay apart for the colour-blind; a baseline has the same one in every plot
COLORS = {
    **{"plain": "#000000", "plain_twice": "#999999", "kd": "#E69F00", "kd_ann": "#D55E00"},
    **{"mutual": "#56B4E9", "tna": "#009E73"},
}
FURTHER_COLORS = ("#0072B2", "#CC79A7", "#882255", "#999933", "#332288", "#CC6677", "#44AA99", "#661100")
MARKERS = "osD^vP*X<>"
LINES = ("-", "--", ":", "-.")


def figures(table: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    """File name without suffix, caption and figure of each plot that these rows allow."""
    curves = learning_curves(table)
    if curves is not None:
        yield (
            "curves",
            "Validation accuracy of the base over epochs: mean over seeds, band of one standard deviation.",
            curves,
        )
    terms = match_terms(table)
    if terms is not None:
        text = "Match term on training images over epochs, before its weight: mean over seeds, band of one standard"
        yield "match_term", f"{text} deviation.", terms
    for name, what, caption, value in (
        ("bits", "bits a weight, as kept", "scales and unquantised layers included", lambda row: row.bits),
        ("bytes", "kB of all weights, as kept", "packed", lambda row: _scaled(row.average("weights", "bytes"), 1e-3)),
        (
            "energy",
            "energy of one inference (uJ)",
            "counted synaptic operations at the energies named below",
            lambda row: row.average("cost", "energy_uj"),
        ),
        (
            "memory",
            "energy of memory of one inference (uJ)",
            "moving weights, membranes and activations, at the energies named below",
            lambda row: row.average("cost", "energy_memory_uj"),
        ),
    ):
        figure = accuracy_against(table, value, what)
        if figure is not None:
            text = f"Test accuracy against {what} ({caption}): mean over seeds, bars of one standard deviation."
            yield f"accuracy_{name}", text, figure
    figure = match_weights(table)
    if figure is not None:
        text = "Test accuracy against the weight of the match term: mean over seeds, bars of one standard deviation."
        yield "match_weight", f"{text} Dashed is plain training, where it was run.", figure
    figure = rate_weights(table)
    if figure is not None:
        text = (
            "Test accuracy over the energy of one inference as firing is penalised: the weight of the penalty stands at"
        )
        yield "rate_weight", f"{text} each point, mean over seeds, bars of one standard deviation.", figure


def learning_curves(table: Sequence[Row]) -> Figure | None:
    """A panel for each data set, model, neuron and precision; a line for each baseline and its settings."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        if any(len(record["history"].get("epoch", ())) > 1 for record in row.records):
            panels.setdefault(f"{_setting(row, table)}, {row.precision}", []).append(row)
    if not panels:
        return None
    figure, grid = _panels(len(panels))
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        _draw_curves(axes, rows, _accuracies)
        axes.set(title=title, xlabel="epoch", ylabel="validation accuracy (%)")
    return figure


def match_terms(table: Sequence[Row]) -> Figure | None:
    """As the learning curves; squared errors and divergences have panels of their own, being other quantities."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        if all(len([value for value in _match_terms(record) if value > 0]) > 1 for record in row.records):
            panels.setdefault((f"{_setting(row, table)}, {row.precision}", _kind_of_match(row)), []).append(row)
    if not panels:
        return None
    figure, grid = _panels(len(panels))
    in_order = sorted(panels.items(), key=lambda panel: panel[0][1], reverse=True)  # squared errors first
    for axes, ((title, kind), rows) in zip(grid, in_order, strict=True):
        _draw_curves(axes, rows, _match_terms)
        axes.set(title=title, xlabel="epoch", ylabel=f"match term ({kind})", yscale="log")
        _label_decades(axes.yaxis)
    return figure


def _match_terms(record: Record) -> list[float]:
    return [math.nan if value is None else value for value in record["history"].get("train/match", ())]


def _kind_of_match(row: Row) -> str:
    kind = row.records[0]["config"]["objective"].get("match", "kl")
    return "KL divergence" if kind == "kl" else str(kind).replace("_", " ")


def _draw_curves(axes: Axes, rows: Sequence[Row], read: Callable[[Record], list[float]]) -> None:
    """A line for each row, with its band."""
    for row, style in zip(rows, _styles(rows), strict=True):
        epochs, mean, deviation = _curve(row, read)
        axes.plot(epochs, mean, label=row.label, **style)
        low = [value - spread for value, spread in zip(mean, deviation, strict=True)]
        high = [value + spread for value, spread in zip(mean, deviation, strict=True)]
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=8)


def accuracy_against(table: Sequence[Row], value: Callable[[Row], float | None], what: str) -> Figure | None:
    """A panel for each data set, model and neuron; colours are baselines, markers precisions."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        if value(row) is not None:
            panels.setdefault(_setting(row, table), []).append(row)
    if len({value(row) for rows in panels.values() for row in rows}) < 2:
        return None
    figure, grid = _panels(len(panels))
    precisions = list(dict.fromkeys(row.precision for row in table))
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        baselines = list(dict.fromkeys(row.baseline for row in rows))
        for row, style in zip(rows, _styles(rows), strict=True):
            # side by side where precision alone decides, so that no baseline hides another
            shift = 1.0 if what.startswith("energy") else 1.03 ** (baselines.index(row.baseline) - len(baselines) / 2)
            marker = MARKERS[precisions.index(row.precision) % len(MARKERS)]
            axes.errorbar(
                [shift * (value(row) or 0.0)], [row.mean], yerr=[row.deviation or 0.0],
                color=style["color"], marker=marker, markersize=6, capsize=3, elinewidth=1, alpha=0.8, linestyle="none",
            )  # fmt: skip
        axes.set(title=title, xlabel=what, ylabel="test accuracy (%)")
        if max(map(float, filter(None, map(value, rows)))) > 4 * min(map(float, filter(None, map(value, rows)))):
            axes.set_xscale("log")
            _label_decades(axes.xaxis)
    _key(figure, table, precisions)
    return figure


def match_weights(table: Sequence[Row]) -> Figure | None:
    """A panel for each data set, model and neuron; a line for each precision; plain training as a horizontal line."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        if _match_weight(row) is not None:
            panels.setdefault(_setting(row, table), []).append(row)
    panels = {title: rows for title, rows in panels.items() if len(set(map(_match_weight, rows))) > 1}
    if not panels:
        return None
    figure, grid = _panels(len(panels))
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        weights = sorted({float(_match_weight(row) or 0.0) for row in rows})
        for index, precision in enumerate(dict.fromkeys(row.precision for row in rows)):
            line = sorted(
                (row for row in rows if row.precision == precision), key=lambda row: _match_weight(row) or 0.0
            )
            color = FURTHER_COLORS[index % len(FURTHER_COLORS)]
            axes.errorbar(
                [_match_weight(row) or 0.0 for row in line], [row.mean for row in line],
                yerr=[row.deviation or 0.0 for row in line], color=color, marker="o", capsize=3,
                label=f"tna, {precision}",
            )  # fmt: skip
            for row in table:
                if row.baseline == "plain" and row.precision == precision and _setting(row, table) == title:
                    axes.axhline(row.mean, color=color, linestyle="--", linewidth=1, label=f"plain, {precision}")
        if weights[0] > 0:
            axes.set_xscale("log")
        elif len(weights) > 2:
            axes.set_xscale("symlog", linthresh=weights[1])
        axes.set(title=title, xlabel="match weight", ylabel="test accuracy (%)")
        axes.legend(fontsize=8)
    return figure


def _match_weight(row: Row) -> float | None:
    if row.baseline != "tna":
        return None
    weight = row.records[0]["config"].get("objective", {}).get("match_weight")
    return float(weight) if isinstance(weight, int | float) else None


def rate_weights(table: Sequence[Row]) -> Figure | None:
    """A panel for each data set, model and neuron; a line for each baseline and precision, in order of the weight."""
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in table:
        if row.average("cost", "energy_uj") is not None:
            lines = panels.setdefault(_setting(row, table), {})
            lines.setdefault(f"{row.baseline}, {row.precision}", []).append(row)
    panels = {
        title: {label: rows for label, rows in lines.items() if len(set(map(_rate_weight, rows))) == len(rows) > 1}
        for title, lines in panels.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    figure, grid = _panels(len(panels))
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for index, (label, rows) in enumerate(lines.items()):
            rows.sort(key=_rate_weight)
            energies = [row.average("cost", "energy_uj") or 0.0 for row in rows]
            axes.errorbar(
                energies, [row.mean for row in rows], yerr=[row.deviation or 0.0 for row in rows],
                color=FURTHER_COLORS[index % len(FURTHER_COLORS)], marker="o", capsize=3, label=label,
            )  # fmt: skip
            for row, energy in zip(rows, energies, strict=True):
                axes.annotate(
                    f"{_rate_weight(row):g}", (energy, row.mean), xytext=(4, 4), textcoords="offset points", fontsize=7
                )
        axes.set(title=title, xlabel="energy of one inference (uJ)", ylabel="test accuracy (%)")
        axes.legend(fontsize=8)
    return figure


def _rate_weight(row: Row) -> float:
    return float(row.records[0]["config"].get("objective", {}).get("rate_weight") or 0.0)


def _setting(row: Row, table: Sequence[Row]) -> str:
    """Data set, and model and neuron where the table has several."""
    words = [row.data]
    words += [row.model] if len({other.model for other in table}) > 1 else []
    words += [row.neuron] if len({other.neuron for other in table}) > 1 else []
    return ", ".join(words)


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A colour for each baseline, a kind of line for each of its variants."""
    others = [name for name in dict.fromkeys(row.baseline for row in rows) if name not in COLORS]
    seen: dict[str, list[str]] = {}
    styles = []
    for row in rows:
        variants = seen.setdefault(row.baseline, [])
        if row.variant not in variants:
            variants.append(row.variant)
        color = COLORS.get(row.baseline) or FURTHER_COLORS[others.index(row.baseline) % len(FURTHER_COLORS)]
        styles.append({"color": color, "linestyle": LINES[variants.index(row.variant) % len(LINES)]})
    return styles


def _accuracies(record: Record) -> list[float]:
    """Over the epochs in percent: on validation images, where there are any."""
    accuracies = record["history"].get("val/acc") or record["history"].get("train/acc") or []
    return [math.nan if value is None else 100 * value for value in accuracies]


def _curve(row: Row, read: Callable[[Record], list[float]]) -> tuple[list[int], list[float], list[float]]:
    """Epochs from 1, and mean and standard deviation over seeds; over the epochs that all seeds have."""
    curves = [read(record) for record in row.records]
    length = min(map(len, curves))
    mean, deviation = [], []
    for values in zip(*(curve[:length] for curve in curves), strict=True):
        average = math.fsum(values) / len(values)
        mean.append(average)
        squares = math.fsum((value - average) ** 2 for value in values)
        deviation.append(math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0)
    return list(range(1, length + 1)), mean, deviation


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = 2 if number == 4 else min(3, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 3.4 * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[number:]:
        axes.remove()
    for axes in grid[:number]:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid[:number]


def _key(figure: Figure, table: Sequence[Row], precisions: Sequence[str]) -> None:
    """What colours and markers mean, to the right of the panels."""
    from matplotlib.lines import Line2D

    colors = {row.baseline: style["color"] for row, style in zip(table, _styles(table), strict=True)}
    handles = [Line2D([], [], color=color, linewidth=4, label=name) for name, color in colors.items()]
    handles += [
        Line2D([], [], color="#666666", linestyle="none", marker=MARKERS[index % len(MARKERS)], label=name)
        for index, name in enumerate(precisions)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _plain_numbers(value: float, position: float | None) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}"


def _label_decades(axis: Axis) -> None:
    """Plain numbers along a logarithmic axis, at 2 and 5 of each decade too where few decades are seen."""

    def minor(value: float, position: float | None) -> str:
        low, high = axis.get_view_interval()
        leading = round(value / 10 ** math.floor(math.log10(value)))
        return _plain_numbers(value, position) if high < 100 * low and leading in (2, 5) else ""

    axis.set_major_formatter(_plain_numbers)
    axis.set_minor_formatter(minor)
