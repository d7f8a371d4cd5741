"""One HTML file with everything in it: opens from disk, loads nothing, sorts and filters its tables."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from tna_lightning.report.collect import Collection
from tna_lightning.report.names import counted, named
from tna_lightning.report.references import Published
from tna_lightning.report.repeat import command
from tna_lightning.report.statistics import AGAINST, Row
from tna_lightning.report.tables import CHOICES, HEADINGS, answers, best, cells, headings, legend, shown
from tna_lightning.running.progress import LOG

# by hand, since a stylesheet from elsewhere would be many times these lines, in every page that is kept
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #0072b2; --page: #fff; --card: #f6f8fa;
  --done: #009e73; --running: #56b4e9; --failed: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --accent: #56b4e9; --page: #16181c; --card: #202329; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1.2rem;
  background: var(--page); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
a { color: var(--accent); }
p.note, figcaption { opacity: .8; margin: .3rem 0; font-size: .9rem; max-width: 60rem; }
.answers { background: var(--card); border-left: 4px solid var(--accent); padding: .5rem 1rem; margin: 1rem 0;
  border-radius: 4px; font-variant-numeric: tabular-nums; }
.answers p { margin: .25rem 0; }
.bar { display: flex; height: .7rem; border-radius: 4px; overflow: hidden; background: var(--soft); max-width: 60rem;
  margin: .6rem 0 .3rem; }
.bar .done { background: var(--done); } .bar .running { background: var(--running); }
.bar .failed { background: var(--failed); }
.filters { display: flex; flex-wrap: wrap; gap: .4rem 1rem; margin: .4rem 0 .8rem; font-size: .85rem; }
select, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .35rem; }
button { cursor: pointer; white-space: nowrap; } button:hover { border-color: var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .45rem; text-align: left; }
td { border-top: 1px solid var(--line); } tr:last-child td { border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } td.free { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td.words { white-space: normal; min-width: 9rem; }
td.wrap { white-space: normal; min-width: 7.6rem; }
th { cursor: pointer; user-select: none; vertical-align: bottom; }
th.number, td.number, th.wrap, td.wrap { text-align: right; }
th:not(:empty)::after { content: "\\a0\\2195"; opacity: .4; }
th[aria-sort=ascending]::after { content: "\\a0\\2191"; opacity: 1; }
th[aria-sort=descending]::after { content: "\\a0\\2193"; opacity: 1; }
th:hover, th:focus { color: var(--accent); }
tbody tr:hover td { background: var(--card); } tr.simulated td:first-child { font-style: italic; }
tr.best td.accuracy { font-weight: 650; }
.results td.key, .results th.key { position: sticky; left: 0; background: var(--page); z-index: 1; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)); gap: .6rem 1.6rem;
  align-items: start; }
figure { margin: .6rem 0; min-width: 0; } figure img { width: 100%; background: #fff; border-radius: 4px; }
@media (prefers-color-scheme: dark) {
  figure img, [popover] img { filter: invert(.935) hue-rotate(180deg) brightness(1.45); } }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; overflow-wrap: anywhere; }
[popover] { max-width: min(60rem, 92vw); max-height: 86vh; overflow: auto; border: 1px solid var(--line);
  border-radius: 8px; padding: 1rem 1.2rem; background: var(--page); color: inherit; }
[popover]::backdrop { background: #0006; } [popover] h3 { margin: 0 0 .4rem; font-size: 1rem; }
[popover] img { max-width: 100%; background: #fff; border-radius: 4px; }
pre { background: var(--card); padding: .6rem .8rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .8rem; user-select: all; }
"""

