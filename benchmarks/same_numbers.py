"""Does a refactor leave every number as it was? The same commands under two revisions, and what they computed compared.

    python -m benchmarks.same_numbers OLD NEW                 # two commits; NEW may be . for the working tree
    python -m benchmarks.same_numbers OLD . --keep FOLDER     # the runs of commits stay there and are not run again

Each revision is unpacked into a folder of its own, and each command of COMMANDS is run there as a user types it: two
epochs, one thread, in an empty folder. Compared are the kept network, decoded by NEW's code, bit for bit; accuracies,
exactly; and losses to 1e-6 (of themselves in the results, of themselves or of one in the history). A line a command
says equal or what differs first; leaves with status 1 if anything does. Kept runs are good for the same machine and
the same packages alone. About five minutes a revision on one core.
"""

import argparse
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ALL = "epochs=2 trainer.enable_progress_bar=false trainer.accelerator=cpu logger=csv"
EVENTS = "data=digits_dvs model.width=0.5 baseline=tna quant=ternary"
# 270 images to train on, so that the last of three batches has 70
RESNET = "data=cifar10 data.root=../images data.batch_size=100 model=resnet8 model.time_steps=2"


def same(arguments: str) -> tuple[str, str]:
    """Arguments that both revisions take."""
    return arguments, arguments


# name: OLD's arguments and NEW's. Where a setting has moved in between, write the two out instead of same(...)
COMMANDS = {
    **{
        f"digits {baseline} {quant}": same(f"baseline={baseline} quant={quant} model.width=0.5")
        for baseline in ("plain", "kd", "mutual", "tna")
        for quant in ("none", "ternary", "ternary_ttq", "int2")
    },
    "events": same(EVENTS),
    "events augmented": (
        f"{EVENTS} data.augment=nda data.flip=true",  # OLD
        f"{EVENTS} augment=nda +augment.flip={{_target_:tna_lightning.data.augment.Flip}}",  # NEW
    ),
    "resnet8 tna": same(f"{RESNET} model.width=0.5 baseline=tna quant=ternary compile=none"),
    "resnet8 tna compiled": same(f"{RESNET} model.width=0.5 baseline=tna quant=ternary"),
    "resnet8 channels_last": same(f"{RESNET} model.width=1 baseline=plain compile=none"),  # narrower ones leave it out
}

ONE_SIDE = ["val/acc_macro", "test/acc_macro", *(f"train/{name}acc_top5" for name in ("", "companion_"))]
"""Figures that one revision alone has, on purpose: the first two have come, the others are gone."""

DECODE = """
import sys
from pathlib import Path
import numpy as np
from tna_lightning.quantization.packing import decoded_state
for number, path in enumerate(sys.argv[2:]):
    state = decoded_state(path)[0]
    np.savez(Path(sys.argv[1]) / f"{number}.npz", **{name: tensor.numpy() for name, tensor in state.items()})
"""


def commit(revision: str) -> str:
    """The first ten digits of a revision's commit."""
    command = ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout[:10]


def unpack(revision: str, folder: Path) -> Path:
    """The tree of a revision, taken out of git; for ``.`` the working tree itself."""
    if revision == ".":
        return ROOT
    content = subprocess.run(["git", "archive", commit(revision)], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def environment(tree: Path) -> dict[str, str]:
    """In which Python finds this tree's package, wherever else one is installed."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree / "src")}


def write_images(root: Path) -> None:
    """300 + 60 random images, in the binary layout of CIFAR-10."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(60, dtype=np.uint8) % 10
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 3072), dtype=np.uint8)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).tobytes())


