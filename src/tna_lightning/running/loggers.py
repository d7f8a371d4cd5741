"""Where metrics go beside ``metrics.csv``: Weights & Biases, TensorBoard, or any Lightning logger."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from tna_lightning.packages import require
from tna_lightning.running.record import NETWORK, Run


def tensorboard_logger(run: Run) -> TensorBoardLogger:
    """Event files under ``tensorboard/`` in the run's folder."""
    return TensorBoardLogger(run.folder, name="tensorboard", version="")


def wandb_logger(
    run: Run,
    *,
    project: str = "tna_lightning",
    entity: str | None = None,
    offline: bool | None = None,
    tags: Sequence[str] = (),
) -> WandbLogger:
    """A W&B run: grouped by study, tagged with the choices, with the resolved config as a plain dict.

    Args:
        run: the run to log; a run that was cut off continues under the id that its record names.
        project: W&B project.
        entity: W&B user or team; None is the key's own.
        offline: record on disk for ``wandb sync``; None means offline unless a key is at hand.
        tags: further tags.
    """
    import wandb

    offline = not _has_key() if offline is None else offline
    identifier = run.record.setdefault("wandb_id", uuid.uuid4().hex[:8])
    choices = run.record["choices"]
    return WandbLogger(
        project=project,
        entity=entity,
        name=run.folder.name,
        id=identifier,
        resume=None if offline else "allow",
        group=run.config["study"] or None,
        job_type=choices.get("baseline"),
        tags=[*(f"{group}:{choice}" for group, choice in choices.items()), *tags],
        save_dir=run.folder,
        offline=offline,
        mode="offline" if offline else "online",  # Lightning sets an environment variable, which wandb reads too late
        config=run.config,
        settings=wandb.Settings(console="off", silent=True),
    )


def _has_key() -> bool:
    import wandb

    return os.environ.get("WANDB_MODE") != "offline" and wandb.login(prompt=False, verify=False)


def check(built: Logger | Callable[[Run], Logger]) -> None:
    """Refuse one of our choices whose package is absent; a Lightning logger has said so when it was built.

    Raises:
        MissingPackage: it is.
    """
    function = getattr(built, "func", None)
    if function is wandb_logger:
        require("wandb")
    elif function is tensorboard_logger:
        require("tensorboard", extra="tensorboard")


@contextmanager
def opened(run: Run, built: Logger | Callable[[Run], Logger] | None) -> Iterator[Logger | None]:
    """The run's logger, or None; it is finished whatever happens.

    Built from the config it is a Lightning logger, or (as in our own choices) a partial that is called with the run.
    """
    logger = built if built is None or isinstance(built, Logger) else built(run)
    succeeded = False
    try:
        yield logger
        succeeded = True
    finally:
        if logger is not None:
            logger.finalize("success" if succeeded else "failed")
        if isinstance(logger, WandbLogger):
            # sequential runs in one process merge into one unless each is finished (wandb#1314)
            logger.experiment.finish(exit_code=0 if succeeded else 1)


def log_summary(logger: Logger | None, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """Hand the run's final figures, its pictures and its kept network to a logger that has a place for them."""
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.summary.update(dict(summary))
        for picture in pictures:
            logger.log_image(picture.stem, [str(picture)])
        for table, columns, rows in (
            ("layers", ("name", "weights", "scheme", "bits", "bytes", "zeros"), summary["weights"]["layers"]),
            ("neurons", ("name", "neurons", "firing_rate"), summary["cost"]["neuron_layers"]),
        ):
            logger.log_table(table, list(columns), [[row.get(column) for column in columns] for row in rows])
        folder = pictures[0].parent
        artifact = wandb.Artifact(folder.name, "model", metadata={"test/acc": summary.get("test/acc")})
        artifact.add_file(str(folder / NETWORK), skip_cache=True)
        logger.experiment.log_artifact(artifact)
