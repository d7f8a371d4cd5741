"""A study's records in one compressed file, to keep when its run folders are gone.

``records.jsonl.gz`` is JSON lines under gzip: a line a run, ``{"folder": ..., "record": ...}``, the record as it stands
in the run's ``run.json``, value for value. xz would make it smaller by more than a third, but gzip is what other tools
open without being told: ``zcat FILE | jq .record.results``, ``pandas.read_json(FILE, lines=True)``, DuckDB, polars. It
has a checksum, so that damage is seen, and no time stamp: the same records give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tna_lightning.files import replacing
from tna_lightning.running.record import RECORD, as_record, find_runs, visible, written_record

RECORDS = "records.jsonl.gz"
SUFFIX = ".jsonl.gz"


def read_records(path: Path | str) -> dict[str, dict[str, Any]]:
    """The records of such a file as they were written, by the name of the run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no file of records; the message names it.
    """
    records: dict[str, dict[str, Any]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                entry = json.loads(line)
                if not isinstance(entry, dict) or not isinstance(entry.get("folder"), str) or "record" not in entry:
                    raise ValueError(f"line {number} is no record")
                if entry["folder"] in records:
                    raise ValueError(f"line {number} has the folder {entry['folder']!r} again")
                records[entry["folder"]] = entry["record"]
        if not records:
            raise ValueError("it is empty")
    # what gzip raises: cut off, another file, a wrong checksum, bytes that are no stream
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise ValueError(f"records={str(path)!r}: damaged, or no file of records ({error})") from None
    return records


def write_records(path: Path | str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write records, by the name of the run's folder, as one compressed file.

    Raises:
        ValueError: the name does not end in ``.jsonl.gz``.
    """
    if not Path(path).name.endswith(SUFFIX):
        raise ValueError(f"records={str(path)!r}: must end in {SUFFIX}")
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed,
    ):
        for folder, record in records.items():
            line = json.dumps({"folder": folder, "record": record}, separators=(",", ":"))
            compressed.write(f"{line}\n".encode())


def find_records(root: Path | str) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Where a record is, and what reads it as it was written: of runs under a folder, or of a file of records.

    A record in a file has the place ``FILE/FOLDER``. One whose folder still lies beside the file is read from there.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a file.
        ValueError: a file of records is damaged.
    """
    root = Path(root)
    if root.is_file():
        yield from ((root / folder, partial(_given, record)) for folder, record in read_records(root).items())
        return
    if not root.is_dir():
        raise FileNotFoundError(f"study={str(root)!r}: no such folder or file")
    for folder in find_runs(root):
        yield folder, partial(written_record, folder)
    for path in sorted(root.rglob(RECORDS)):
        if visible(path, root):
            for name, record in read_records(path).items():
                if not (path.parent / name / RECORD).exists():
                    yield path / name, partial(_given, record)


def _given(record: Any) -> Any:
    return record


def keep_records(studies: Sequence[Path | str], path: Path | str) -> tuple[int, list[str]]:
    """Write every record under these folders, and in these files of records, to one file.

    A run is named by its folder, from where the studies part. The file may be one that lies in a study: what it holds
    of folders that are gone stays in it.

    Returns:
        their number, and a line for each record that cannot be read and is not in the file.

    Raises:
        FileNotFoundError: a study is not there.
        ValueError: as :func:`write_records`, there is no record, or the file is there and has runs that these have not.
    """
    roots = [Path(study).resolve() for study in studies]
    above = Path(os.path.commonpath(roots))
    records: dict[str, Any] = {}
    unreadable = []
    for root in roots:
        for place, read in find_records(root):
            try:
                record = read()
                as_record(place, record)
            except (ValueError, OSError) as error:
                unreadable.append(str(error))
                continue
            parts = place.relative_to(above).parts
            # a file's own name is no part of the folder's, unless another record has that
            folder = "/".join(part for part in parts if not part.endswith(SUFFIX)) or place.name
            if records.get(folder, record) != record:
                folder = "/".join(parts)
            records[folder] = record
    if not records:
        raise ValueError(f"study={', '.join(map(str, studies))!r}: no record is in it to be kept")
    before = read_records(path) if Path(path).exists() else {}
    lost = [name for name, record in before.items() if name not in records and record not in records.values()]
    if lost:
        raise ValueError(
            f"records={str(path)!r}: would lose {len(lost)} of its records ({lost[0]}, ...); choose another file, or "
            "give this one as a study too"
        )
    write_records(path, records)
    return len(records), unreadable
