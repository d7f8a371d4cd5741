"""The table of a report as Markdown, CSV and LaTeX, and the cells that the page shows too."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence

from tna_lightning.report.statistics import REFERENCES, Row, mean_and_deviation
from tna_lightning.running.record import not_counted_words

HEADINGS = (
    "data", "model", "neuron", "precision", "baseline", "settings", "n", "test accuracy (%)", "to plain",
    "to distillation", "companion (%)", "quantised", "bits a weight", "kB", "zeros (%)", "firing rate", "AC (M)",
    "MAC (dense) (M)", "energy (dense) (uJ)", "memory (uJ)", "few-bit ANN (memory) (uJ)",
)  # fmt: skip
OPTIONAL = HEADINGS[-2:]  # only where a record has them: older ones do not
LEGEND = (
    "Quantised: which layers, and in brackets their share of the weights. AC and MAC: accumulates that spikes trigger "
    "and multiply-accumulates, an image; in brackets the same network at full precision if zeros are not left out."
)
OPTIONAL_LEGEND = (
    "Memory: energy of moving weights, membranes and activations, not part of the energy beside it. Few-bit ANN: the "
    "same weights with activations of ceil(log2(T + 1)) bits, each layer once; in brackets its memory."
)
_COST = ("synaptic_operations", "macs", "energy_uj", "dense_macs", "energy_dense_uj")
_OPTIONAL_COST = {
    "energy_memory_uj": ("energy_memory_uj",),
    **{f"memory_{part}_uj": (f"memory_{part}_uj",) for part in ("weights", "membranes", "activations")},
    "quantized_ann_bits": ("quantized_ann", "activation_bits"),
    "quantized_ann_operations": ("quantized_ann", "operations"),
    "quantized_ann_on_nonzero_weights": ("quantized_ann", "on_nonzero_weights"),
    "quantized_ann_energy_uj": ("quantized_ann", "energy_uj"),
    "quantized_ann_energy_memory_uj": ("quantized_ann", "energy_memory_uj"),
}


def cells(row: Row) -> list[str]:
    """One row as text, in the order of :data:`HEADINGS`."""
    return [
        row.data,
        row.model,
        row.neuron,
        row.precision,
        row.baseline,
        row.variant,
        str(len(row.records)),
        spread(row.mean, row.deviation),
        difference(row, "plain"),
        distillation(row),
        companion(row),
        row.quantized,
        _number(row.bits, ".2f"),
        _number(row.average("weights", "bytes"), ".1f", 1e-3),
        _number(row.average("weights", "zero_share"), ".1f", 100),
        _number(row.average("cost", "firing_rate"), ".3f"),
        _three_digits(row.average("cost", "synaptic_operations"), 1e-6),
        _beside_dense(row.average("cost", "macs"), row.average("cost", "dense_macs"), 1e-6),
        _beside_dense(row.average("cost", "energy_uj"), row.average("cost", "energy_dense_uj")),
        _three_digits(row.average("cost", "energy_memory_uj")),
        _beside_dense(
            row.average("cost", "quantized_ann", "energy_uj"), row.average("cost", "quantized_ann", "energy_memory_uj")
        ),
    ]


def has_optional(table: Sequence[Row]) -> bool:
    """Whether a row has anything in one of the :data:`OPTIONAL` columns."""
    return any(cell for row in table for cell in cells(row)[-len(OPTIONAL) :])


def legend(table: Sequence[Row]) -> str:
    """What the columns mean, and below it what is not in the counts."""
    words = dict.fromkeys(filter(None, (not_counted_words(record["cost"]) for row in table for record in row.records)))
    lines = [LEGEND, *([OPTIONAL_LEGEND] if has_optional(table) else []), *(f"Not counted: {line}." for line in words)]
    return " ".join(lines)


def spread(mean: float, deviation: float | None) -> str:
    """``98.33 ± 0.42``."""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} \N{PLUS-MINUS SIGN} {deviation:.2f}"


def difference(row: Row, reference: str | None) -> str:
    """``+0.53 [-0.10, +1.16]``, and how many pairs where the row has more runs; empty where nothing is to compare.

    A single pair has no interval.
    """
    value = row.differences.get(reference or "")
    if value is None:
        return ""
    if value.half_width is None:
        return f"{value.mean:+.2f} (1 pair)"
    low, high = value.mean - value.half_width, value.mean + value.half_width
    pairs = "" if value.pairs == len(row.records) else f" ({value.pairs} pairs)"
    return f"{value.mean:+.2f} [{low:+.2f}, {high:+.2f}]{pairs}"


def distillation(row: Row) -> str:
    """The difference to the better distillation, which is named where it is not the one from a spiking teacher."""
    text = difference(row, row.distillation)
    return f"{text} {row.distillation}" if text and row.distillation != "kd" else text


def companion(row: Row) -> str:
    """The companions' test accuracies, as the base's; empty where there is none."""
    results = (record["results"] for record in row.records)
    names = dict.fromkeys(name for each in results for name in each if re.fullmatch(r"test/\w+_acc", name))
    accuracies = filter(None, (row.values("results", name) for name in names))
    return ", ".join(spread(*mean_and_deviation([100 * value for value in values])) for values in accuracies)


def as_markdown(table: Sequence[Row]) -> str:
    """Aligned by nothing but the reader's renderer."""
    headings = HEADINGS if has_optional(table) else HEADINGS[: -len(OPTIONAL)]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(plain_words(cell) for cell in cells(row)[: len(headings)]) + " |" for row in table]
    return "\n".join(lines) + "\n"


