"""The plots of a report, as matplotlib figures in the sizes of a paper; none is made where there is nothing to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tna_lightning.report.names import named
from tna_lightning.report.statistics import Record, Row
from tna_lightning.running.pictures import FEW_POINTS

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
BESIDE = 4.5  # points of 1/72 inch between two of one value, in a figure as wide as a page

COLUMN, PAGE = 3.35, 7.0  # inches: the width of one column of a paper, and of its text
STYLE: Any = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7.5},
    **{"ytick.labelsize": 7.5, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "axes.grid": True, "grid.alpha": 0.3},
    **{"grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42},
    **{"svg.hashsalt": "tna_lightning", "axes.axisbelow": True},
}


def figures(table: Sequence[Row], width: float = PAGE) -> Iterator[tuple[str, str, Figure]]:
    """File name without suffix, caption and figure of each plot that these rows allow.

    Args:
        table: from :func:`~tna_lightning.report.statistics.rows`.
        width: of the figures in inches, :data:`PAGE` or :data:`COLUMN`.
    """
    from matplotlib import rc_context

    seeds = "mean over seeds, bars of one standard deviation"
    plots: list[tuple[str, str, Callable[[], Figure | None]]] = [
        (
            "curves",
            "Validation accuracy of the base over epochs, those that were validated: mean over seeds, marked where "
            "epochs are few; thick, where they are many, its running mean over a twentieth of them, on an axis that "
            "begins after the first quarter. A band is one standard deviation, where a panel has at most three lines.",
            partial(learning_curves, table, width),
        ),
        (
            "match_term",
            "Match term on training images over epochs, before its weight: mean over seeds, drawn likewise.",
            partial(match_terms, table, width),
        ),
        (
            "accuracy_precision",
            "Test accuracy by precision, with the bits a weight as kept (scales and unquantised layers included): "
            f"{seeds}. Points of one precision stand side by side.",
            partial(accuracy_by_precision, table, width),
        ),
    ]
    for name, what, explained, value in (
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
        text = f"Test accuracy against {what} ({explained}): {seeds}."
        text += " Points of one value stand side by side, around a thin line at it."
        plots.append((f"accuracy_{name}", text, partial(accuracy_against, table, value, what, width)))
    text = f"Test accuracy against the weight of the match term: {seeds}."
    text += " Dashed is plain training, where it was run."
    plots.append(("match_weight", text, partial(match_weights, table, width)))
    text = "Test accuracy over the energy of one inference as firing is penalised, the weight beside each"
    plots.append(("rate_weight", f"{text} point: {seeds}.", partial(rate_weights, table, width)))
    for name, caption, draw in plots:
        with rc_context(STYLE):
            figure = draw()
        if figure is not None:
            yield name, caption, figure


def learning_curves(table: Sequence[Row], width: float = PAGE) -> Figure | None:
    """A panel for each data set, model, neuron and precision; a line for each baseline and its settings.

    Runs without validation have panels of their own, of training accuracy.
    """
    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in table:
        part = "validation" if all(map(_is_validated, row.records)) else "training"
        if len(_curve(row, partial(_accuracies, part=part))[0]) > 1:
            title = f"{_setting(row, table)}, {named('precision', row.precision)}"
            panels.setdefault((title, row.data, part), []).append(row)
    if not panels:
        return None
    figure, grid = _panels(len(panels), width)
    for axes, ((title, _, part), rows) in zip(grid, panels.items(), strict=True):
        _draw_curves(axes, rows, partial(_accuracies, part=part))
        axes.set(title=title, xlabel="epoch", ylabel=f"{part} accuracy (%)")
    _share([(f"{data} {part}", axes) for (_, data, part), axes in zip(panels, grid, strict=True)], "x", "y")
    _key(figure, grid)
    return figure


def match_terms(table: Sequence[Row], width: float = PAGE) -> Figure | None:
    """As the learning curves; squared errors and divergences have panels of their own, being other quantities."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        if all(len([value for value in _match_terms(record) if value > 0]) > 1 for record in row.records):
            title = f"{_setting(row, table)}, {named('precision', row.precision)}"
            panels.setdefault((title, _kind_of_match(row)), []).append(row)
    if not panels:
        return None
    figure, grid = _panels(len(panels), width)
    in_order = sorted(panels.items(), key=lambda panel: panel[0][1], reverse=True)  # squared errors first
    for axes, ((title, kind), rows) in zip(grid, in_order, strict=True):
        axes.set(title=title, xlabel="epoch", ylabel=f"match term ({kind})", yscale="log")
        _draw_curves(axes, rows, _match_terms)
    _share([(kind, axes) for axes, ((_, kind), _) in zip(grid, in_order, strict=True)], "x", "y")
    for axes in grid:
        _number(axes.yaxis)
    _key(figure, grid)
    return figure


