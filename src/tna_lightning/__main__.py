"""The front door: ``python -m tna_lightning model=resnet19 data=cifar100 quant=ternary``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tna_lightning.console import FULL_ERROR, leave


def main() -> None:
    """Run what the command line says; leave with 0 (done), 1 (a run failed) or 2 (bad input)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from tna_lightning.help import help_text

        print(help_text())
        return
    import hydra

    from tna_lightning.home import home
    from tna_lightning.sweep import job

    app = hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")(job)
    try:
        with _errors_from_hydra():
            app()
    except Exception as error:
        leave(error)


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
