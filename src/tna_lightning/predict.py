"""A kept network asked about files of one's own: ``python -m tna_lightning.predict RUN|FILE INPUT...``.

Pictures, folders, arrays and event recordings become a class and its probability. All it needs is the kept network's
file: neither Lightning nor Hydra, nor the data that the network was trained on.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data import pictures, recordings
from tna_lightning.data.formats import TIME_UNITS
from tna_lightning.packages import MissingPackage
from tna_lightning.quantization.inputs import Prediction, answers, raw_levels
from tna_lightning.quantization.packing import load_packed, read_packed
from tna_lightning.running.doors import Parser, door

NETWORK = "network.safetensors"  # in the folder of a run
SOURCE = "network.c"  # in that of a C export
ARRAYS = (".npy", ".npz")
ARRAY_NAMES = ("images", "frames", "x", "data")
BATCH_SIZE = 64
BAD_INPUT = (ValueError, OSError, MissingPackage)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A network that can be asked.

    Attributes:
        inputs: what it expects, as in a packed file's header.
        ask: answers about uint8 inputs with B first.
    """

    inputs: dict[str, Any]
    ask: Callable[[Tensor], list[Prediction]]


def open_network(place: Path | str) -> Asked:
    """The network of a run, of a packed file, or of a folder of C.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or it does not know what it expects.
        MissingPackage: of C, there is no compiler.
    """
    place = Path(place)
    if (place / SOURCE).is_file():
        return _of_c(place)
    path = place / NETWORK if place.is_dir() else place
    if place.is_dir() and not path.is_file():
        what = "the run is not done" if (place / "config.yaml").is_file() else "neither a run's folder nor one of C"
        raise FileNotFoundError(f"network={str(place)!r}: has no {NETWORK}, {what}")
    network = load_packed(path)
    inputs = read_packed(path)[1]["inputs"]
    if inputs["kind"] is None or inputs["shape"] is None:
        network.preprocess(None)  # says what is missing
    return Asked(inputs, network.predict)


def _of_c(folder: Path) -> Asked:
    from tna_lightning.export.c import load_c  # here, since it needs a compiler

    network = load_c(folder)
    inputs = {
        "kind": "images" if network.time_steps else "events",
        "shape": [network.channels, network.height, network.width],
        "time_steps": None,
        "class_names": network.class_names,
        "framing": None,
    }
    return Asked(inputs, lambda x: answers(torch.from_numpy(network(x.numpy())), network.class_names))


def predict(
    network: Asked, places: Sequence[Path | str], refuse: Callable[[str], None], time_unit: str | None = None
) -> Iterator[tuple[str, Prediction]]:
    """Name and answer of each input in these files and folders, in order.

    Args:
        network: to be asked.
        places: pictures, arrays, recordings; of a folder all that are below it, by name.
        refuse: is called with one line for each file that cannot be asked about; the others are.
        time_unit: of t in arrays of events, ``us``, ``ms``, ``s`` or ``ns``; None: that of training.
    """
    names: list[str] = []
    waiting: list[Tensor] = []

    def answered() -> Iterator[tuple[str, Prediction]]:
        if waiting:
            yield from zip(names, network.ask(torch.cat(waiting)), strict=True)
        names.clear()
        waiting.clear()

    for place in places:
        try:
            files = _files(Path(place), network.inputs["kind"])
        except BAD_INPUT as error:
            refuse(_line(Path(place), error))
            continue
        for path in files:
            try:
                levels = _read(path, network.inputs, time_unit)
            except BAD_INPUT as error:
                refuse(_line(path, error))
                continue
            numbered = [f"{path}[{number}]" for number in range(len(levels))] if len(levels) > 1 else [str(path)]
            for start in range(0, len(levels), BATCH_SIZE):
                part = levels[start : start + BATCH_SIZE]
                if waiting and (part.shape[1:] != waiting[0].shape[1:] or len(names) + len(part) > BATCH_SIZE):
                    yield from answered()
                names += numbered[start : start + BATCH_SIZE]
                waiting.append(part)
    yield from answered()


def _line(path: Path, error: BaseException) -> str:
    message = next((line for line in str(error).splitlines() if line), type(error).__name__)
    return message if message.startswith(str(path)) else f"{path}: {message}"


def _suffixes(kind: str) -> tuple[str, ...]:
    return (*(pictures.SUFFIXES if kind == "images" else recordings.READ), *ARRAYS)


def _files(place: Path, kind: str) -> list[Path]:
    """The files to ask about: the one named, or those below a folder that can be, hidden ones left out."""
    if not place.exists():
        raise FileNotFoundError("there is no such file or folder")
    if not place.is_dir():
        return [place]
    found = [
        path
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and path.suffix.lower() in _suffixes(kind)
        and not any(part.startswith(".") for part in path.relative_to(place).parts)
    ]
    if not found:
        raise ValueError(f"holds nothing to ask about, by their names ({', '.join(dict.fromkeys(_suffixes(kind)))})")
    return found


