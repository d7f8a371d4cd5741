"""The cases: each a generator that does trial after trial and yields what was wrong, None where all is right."""

import gzip
import io
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from harness import (
    SMALL,
    Child,
    computed,
    deep,
    difference,
    ended,
    killed_after_epoch,
    killed_before,
    mutated,
    mutated_tree,
    prepared,
    trains,
)

from tna_lightning.evaluate import evaluate
from tna_lightning.export.run import export
from tna_lightning.quantization.packing import load_packed
from tna_lightning.report.__main__ import report
from tna_lightning.running import train as training
from tna_lightning.running.config import compose
from tna_lightning.running.record import find_runs, read_record

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from test_recordings import aedat2, random_events, write_aedat4

import conftest as cifar_files  # tests/data: files in the exact official formats

Trials = Iterator[str | None]
Case = Callable[[Path, random.Random], Trials]
SETUPS = {
    "ternary, last epoch": ["quant=ternary"],
    "best epoch, growth, warm-up": ["keep=best", "quant.growth_epochs=1", "schedule.warmup_epochs=1"],
    "teacher": ["baseline=kd"],
    "mutual, TTQ, clipping": ["baseline=mutual", "quant=ternary_ttq", "trainer.gradient_clip_val=1.0"],
    "average of the weights": ["callbacks=ema", "keep=best"],
}
BEST = ["keep=best", "quant=none", "optimizer.lr=0.02"]


def reference(root: Path, *overrides: str) -> tuple[Path, dict[str, Any], float]:
    """An undisturbed run, the same for all cases, what it computed, and how long it took."""
    return _reference(root.parents[1], *overrides)


@cache
def _reference(place: Path, *overrides: str) -> tuple[Path, dict[str, Any], float]:
    folder = prepared(place / "reference" / str(abs(hash(overrides))) / "run", *overrides)
    started = time.monotonic()
    result = ended(trains(folder))
    assert result.status == 0, result.output
    return folder, computed(folder), time.monotonic() - started


def fresh(root: Path) -> Path:
    """A place for one trial; the last one's is removed."""
    shutil.rmtree(root / "trial", ignore_errors=True)
    (root / "trial").mkdir(parents=True)
    return root / "trial"


def after(folder: Path, expected: dict[str, Any]) -> str | None:
    """What is wrong once the same command has gone on to the end."""
    result = ended(trains(folder))
    return result.fault or (difference(folder, expected) if result.status == 0 else result.output[-200:])


def kills_at_random(root: Path, generator: random.Random) -> Trials:
    """SIGKILL at random moments, up to three times, then to the end: equal to an undisturbed run."""
    while True:
        overrides = generator.choice(list(SETUPS.values()))
        _, expected, seconds = reference(root, *overrides)
        folder = prepared(fresh(root) / "run", *overrides)
        for _ in range(generator.randint(1, 3)):
            child = Child(trains(folder))
            time.sleep(generator.uniform(0, seconds))
            child.send(signal.SIGKILL)
            child.finish()
        yield after(folder, expected)


def kills_before_file_operations(root: Path, generator: random.Random) -> Trials:
    """SIGKILL before a file operation; then to the end: equal, and nothing half-written is left."""
    while True:
        overrides = generator.choice(list(SETUPS.values()))
        _, expected, _ = reference(root, *overrides)
        place = fresh(root)
        folder = prepared(place / "run", *overrides)
        ended(killed_before(generator.randrange(70), trains(folder), place))
        yield after(folder, expected)


def kills_of_exports(root: Path, generator: random.Random) -> Trials:
    """Export killed before a file operation: no file or a whole one, and the next export leaves nothing beside it."""
    source, _, _ = reference(root, *SETUPS["ternary, last epoch"])
    while True:
        folder = fresh(root) / "run"
        shutil.copytree(source, folder)

        def work(folder: Path = folder) -> None:
            export(folder, "packed", num_images=10)

        ended(killed_before(generator.randrange(8), work, folder))
        path = folder / "network-exported.safetensors"
        if path.exists():
            load_packed(path)
        result = ended(work)
        litter = [name.name for name in folder.glob(".network*")]
        yield result.fault or (f"leaves {litter}" if litter else None)


