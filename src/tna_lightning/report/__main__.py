"""The report's door: ``python -m tna_lightning.report STUDY...``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tna_lightning.files import write_bytes
from tna_lightning.packages import MissingPackage, require
from tna_lightning.report.collect import Collection, collect
from tna_lightning.report.latex import as_latex
from tna_lightning.report.names import counted
from tna_lightning.report.page import page
from tna_lightning.report.plots import COLUMN, STYLE, figures
from tna_lightning.report.references import Published, is_of_whole_set, published
from tna_lightning.report.statistics import Row, Unmet, data_names, missing, rows
from tna_lightning.report.tables import as_csv, as_markdown, energy_of_an_operation, legend, plain_words
from tna_lightning.running.archive import RECORDS, SUFFIX, keep_records
from tna_lightning.running.doors import Parser, door
from tna_lightning.running.record import RECORD, limits_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


REFRESH = 10  # seconds between two looks at a study that is watched


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a reader wants of a report.

    Attributes:
        references: the published accuracies on the data sets of the table; None where all runs are of whole sets.
        against: which row the others are compared with, see :func:`~tna_lightning.report.statistics.rows`.
        table_rows, table_columns: of ``table.tex``, see :func:`~tna_lightning.report.latex.as_latex`.
        page_alone: no files of plots, which take longer than all else: for a page that is written again and again.
    """

    references: bool | None = None
    against: str = ""
    table_rows: Sequence[str] = ()
    table_columns: Sequence[str] = ()
    page_alone: bool = False


def report(studies: Sequence[Path | str], folder: Path | str, wishes: Wishes = Wishes()) -> Collection:
    """Write ``table.md``, ``table.csv``, ``table.tex``, plots as PNG, SVG and PDF, and ``index.html``.

    Args:
        studies: folders with runs below them, or files of records.
        folder: where the report goes.
        wishes: what is to be in it.

    Raises:
        FileNotFoundError: a study is not there.
        ValueError: no run is in it, a file of records is damaged, the report's folder is a file, or a wish cannot be
            met.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"output={str(folder)!r}: must be a folder, and is a file")
    collection = collect(studies)
    if not (collection.done or collection.unfinished or collection.left_out or collection.to_come):
        raise ValueError(f"study={', '.join(map(str, studies))!r}: no run is in it, finished or not")
    try:
        files = _files(studies, Path(folder), collection, wishes)
    except Unmet:
        raise
    except Exception:  # of a record that is damaged where its types are right; which one, each says alone
        collection = _without_damaged(studies, collection)
        files = _files(studies, Path(folder), collection, wishes)
    for name, content in files.items():
        write_bytes(Path(folder) / name, content)
    return collection


def watch(
    studies: Sequence[Path | str], folder: Path, wishes: Wishes, wait: Callable[[float], None] = time.sleep
) -> None:
    """Write page and tables again and again, until no run of these studies goes on and no job is to come.

    Args:
        studies, folder, wishes: as for :func:`report`.
        wait: called with the seconds between two looks.
    """
    while True:
        now = dataclasses.replace(wishes, page_alone=True)
        try:
            collection = report(studies, folder, now)
        except Unmet:  # what it is to be compared with is not done yet
            collection = report(studies, folder, dataclasses.replace(now, against="", table_rows=(), table_columns=()))
        running = sum(run.state == "running" for run in collection.unfinished)
        if not running and not collection.to_come:
            return
        words = f"{len(collection.done)} done, {running} running, {collection.to_come} not begun"
        print(f"{words}: {folder / 'index.html'}", flush=True)
        wait(REFRESH)


def _without_damaged(studies: Sequence[Path | str], collection: Collection) -> Collection:
    """The collection with those records left out of which no report can be made."""
    done, left_out = [], list(collection.left_out)
    for record in collection.done:
        try:
            _files(studies, Path(), Collection([record], [], []), Wishes(page_alone=True))
            done.append(record)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            left_out.append(f"run={record.get('name')!r}: {RECORD} is damaged ({reason})")
    return dataclasses.replace(collection, done=done, left_out=left_out)


def _files(studies: Sequence[Path | str], folder: Path, collection: Collection, wishes: Wishes) -> dict[str, bytes]:
    """What the report's folder shall hold, by name."""
    table = rows(collection.done, wishes.against)
    absent = missing(table, [run.name for run in collection.unfinished])
    notes = how(collection.done)
    are_wanted = all(map(is_of_whole_set, collection.done)) if wishes.references is None else wishes.references
    known = published({row.data for row in table}) if are_wanted else []
    named = sorted({record["study"] for record in collection.done if record.get("study")})
    title = "Report on " + ", ".join(named or [_name(Path(study)) for study in studies])

    files: dict[str, bytes] = {}
    narrow: dict[str, bytes] = {}
    if not wishes.page_alone:
        for name, _, figure in figures(table, COLUMN):
            narrow[name] = _image(figure, "svg")
            files[f"{name}_column.pdf"] = _image(figure, "pdf")
    plots = []
    for name, caption, figure in figures(table):
        plots.append((caption, _image(figure, "svg"), narrow.get(name, b"")))
        if not wishes.page_alone:
            files[f"{name}.svg"] = plots[-1][1]
            files |= {f"{name}.{kind}": _image(figure, kind) for kind in ("pdf", "png")}
    texts = {
        "table.md": _markdown(title, table, collection, absent, notes, known, wishes.against),
        "table.csv": as_csv(table),
        "table.tex": as_latex(
            table, wishes.table_rows, wishes.table_columns, wishes.against, title.removeprefix("Report on ")
        ),
        "index.html": page(
            title, table, collection, absent, plots, notes, known, wishes.against, folder, REFRESH * wishes.page_alone
        ),
    }
    return files | {name: text.encode(errors="replace") for name, text in texts.items()}