_SCRIPT = """
const filters = [...document.querySelectorAll(".filters select")];
const filter = () => {
  for (const row of document.querySelectorAll(".results tbody tr"))
    row.hidden = filters.some((each) => each.value && row.dataset[each.name] !== each.value);
};
for (const each of filters) each.addEventListener("change", filter);
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

_MOST_ANSWERS = 6
_MAY_BE_ONE = ("data", "model", "neuron")  # named above the table where it is the same in all rows


def page(
    title: str,
    rows: Sequence[Row],
    collection: Collection,
    missing: Sequence[str],
    plots: Sequence[tuple[str, bytes, bytes]],
    notes: Sequence[str],
    references: Sequence[Published],
    against: str = "",
    output: Path = Path(),
    refresh: int = 0,
) -> str:
    """The page.

    Args:
        title: its heading.
        rows: of the main table.
        collection: for the runs without a result and what was left out.
        missing: what the grid lacks, a line each.
        plots: caption and SVG of each, and its SVG for a narrow screen, which may be empty.
        notes: lines on how the numbers came about.
        references: published accuracies; may be empty.
        against: what the differences asked for are to.
        output: the report's folder, from which links to the runs' folders go.
        refresh: after how many seconds a browser shall read the page again; it is written again meanwhile.
    """
    same = [
        f"{name} {named(name, values.pop())}"
        for name in _MAY_BE_ONE
        if len(values := {getattr(row, name) for row in rows}) == 1
    ]
    summary = "; ".join([f"{counted(len(collection.done), 'finished run')} in {counted(len(rows), 'row')}", *same])
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(summary)}.</p>']
    if told := answers(rows, against):
        more = [f"... and {len(told) - _MOST_ANSWERS} more, in the table."] if len(told) > _MOST_ANSWERS else []
        lines = "".join(f"<p>{_unbroken(escape(text))}</p>" for text in [*told[:_MOST_ANSWERS], *more])
        parts.append(f'<div class="answers">{lines}</div>')
    parts += _progress(collection, output)
    if rows:
        parts += ["<h2>Results</h2>", _filters(rows), _results(rows, against, collection, output)]
        parts.append(
            '<p class="note">Test accuracy of the kept network: mean &plusmn; standard deviation over n seeds; bold is '
            "the highest mean of a data set, model, neuron and precision, never across data settings such as the size "
            "of the training set. Differences in percentage points over paired seeds, with the 95 % interval (Student "
            "t); one that holds 0 shows no difference. "
            f"{escape(legend(rows))} A click on a heading sorts.</p>"
        )
    if plots:
        parts += ["<h2>Plots</h2>", '<div class="plots">', *(_figure(*plot) for plot in plots), "</div>"]
    if missing:
        parts += ["<h2>Not done</h2>", _folded(f"missing: runs of {counted(len(missing), 'row')}", missing)]
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
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _progress(collection: Collection, output: Path) -> list[str]:
    """How far the study is, where runs are not done: a bar, and what runs or failed."""
    counts = {
        "done": len(collection.done),
        "running": sum(run.state == "running" for run in collection.unfinished),
        "failed": sum(run.state == "failed" for run in collection.unfinished),
        "cut off": sum(run.state == "cut off" for run in collection.unfinished),
        "not begun": sum(run.state == "not started" for run in collection.unfinished) + collection.to_come,
    }
    jobs = sum(counts.values())
    if counts["done"] == jobs:
        return []
    bar = "".join(
        f'<span class="{name}" style="width: {100 * counts[name] / jobs:.2f}%"></span>'
        for name in ("done", "running", "failed")
    )
    words = f"{counted(jobs, 'run')}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    parts = ["<h2>Progress</h2>", f'<div class="bar">{bar}</div>', f'<p class="note">{words}.</p>']
    lines = []
    for run in collection.unfinished:
        name, log = escape(run.name), ""
        if run.folder is not None:
            name = f'<a href="{_address(run.folder, output)}/">{name}</a>'
            log = f'<a href="{_address(run.folder, output)}/{LOG}">{LOG}</a>' if run.log else ""
        texts = "".join(f'<td class="free">{escape(text)}</td>' for text in (run.settings, run.detail))
        lines.append(f"<tr><td>{name}</td><td>{run.state}</td>{texts}<td>{log}</td></tr>")
    head = "".join(f"<th>{name}</th>" for name in ("run", "state", "settings", "detail", "log"))
    return [*parts, _frame(head, lines)] if lines else parts


def _filters(rows: Sequence[Row]) -> str:
    """A list for each choice that differs."""
    lists = []
    for group in CHOICES:
        values = list(dict.fromkeys(cells(row)[group] for row in rows))
        if len(values) > 1:
            options = "".join(f"<option>{escape(value)}</option>" for value in values if value)
            lists.append(
                f'<label>{group} <select name="{group}"><option value="">all</option>{options}</select></label>'
            )
    return f'<div class="filters">{"".join(lists)}</div>' if lists else ""


def _results(rows: Sequence[Row], against: str, collection: Collection, output: Path) -> str:
    """The main table without the columns that say nothing; each row's runs behind a button."""
    columns, heads, firsts = shown(rows), headings(against), best(rows)
    if len(rows) == 1:  # what the line above the table says
        columns = [key for key in columns if key not in _MAY_BE_ONE]
    marks = {key: "" if key in CHOICES else ' class="number"' for key in HEADINGS} | {
        **{
            "quantised": ' class="words"' if any(len(row.quantized) > 20 for row in rows) else "",
            "accuracy": ' class="number accuracy"',
        },
        **dict.fromkeys(("to_plain", "to_distillation", AGAINST, "companion"), ' class="wrap"'),
    }
    name = next((key for key in ("baseline", *CHOICES) if key in columns), "")
    marks |= {name: ' class="key"'} if name else {}
    columns.sort(key=lambda key: key != name)  # first, where it stays as the others are scrolled
    head = "".join(f"<th{marks[key]}>{escape(heads[key])}</th>" for key in columns) + "<th>runs</th>"
    lines, popovers = [], []
    for number, row in enumerate(rows):
        line = cells(row)
        kinds = ["simulated"] * row.data.endswith("(simulated)") + ["best"] * (row in firsts)
        mark = f' class="{" ".join(kinds)}"' if kinds else ""
        mark += "".join(f' data-{group}="{escape(line[group])}"' for group in CHOICES)
        tds = "".join(f"<td{marks[key]}>{_unbroken(escape(line[key]))}</td>" for key in columns)
        count = len(row.records)
        button = f'<button popovertarget="runs{number}">{counted(count, "run")}</button>'
        lines.append(f"<tr{mark}>{tds}<td>{button}</td></tr>")
        popovers.append(f'<div popover id="runs{number}">{_runs(row, collection, output)}</div>')
    return f'<div class="results">{_frame(head, lines)}</div>\n' + "\n".join(popovers)