def _read(path: Path, inputs: dict[str, Any], time_unit: str | None) -> Tensor:
    """The inputs in a file, uint8 with B first.

    Raises:
        ValueError, OSError: it is damaged, or holds nothing for this network.
    """
    kind, suffix = inputs["kind"], path.suffix.lower()
    if suffix not in _suffixes(kind):
        takes = "pictures" if kind == "images" else "event recordings"
        raise ValueError(f"this network takes {takes} or arrays ({', '.join(dict.fromkeys(_suffixes(kind)))})")
    if suffix in pictures.SUFFIXES:
        channels, height, width = inputs["shape"]
        if channels not in (1, 3):
            raise ValueError(f"a picture has 1 or 3 channels, this network takes {channels}")
        return torch.from_numpy(np.array(pictures.read_picture(path, (height, width), grey=channels == 1))[None])
    if suffix in ARRAYS and (array := _array(path, kind)) is not None:
        if not array.size:
            raise ValueError(f"holds nothing, its array is {list(array.shape)}")
        return raw_levels(array, inputs)
    if time_unit not in (None, "us") and suffix not in recordings.ARRAYS:
        raise ValueError(f"time_unit={time_unit}: {suffix} files have microseconds")
    file = recordings.RecordingFile(path, None, str(path), 0, path.stat().st_size)
    recording = file.load(time_unit or (inputs["framing"] or {}).get("time_unit", "us"))
    levels = raw_levels(recording, inputs, str(path))
    if hint := recording.unit_hint:
        log.warning("%s: lasts %g s%s", path, recording.duration_us / 1e6, hint)
    return levels


def _array(path: Path, kind: str) -> np.ndarray | None:
    """The array in a file; None where it holds no frames, but a recording perhaps.

    Raises:
        ValueError: it is damaged, or it cannot be told which array is meant.
    """
    try:
        with path.open("rb") as file:  # numpy would leave a damaged one open
            held = np.load(file)
            if isinstance(held, np.ndarray):
                return None if kind == "events" and held.ndim < 4 else held
            names = held.files
            if kind == "events" and all(held[name].ndim < 4 for name in names):
                return None
            chosen = [name for name in ARRAY_NAMES if name in names][:1] or names
            if len(chosen) != 1:
                raise ValueError(f"holds {', '.join(names)}; must hold one array, or one called {ARRAY_NAMES[0]}")
            array: np.ndarray = held[chosen[0]]
            return array
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"is damaged or no array ({error})") from error


def _table(rows: Sequence[tuple[str, Prediction]]) -> str:
    cells = [("input", "class", "probability"), *((name, each.name, f"{each.probability:.1%}") for name, each in rows)]
    first, second = (max(len(row[column]) for row in cells) for column in (0, 1))
    return "\n".join(f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]:>11}" for row in cells)


@door
def main() -> None:
    """The command line: status 2 where an input, or the network, cannot be used; the other inputs are answered."""
    parser = Parser("predict", __doc__)
    parser.add_argument("network", metavar="RUN|FILE", help="a run's folder, a packed file, or a folder of C")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="pictures, arrays, event recordings, or folders")
    parser.add_argument(
        "--time-unit", choices=TIME_UNITS, help="of t in .npz and .npy recordings; that of training if not given"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list, with the probability of each class")
    form.add_argument("--csv", action="store_true", help="input, class, probability")
    arguments = parser.parse_args()
    refused: list[str] = []

    def refuse(line: str) -> None:
        refused.append(line)
        print(f"error: {line}", file=sys.stderr)

    try:
        network = open_network(arguments.network)
        if arguments.time_unit and network.inputs["kind"] != "events":
            raise ValueError("--time-unit: is for recordings, and this network takes images")
        rows = list(predict(network, arguments.inputs, refuse, arguments.time_unit))
    except BAD_INPUT as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        classes = network.inputs["class_names"] or [str(k) for k in range(len(rows[0][1].probabilities) if rows else 0)]
        entries = [
            {
                "input": name,
                "class": each.name,
                "probability": each.probability,
                "probabilities": dict(zip(classes, each.probabilities.tolist(), strict=True)),
            }
            for name, each in rows
        ]
        print(json.dumps(entries, indent=1))
    elif arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["input", "class", "probability"])
        writer.writerows([name, each.name, each.probability] for name, each in rows)
    elif rows:
        print(_table(rows))
    sys.exit(2 if refused else 0)


if __name__ == "__main__":
    main()