def _name(study: Path) -> str:
    """A study's name where no record has one: its folder's, or its file's if that has one of its own."""
    study = study.resolve()
    return study.parent.name if study.name == RECORDS else study.name.removesuffix(SUFFIX)


def how(records: Sequence[dict[str, Any]]) -> list[str]:
    """How the numbers came about: data with their notes, software, devices, energies; a line each."""
    lines = []
    for record, name in zip(records, data_names(records), strict=True):
        about = record["data"]
        of = about.get("of_samples", {})
        sizes = [
            f"{about[f'{part}_samples']}{f' of {of[part]}' if part in of else ''} {part}"
            for part in ("train", "val", "test")
            if f"{part}_samples" in about
        ]
        line = f"{name}: {', '.join(sizes)} samples"
        if about.get("simulated"):
            line += "; SIMULATED events, no recordings of a camera"
        notes = about.get("notes") or about.get("note") or []
        lines.append("; ".join([line, *([notes] if isinstance(notes, str) else map(str, notes))]))
    lines = sorted(set(lines))
    for label, values in (
        ("not on all of these samples", {limits_words(record["config"]) for record in records}),
        ("epochs", {str(record["epochs"]) for record in records if "epochs" in record}),
        ("device", {str(record["device"]) for record in records if "device" in record}),
        ("versions", {_versions(record) for record in records}),
        ("commit", {_commit(record) for record in records}),
        ("energy of an operation", {energy_of_an_operation(record) for record in records}),
        ("energy of memory", {_memory(record) for record in records}),
    ):
        if values - {""}:
            lines.append(f"{label}: {'; '.join(sorted(values - {''}))}")
    return lines


def _versions(record: dict[str, Any]) -> str:
    versions = (record.get("environment") or {}).get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _commit(record: dict[str, Any]) -> str:
    git = (record.get("environment") or {}).get("git")
    return "" if not git else git["commit"][:10] + (" with changes" if git["dirty"] else "")


def _memory(record: dict[str, Any]) -> str:
    model = record["cost"].get("memory_model")
    if model is None:
        return ""
    levels = ", ".join(f"{size / 1024:g} kB {energy:g} pJ" for size, energy in model["sram"])
    return f"an access of {model['access_bits']} bits to {levels}, to DRAM {model['dram']:g} pJ"