def _match_terms(record: Record) -> list[float]:
    return [math.nan if value is None else value for value in record["history"].get("train/match", ())]


def _kind_of_match(row: Row) -> str:
    kind = row.records[0]["config"]["objective"].get("match", "kl")
    return "KL divergence" if kind == "kl" else str(kind).replace("_", " ")


def _draw_curves(axes: Axes, rows: Sequence[Row], read: Callable[[Record], list[float]]) -> None:
    """A line for each row, smoothed where it has many epochs, with its band where there are few lines."""
    late: list[float] = []
    is_long = False
    for row, style in zip(rows, _styles(rows), strict=True):
        epochs, mean, deviation = _curve(row, read)
        smooth = _running_mean(mean)
        marker = "o" if len(epochs) <= FEW_POINTS else ""
        axes.plot(epochs, smooth, label=row.label, marker=marker, markersize=2.5, **style)
        if smooth != mean:
            axes.plot(epochs, mean, color=style["color"], linewidth=0.5, alpha=0.35)
        if len(rows) <= 3:
            low = [value - spread for value, spread in zip(mean, deviation, strict=True)]
            high = [value + spread for value, spread in zip(mean, deviation, strict=True)]
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        has_many = len(epochs) > 20
        is_long |= has_many
        late += mean[len(mean) // 4 if has_many else 0 :]
    if is_long and axes.get_yscale() == "linear":
        margin = 0.05 * (max(late) - min(late)) or 1.0
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.locator_params(axis="x", integer=True)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Over a twentieth of the values, fewer at the ends."""
    reach = len(values) // 40
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]


def accuracy_by_precision(table: Sequence[Row], width: float = PAGE) -> Figure | None:
    """A panel for each data set, model and neuron; precisions beside each other, in each a point for each row."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        panels.setdefault(_setting(row, table), []).append(row)
    if all(len({row.precision for row in rows}) < 2 for rows in panels.values()):
        return None
    figure, grid = _panels(len(panels), width)
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        precisions = list(dict.fromkeys(row.precision for row in rows))
        labels = list(dict.fromkeys(row.label for row in rows))
        for row, style in zip(rows, _styles(rows), strict=True):
            beside = 0.8 * ((labels.index(row.label) + 0.5) / len(labels) - 0.5)
            marker = MARKERS[LINES.index(style["linestyle"])]
            _point(axes, precisions.index(row.precision) + beside, row, style["color"], marker, row.label)
        names = [named("precision", name).replace(", ", ",\n") for name in precisions]
        bits = [next((row.bits for row in rows if row.precision == name), None) for name in precisions]
        ticks = [name if bit is None else f"{name}\n{bit:.3g}" for name, bit in zip(names, bits, strict=True)]
        axes.set_xticks(range(len(precisions)), ticks)
        axes.set(title=title, xlabel="precision, bits a weight", ylabel="test accuracy (%)")
        axes.grid(axis="x", visible=False)
        for edge in range(1, len(precisions)):
            axes.axvline(edge - 0.5, color="#888888", linewidth=0.4, alpha=0.5)
    _key(figure, grid)
    return figure


def accuracy_against(
    table: Sequence[Row], value: Callable[[Row], float | None], what: str, width: float = PAGE
) -> Figure | None:
    """A panel for each data set, model and neuron; colours are baselines, markers precisions.

    Points of one value would hide each other: they stand side by side around a line at it, and the axis says so. None
    where all values lie within a tenth of each other.
    """
    panels: dict[str, list[Row]] = {}
    for row in table:
        if value(row):
            panels.setdefault(_setting(row, table), []).append(row)
    found = [value(row) or 0.0 for rows in panels.values() for row in rows]
    if not found or max(found) < 1.1 * min(found):
        return None
    figure, grid = _panels(len(panels), width)
    precisions = list(dict.fromkeys(row.precision for row in table))
    is_logarithmic = max(found) > 4 * min(found)
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        alike: dict[str, list[Row]] = {}
        for row in rows:
            alike.setdefault(f"{value(row):.4g}", []).append(row)
        many = [each for each in alike.values() if len(each) > 1]
        for row, style in zip(rows, _styles(rows), strict=True):
            marker = MARKERS[precisions.index(row.precision) % len(MARKERS)]
            beside = alike[f"{value(row):.4g}"]
            points = (beside.index(row) - (len(beside) - 1) / 2) * BESIDE * width / PAGE
            _point(axes, value(row) or 0.0, row, style["color"], marker, points=points)
        for each in many:
            axes.axvline(value(each[0]) or 0.0, color="#888888", linewidth=0.4, alpha=0.5)
        axes.set(
            title=title,
            xlabel=f"{what}\n(points of one value side by side)" if many else what,
            ylabel="test accuracy (%)",
        )
        if is_logarithmic:
            axes.set_xscale("log")
            margin = (max(found) / min(found)) ** 0.1  # of all panels: matplotlib warns about one that has one value
            axes.set_xlim(min(found) / margin, max(found) * margin)
        else:
            axes.set_xlim(0, 1.1 * max(found))
    if is_logarithmic:
        for axes in grid:
            _number(axes.xaxis)
    _key(figure, grid, table, precisions)
    return figure


def _point(axes: Axes, at: float, row: Row, color: str, marker: str, label: str = "", points: float = 0.0) -> None:
    """A row's mean and deviation at this value, drawn so many points of 1/72 inch beside it."""
    from matplotlib.transforms import ScaledTranslation

    drawn = axes.errorbar(
        [at], [row.mean], yerr=[row.deviation or 0.0], color=color, marker=marker, markersize=5, capsize=2.5,
        elinewidth=0.9, markerfacecolor="none", markeredgewidth=1.2, linestyle="none", label=label or None,
    )  # fmt: skip
    figure: Any = axes.figure
    for artist in drawn.get_children():  # afterwards: the axes' limits are of the values themselves
        artist.set_transform(axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans))