def plain_words(text: str) -> str:
    """A name or a note from a record, such that Markdown shows it and takes it for nothing of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def as_csv(table: Sequence[Row]) -> str:
    """Full-precision numbers; differences with the ends of their intervals and the number of pairs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    references = [f"{name}_{part}" for name in REFERENCES for part in ("difference", "low", "high", "pairs")]
    optional = [
        name for name, path in _OPTIONAL_COST.items() if any(row.average("cost", *path) is not None for row in table)
    ]
    writer.writerow(
        ["data", "model", "neuron", "precision", "quantized", "baseline", "settings", "seeds", "n", "test_acc",
         "test_acc_sd", *references, "better_distillation", "companion_acc", "val_acc", "quantized_share", "bits",
         "bytes", "bytes_float32", "bytes_file", "zero_share", "firing_rate", *_COST, "wall_time_s", *optional]
    )  # fmt: skip
    for row in table:
        line: list[object] = [row.data, row.model, row.neuron, row.precision, row.quantized]
        line += [row.baseline, row.variant]
        line += [" ".join(map(str, row.seeds)), len(row.records), row.mean, row.deviation]
        for reference in REFERENCES:
            value = row.differences.get(reference)
            if value is None:
                line += [None] * 4
            elif value.half_width is None:
                line += [value.mean, None, None, value.pairs]
            else:
                line += [value.mean, value.mean - value.half_width, value.mean + value.half_width, value.pairs]
        line.append(row.distillation)
        companion, val = row.average("results", "test/companion_acc"), row.average("results", "val/acc")
        line += [None if share is None else 100 * share for share in (companion, val)]
        line += [row.average("weights", "quantized_share"), row.bits]
        line += [row.average("weights", key) for key in ("bytes", "bytes_float32", "bytes_file", "zero_share")]
        line += [row.average("cost", key) for key in ("firing_rate", *_COST)]
        line.append(row.average("wall_time_s"))
        line += [row.average("cost", *_OPTIONAL_COST[name]) for name in optional]
        writer.writerow(line)
    return text.getvalue()


def as_latex(table: Sequence[Row]) -> str:
    """A ``tabular`` with booktabs rules: the columns that go into a paper."""
    lines = [
        "% \\usepackage{booktabs}; accuracies in percent, mean and standard deviation over n seeds;",
        "% differences in percentage points with 95 % intervals over paired seeds (Student t)",
        "% AC and MAC: millions of accumulates and multiply-accumulates an image; in brackets those of a dense network",
        "\\begin{tabular}{llllllrlllrrr}",
        "\\toprule",
        "data & model & precision & quantised & baseline & settings & $n$ & accuracy & to plain & to distillation "
        "& AC & MAC & energy ($\\mu$J) \\\\",
        "\\midrule",
    ]
    for row in table:
        accuracy = f"${row.mean:.2f}$" if row.deviation is None else f"${row.mean:.2f} \\pm {row.deviation:.2f}$"
        words = [
            _escape(word) for word in (row.data, row.model, row.precision, row.quantized, row.baseline, row.variant)
        ]
        to = [f"${text}$" if (text := difference(row, name)) else "" for name in ("plain", row.distillation)]
        to = [re.sub(r" \((\d+) (pairs?)\)", r"\\ (\1\\ \\mathrm{\2})", text) for text in to]
        to[1] += f" {_escape(row.distillation)}" if to[1] and row.distillation not in (None, "kd") else ""
        lines.append(" & ".join([*words, str(len(row.records)), accuracy, *to, *cells(row)[-5:-2]]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, "\\textbackslash{}" if character == "\\" else f"\\{character}")
    return text


def _three_digits(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits, never with an exponent: a reader compares them by their length."""
    if not value:
        return "" if value is None else "0"
    return f"{scale * value:.{max(0, 2 - math.floor(math.log10(scale * value)))}f}"


def _beside_dense(value: float | None, dense: float | None, scale: float = 1.0) -> str:
    """``0.767 (7.10)``."""
    return _three_digits(value, scale) + ("" if dense is None else f" ({_three_digits(dense, scale)})")


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(scale * value, form)
