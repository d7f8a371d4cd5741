"""What every door has: warnings and refused words of one line, and an end that no closed pipe brings about."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn, ParamSpec

from tna_lightning.running.processes import INTERRUPTED, outlive_readers, was_interrupted

_Arguments = ParamSpec("_Arguments")


def door(main: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """The ``main`` of a door, which enters first and ends by Ctrl-C with one line and status 130, as training does."""

    @wraps(main)
    def entered(*arguments: _Arguments.args, **settings: _Arguments.kwargs) -> None:
        enter()
        try:
            main(*arguments, **settings)
        except (KeyboardInterrupt, SystemExit) as error:
            if not was_interrupted(error) or getattr(error, "code", None) == INTERRUPTED:  # the latter has been said
                raise
            print("\ninterrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    return entered


def enter() -> None:
    """Called by a door before all else: what warns later, and by whichever way, prints ``warning: ...`` on stderr."""
    outlive_readers()
    # not formatwarning, which Lightning replaces by its own when it is imported
    warnings.showwarning = _show
    if logging.lastResort is not None:  # of doors whose logging nobody sets up; the others name Lines
        logging.lastResort.setFormatter(Lines())


class Lines(logging.Formatter):
    """The messages alone; of warnings one line each, ``warning: ...``."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, without what a handler's format asks for."""
        if record.levelno < logging.WARNING or record.exc_info:
            return super().format(record)
        return _one_line(record.levelname.lower(), record.getMessage())


class Parser(argparse.ArgumentParser):
    """The command line of a door, whose errors are one line in place of the usage.

    Args:
        door: its name, ``evaluate``.
        text: its docstring, of which the first line describes it.
    """

    def __init__(self, door: str, text: str | None) -> None:
        first = (text or "").partition("\n")[0].replace("``", "")
        super().__init__(prog=f"python -m tna_lightning.{door}", description=first)

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        of_one = message.startswith("argument ")
        message = re.sub(r"^argument (\S+): ('.*?': )?", lambda found: _named(*found.groups("")), message)
        self.exit(2, f"error: {message}{'' if of_one else '; --help lists what there is'}\n")


def refuse_unknown_flags(words: Sequence[str]) -> None:
    """Refuse what the front door does not understand, in place of Hydra's usage.

    Raises:
        ValueError: a flag that there is not, or settings on both sides of the flags.
    """
    from hydra._internal.utils import get_args_parser  # here, since a kept network is asked without Hydra

    _, unknown = get_args_parser().parse_known_args(list(words))
    for word in unknown[:1]:
        if word.startswith("-"):
            raise ValueError(f"{word}: there is no such flag; settings are KEY=VALUE, --help lists what there is")
        raise ValueError(f"{word}: settings must stand together, before the flags or after them")


def _named(option: str, value: str) -> str:
    """``--time-steps='x': `` as settings are named, where the value is at hand."""
    return f"{option}={value}" if value else f"{option}: "


def _show(
    message: Warning | str, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    print(_one_line("warning", str(message)), file=file or sys.stderr)


def _one_line(level: str, message: str) -> str:
    return f"{level}: {' '.join(message.split())}"