def _unbroken(text: str) -> str:
    """A difference may break before what it is to, or how many pairs it is of, and nowhere else."""
    return re.sub(r"(?<=[],\d]) (?=[\[+-])| (?=\(ANN|pairs?\))", "\N{NO-BREAK SPACE}", text)


def _runs(row: Row, collection: Collection, output: Path) -> str:
    """A row's runs, with what lies in their folders where these are there, and the command that repeats them."""
    title = ", ".join(filter(None, (cells(row)[group] for group in CHOICES)))
    parts = [f"<h3>{escape(title)}</h3>", f"<pre>{escape(command(row.records))}</pre>"]
    lines, picture = [], ""
    for record in row.records:
        folder = collection.folders.get(record["identity"])
        where = escape(str(record["name"]))
        links = ""
        if folder is not None:
            address = _address(folder, output)
            where = f'<a href="{address}/">{where}</a>'
            there = [name for name in ("curves.png", "weights.png", LOG) if (folder / name).exists()]
            links = " ".join(f'<a href="{address}/{name}">{name}</a>' for name in there)
            if "curves.png" in there and not picture:
                picture = f'<img loading="lazy" src="{address}/curves.png" alt="learning curves of the first run">'
        accuracy = f"{100 * record['results']['test/acc']:.2f}"
        numbers = f'<td class="number">{record["seed"]}</td><td class="number">{accuracy}</td>'
        lines.append(f"<tr>{numbers}<td>{where}</td><td>{links}</td></tr>")
    head = "<th>seed</th><th>test accuracy (%)</th><th>folder</th><th></th>"
    return "\n".join([*parts, _frame(head, lines), picture])


def _address(folder: Path, output: Path) -> str:
    return quote(os.path.relpath(folder.absolute(), output.absolute()).replace(os.sep, "/"))


def _figure(caption: str, svg: bytes, narrow: bytes) -> str:
    sources = [f"data:image/svg+xml;base64,{base64.b64encode(each).decode()}" for each in (svg, narrow) if each]
    text = escape(caption)
    others = "".join(f'<source media="(max-width: 40rem)" srcset="{source}">' for source in sources[1:])
    image = f'<picture>{others}<img src="{sources[0]}" alt="{text}"></picture>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


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


def _folded(first: str, lines: Sequence[str]) -> str:
    """Many lines behind their first words."""
    return f"<details><summary>{escape(first)}</summary>{_list(lines)}</details>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>" if lines else ""
