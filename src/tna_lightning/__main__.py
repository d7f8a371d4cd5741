"""The front door: ``python -m tna_lightning model=resnet19 data=cifar100 quant=ternary``."""

from __future__ import annotations

import sys

from tna_lightning.packages import quick_imports
from tna_lightning.running.console import errors_from_hydra, leave


def main() -> None:
    """Run what the command line says; leave with 0 (done), 1 (a run failed) or 2 (bad input)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from tna_lightning.running.help import help_text

        print(help_text())
        return
    for flag in {"-m", "--multirun"} & set(sys.argv[1:]):  # Hydra takes settings on one side of it alone
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    with quick_imports():
        import hydra

        from tna_lightning.running.home import home
        from tna_lightning.running.task import job

    app = hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")(job)
    try:
        with errors_from_hydra():
            app()
    except (Exception, KeyboardInterrupt) as error:
        from tna_lightning.running.sweep import running_sweep

        if sweep := running_sweep():
            sweep.broken_off(error)
        leave(error)


if __name__ == "__main__":
    main()
