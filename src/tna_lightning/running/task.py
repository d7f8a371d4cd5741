"""What Hydra calls with a composed config: a run in this process, or a job of a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tna_lightning.packages import quick_imports
from tna_lightning.running.config import check, register_resolvers, resolved, write_config
from tna_lightning.running.console import leave
from tna_lightning.running.processes import Terminated, environment_of_child, interrupts_later, training_command
from tna_lightning.running.record import CONFIG, RECORD, Run, remove_if_empty

register_resolvers()  # here, since a launcher's worker imports this module and nothing else of ours


def job(cfg: DictConfig) -> float | None:
    """Hydra's task: one run here, or in a sweep or on several devices in a process of its own.

    Returns:
        in a sweep the validation accuracy (a search maximises it), None if the job failed.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = resolved(cfg, hydra_config)
    if hydra_config.mode == RunMode.MULTIRUN:
        from tna_lightning.running.sweep import sweep_job

        return sweep_job(config, folder)
    try:
        _single_run(config, folder)
    except (
        Exception,
        KeyboardInterrupt,
        Terminated,
    ) as error:  # here, since Hydra would announce it in a line of its own
        leave(error)
    finally:
        remove_if_empty(folder)
    return None


def _single_run(config: dict[str, Any], folder: Path) -> None:
    check(config)  # before torch and Lightning are imported, which takes seconds
    if config["trainer"]["devices"] == 1:
        with interrupts_later(), quick_imports():
            from tna_lightning.running.train import run_and_report

        run_and_report(config, folder)
        return
    # refuses another run's folder before anything is written to it
    before = Run(folder, config).previous() if config["resume"] else None
    was_there = any((folder / name).exists() for name in (CONFIG, RECORD))
    if before is None or before["status"] != "done":
        write_config(config, folder)
    status = subprocess.run(training_command(folder), check=False, env=environment_of_child()).returncode
    if not (was_there or (folder / RECORD).exists()):  # refused
        (folder / CONFIG).unlink()
    if status:
        sys.exit(status if status > 0 else 128 - status)  # as shells say that a signal has ended a process