def _markdown(
    title: str,
    table: Sequence[Row],
    collection: Collection,
    absent: Sequence[str],
    notes: Sequence[str],
    known: Sequence[Published],
    against: str,
) -> str:
    parts = [f"# {plain_words(title)}\n", as_markdown(table, against) if table else "No run is finished yet.\n"]
    if table:
        parts.append(
            "Test accuracy of the kept network: mean \N{PLUS-MINUS SIGN} standard deviation over n seeds. Differences "
            "in percentage points over paired seeds, with the 95 % interval (Student t). Bold: the highest mean of its "
            "data, model, neuron and precision, never across data settings such as the size of the training set. "
            f"{plain_words(legend(table))}\n"
        )
    not_done = [str(run) for run in collection.unfinished]
    not_done += [f"not begun: {counted(collection.to_come, 'job')} of the sweep"] * (collection.to_come > 0)
    not_done += [f"missing: {line}" for line in absent]
    for heading, lines in (
        ("Not done", not_done),
        ("How these numbers came about", notes),
        (
            "Published, for orientation",
            [
                f"{k.data}: {k.work}, {k.network}, T={k.time_steps}, {k.precision}: {k.accuracy:.2f} ({k.source})"
                for k in known
            ],
        ),
        ("Left out", collection.left_out),
    ):
        if lines:
            parts.append(f"## {heading}\n\n" + "\n".join(f"- {plain_words(line)}" for line in lines) + "\n")
    return "\n".join(parts)


def _image(figure: Figure, kind: str) -> bytes:
    """The figure's file; the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=200, metadata=undated.get(kind))
    figure.set_layout_engine("none")  # it stays as it was laid out: once is enough for its further formats
    return buffer.getvalue()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


@door
def main() -> None:
    """The command line."""
    parser = Parser("report", __doc__)
    parser.add_argument(
        "studies",
        nargs="+",
        metavar="STUDY",
        help="a folder with runs in it, multirun/ternary_table, or a file of records",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="the report's folder; report/ in the first study, or beside it, if not given"
    )
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help=f"keep the runs' records in one file as well: {RECORDS}"
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="CHOICE=VALUE",
        help="paired differences to the runs of this choice or setting too: quant=ternary, baseline=plain,quant=none",
    )
    parser.add_argument(
        "--columns",
        type=_words,
        default=(),
        metavar="NAMES",
        help="of table.tex: a choice (precision, data, settings, ...), or quantities (accuracy,bits,energy), or all",
    )
    parser.add_argument(
        "--rows", type=_words, default=(), metavar="CHOICES", help="of table.tex: precision,baseline for blocks of rows"
    )
    parser.add_argument(
        "--watch", action="store_true", help=f"write page and tables anew every {REFRESH} s as long as runs go on"
    )
    parser.add_argument(
        "--references",
        action=argparse.BooleanOptionalAction,
        help="published accuracies, with their sources; by default where every run is of a whole set",
    )
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="make a W&B workspace and report of these runs as well"
    )
    arguments = parser.parse_args()
    first = Path(arguments.studies[0])
    output = arguments.output or (first.parent if first.is_file() else first) / "report"
    try:
        require("matplotlib", "scipy")
        if arguments.wandb:
            require("wandb", "wandb_workspaces", extra="dashboards")
        if arguments.records:
            number, unreadable = keep_records(arguments.studies, arguments.records)
            for line in unreadable:
                print(f"not kept: {line}", file=sys.stderr)
            print(f"{counted(number, 'record')}: {arguments.records}")
        wishes = Wishes(arguments.references, arguments.against, arguments.rows, arguments.columns)
        if arguments.watch:
            watch(arguments.studies, output, wishes)
        collection = report(arguments.studies, output, wishes)
        for line in collection.left_out:
            print(f"left out: {line}", file=sys.stderr)
        for run in collection.unfinished:
            print(f"{run}; see {run.log}" if run.log else run, file=sys.stderr)
        print(f"{counted(len(collection.done), 'finished run')}: {output / 'index.html'}")
        if arguments.wandb:
            from tna_lightning.report.dashboard import publish

            names = sorted({record["study"] for record in collection.done if record.get("study")})
            for address in publish(arguments.wandb, names, (output / "table.md").read_text()):
                print(address)
    except (ValueError, OSError, MissingPackage) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