def run_all(side: int, tree: Path, folder: Path) -> dict[str, Path | str]:
    """By command: the folder of its run, or the last line of what it said when it failed."""
    find = "import importlib.util; print(importlib.util.find_spec('tna_lightning').origin)"
    write_images(folder / "images")
    code = subprocess.run(
        [sys.executable, "-c", find], cwd=folder, env=environment(tree), capture_output=True, text=True, check=True
    ).stdout
    assert Path(code).is_relative_to(tree / "src"), f"{code} is not of {tree}"
    runs: dict[str, Path | str] = {}
    for name, arguments in COMMANDS.items():
        words = [*ALL.split(), *arguments[side].split()]
        # the arguments are in the folder's name, so that a command that was edited finds no run of the old one
        place = folder / f"{name.replace(' ', '-')}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"
        place.mkdir(exist_ok=True)
        started = time.perf_counter()
        runs[name] = train(words, place, tree)
        print(f"{('old', 'new')[side]}: {name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return runs


def train(words: Sequence[str], place: Path, tree: Path) -> Path | str:
    """The run's folder, trained now if it is not there, or the last line of what the command said when it failed."""
    if (done := finished(place)) is not None:
        return done
    command = [sys.executable, "-m", "tna_lightning", *words]
    told = subprocess.run(
        command, cwd=place, env=environment(tree), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    done = finished(place)
    return done if told.returncode == 0 and done is not None else (told.stdout.strip() or "nothing").splitlines()[-1]


def finished(place: Path) -> Path | None:
    """The folder of the run that is done in this place; a teacher's lies one level deeper."""
    done = [path.parent for path in place.glob("runs/*/run.json") if json.loads(path.read_text())["status"] == "done"]
    assert len(done) <= 1, f"{place} holds several runs"
    return done[0] if done else None


def decode(networks: Sequence[Path], tree: Path) -> list[dict[str, np.ndarray]]:
    """The state of each kept network, its weights decoded, as this tree's code reads it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", DECODE, folder, *map(str, networks)]
        subprocess.run(command, cwd=folder, env=environment(tree), check=True)
        states = []
        for number in range(len(networks)):
            with np.load(Path(folder) / f"{number}.npz") as arrays:
                states.append(dict(arrays))
    return states


def missing(what: str, old: Any, new: Any) -> Iterator[str]:
    """The names that one side has alone."""
    for side, names in (("OLD", old.keys() - new.keys()), ("NEW", new.keys() - old.keys())):
        if names:
            yield f"{what}: {side} alone has {', '.join(sorted(names))}"


def state_differences(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> Iterator[str]:
    """What is not the same bits in two networks."""
    yield from missing("network", old, new)
    for name in [name for name in old if name in new]:
        was, now = old[name], new[name]
        if (was.dtype, was.shape) != (now.dtype, now.shape):
            yield f"network: {name}: {was.dtype} {list(was.shape)}, now {now.dtype} {list(now.shape)}"
        elif was.tobytes() != now.tobytes():
            apart = np.abs(was.astype(np.float64) - now.astype(np.float64))
            values = f"{np.count_nonzero(apart)} of {apart.size} values"  # none where a zero has another sign
            yield f"network: {name}: other bits, {values} differ, by up to {apart.max():.2g}"


def record_differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Where the results or the histories of two records are apart."""
    for part, near_zero in (("results", 0.0), ("history", 1e-6)):
        both = [{name: value for name, value in each[part].items() if name not in ONE_SIDE} for each in (old, new)]
        yield from missing(part, *both)
        for name in [name for name in old[part] if name in new[part]]:
            exact = "acc" in name or "epoch" in name
            columns = [
                column if isinstance(column, list) else [column] for column in (old[part][name], new[part][name])
            ]
            if len(columns[0]) != len(columns[1]):
                yield f"{part}: {name}: {len(columns[0])} epochs, now {len(columns[1])}"
            for was, now in zip(*columns, strict=False):
                if was == now:
                    continue
                if None in (was, now):  # it was not finite
                    yield f"{part}: {name}: {was}, now {now}"
                elif exact or not math.isclose(was, now, rel_tol=1e-6, abs_tol=near_zero):
                    yield f"{part}: {name}: {was}, now {now}, {abs(was - now):.2g} apart"


def compare(old: dict[str, Path | str], new: dict[str, Path | str], tree: Path) -> dict[str, str | None]:
    """By command: what differs first, or None."""
    first: dict[str, str | None] = {}
    pairs: dict[str, tuple[Path, Path]] = {}
    for name in COMMANDS:
        sides = {"OLD": old[name], "NEW": new[name]}
        failed = [f"{side} failed: {told}" for side, told in sides.items() if isinstance(told, str)]
        first[name] = failed[0] if failed else None
        if not failed:
            pairs[name] = Path(old[name]), Path(new[name])
    states = decode([run / "network.safetensors" for pair in pairs.values() for run in pair], tree)
    for number, (name, pair) in enumerate(pairs.items()):
        records = [json.loads((run / "run.json").read_text()) for run in pair]
        differences = [*state_differences(*states[2 * number : 2 * number + 2]), *record_differences(*records)]
        first[name] = differences[0] if differences else None
    return first


def main() -> None:
    """Run both, compare and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="a commit, as git names it")
    parser.add_argument("new", metavar="NEW", help="a commit, or . for the working tree as it stands")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the runs stay")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        root = (arguments.keep or Path(temporary)).resolve()
        # OLD's and NEW's apart, so that a commit beside itself is really run twice
        folders = [root / f"old-{commit(arguments.old)}"]
        folders += [root / ("new-working-tree" if arguments.new == "." else f"new-{commit(arguments.new)}")]
        if arguments.new == ".":
            shutil.rmtree(folders[1], ignore_errors=True)  # nobody knows what the tree was when these runs were made
        trees = [
            unpack(arguments.old, Path(temporary) / "old-tree"),
            unpack(arguments.new, Path(temporary) / "new-tree"),
        ]
        old, new = (run_all(side, trees[side], folders[side]) for side in (0, 1))
        first = compare(old, new, trees[1])
    for name, difference in first.items():
        print(f"{name}: {'equal' if difference is None else difference}")
    different = sum(difference is not None for difference in first.values())
    print(f"{len(first)} commands: {len(first) - different} equal, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
