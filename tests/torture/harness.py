"""Children that may be killed, starved and fed with damaged files, and what becomes of them.

A child is forked from a process that has imported everything, so that a trial costs what it tries and not the imports.
It does what a door does (`python -m tna_lightning.running.start FOLDER`), with its output in a file.
"""

import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tna_lightning.running.config import compose, write_config
from tna_lightning.running.console import leave
from tna_lightning.running.train import main as train_main

SMALL = [
    *("data.train_subset=240", "data.batch_size=40", "data.eval_batch_size=200", "model.width=0.125"),
    *("model.time_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "epochs=3"),
]
HANGS_AFTER = 180.0  # seconds; a trial takes a few
NOT_COMPUTED = ("name", "started", "finished", "environment", "environments", "wall_time_s", "train_images_per_s")


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a child: its exit status (negative: the signal), None where it hung, and what it said."""

    status: int | None
    output: str

    @property
    def fault(self) -> str | None:
        """What is wrong with how it ended, whatever it was given; None if it did its work or said one clear line."""
        if self.status is None:
            return "hangs"
        if self.status < 0:
            return f"ends by {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.output:
            return f"traceback: {self.output.strip().splitlines()[-1][:200]}"
        errors = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return None if self.status in (0, 130, 143) or len(errors) == 1 else f"status {self.status}: {errors}"


class Child:
    """A process that does one thing; `finish` waits for its end."""

    def __init__(self, work: Callable[[], Any], limits: dict[int, int] | None = None) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the child
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(work, limits or {})

    def _work(self, work: Callable[[], Any], limits: dict[int, int]) -> None:
        status = 1
        try:
            os.setsid()
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            for limit, size in limits.items():
                resource.setrlimit(limit, (size, size))
            try:
                work()
                status = 0
            except SystemExit:
                raise
            except BaseException as error:
                leave(error)
        except SystemExit as left:
            if isinstance(left.code, str):
                print(left.code, file=sys.stderr)
            status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def finish(self) -> Ended:
        deadline = time.monotonic() + HANGS_AFTER
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        if ended == (0, 0):
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._output.seek(0)
        output = self._output.read()
        self._output.close()
        return Ended(None if ended == (0, 0) else os.waitstatus_to_exitcode(ended[1]), output)


def ended(work: Callable[[], Any], **limits: Any) -> Ended:
    return Child(work, **limits).finish()


def prepared(folder: Path, *overrides: str) -> Path:
    """A run's folder with its config, as a sweep leaves it to the process that trains."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(compose([*SMALL, f"output_dir={folder.parent}", *overrides]), folder)
    return folder


def trains(folder: Path) -> Callable[[], None]:
    return lambda: train_main([str(folder)])


def killed_before(operation: int, work: Callable[[], Any], folder: Path) -> Callable[[], None]:
    """The work, killed before it has done so many operations on files below a folder."""
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        changes = event in changing or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen > operation:
                os.kill(os.getpid(), signal.SIGKILL)

    def begin() -> None:
        sys.addaudithook(watch)
        work()

    return begin


def killed_after_epoch(epoch: int, folder: Path) -> None:
    """Train until the checkpoint of this epoch, counted from 1, is there, and no further."""

    def work() -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        saved = ModelCheckpoint._save_checkpoint

        def save(self: Any, trainer: Any, path: str) -> None:
            saved(self, trainer, path)
            if trainer.current_epoch + 1 == epoch and Path(path).name == "last.ckpt":
                os.kill(os.getpid(), signal.SIGKILL)

        ModelCheckpoint._save_checkpoint = save
        train_main([str(folder)])

    assert ended(work).status == -signal.SIGKILL


def computed(folder: Path) -> dict[str, Any]:
    """All that a run has computed, to be compared to the bit."""
    record = json.loads((folder / "run.json").read_text())
    record["config"] = {**record["config"], "output_dir": None, "ckpt_path": None}
    found: dict[str, Any] = {key: value for key, value in record.items() if key not in NOT_COMPUTED}
    for name in ("network.safetensors", "metrics.csv"):
        found[name] = (folder / name).read_bytes()
    for path in sorted((folder / "checkpoints").iterdir()):
        content = torch.load(path, weights_only=True)
        own = content["tna_lightning"]["generators"]
        for part in (content["state_dict"], content["optimizer_states"], content["lr_schedulers"], own):
            found.setdefault(f"checkpoints/{path.name}", []).append(_plain(part))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def difference(folder: Path, expected: dict[str, Any]) -> str | None:
    """What of a run is not as expected, and what was left lying about."""
    found = computed(folder)
    differing = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    litter = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    return f"differs in {differing}" if differing else f"leaves {litter}" if litter else None


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A file with a bit, a byte or a block that is another, missing, twice or zero, or with its end cut off."""
    data = bytearray(content)
    start = generator.randrange(len(data))
    end = min(len(data), start + generator.choice((1, 1, 2, 8, 64, 512)))
    kind = generator.randrange(6)
    if kind == 0:
        data[start] ^= 1 << generator.randrange(8)
    elif kind == 1:
        data[start:end] = generator.randbytes(end - start)
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    elif kind == 4:
        data[start:end] = bytes(end - start)
    else:
        del data[start:]
    return bytes(data)


def mutated_tree(tree: Any, generator: random.Random) -> Any:
    """JSON in which one entry is missing or something else."""
    tree = json.loads(json.dumps(tree))
    places = list(_places(tree))
    parent, key = generator.choice(places)
    odd = (None, True, -1, 0, 1e300, 2**70, "", "x", "<b>", [], [[]], {}, {"_target_": "os.getcwd"}, [None], deep(60))
    if generator.random() < 0.2:
        del parent[key]
    else:
        parent[key] = generator.choice(odd)
    return tree


def deep(levels: int) -> list[Any]:
    tree: list[Any] = []
    for _ in range(levels):
        tree = [tree]
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