def signals(root: Path, generator: random.Random) -> Trials:
    """SIGTERM, SIGINT or SIGHUP at a random moment: the status says which, and the same command goes on."""
    meant = {signal.SIGTERM: (143, -15), signal.SIGINT: (130,), signal.SIGHUP: (-1,)}
    while True:
        overrides = generator.choice(list(SETUPS.values()))
        _, expected, seconds = reference(root, *overrides)
        folder = prepared(fresh(root) / "run", *overrides)
        number = generator.choice(list(meant))
        child = Child(trains(folder))
        time.sleep(generator.uniform(0, seconds))
        child.send(number)
        if generator.random() < 0.3:
            child.send(number)
        status = child.finish().status
        wrong = None if status in (0, *meant[number]) else f"{number.name}: status {status}"
        yield wrong or after(folder, expected)


def moved_and_copied(root: Path, generator: random.Random) -> Trials:
    """A run cut off after an epoch goes on where its folder was moved or copied to, or from its checkpoint."""
    while True:
        overrides = generator.choice([BEST, ["keep=last"]])
        _, expected, _ = reference(root, *overrides)
        place = fresh(root)
        killed_after_epoch(generator.randint(1, 3), prepared(place / "old" / "run", *overrides))
        how = generator.choice(["moved", "copied", "copied, and the first is gone on with", "ckpt_path"])
        folder = place / "new" / "run"
        if how == "ckpt_path":
            prepared(folder, *overrides, f"ckpt_path={place / 'old/run/checkpoints/last.ckpt'}")
        else:
            folder.parent.mkdir()
            shutil.copytree(place / "old" / "run", folder)
        if how == "moved":
            shutil.rmtree(place / "old")
        wrong = after(place / "old" / "run", expected) if how.endswith("with") else None
        wrong = wrong or after(folder, expected)
        yield wrong and f"{how} {overrides}: {wrong}"


def twice_at_once(root: Path, generator: random.Random) -> Trials:
    """The same run started two or three times: one trains, the others say so; beside one that is refused, too."""
    _, expected, seconds = reference(root, "quant=ternary")
    while True:
        folder = prepared(fresh(root) / "run", "quant=ternary")
        bad = compose([*SMALL, "quant=ternary", "optimizer.lr=-1"])
        works: list[Callable[[], Any]] = [trains(folder)] * generator.randint(2, 3)
        works.insert(generator.randrange(len(works)), partial(training.train, bad, folder))
        children = []
        for work in works:
            children.append(Child(work))
            time.sleep(generator.choice((0, generator.uniform(0, seconds))))
        results = [child.finish() for child in children]
        faults = [result.fault for result in results if result.fault]
        statuses = sorted(result.status or 0 for result in results)
        odd = statuses[0] != 0 or not set(statuses) <= {0, 2, 75}
        yield (faults[0] if faults else f"{statuses}" if odd else None) or difference(folder, expected)