def match_weights(table: Sequence[Row], width: float = PAGE) -> Figure | None:
    """A panel for each data set, model and neuron; a line for each precision; plain training as a horizontal line."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        if _match_weight(row) is not None:
            panels.setdefault(_setting(row, table), []).append(row)
    panels = {title: rows for title, rows in panels.items() if len(set(map(_match_weight, rows))) > 1}
    if not panels:
        return None
    figure, grid = _panels(len(panels), width)
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        weights = sorted({float(_match_weight(row) or 0.0) for row in rows})
        for index, precision in enumerate(dict.fromkeys(row.precision for row in rows)):
            line = sorted(
                (row for row in rows if row.precision == precision), key=lambda row: _match_weight(row) or 0.0
            )
            color, name = FURTHER_COLORS[index % len(FURTHER_COLORS)], named("precision", precision)
            axes.errorbar(
                [_match_weight(row) or 0.0 for row in line], [row.mean for row in line],
                yerr=[row.deviation or 0.0 for row in line], color=color, marker="o", markersize=4, capsize=2.5,
                label=f"TNA, {name}",
            )  # fmt: skip
            for row in table:
                if row.baseline == "plain" and row.precision == precision and _setting(row, table) == title:
                    axes.axhline(row.mean, color=color, linestyle="--", linewidth=1, label=f"plain, {name}")
        if weights[0] > 0:
            axes.set_xscale("log")
        elif len(weights) > 2:
            axes.set_xscale("symlog", linthresh=weights[1])
        axes.set(title=title, xlabel="match weight", ylabel="test accuracy (%)")
        axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
        axes.set_xticks([], minor=True)
    _key(figure, grid)
    return figure


def _match_weight(row: Row) -> float | None:
    if row.baseline != "tna":
        return None
    weight = row.records[0]["config"].get("objective", {}).get("match_weight")
    return float(weight) if isinstance(weight, int | float) else None


def rate_weights(table: Sequence[Row], width: float = PAGE) -> Figure | None:
    """A panel for each data set, model and neuron; a line for each baseline and precision, in order of the weight."""
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in table:
        if row.average("cost", "energy_uj") is not None:
            lines = panels.setdefault(_setting(row, table), {})
            label = f"{named('baseline', row.baseline)}, {named('precision', row.precision)}"
            lines.setdefault(label, []).append(row)
    panels = {
        title: {label: rows for label, rows in lines.items() if len(set(map(_rate_weight, rows))) == len(rows) > 1}
        for title, lines in panels.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    figure, grid = _panels(len(panels), width)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for index, (label, rows) in enumerate(lines.items()):
            rows.sort(key=_rate_weight)
            energies = [row.average("cost", "energy_uj") or 0.0 for row in rows]
            axes.errorbar(
                energies, [row.mean for row in rows], yerr=[row.deviation or 0.0 for row in rows],
                color=FURTHER_COLORS[index % len(FURTHER_COLORS)], marker="o", markersize=4, capsize=2.5, label=label,
            )  # fmt: skip
            for row, energy in zip(rows, energies, strict=True):
                axes.annotate(
                    f"{_rate_weight(row):g}", (energy, row.mean), xytext=(4, 4), textcoords="offset points", fontsize=7
                )
        axes.set(title=title, xlabel="energy of one inference (uJ)", ylabel="test accuracy (%)")
    _key(figure, grid)
    return figure


def _rate_weight(row: Row) -> float:
    return float(row.records[0]["config"].get("objective", {}).get("rate_weight") or 0.0)


def _setting(row: Row, table: Sequence[Row]) -> str:
    """Data set, and model and neuron where the table has several."""
    words = [named("data", row.data)]
    words += [named("model", row.model)] if len({other.model for other in table}) > 1 else []
    words += [named("neuron", row.neuron)] if len({other.neuron for other in table}) > 1 else []
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


def _is_validated(record: Record) -> bool:
    return any(value is not None for value in record["history"].get("val/acc", ()))


def _accuracies(record: Record, part: str) -> list[float]:
    """Over the epochs in percent, on ``training`` or ``validation`` images."""
    accuracies = record["history"].get("val/acc" if part == "validation" else "train/acc", ())
    return [math.nan if value is None else 100 * value for value in accuracies]


def _curve(row: Row, read: Callable[[Record], list[float]]) -> tuple[list[int], list[float], list[float]]:
    """Epochs from 1, and mean and standard deviation over seeds; over the epochs in which all seeds have a value."""
    curves = [read(record) for record in row.records]
    epochs, mean, deviation = [], [], []
    for epoch, values in enumerate(zip(*curves, strict=False), start=1):
        if not all(map(math.isfinite, values)):  # as between validations that are not of every epoch
            continue
        average = math.fsum(values) / len(values)
        epochs.append(epoch)
        mean.append(average)
        squares = math.fsum((value - average) ** 2 for value in values)
        deviation.append(math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0)
    return epochs, mean, deviation


def _panels(number: int, width: float) -> tuple[Figure, list[Axes]]:
    """Panels of one size, as many beside each other as the width takes."""
    from matplotlib.figure import Figure

    columns = 1 if width < 5 else 2 if number == 4 else min(3, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(width, 2.3 * lines + 0.5), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[number:]:
        axes.remove()
    return figure, grid[:number]


def _share(panels: Sequence[tuple[str, Axes]], *names: str) -> None:
    """Give the panels of one kind the same limits, so that they can be compared."""
    for kind in {kind for kind, _ in panels}:
        alike = [axes for each, axes in panels if each == kind]
        for name in names:
            limits = [getattr(axes, f"get_{name}lim")() for axes in alike]
            for axes in alike:
                getattr(axes, f"set_{name}lim")(min(low for low, _ in limits), max(high for _, high in limits))


def _key(figure: Figure, grid: Sequence[Axes], table: Sequence[Row] = (), precisions: Sequence[str] = ()) -> None:
    """What lines, colours and markers mean, once for all panels, below them."""
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for row, style in zip(table, _styles(table), strict=True):
        label = named("baseline", row.baseline)
        handles.setdefault(label, Line2D([], [], color=style["color"], linewidth=4, label=label))
    for index, name in enumerate(precisions):
        label, marker = named("precision", name), MARKERS[index % len(MARKERS)]
        handles[f"{label}\0"] = Line2D(
            [], [], color="#666666", linestyle="none", marker=marker, markerfacecolor="none", label=label
        )
    labels = [label.rstrip("\0") for label in handles]
    room = 9 * figure.get_figwidth() * 1.7  # letters
    columns = max(1, min(len(labels), int(room / (max(map(len, labels)) + 6))))
    lines = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * max(0, lines - 2))  # room for two is there
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns, frameon=False)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _number(axis: Axis) -> None:
    """Plain numbers along a logarithmic axis, two at least: at 1, 2 and 5 of each decade, or decades, or round ones."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        leading * 10.0**decade for decade in decades for leading in (1, 2, 5) if low <= leading * 10.0**decade <= high
    ]
    if len(ticks) > 7:
        ticks = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" if 1e-3 <= tick < 1e5 else f"{tick:.0e}" for tick in ticks])
    axis.set_ticks([], minor=True)
