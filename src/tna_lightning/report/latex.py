"""The table of a report as LaTeX: one that fits a column of a paper, or any columns that are asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from tna_lightning.report.names import BASELINES, MEANINGS, named
from tna_lightning.report.statistics import AGAINST, Row, Unmet, highest
from tna_lightning.report.tables import (
    CHOICES,
    HEADINGS,
    against_name,
    alike_in_all,
    cells,
    clauses,
    headings,
    in_all_rows,
    shown,
)

COLUMN, PAGE = 229.0, 468.0  # points: a column of `article` in two columns is the narrowest of the usual ones; its text
MARKS = ("\\dagger", "\\ddagger", "\\S", "\\P")
QUANTITIES = tuple(key for key in HEADINGS if key not in CHOICES)
GAP = 6.0  # between two columns, twice \tabcolsep


@dataclasses.dataclass(frozen=True)
class _Cell:
    """What stands in one place of the table: LaTeX, and about how wide it is in points."""

    text: str
    width: float


def as_latex(
    table: Sequence[Row],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    against: str = "",
    name: str = "results",
) -> str:
    """A ``table`` for a column of a paper, with caption, label and booktabs rules.

    Args:
        table: from :func:`~tna_lightning.report.statistics.rows`.
        rows: the choices that the rows differ in; the last one names a row, those before it the blocks of rows. What
            differs and is not a column, if not given.
        columns: a choice, so that the accuracy has a column for each (if not given, the first of precision, data,
            model and neuron that differs and is no row, else settings that all baselines have); or quantities,
            such as ``accuracy``, ``bits`` and ``energy``; ``all`` for the long form, over the whole width of a page.
        against: what ``statistics.rows`` was told to compare with: the differences to it follow the accuracies.
        name: ends the label, ``tab:name``.

    Raises:
        Unmet: a name is none of a choice or quantity, or several rows would fall into one cell.
    """
    if not table:
        return "% no run is finished yet\n"
    differing = [key for key in CHOICES if len({_choice(row, key) for row in table}) > 1 and key != "settings"]
    keys = _columns(table, rows, columns, differing, against)
    wanted = list(rows) or [key for key in CHOICES[:-1] if key in differing and key not in keys]
    for key in wanted:
        if key not in CHOICES:
            raise Unmet(f"rows={key!r}: must be one of {', '.join(CHOICES)}")
    if not wanted and "baseline" not in differing and len({row.variant for row in table}) > 1 and keys != ["settings"]:
        wanted = ["settings"]
    elif "baseline" not in keys and not rows:
        wanted = [*(key for key in wanted if key != "baseline"), "baseline"]
    if both := [key for key in wanted if key in keys]:
        raise Unmet(f"rows={','.join(wanted)}: {both[0]} is a column already, and a choice stands in one place")
    lost = sorted({*differing} - {*wanted, *keys})
    if lost:
        raise Unmet(
            f"rows={','.join(wanted)}: several runs fall into one cell, they differ in {', '.join(lost)}; add it"
        )
    is_pivot = len(keys) == 1 and keys[0] in CHOICES
    width = PAGE if list(columns) == ["all"] else COLUMN
    parts = _pivot(table, wanted, keys[0], against, width) if is_pivot else _lines(table, wanted, keys, against, width)
    star = "*" if width == PAGE else ""
    caption = _caption(table, wanted, keys, against, is_pivot)
    body = "\n\\par\\medskip\n".join(parts)
    return (
        "% \\usepackage{booktabs}\n"
        f"\\begin{{table{star}}}[t]\n\\centering\\setlength{{\\belowcaptionskip}}{{4pt}}\n\\caption{{{caption}}}\n\\label{{tab:{_label(name)}}}\n"
        f"\\footnotesize\\setlength{{\\tabcolsep}}{{{GAP / 2:g}pt}}\n{body}\n\\end{{table{star}}}\n"
    )


def _columns(
    table: Sequence[Row], rows: Sequence[str], columns: Sequence[str], differing: Sequence[str], against: str
) -> list[str]:
    """The one choice that is pivoted and that no row stands for, or the quantities."""
    if list(columns) == ["all"]:
        return [key for key in shown(table) if key in QUANTITIES]
    if columns:
        unknown = [key for key in columns if key not in HEADINGS]
        choices = [key for key in columns if key in CHOICES]
        if unknown or (choices and len(columns) > 1) or (AGAINST in columns and not against):
            allowed = f"one of {', '.join(CHOICES)}, or some of {', '.join(QUANTITIES)}, or all"
            raise Unmet(f"columns={','.join(columns)}: must be {allowed}; {AGAINST} needs --against")
        return list(columns)
    pivots = [key for key in ("precision", "data", "model", "neuron") if key in differing and key not in rows]
    settings = {row.variant for row in table}
    if len(settings) > 1 and "" not in settings and "baseline" in differing and not pivots and "settings" not in rows:
        pivots = ["settings"]
    if pivots:
        return pivots[:1]
    compared = [AGAINST] if against else ["to_plain"] if any("plain" in row.differences for row in table) else []
    spiking = ["firing_rate"] if len({cells(row)["firing_rate"] for row in table}) > 1 else []
    return ["accuracy", *compared, *spiking]


def _pivot(table: Sequence[Row], wanted: Sequence[str], column: str, against: str, width: float) -> list[str]:
    """Accuracies with a column for each choice; stacked where they are too wide beside each other."""
    choices = list(dict.fromkeys(_choice(row, column) for row in table))
    marks = _marks(table)
    reference = AGAINST if against else "plain"
    blocks: dict[tuple[str, ...], dict[str, dict[str, Row]]] = {}
    for row in table:
        block = tuple(_choice(row, key) for key in wanted[:-1])
        line = blocks.setdefault(block, {}).setdefault(_row_name(row, wanted, column), {})
        if _choice(row, column) in line:
            raise Unmet(f"columns={column}: several runs fall into one cell of {_row_name(row, wanted, column)!r}")
        line[_choice(row, column)] = row
    firsts = _firsts(blocks, choices)

    def accuracies(row: Row) -> _Cell:
        text, size = f"{row.mean:.2f}", 20.0
        if row in firsts:
            text, size = f"\\mathbf{{{text}}}", 23.0
        if row.deviation is not None:
            text, size = f"{text}{{\\scriptstyle\\,\\pm{row.deviation:.2f}}}", size + 20.0
        star = "*" if _is_told_apart(row, reference) else ""
        mark = marks.get(len(row.records), "")
        return _Cell(
            f"${text}" + (f"^{{{star}{mark}}}" if star or mark else "") + "$", size + 3.5 * (bool(star) + bool(mark))
        )

    def differences(row: Row) -> _Cell:
        value = row.differences.get(AGAINST)
        if value is None:
            return _Cell("", 0)
        if value.half_width is None:
            return _Cell(f"{{\\scriptsize ${value.mean:+z.1f}$ (1 pair)}}", 42)
        low, high = value.mean - value.half_width, value.mean + value.half_width
        return _Cell(f"{{\\scriptsize ${value.mean:+z.1f}\\,[{low:z.1f},{high:z.1f}]$}}", 54)

    lines: list[tuple[str, dict[str, _Cell]]] = []
    names = [name for block in blocks.values() for name in block]
    for block, members in blocks.items():
        if block:
            lines.append((f"\\emph{{{_tex(', '.join(filter(None, block)))}}}", {}))
        lines += [
            (_tex(name), {choice: accuracies(row) for choice, row in line.items()}) for name, line in members.items()
        ]
        if against:
            lines.append((f"\\emph{{minus {_tex(against_name(against))}, 95\\,\\% interval}}", {}))
            lines += [
                (_tex(name), {choice: differences(row) for choice, row in line.items()})
                for name, line in members.items()
                if any(AGAINST in row.differences for row in line.values())
            ]
    shared = _shared_setting(choices) if column == "settings" else ""
    head = {
        choice: _stacked_words(choice.removeprefix(shared).split(" ") if column == "settings" else [choice])
        for choice in choices
    }
    corner = shared.rstrip("=")
    return _stacked(lines, head, max(map(_width, [*names, corner])), width, corner)


def _shared_setting(variants: Sequence[str]) -> str:
    """``train_subset=`` where the rows differ in that setting alone."""
    names = {variant.partition("=")[0] for variant in variants}
    return f"{names.pop()}=" if len(names) == 1 and not any(" " in variant for variant in variants) else ""


def _stacked_words(words: Sequence[str]) -> _Cell:
    """A heading with a line for each of these."""
    if len(words) == 1:
        return _Cell(_tex(words[0]), _width(words[0]))
    lines = "\\\\".join(map(_tex, words))
    return _Cell(f"\\begin{{tabular}}[b]{{@{{}}c@{{}}}}{lines}\\end{{tabular}}", max(map(_width, words)))


def _lines(table: Sequence[Row], wanted: Sequence[str], keys: Sequence[str], against: str, width: float) -> list[str]:
    """A line for each row with these quantities; stacked where they are too wide beside each other."""
    names = headings(against)
    lines: list[tuple[str, dict[str, _Cell]]] = []
    blocks: dict[tuple[str, ...], list[Row]] = {}
    for row in table:
        blocks.setdefault(_block(row, wanted), []).append(row)
    for block, members in blocks.items():
        if block:
            lines.append((f"\\emph{{{_tex(', '.join(filter(None, block)))}}}", {}))
        firsts = highest(members)
        for row in members:
            texts = cells(row)
            line = {key: _Cell(_numbers(texts[key]), 1.08 * _width(texts[key])) for key in keys}
            if "accuracy" in line and row in firsts:
                mean, _, rest = texts["accuracy"].partition(" ")
                line["accuracy"] = _Cell(_numbers(f"\\mathbf{{{mean}}} {rest}".strip()), line["accuracy"].width + 3)
            lines.append((_tex(_row_name(row, wanted)), line))
    head = {key: _two_lines(names[key].replace("test accuracy", "accuracy")) for key in keys}
    return _stacked(lines, head, max(_width(_row_name(row, wanted)) for row in table), width)


def _block(row: Row, wanted: Sequence[str]) -> tuple[str, ...]:
    return tuple(_choice(row, key) for key in wanted[:-1])


def _stacked(
    lines: Sequence[tuple[str, Mapping[str, _Cell]]],
    head: Mapping[str, _Cell],
    names: float,
    width: float,
    corner: str = "",
) -> list[str]:
    """One ``tabular`` with these columns, or several where they are too wide for one; each repeats the rows' names.

    The corner stands above the names, and says what the headings are values of.
    """
    parts: list[list[str]] = [[]]
    names, room = min(names, width / 2), 0.0
    for key, cell in head.items():
        needed = GAP + max(cell.width, *(line[key].width for _, line in lines if key in line))
        room -= needed
        if room < 0:
            parts += [[]]
            room = width - names - needed
        parts[-1].append(key)
    first = f"p{{{names:.0f}pt}}" if any(_width(name) > width / 2 for name, line in lines if line) else "l"
    return [_tabular(lines, {key: head[key] for key in part}, first, corner) for part in parts if part]


def _tabular(
    lines: Sequence[tuple[str, Mapping[str, _Cell]]], head: Mapping[str, _Cell], first: str, corner: str
) -> str:
    text = [f"\\begin{{tabular}}{{@{{}}{first}{'c' * len(head)}@{{}}}}", "\\toprule"]
    text += [" & ".join([_tex(corner), *(cell.text for cell in head.values())]) + " \\\\", "\\midrule"]
    for number, (name, line) in enumerate(lines):
        if not line:  # the heading of a block
            text += ["\\midrule"] * (number > 0)
            text.append(f"\\multicolumn{{{1 + len(head)}}}{{@{{}}l@{{}}}}{{{name}}} \\\\")
        elif any(key in line and line[key].text for key in head):
            text.append(" & ".join([name, *(line[key].text if key in line else "" for key in head)]) + " \\\\")
    return "\n".join([*text, "\\bottomrule", "\\end{tabular}"])


def _caption(table: Sequence[Row], wanted: Sequence[str], keys: Sequence[str], against: str, is_pivot: bool) -> str:
    """What the numbers are, of what, and the rules of what is bold and marked."""
    fixed = [cells(table[0])[key] for key in CHOICES[:-1] if key not in (*wanted, *keys)]
    counts = _marks(table) if is_pivot else {}
    common = "$n$" if "n" in keys else _common(table) if is_pivot or not _marks(table) else "several"
    seeds = f"{common} seeds" if common != "1" else "one seed"
    seeds += "".join(f", {number} where marked ${mark}$" for number, mark in counts.items())
    words = [
        f"Test accuracy (\\%) of the kept network ({_tex(', '.join(fixed))})"
        if fixed
        else "Test accuracy (\\%) of the kept network"
    ]
    words[0] += f": mean and standard deviation over {seeds}." if common != "1" or counts else f", {seeds}."
    compared = against_name(against) if against else "plain"
    reference = AGAINST if against else "plain"
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in table:
        column = _choice(row, keys[0]) if is_pivot else ""
        groups.setdefault((column, *_block(row, wanted)), []).append(row)
    if any(map(highest, groups.values())):
        where = ("its column" if is_pivot else "all rows") + (" in its block" if wanted[:-1] else "")
        mixed = any(len({row.task for row in group}) > 1 for group in groups.values())
        words.append(f"Bold: the highest mean of {where}{', of the same data settings' if mixed else ''}.")
    if is_pivot and any(_is_told_apart(row, reference) for row in table):
        words.append(
            f"$*$: the 95\\,\\% interval of the paired difference to {_tex(compared)} (Student's t) leaves out 0."
        )
    elif is_pivot and any(row.differences.get(reference) for row in table):
        words.append(
            f"No paired difference to {_tex(compared)} has a 95\\,\\% interval (Student's t) that leaves out 0."
        )
    if any(key in keys for key in ("to_plain", "to_distillation", AGAINST)):
        words.append("Differences in points over paired seeds, with the 95\\,\\% interval (Student's t).")
    names = [f"{BASELINES[name]}: {MEANINGS[name]}" for name in MEANINGS if any(row.baseline == name for row in table)]
    if names:
        words.append(f"{_tex('; '.join(names))}.")
    if not is_pivot:
        is_long = {key for key in shown(table) if key in QUANTITIES} <= {*keys}
        alike = [in_all_rows(table)] if is_long and alike_in_all(table) else []
        words += map(_tex, [*alike, *clauses(table, [*keys, *(alike_in_all(table) if is_long else [])])])
    return " ".join(words)


def _choice(row: Row, key: str) -> str:
    return row.variant if key == "settings" else named(key, getattr(row, key))


def _row_name(row: Row, wanted: Sequence[str], column: str = "") -> str:
    """A choice with the settings in which it differs from others of its name, unless these stand elsewhere."""
    return " ".join(filter(None, (_choice(row, wanted[-1]), "" if "settings" in (*wanted, column) else row.variant)))


def _firsts(blocks: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Row]]], choices: Iterable[str]) -> list[Row]:
    """The rows of the highest mean of each column in each block."""
    columns = [
        [line[choice] for line in block.values() if choice in line] for block in blocks.values() for choice in choices
    ]
    return [row for column in columns for row in highest(column)]


def _is_told_apart(row: Row, reference: str) -> bool:
    value = row.differences.get(reference)
    return value is not None and value.half_width is not None and abs(value.mean) > value.half_width


def _common(table: Sequence[Row]) -> str:
    counts = [len(row.records) for row in table]
    return str(max(sorted(set(counts)), key=counts.count))


def _marks(table: Sequence[Row]) -> dict[int, str]:
    """A mark for each number of seeds but the commonest."""
    others = sorted({len(row.records) for row in table} - {int(_common(table))})
    return {number: MARKS[index % len(MARKS)] for index, number in enumerate(others)}


_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"\N{MULTIPLICATION SIGN}": "$\\times$", "\N{PLUS-MINUS SIGN}": "$\\pm$", "|": "$|$"},
}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


def _numbers(text: str) -> str:
    """A cell of numbers: signs as mathematics has them."""
    text = text.replace("%", "\\%").replace(" \N{PLUS-MINUS SIGN} ", "{\\scriptstyle\\,\\pm}")
    return (
        re.sub(
            r"(?<![\w\\])(\\mathbf\{[\d.]+\}|[+-]?\d[\d.]*)((?:\{\\scriptstyle\\,\\pm\}[\d.]+)?)", _as_mathematics, text
        )
        .replace("_", "\\_")
        .replace("\N{MULTIPLICATION SIGN}", "$\\times$")
    )


def _as_mathematics(match: re.Match[str]) -> str:
    deviation = match[2].replace("\\pm}", "\\pm") + ("}" if match[2] else "")
    return f"${match[1]}{deviation}$"


def _two_lines(heading: str) -> _Cell:
    """A heading with its unit below it."""
    first, _, rest = heading.replace("uJ", "$\\mu$J").partition(" (")
    if not rest:
        return _Cell(_tex(first), _width(first))
    unit = f"({rest}".replace("%", "\\%")
    lines = f"\\begin{{tabular}}[b]{{@{{}}c@{{}}}}{_tex(first)}\\\\{unit}\\end{{tabular}}"
    return _Cell(lines, max(_width(first), _width(unit) - 4))


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9:-]+", "-", name).strip("-") or "results"


def _width(text: str) -> float:
    """About how wide a text is in points, in Computer Modern of 8 points."""
    narrow, wide = (
        sum(text.count(each) for each in " .,;:()[]ijl"),
        sum(text.count(each) for each in "+-mwMW\N{PLUS-MINUS SIGN}"),
    )
    capitals = sum(character.isupper() for character in text)
    return 2.6 * narrow + 6.8 * wide + 4.3 * (len(text) - narrow - wide) + 1.8 * capitals
