"""What stands around the network: a step of a whole run beside that of a plain loop written by hand.

Both train the same network on the same loader with the same optimizer and learning rates, and know the loss and
accuracy of each epoch at its end. Each is a process of its own that waits between repetitions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.machine import ROOT, cores

STEPS = 20
"""Steps of a repetition."""


@dataclass(frozen=True)
class Size:
    """The images, ``[samples, side, side, channels]``, and what else the command line says."""

    samples: int
    side: int
    channels: int
    overrides: tuple[str, ...]


def sizes_for(settings: Settings) -> dict[str, Size]:
    """Each size by its name; with epochs so long that few repetitions hold the end of one."""
    if settings.toy:
        return {"convnet, batch 64": Size(256, 8, 1, ("data.batch_size=64", "model.width=0.125", "model.time_steps=2"))}
    resnet = ("model=resnet8", "model.width=0.5", "optimizer=sgd", "augment=standard")
    return {
        "convnet, batch 64": Size(20_000, 8, 1, ("data.batch_size=64",)),
        "ResNet-8, batch 32": Size(20_000, 32, 3, (*resnet, "data.batch_size=32")),
        "ResNet-8, batch 128": Size(20_000, 32, 3, (*resnet, "data.batch_size=128")),
    }


class Child:
    """A training in a process of its own; a call takes some steps of it."""

    def __init__(self, way: str, size: Size, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        overrides = [
            "data=arrays",
            f"data.file={_random_images(Path(self._folder.name), size)}",
            f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
            *("baseline=plain", "quant=none", "compile=none", "epochs=1000"),
            *size.overrides,
        ]
        self._errors = (Path(self._folder.name) / "errors").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.stack", way, self._folder.name, *overrides],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __call__(self) -> None:
        """Take the steps of a repetition."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            self._errors.seek(0)
            raise RuntimeError(self._errors.read()[-2000:])

    def __del__(self) -> None:
        self._process.kill()
        with self._process:  # which closes its pipes
            pass
        self._errors.close()
        self._folder.cleanup()


def _random_images(folder: Path, size: Size) -> Path:
    import numpy as np

    draw = np.random.default_rng(0)
    parts = {}
    for part, samples in (("train", size.samples), ("test", 256)):
        parts[f"x_{part}"] = draw.integers(0, 256, (samples, size.side, size.side, size.channels), dtype=np.uint8)
        parts[f"y_{part}"] = draw.integers(0, 10, samples)
    np.savez(folder / "random.npz", **parts)
    return folder / "random.npz"


def _turns(answers: TextIO) -> Iterator[None]:
    """Yields for each step that may be taken, and answers in between; ends where nobody asks any more."""
    while sys.stdin.readline():
        for _ in range(STEPS):
            yield
        answers.write("done\n")
        answers.flush()


def _ours(folder: Path, config: dict[str, Any], answers: TextIO) -> None:
    import lightning

    from tna_lightning.running import train

    turns = _turns(answers)

    class Gate(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if next(turns, "end") == "end":
                raise KeyboardInterrupt

    built = train.build_callbacks
    train.build_callbacks = lambda *arguments: [*built(*arguments), Gate()]  # type: ignore[assignment]
    train.train(config, folder / "run")


def _by_hand(config: dict[str, Any], answers: TextIO) -> None:
    import lightning
    import torch
    import torch.nn.functional as F

    from tna_lightning.running.factory import build, build_data
    from tna_lightning.running.train import build_learner

    lightning.seed_everything(config["seed"], verbose=False)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    learner = build_learner(config, data)
    device = torch.device("cuda" if config["trainer"]["accelerator"] == "gpu" else "cpu")
    network, loader = learner.base.to(device), data.train_dataloader()
    optimizer = build("optimizer", config["optimizer"])(list(learner.parameter_groups()))
    schedule = build("schedule", config["schedule"])(optimizer, len(loader) * config["epochs"], len(loader))
    turns, draw = _turns(answers), torch.Generator().manual_seed(config["seed"])
    while True:
        total, right, samples = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for batch in loader:
            if next(turns, "end") == "end":
                return
            x, target = data.prepare(data.augment(batch, draw).x.to(device)), batch.target.to(device)
            optimizer.zero_grad()
            logits = network(x).mean(0)
            loss = F.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(target)
            right += (logits.detach().argmax(1) == target).sum()
            samples += len(target)
        float(total / samples), float(right / samples)


def contestants(settings: Settings) -> dict[str, Callable[[], Run]]:
    """A run and the loop by hand, for every size."""
    found: dict[str, Callable[[], Run]] = {}
    for name, size in sizes_for(settings).items():
        found[f"a run, {name}"] = partial(Child, "ours", size, settings.device)
        found[f"by hand, {name}"] = partial(Child, "by-hand", size, settings.device)
    return found


COMPARISONS = {
    "stack": Comparison(
        title="A run beside a loop written by hand",
        sizes=lambda settings: (
            f"{STEPS} training steps, plain, full precision, compile=none, {cores()} threads, in processes that take "
            "turns: the network, loader, optimizer and schedule of `python -m tna_lightning`, driven by the run or by "
            "a loop of twenty lines. The convnet of the demo on random 8x8 images, AdamW; ResNet-8 of width 0.5 on "
            "random 32x32 images, crop and flip, SGD."
        ),
        contestants=contestants,
        memory=False,
        ratios=tuple(
            Ratio(f"a run over by hand, {size}", (f"a run, {size}",), (f"by hand, {size}",))
            for size in sizes_for(Settings())
        ),
    )
}

if __name__ == "__main__":
    from tna_lightning.running.config import compose

    way, folder, *overrides = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a run tells
    config = compose(overrides)
    if way == "ours":
        _ours(Path(folder), config, answers)
    else:
        _by_hand(config, answers)