def sweep_twice_at_once(root: Path, generator: random.Random) -> Trials:
    """The same sweep started twice, through the command line: no job fails, all are done."""
    command = [sys.executable, "-m", "tna_lightning", "-m", *SMALL, "seed=0,1", "study=s"]
    while True:
        place = fresh(root)
        sweeps = []
        for _ in range(2):
            sweeps.append(
                subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
            time.sleep(generator.choice((0, generator.uniform(0, 5))))
        outputs = [sweep.communicate()[0] for sweep in sweeps]
        states = [read_record(folder)["status"] for folder in find_runs(place / "multirun")]
        failed = any(sweep.returncode for sweep in sweeps) or any(" failed" in output for output in outputs)
        yield f"{states} {outputs}" if failed or set(states) - {"done"} else None


def full_disk(root: Path, generator: random.Random) -> Trials:
    """A file may have no more than so many bytes: one line, and afterwards the same command goes on."""
    while True:
        overrides = generator.choice([SETUPS["ternary, last epoch"], SETUPS["average of the weights"]])
        folder_of_reference, expected, _ = reference(root, *overrides)
        largest = (folder_of_reference / "checkpoints" / "last.ckpt").stat().st_size
        folder = prepared(fresh(root) / "run", *overrides)
        size = int(largest * generator.random() ** 2)
        result = ended(trains(folder), limits={resource.RLIMIT_FSIZE: size})
        wrong = result.fault or (None if result.status or size >= largest else f"status 0 with {size} bytes")
        yield wrong or after(folder, expected)


def full_tmpfs(root: Path, generator: random.Random) -> Trials:
    """A file system of a few hundred kB; nothing is tried where none can be mounted."""
    _, expected, _ = reference(root, *BEST)
    while True:
        place = fresh(root) / "small"
        place.mkdir()
        options = (
            f"size={4 * generator.randint(1, 200)}k"
            if generator.random() < 0.7
            else "nr_inodes=" + str(generator.randint(3, 15))
        )
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            return
        try:
            try:
                folder = prepared(place / "run", *BEST)
            except OSError:
                continue
            result = ended(trains(folder))
            wrong = result.fault
            if not wrong and result.status:
                subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=10k", place], check=True)
                wrong = after(folder, expected)
        finally:
            subprocess.run(["umount", "-l", place], check=True)
        yield wrong and f"{options}: {wrong}"


def damaged_checkpoints(root: Path, generator: random.Random) -> Trials:
    """last.ckpt or best.ckpt of a run that was cut off: refused in one line, or the run ends as the undisturbed one."""
    _, expected, _ = reference(root, *BEST)
    cut = prepared(root / "cut" / "run", *BEST)
    killed_after_epoch(2, cut)
    while True:
        folder = fresh(root) / "run"
        shutil.copytree(cut, folder)
        path = folder / "checkpoints" / generator.choice(["last.ckpt", "best.ckpt"])
        path.write_bytes(mutated(path.read_bytes(), generator))
        result = ended(trains(folder))
        yield result.fault or (difference(folder, expected) if result.status == 0 else None)


def hostile_checkpoints(root: Path, generator: random.Random) -> Trials:
    """Checkpoints with a right checksum and wrong entries, by every door: one line, or what they say is not used."""
    cut = prepared(root / "cut of hostile" / "run", *BEST)
    killed_after_epoch(2, cut)
    content = torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)
    while True:
        odd = dict(content)
        parent: Any = odd
        key = generator.choice(list(odd))
        while isinstance(parent[key], dict) and parent[key] and generator.random() < 0.6:
            parent[key] = dict(parent[key])
            parent = parent[key]
            key = generator.choice(list(parent))
        if generator.random() < 0.3:
            del parent[key]
        else:
            parent[key] = generator.choice([None, 3, "x", [], {}, [1], {"x": 1}, torch.zeros(2), deep(30)])
        folder = fresh(root) / "run"
        shutil.copytree(cut, folder)
        path = folder / "checkpoints" / "last.ckpt"
        torch.save(generator.choice([odd, odd, odd, [odd], 3, {}]), path)
        door = generator.choice(["resume", "init_from", "companion.weights"])
        if door != "resume":
            folder = prepared(folder.parent / "other", *BEST, f"{door}={path}")
        yield ended(trains(folder)).fault


