"""One HTML file with everything in it: opens from disk, loads nothing, sorts its tables."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from tna_lightning.report.collect import Collection
from tna_lightning.report.references import Published
from tna_lightning.report.statistics import Row
from tna_lightning.report.tables import CHOICES, HEADINGS, cells, headings, legend, shown

# by hand, since a stylesheet from elsewhere would be many times these lines, in every page that is kept
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --accent: #56b4e9; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.note, figcaption { opacity: .75; margin: .3rem 0; font-size: .9rem; max-width: 60rem; }
.wide { overflow-x: auto; background:  /* a shadow at the edge behind which there is more */
  linear-gradient(to right, Canvas 60%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, Canvas 60%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; text-align: left; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } td.free { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td.words { white-space: normal; min-width: 11rem; }
th { cursor: pointer; user-select: none; vertical-align: bottom; }
th.number { text-align: right; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
th:hover, th:focus { color: var(--accent); } td.number { text-align: right; }
tbody tr:hover { background: var(--soft); } tr.simulated td:first-child { font-style: italic; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 0 1.6rem; }
figure { margin: 1rem 0; min-width: 0; } figure.many { grid-column: 1 / -1; }
figure div { overflow-x: auto; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; overflow-wrap: anywhere; }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  const sort = () => {
    const table = head.closest("table"), column = head.cellIndex, body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.value ?? row.cells[column].textContent, row]);
    const number = rows.every(([text]) => text === "" || !Number.isNaN(Number.parseFloat(text)));
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return (number ? Number.parseFloat(a) - Number.parseFloat(b) : a.localeCompare(b)) * (up ? 1 : -1);
    });
    for (const [, row] of rows) body.append(row);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
"""

_MAY_BE_ONE = ("data", "model", "neuron")  # named above the table where it is the same in all rows


def page(
    title: str,
    rows: Sequence[Row],
    collection: Collection,
    missing: Sequence[str],
    plots: Sequence[tuple[str, bytes]],
    notes: Sequence[str],
    references: Sequence[Published],
    against: str = "",
) -> str:
    """The page.

    Args:
        title: its heading.
        rows: of the main table.
        collection: for the runs without a result and what was left out.
        missing: what the grid lacks, a line each.
        plots: caption and SVG of each.
        notes: lines on how the numbers came about.
        references: published accuracies; may be empty.
    """
    count, names = len(collection.done), ("run" if len(collection.done) == 1 else "runs")
    same = [
        f"{name} {values.pop()}" for name in _MAY_BE_ONE if len(values := {getattr(row, name) for row in rows}) == 1
    ]
    summary = "; ".join([f"{count} finished {names} in {len(rows)} rows", *same])
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(summary)}.</p>']
    if rows:
        parts += ["<h2>Results</h2>", _results(rows, against)]
        parts.append(
            '<p class="note">Test accuracy of the kept network: mean &plusmn; standard deviation over n seeds. '
            "Differences in percentage points over paired seeds, with the 95 % interval (Student t); one that holds 0 "
            f"shows no difference. {escape(legend(rows))} A click on a heading sorts.</p>"
        )
    if collection.unfinished or missing:
        parts.append("<h2>Not done</h2>")
        parts.append(
            _table(("run", "state", "detail"), [(run.name, run.state, run.detail) for run in collection.unfinished])
        )
        parts += [_list([f"missing: {line}" for line in missing])]
    if plots:
        parts += ["<h2>Plots</h2>", '<div class="plots">', *(_figure(caption, svg) for caption, svg in plots), "</div>"]
    if references:
        parts.append("<h2>Published, for orientation</h2>")
        parts.append('<p class="note">Other networks, recipes and splits: where the field stands, not a baseline.</p>')
        parts.append(
            _table(
                ("data", "work", "network", "T", "precision", "test accuracy (%)", "source"),
                [
                    (
                        line.data,
                        line.work,
                        line.network,
                        line.time_steps,
                        line.precision,
                        f"{line.accuracy:.2f}",
                        line.source,
                    )
                    for line in references
                ],
            )
        )
    if notes:
        parts += ["<h2>How these numbers came about</h2>", _list(notes)]
    if collection.left_out:
        parts += ["<h2>Left out</h2>", _list(collection.left_out)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _results(rows: Sequence[Row], against: str) -> str:
    """The main table without the columns in which no row has anything, or all name the same choice."""
    columns, heads = shown(rows), headings(against)
    marks = {key: "" if key in CHOICES else ' class="number"' for key in HEADINGS} | {"quantised": ' class="words"'}
    head = "".join(f"<th{marks[key]}>{escape(heads[key])}</th>" for key in columns)
    lines = []
    for row in rows:
        line = cells(row)
        mark = ' class="simulated"' if row.data.endswith("(simulated)") else ""
        tds = "".join(f"<td{marks[key]}>{escape(line[key])}</td>" for key in columns)
        lines.append(f"<tr{mark}>{tds}</tr>")
    return _frame(head, lines)


def _figure(caption: str, svg: bytes) -> str:
    """A plot in its own size; one of several panels has the page's width, and scrolls where that is too narrow."""
    width = re.search(rb'<svg [^>]*?width="([\d.]+)pt"', svg)
    points = float(width.group(1)) if width else 0.0
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    text = escape(caption)
    mark = ' class="many"' if points > 450 else ""
    return (
        f'<figure{mark}><div><img src="{source}" alt="{text}" style="min-width: {0.75 * points:.0f}px"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    free = [' class="free"' if any(len(row[column]) > 60 for row in rows) else "" for column in range(len(headings))]
    lines = [
        "<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(free, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return _frame("".join(f"<th>{escape(heading)}</th>" for heading in headings), lines)


def _frame(head: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>" if lines else ""
