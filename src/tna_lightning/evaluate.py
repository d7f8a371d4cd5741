"""The kept network alone on the test set, the companion not even loaded: ``python -m tna_lightning.evaluate RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch

from tna_lightning.data.batch import Batch
from tna_lightning.export.c.library import CNetwork, load_c
from tna_lightning.learner import TwinLearner
from tna_lightning.quantization.packing import load_packed
from tna_lightning.running.console import leave, quiet_lightning, title, warn_of_changes
from tna_lightning.running.factory import build_network, data_to_test, network_spec
from tna_lightning.running.record import NETWORK, finished_record


def evaluate(folder: Path | str, data_root: str | None = None, c: Path | str | None = None) -> dict[str, float]:
    """Test results of a finished run's kept network, by name (``test/acc``, ...), as shares in [0, 1].

    Args:
        folder: the run's folder.
        data_root: where the data are, if not where they were in training.
        c: a folder that ``export --format c`` has written; its code is run in the network's place.

    Raises:
        ValueError: no finished run, or its data or its kept network are not what they were.
    """
    config = finished_record(folder)["config"]
    datamodule = data_to_test(config, data_root)
    datamodule.prepare_data()  # images of the user's own may have to be read before their size is known
    if c is not None:
        return _evaluate_c(load_c(c), datamodule)
    network = build_network(network_spec(config, datamodule), channels_last=config.get("channels_last", False))
    load_packed(Path(folder) / NETWORK, network)
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=config["trainer"]["accelerator"],
            devices=1,
            precision=config["trainer"]["precision"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        learner = TwinLearner(network, num_classes=datamodule.num_classes)
        (results,) = trainer.test(learner, datamodule=datamodule, verbose=False)
    return {name: value for name, value in results.items() if "acc" in name}


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
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tna_lightning.evaluate", description=__doc__)
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--data-root", help="where the data are, if not where they were in training")
    parser.add_argument("--c", metavar="FOLDER", help="run the C code that export --format c has written there")
    arguments = parser.parse_args()
    try:
        record = finished_record(arguments.run)
        warn_of_changes(record["config"])
        results = evaluate(arguments.run, arguments.data_root, arguments.c)
    except Exception as error:
        leave(error)
    print(title(record))
    for name, value in results.items():
        print(f"{name} {value!r} (recorded: {record['results'].get(name)!r})")


if __name__ == "__main__":
    main()