def packed_files(root: Path, generator: random.Random) -> Trials:
    """A packed file with damage is refused, or gives the same logits."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    while True:
        source, _, _ = reference(
            root, *generator.choice([SETUPS["ternary, last epoch"], SETUPS["mutual, TTQ, clipping"]])
        )
        content = (source / "network.safetensors").read_bytes()
        expected = load_packed(source / "network.safetensors")(x)
        path = fresh(root) / "network.safetensors"

        def work(path: Path = path, expected: torch.Tensor = expected) -> None:
            if not torch.equal(load_packed(path)(x), expected):
                raise AssertionError("another network")

        for _ in range(10):  # in one child, since most are refused at once
            path.write_bytes(mutated(content, generator))
            yield ended(work).fault


def damaged_records(root: Path, generator: random.Random) -> Trials:
    """run.json of a finished run with an odd entry: report, evaluate, the same command, or one line."""
    source, _, _ = reference(root, *SETUPS["ternary, last epoch"])
    record = json.loads((source / "run.json").read_text())
    while True:
        folder = fresh(root) / "run"
        shutil.copytree(source, folder)
        if generator.random() < 0.2:
            (folder / "run.json").write_bytes(mutated((source / "run.json").read_bytes(), generator))
        else:
            odd = {"format": 1, "x": deep(5000)} if generator.random() < 0.02 else mutated_tree(record, generator)
            (folder / "run.json").write_text(
                json.dumps(odd) if "x" not in odd else '{"x":' + "[" * 9999 + "]" * 9999 + "}"
            )
        doors: list[Callable[[], Any]] = [
            lambda folder=folder: report([folder.parent], folder.parent / "report"),
            lambda folder=folder: evaluate(folder),
            lambda folder=folder: training.run_and_report(compose([*SMALL, "quant=ternary"]), folder),
        ]
        yield ended(without_training(generator.choice(doors))).fault


def without_training(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work, in which a training that is about to begin ends the process well."""

    def stop(*_: Any) -> Any:
        raise SystemExit(0)

    def begin() -> None:
        training._train = stop
        work()

    return begin


def damaged_configs(root: Path, generator: random.Random) -> Trials:
    """config.yaml with an odd entry: prepared for training, or one line."""
    source = prepared(root / "config" / "run", "baseline=kd", "companion.weights=random")
    config = json.loads(json.dumps(compose([*SMALL, "baseline=kd", "companion.weights=random"])))
    bomb = "a: &a [x]\n" + "".join(
        f"{name}: &{name} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n"
        for last, name in zip("abcdefghi", "bcdefghij", strict=True)
    )
    while True:
        folder = fresh(root) / "run"
        folder.mkdir()
        kind = generator.random()
        if kind < 0.2:
            text = mutated((source / "config.yaml").read_bytes(), generator)
        else:
            text = (bomb if kind < 0.25 else json.dumps(mutated_tree(config, generator))).encode()
        (folder / "config.yaml").write_bytes(text)
        yield ended(without_training(trains(folder)), limits={resource.RLIMIT_AS: 16 << 30}).fault


def foreign_targets(root: Path, generator: random.Random) -> Trials:
    """A record that names a function: it is not called."""
    source, _, _ = reference(root, *SETUPS["ternary, last epoch"])
    record = json.loads((source / "run.json").read_text())
    while True:
        place = fresh(root)
        folder, canary = place / "run", place / "canary"
        shutil.copytree(source, folder)
        target = generator.choice([
            {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(canary)]}},
            {"_target_": "shutil.copy", "src": str(folder / "run.json"), "dst": str(canary)},
            {"_target_": "numpy.save", "file": str(canary), "arr": [1]},
            {"_target_": "tna_lightning.files.write_text", "path": str(canary), "text": "x"},
            {"_target_": "tna_lightning.data.events.Path.touch", "self": str(canary)},
            {"_target_": "tna_lightning.files.os.mkdir", "path": str(canary)},
        ])  # fmt: skip
        key = generator.choice(["data", "model", "neuron"])
        nested = generator.random() < 0.5
        node = {**record["config"][key], "size": target} if nested else target
        odd = {**record, "config": {**record["config"], key: node}}
        (folder / "run.json").write_text(json.dumps(odd))
        door = generator.choice(
            [lambda folder=folder: evaluate(folder), lambda folder=folder: export(folder, "packed")]
        )
        result = ended(door)
        called = list(place.glob("canary*"))
        yield result.fault or (f"{target} was called" if called or result.status == 0 else None)


