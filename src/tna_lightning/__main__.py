"""The front door: ``python -m tna_lightning model=resnet19 data=cifar100 quant=ternary``."""

from __future__ import annotations

import sys

from tna_lightning.packages import quick_imports
from tna_lightning.running.console import errors_from_hydra, leave
from tna_lightning.running.doors import door, refuse_unknown_flags
from tna_lightning.running.processes import Terminated, interrupts_later


@door
def main() -> None:
    """Run what the command line says; leave with 0 (done), 1 (a run failed), 2 (bad input), or as ``leave`` says."""
    from tna_lightning.running.home import home, own_folder, refuse_hidden, searched_folders

    words = sys.argv[1:]
    try:
        if (own := own_folder(words)) is not None:
            refuse_hidden(own)
        for folder in searched_folders(words):
            refuse_hidden(folder, "hydra.searchpath")
    except ValueError as error:
        leave(error)
    if {"-h", "--help"} & set(words):
        from tna_lightning.running.help import help_text

        print(help_text(own))
        return
    if "--version" in words:
        from importlib.metadata import version  # here, since --help is to be quick

        print(f"tna_lightning {version('tna-lightning')}")
        return
    for flag in {"-m", "--multirun"} & set(sys.argv[1:]):  # Hydra takes settings on one side of it alone
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    try:
        with interrupts_later(), quick_imports():
            import hydra

            from tna_lightning.running.task import job
        refuse_unknown_flags(sys.argv[1:])
        app = hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")(job)
        with errors_from_hydra():
            app()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        from tna_lightning.running.sweep import running_sweep

        if sweep := running_sweep():
            sweep.broken_off(error)
        leave(error)


if __name__ == "__main__":
    main()
