"""Where metrics go beside ``metrics.csv``: Weights & Biases, TensorBoard, or any Lightning logger."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from tna_lightning.packages import require
from tna_lightning.running.record import NETWORK, Run

log = logging.getLogger(__name__)

# W&B's own variable and what it may say; dryrun is the former name of offline
MODES = ("online", "offline", "dryrun", "disabled")


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

    Its id stands in the run's record from the start. ``WANDB_MODE=disabled`` keeps and sends nothing.

    Args:
        run: the run to log; a run that was cut off continues under the id that its record names.
        project: W&B project.
        entity: W&B user or team; None is the key's own.
        offline: record on disk for ``wandb sync``; None means offline unless a key is at hand.
        tags: further tags.
    """
    import wandb

    offline = not _has_key() if offline is None else offline
    mode = "disabled" if _asked_mode() == "disabled" else "offline" if offline else "online"
    if "wandb_id" not in run.record and not getattr(rank_zero_only, "rank", 0):  # the first process keeps the records
        run.write(wandb_id=uuid.uuid4().hex[:8])
    choices = run.record["choices"]
    return WandbLogger(
        project=project,
        entity=entity,
        name=run.folder.name,
        id=run.record.get("wandb_id"),
        resume=None if offline else "allow",
        group=run.config["study"] or None,
        job_type=choices.get("baseline"),
        tags=[*(f"{group}:{choice}" for group, choice in choices.items()), *tags],
        save_dir=run.folder,
        offline=mode == "offline",
        mode=mode,  # Lightning sets an environment variable, which wandb reads too late
        config=run.config,
        settings=wandb.Settings(console="off", silent=True),
    )


def _asked_mode() -> str | None:
    """What ``WANDB_MODE`` says.

    Raises:
        ValueError: it is none of W&B's modes.
    """
    mode = os.environ.get("WANDB_MODE") or None
    if mode is not None and mode not in MODES:
        raise ValueError(f"the variable WANDB_MODE={mode!r}: allowed are {', '.join(MODES)}")
    return mode


def _has_key() -> bool:
    import wandb

    if _asked_mode() in ("offline", "dryrun", "disabled"):
        return False
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise ValueError(f"WANDB_API_KEY: {' '.join(str(error).split())}") from error


def check(built: Logger | Callable[[Run], Logger]) -> None:
    """Refuse one of our choices whose package is absent; a Lightning logger has said so when it was built.

    Raises:
        MissingPackage: it is.
        ValueError: W&B's mode is none.
    """
    function = getattr(built, "func", None)
    if function is wandb_logger:
        require("wandb")
        _asked_mode()
    elif function is tensorboard_logger:
        require("tensorboard", extra="tensorboard")


@contextmanager
def opened(run: Run, built: Logger | Callable[[Run], Logger] | None) -> Iterator[Logger | None]:
    """The run's logger, or None; it is finished whatever happens.

    Built from the config it is a Lightning logger, or (as in our own choices) a partial that is called with the run.
    """
    logger = built if built is None or isinstance(built, Logger) else built(run)
    if isinstance(logger, WandbLogger):
        _begin(logger)
    succeeded = False
    try:
        yield logger
        succeeded = True
    finally:
        if logger is not None:
            with _told(logger):  # what is trained stays trained
                logger.finalize("success" if succeeded else "failed")
                if isinstance(logger, WandbLogger):
                    # sequential runs in one process merge into one unless each is finished (wandb#1314)
                    logger.experiment.finish(exit_code=0 if succeeded else 1)


def _begin(logger: WandbLogger) -> None:
    """Begin the W&B run now, since the first metric would, and again whoever closed it after it could not.

    Raises:
        ConnectionError: its server cannot be reached, or refuses.
    """
    import wandb

    try:
        _ = logger.experiment
    except (wandb.errors.Error, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"logger=wandb: W&B did not begin a run ({reason}); logger.offline=true records it for `wandb sync`"
        ) from error


@contextmanager
def _told(logger: Logger) -> Iterator[None]:
    """Make a warning of what a logger cannot do: a run is not failed because of it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s could not keep the end of this run (%s)", type(logger).__name__, reason)


def log_summary(logger: Logger | None, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """Hand the run's final figures, its pictures and its kept network to a logger that has a place for them."""
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    with _told(logger):
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
