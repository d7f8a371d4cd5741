"""The front door: ``python -m tna_lightning model=resnet19 data=cifar100 quant=ternary``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tna_lightning.console import leave

FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """Run what the command line says; leave with 0 (done), 1 (a run failed) or 2 (bad input)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from tna_lightning.help import help_text

        print(help_text())
        return
    import hydra

    from tna_lightning.config import home, register_resolvers

    register_resolvers()
    app = hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")(_job)
    try:
        with _errors_from_hydra():
            app()
    except Exception as error:
        leave(error)
    if _failed:
        sys.exit(f"{len(_failed)} of the sweep's runs failed:\n" + "\n".join(f"  {folder}" for folder in _failed))


_failed: list[Path] = []


def _job(cfg: Any) -> None:
    """One run; in a sweep, or on several devices, in a process of its own that reads the folder's config."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from tna_lightning import config as configuration

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = configuration.resolved(cfg)
    config["choices"] = configuration.chosen(hydra_config.runtime.choices)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if is_sweep or config["trainer"].get("devices") != 1:
        configuration.check(config)
        configuration.write_config(config, folder)
        status = subprocess.run([sys.executable, "-m", "tna_lightning.train", str(folder)], check=False).returncode
        if status and not is_sweep:
            sys.exit(status)
        if status:
            _failed.append(folder)
        return
    from tna_lightning.train import run_and_report

    run_and_report(config, folder)


@contextmanager
def _errors_from_hydra() -> Iterator[None]:
    """Make Hydra hand errors on to us, instead of printing many lines of its own and leaving."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        del os.environ[FULL_ERROR]
        if before is not None:
            os.environ[FULL_ERROR] = before


if __name__ == "__main__":
    main()