def data_files(kind: str) -> Case:
    """Files of a data set with damage: read, or refused by name; what is read has the right shape."""

    def case(root: Path, generator: random.Random) -> Trials:
        from tna_lightning.data import cifar, download, events, recordings

        place = fresh(root)
        if kind.startswith("CIFAR"):
            layout = cifar.LAYOUTS["cifar10"]["pickle" in kind]
            folder = cifar_files.CIFARFiles(place).write("cifar10", kind.split()[1])
            path = folder / layout.test_file

            def work() -> None:
                images, labels = cifar.read(path, layout, 10)
                assert images.shape == (len(labels), 3, 32, 32)
        elif kind == "AEDAT 4":
            path = place / "x.aedat4"
            write_aedat4(path, *random_events(200))

            def work() -> None:
                recordings.check(recordings.read_aedat4(path, "x"), "x", (128, 128))
        elif kind == "AEDAT 2":
            path = place / "x.aedat"
            path.write_bytes(aedat2([(n % 128, n * 7 % 128, n % 2, n) for n in range(50)]))

            def work() -> None:
                recordings.check(recordings.parse_aedat2(path.read_bytes(), "x"), "x", (128, 128))
        elif kind == "zip of a class":
            path = place / "airplane.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
                for number in range(3):
                    packed.writestr(f"airplane/cifar10_airplane_{number}.aedat", aedat2([(1, 2, 0, number)] * 20))

            def work() -> None:
                files, _ = recordings.find_recordings(place, ["airplane"])
                source = recordings.RecordingFiles(files, (128, 128))
                for index in range(len(files)):
                    source.load(index)
        elif kind == "tar":
            path = place / "cifar.tar.gz"
            with tarfile.open(path, "w:gz") as packed:
                entry = tarfile.TarInfo("cifar/" + "x" * 60)
                entry.size = 3000
                packed.addfile(entry, io.BytesIO(bytes(3000)))
            path.write_bytes(gzip.decompress(path.read_bytes()))  # so that damage reaches the headers

            def work() -> None:
                download.unpack(path, place / "cifar")
        else:
            path = place / "split.json"
            names = [f"airplane/{number}" for number in range(6)]
            tree = {"train": names[:3], "test": names[3:5], "val": names[5:]}

            def work() -> None:
                events.read_split(path, names)

            path.write_text(json.dumps(tree))
        whole = path.read_bytes()
        while True:
            path.write_bytes(mutated(whole, generator))
            if kind == "split file" and generator.random() < 0.6:
                path.write_text(json.dumps(mutated_tree(tree, generator)))
            for left in place.glob("cifar"):
                shutil.rmtree(left)
            result = ended(work, limits={resource.RLIMIT_AS: 16 << 30})
            outside = [name for name in root.parent.iterdir() if name != root] if kind == "tar" else []
            yield result.fault or (f"writes {outside}" if outside else None)

    return case


CASES: dict[str, Case] = {
    "SIGKILL at random moments": kills_at_random,
    "SIGKILL before a file operation": kills_before_file_operations,
    "SIGKILL of an export": kills_of_exports,
    "SIGTERM, SIGINT, SIGHUP": signals,
    "moved, copied, ckpt_path": moved_and_copied,
    "one run started twice, and refused": twice_at_once,
    "one sweep started twice": sweep_twice_at_once,
    "full disk (RLIMIT_FSIZE)": full_disk,
    "full disk (tmpfs, inodes)": full_tmpfs,
    "damaged checkpoint": damaged_checkpoints,
    "hostile checkpoint": hostile_checkpoints,
    "damaged packed file": packed_files,
    "damaged run.json": damaged_records,
    "run.json that names a target": foreign_targets,
    "damaged config.yaml": damaged_configs,
    **{f"damaged {kind}": data_files(kind) for kind in (
        "CIFAR binary", "CIFAR pickle", "AEDAT 2", "AEDAT 4", "zip of a class", "tar", "split file",
    )},
}  # fmt: skip
