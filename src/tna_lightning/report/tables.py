"""The table of a report as Markdown and CSV, and the cells that page and LaTeX show too."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence

from tna_lightning.report.names import BASELINES, MEANINGS, named
from tna_lightning.report.statistics import AGAINST, REFERENCES, Record, Row, highest, mean_and_deviation
from tna_lightning.running.record import not_counted_words

# what a row has, and its heading; the first six say which runs it is made of
HEADINGS = {
    **{key: key for key in ("data", "model", "neuron", "precision", "baseline", "settings", "n")},
    **{"accuracy": "test accuracy (%)", "to_plain": "to plain", "to_distillation": "to distillation"},
    **{AGAINST: "to what was asked", "companion": "companion (%)", "quantised": "quantised", "bits": "bits a weight"},
    **{"kb": "kB", "zeros": "zeros (%)", "firing_rate": "firing rate", "ac": "AC (M)", "mac": "MAC (dense) (M)"},
    **{"energy": "energy (dense) (uJ)", "memory": "memory (uJ)", "few_bit_ann": "few-bit ANN (memory) (uJ)"},
}
CHOICES = tuple(HEADINGS)[:6]
_DENSE = "of the same network at full precision if zeros are not left out"
LEGEND = {
    "companion": "Companion: the test accuracy of the network that was trained beside it.",
    "quantised": "Quantised: which layers, and in brackets their share of the weights.",
    "bits": "Bits a weight and kB: as kept, scales and layers that are not quantised included.",
    "firing_rate": "Firing rate: spikes a neuron and step.",
    "ac": "AC: accumulates that spikes trigger.",
    "mac": f"MAC: multiply-accumulates; in brackets those {_DENSE}.",
    "energy": f"Energy: that of the counted operations{{}}; in brackets that {_DENSE}.",
    "memory": "Memory: energy of moving weights, membranes and activations, no part of the other energy.",
    "few_bit_ann": "Few-bit ANN: energy of the same weights with activations of ceil(log2(T + 1)) bits, each layer "
    "once; in brackets that of moving them.",
}
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


def cells(row: Row) -> dict[str, str]:
    """One row as text, by the keys of :data:`HEADINGS`."""
    return {
        **{group: named(group, getattr(row, group)) for group in CHOICES[:-1]},
        "settings": row.variant,
        "n": str(len(row.records)),
        "accuracy": spread(row.mean, row.deviation),
        "to_plain": difference(row, "plain"),
        "to_distillation": distillation(row),
        AGAINST: difference(row, AGAINST),
        "companion": companion(row),
        "quantised": row.quantized,
        "bits": _number(row.bits, ".2f"),
        "kb": _number(row.average("weights", "bytes"), ".1f", 1e-3),
        "zeros": _number(row.average("weights", "zero_share"), ".1f", 100),
        "firing_rate": _number(row.average("cost", "firing_rate"), ".3f"),
        "ac": _three_digits(row.average("cost", "synaptic_operations"), 1e-6),
        "mac": _beside_dense(row.average("cost", "macs"), row.average("cost", "dense_macs"), 1e-6),
        "energy": _beside_dense(row.average("cost", "energy_uj"), row.average("cost", "energy_dense_uj")),
        "memory": _three_digits(row.average("cost", "energy_memory_uj")),
        "few_bit_ann": _beside_dense(
            row.average("cost", "quantized_ann", "energy_uj"), row.average("cost", "quantized_ann", "energy_memory_uj")
        ),
    }


def shown(table: Sequence[Row]) -> list[str]:
    """The columns that say something: neither empty in all rows nor, where there are several rows, alike in all.

    Which layers are quantised has a column only where the precision does not say it.
    """
    lines = [cells(row) for row in table]
    keys = [key for key in HEADINGS if len({line[key] for line in lines} | ({""} if len(table) == 1 else set())) > 1]
    if all(line[AGAINST] == line["to_plain"] for line in lines):  # it is plain training that was asked for
        keys = [key for key in keys if key != AGAINST]
    if len({(line["precision"], line["quantised"]) for line in lines}) == len({line["precision"] for line in lines}):
        keys = [key for key in keys if key != "quantised" or len(table) == 1]
    return [key for key in HEADINGS if key in keys or key == "accuracy"]


def alike_in_all(table: Sequence[Row]) -> list[str]:
    """The columns that :func:`shown` leaves out since all rows have the same there, where they have anything."""
    lines, columns = [cells(row) for row in table], shown(table)
    return [key for key in HEADINGS if key not in columns and lines[0][key] and len({line[key] for line in lines}) == 1]


def in_all_rows(table: Sequence[Row]) -> str:
    """What :func:`shown` leaves out: ``In all rows: data CIFAR-10; n 3.``, and which layers a precision quantises."""
    lines, columns = [cells(row) for row in table], shown(table)
    alike = [f"{HEADINGS[key]} {lines[0][key]}" for key in alike_in_all(table)]
    text = f"In all rows: {'; '.join(alike)}." if alike else ""
    layers = {line["precision"]: line["quantised"] for line in lines if line["quantised"]}
    if "quantised" not in columns and len(set(layers.values())) > 1:
        words = "; ".join(f"{precision}: {which}" for precision, which in layers.items())
        text += f" Quantised layers, with their share of the weights: {words}."
    return text.strip()


def headings(against: str = "") -> dict[str, str]:
    """:data:`HEADINGS`, that of the differences asked for by its name."""
    return HEADINGS | ({AGAINST: f"to {against_name(against)}"} if against else {})


def against_name(against: str) -> str:
    """``baseline=plain_twice`` as ``plain x2``, other settings as they are."""
    words = []
    for word in against.split(","):
        key, _, value = word.strip().partition("=")
        group = "precision" if key == "quant" else key
        name = named(group, "full" if (group, value) == ("precision", "none") else value)
        words.append(name if group in CHOICES else word.strip())
    return ", ".join(words)


def answers(table: Sequence[Row], against: str = "") -> list[str]:
    """The study's question in a sentence for each data set, model, neuron and precision, and each other setting.

    It is whether TNA (without it the row of the best validation accuracy, or each where that is not known) gains over
    plain training, or over what ``against`` says.
    """
    settings: dict[tuple[str, ...], list[Row]] = {}
    for row in table:
        settings.setdefault((row.data, row.model, row.neuron, row.precision), []).append(row)
    several = [group for group in range(4) if len({each[group] for each in settings}) > 1]
    sentences = []
    for key, alike in settings.items():
        compared = [row for row in alike if (AGAINST if against else "plain") in row.differences]
        by_variant: dict[str, list[Row]] = {}
        for row in [row for row in compared if row.baseline == "tna" and not against] or compared:
            by_variant.setdefault(row.variant, []).append(row)
        where = ", ".join(named(CHOICES[group], key[group]) for group in several)
        of_precision = named("precision", key[3]) if against and 3 not in several else ""
        for rivals in by_variant.values():
            validated = [row.average("results", "val/acc") for row in rivals]
            if len(rivals) == 1 or None in validated:
                sentences += [_answer(row, against, where, of_precision) for row in rivals]
            else:
                row = max(rivals, key=lambda row: row.average("results", "val/acc") or 0.0)
                chosen = f"(of {len(rivals)} the best by validation accuracy)"
                sentences.append(_answer(row, against, where, f"{of_precision} {chosen}".strip()))
    return sentences


def _answer(row: Row, against: str, where: str, what: str) -> str:
    """The sentence on a row; ``where`` stands before its name and ``what`` after it."""
    reference = AGAINST if against else "plain"
    value = row.differences[reference]
    other = against_name(against) if against else "plain training"
    name = " ".join(filter(None, [row.label, what]))
    interval = " (95 % interval)" if value.half_width is not None else ""
    text = f"{where}: " if where else ""
    text += (
        f"{name} {spread(row.mean, row.deviation)} %, {difference(row, reference)} points{interval} against {other}: "
    )
    if value.half_width is None:
        text += "one seed tells nothing of chance"
    elif abs(value.mean) <= value.half_width:
        text += "no difference is shown"
    else:
        text += "better" if value.mean > 0 else "worse"
    return f"{text}."


def best(table: Sequence[Row]) -> list[Row]:
    """The rows of the highest mean for each data set and its settings, model, neuron and precision."""
    settings: dict[tuple[str, ...], list[Row]] = {}
    for row in table:
        settings.setdefault((row.data, row.model, row.neuron, row.precision), []).append(row)
    return [row for alike in settings.values() for row in highest(alike)]


def legend(table: Sequence[Row]) -> str:
    """What the columns and names mean, what is alike in all rows, and what is not in the counts."""
    columns = shown(table)
    names = [f"{BASELINES[name]}: {MEANINGS[name]}" for name in MEANINGS if any(row.baseline == name for row in table)]
    lines = [in_all_rows(table), *([f"{'; '.join(names)}."] if names else [])]
    lines += clauses(table, [*columns, *alike_in_all(table)])
    words = dict.fromkeys(filter(None, (not_counted_words(record["cost"]) for row in table for record in row.records)))
    return " ".join(filter(None, [*lines, *(f"Not counted: {line}." for line in words)]))


def clauses(table: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """What these columns mean, a sentence or two each; counts and energies are those of an image."""
    energies = dict.fromkeys(energy_of_an_operation(record) for row in table for record in row.records)
    words = "; ".join(filter(None, energies))
    named_columns = ["bits" if key == "kb" else key for key in columns]
    lines = [
        text.format(f", {words}" if words else "") if key == "energy" else text
        for key, text in LEGEND.items()
        if key in named_columns
    ]
    is_of_an_image = {"ac", "mac", "energy", "memory", "few_bit_ann"} & {*columns}
    return [*lines, "Operations and energies are those of one image."] if is_of_an_image else lines


def energy_of_an_operation(record: Record) -> str:
    """``4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate (45 nm, Horowitz 2014)``; empty where it is not known."""
    cost = record["cost"]
    if cost.get("pj_per_mac") is None:
        return ""
    return f"{cost['pj_per_mac']} pJ a multiply-accumulate, {cost['pj_per_ac']} pJ an accumulate (45 nm, Horowitz 2014)"


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
    pairs = "" if value.half_width is None or value.pairs == len(row.records) else f" ({value.pairs} pairs)"
    return value.words() + pairs


def distillation(row: Row) -> str:
    """The difference to the better distillation, which is named where it is not the one from a spiking teacher."""
    text = difference(row, row.distillation)
    return f"{text} {named('baseline', row.distillation or '')}" if text and row.distillation != "kd" else text


def companion(row: Row) -> str:
    """The companions' test accuracies, as the base's; empty where there is none."""
    results = (record["results"] for record in row.records)
    names = dict.fromkeys(name for each in results for name in each if re.fullmatch(r"test/\w+_acc", name))
    accuracies = filter(None, (row.values("results", name) for name in names))
    return ", ".join(spread(*mean_and_deviation([100 * value for value in values])) for values in accuracies)


def as_markdown(table: Sequence[Row], against: str = "") -> str:
    """Aligned by nothing but the reader's renderer; the best of each setting is bold."""
    columns, firsts, heads = shown(table), best(table), headings(against)
    lines = ["| " + " | ".join(plain_words(heads[key]) for key in columns) + " |", "|" + " --- |" * len(columns)]
    for row in table:
        line = cells(row)
        line["accuracy"] = f"**{line['accuracy']}**" if row in firsts else line["accuracy"]
        lines.append("| " + " | ".join(plain_words(line[key]) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def plain_words(text: str) -> str:
    """A name or a note from a record, such that Markdown shows it and takes it for nothing of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def as_csv(table: Sequence[Row]) -> str:
    """For programs: choices as a command has them, numbers in full, differences with the ends of their intervals.

    Columns that are empty in all rows are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    asked = [AGAINST] if any(AGAINST in row.differences for row in table) else []
    references = [f"{name}_{part}" for name in (*REFERENCES, *asked) for part in ("difference", "low", "high", "pairs")]
    optional = [
        name for name, path in _OPTIONAL_COST.items() if any(row.average("cost", *path) is not None for row in table)
    ]
    names = (
        ["data", "model", "neuron", "precision", "quantized", "baseline", "settings", "seeds", "n", "test_acc",
         "test_acc_sd", *references, "better_distillation", "companion_acc", "val_acc", "quantized_share", "bits",
         "bytes", "bytes_float32", "bytes_file", "zero_share", "firing_rate", *_COST, "wall_time_s", *optional]
    )  # fmt: skip
    lines = []
    for row in table:
        line: list[object] = [row.data, row.model, row.neuron, row.precision, row.quantized]
        line += [row.baseline, row.variant]
        line += [" ".join(map(str, row.seeds)), len(row.records), row.mean, row.deviation]
        for reference in (*REFERENCES, *asked):
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
        lines.append(line)
    filled = [column for column in range(len(names)) if any(line[column] not in (None, "") for line in lines)]
    writer.writerow([names[column] for column in filled])
    writer.writerows([line[column] for column in filled] for line in lines)
    return text.getvalue()


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
