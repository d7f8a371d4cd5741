"""The kept network alone on the test set, the companion not even loaded: ``python -m tna_lightning.evaluate RUN``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import lightning

from tna_lightning.learner import TwinLearner
from tna_lightning.objectives import Plain
from tna_lightning.quantization.packing import load_packed
from tna_lightning.running.console import leave, quiet_lightning, title, warn_of_changes
from tna_lightning.running.factory import build_network, data_to_test, network_spec
from tna_lightning.running.record import NETWORK, finished_record


def evaluate(folder: Path | str, data_root: str | None = None) -> dict[str, float]:
    """Test results of a finished run's kept network, by name (``test/acc``, ...), as shares in [0, 1].

    Args:
        folder: the run's folder.
        data_root: where the data are, if not where they were in training.

    Raises:
        ValueError: no finished run, or its data or its kept network are not what they were.
    """
    record = finished_record(folder)
    config = record["config"]
    datamodule = data_to_test(config, data_root)
    datamodule.prepare_data()  # images of the user's own may have to be read before their size is known
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
        objective = Plain(ignore_index=config["objective"].get("ignore_index"))  # 0.1.0 had none
        learner = TwinLearner(network, objective=objective, num_classes=datamodule.num_classes)
        (results,) = trainer.test(learner, datamodule=datamodule, verbose=False)
    # an earlier version may have recorded fewer
    return {name: value for name, value in results.items() if "acc" in name and name in record["results"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tna_lightning.evaluate", description=__doc__)
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--data-root", help="where the data are, if not where they were in training")
    arguments = parser.parse_args()
    try:
        record = finished_record(arguments.run)
        warn_of_changes(record["config"])
        results = evaluate(arguments.run, arguments.data_root)
    except Exception as error:
        leave(error)
    print(title(record))
    for name, value in results.items():
        recorded = record["results"].get(name)
        print(f"{name} {value!r} (recorded: {recorded!r})")
        if recorded != value:
            print(f"warning: {name} is not what was recorded: another device, version, code or data", file=sys.stderr)


if __name__ == "__main__":
    main()
