"""The kept network alone on the test set, the companion not even loaded: ``python -m tna_lightning.evaluate RUN``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch

from tna_lightning.data.batch import Batch
from tna_lightning.export.c.library import CNetwork, load_c
from tna_lightning.learner import TwinLearner
from tna_lightning.objectives import Plain
from tna_lightning.running.console import leave, quiet_lightning, title, warn_of_changes
from tna_lightning.running.processes import outlive_readers
from tna_lightning.running.record import environment, finished_record, reading
from tna_lightning.running.train import device_name
from tna_lightning.running.trust import kept_network, rebuilt, refuse_foreign


def evaluate(
    folder: Path | str, data_root: str | None = None, c: Path | str | None = None, *, trust: bool = False
) -> dict[str, float]:
    """Test results of a finished run's kept network, by name (``test/acc``, ...), as shares in [0, 1].

    Args:
        folder: the run's folder.
        data_root: where the data are, if not where they were in training.
        c: a folder that ``export --format c`` has written; its code is run in the network's place.
        trust: also import and call what the run's record names that is no part of this package: code of one's own.

    Raises:
        ValueError: no finished run, its data or its kept network are not what they were, or its record names code
            that is not trusted.
    """
    return _evaluate(folder, data_root, c, trust)[0]


def _evaluate(
    folder: Path | str, data_root: str | None, c: Path | str | None, trust: bool
) -> tuple[dict[str, float], str]:
    """The results, and the device that they were computed on."""
    record = finished_record(folder)
    config = record["config"]
    datamodule, spec = rebuilt(folder, data_root, trust)
    if c is not None:
        return _evaluate_c(load_c(c), datamodule), "cpu"
    network = kept_network(folder, spec, channels_last=config.get("channels_last", False))
    with quiet_lightning():
        with reading(folder):
            trainer = lightning.Trainer(
                accelerator=config["trainer"]["accelerator"],
                devices=1,
                precision=config["trainer"]["precision"],
                limit_test_batches=config["trainer"].get("limit_test_batches"),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        objective = Plain(ignore_index=config["objective"].get("ignore_index"))  # 0.1.0 had none
        learner = TwinLearner(network, objective=objective, num_classes=datamodule.num_classes)
        (results,) = trainer.test(learner, datamodule=datamodule, verbose=False)
    # an earlier version may have recorded fewer
    recorded = {name: value for name, value in results.items() if "acc" in name and name in record["results"]}
    return recorded, device_name(trainer)


def _compared(record: Mapping[str, Any], results: Mapping[str, float], device: str) -> tuple[str, bool]:
    """What differs from the recorded results, in words, and whether it must not: on a CPU, where all is as it was."""
    recorded = {name: record["results"].get(name) for name in results}
    differing = [
        f"{name} {value!r} (recorded: {recorded[name]!r})"
        for name, value in results.items()
        if recorded[name] not in (None, value)
    ]
    before, here = record.get("environment") or {}, environment()
    there = {"device": record.get("device")} | {key: before.get(key) for key in ("cpu", "threads", "versions")}
    elsewhere = [
        f"{key} {there[key]} -> {value}"
        for key, value in ({"device": device} | here).items()
        if key in there and there[key] != value
    ]
    config = record["config"]
    if config.get("compile") == "network":
        elsewhere.append("compile network -> none")
    if str(config["trainer"].get("precision")) in ("bf16-true", "16-true"):
        elsewhere.append("weights are kept in float32")
    return "; ".join([*differing, *elsewhere]) if differing else "", not elsewhere and device == "cpu"


def _evaluate_c(network: CNetwork, datamodule: Any) -> dict[str, float]:
    datamodule.setup("test")
    right = total = 0
    for batch in map(Batch.of, datamodule.test_dataloader()):
        classes = network(batch.x.cpu().numpy()).argmax(-1)
        target = batch.target if batch.target.ndim == 1 else batch.target.argmax(-1)
        right += int((torch.from_numpy(classes) == target.cpu()).sum())
        total += len(classes)
    return {"test/acc": right / total}


def main() -> None:
    """The command line: status 1 where the same machine and versions give other results than the recorded ones."""
    outlive_readers()
    parser = argparse.ArgumentParser(prog="python -m tna_lightning.evaluate", description=__doc__)
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--data-root", help="where the data are, if not where they were in training")
    parser.add_argument("--trust", action="store_true", help="call what the record names beside tna_lightning's own")
    parser.add_argument("--c", metavar="FOLDER", help="run the C code that export --format c has written there")
    arguments = parser.parse_args()
    try:
        record = finished_record(arguments.run)
        if not arguments.trust:
            refuse_foreign(arguments.run, record["config"])
        warn_of_changes(record["config"])
        results, device = _evaluate(arguments.run, arguments.data_root, arguments.c, arguments.trust)
        with reading(arguments.run):
            print(title(record))
            for name, value in results.items():
                print(f"{name} {value!r} (recorded: {record['results'].get(name)!r})")
            differing, is_wrong = _compared(record, results, device)
    except Exception as error:
        leave(error)
    if differing and is_wrong:
        sys.exit(f"error: not the recorded results, on the same machine with the same versions: {differing}")
    if differing:
        print(f"warning: not the recorded results: {differing}", file=sys.stderr)


if __name__ == "__main__":
    main()
