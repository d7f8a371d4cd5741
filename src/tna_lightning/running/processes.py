"""Processes that end with the one that started them, on Linux: a killed sweep must leave no training on a GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PARENT, _SWEEP = "TNA_LIGHTNING_PARENT", "TNA_LIGHTNING_SWEEP"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def training_command(folder: Path) -> list[str]:
    """What trains the ``config.yaml`` of a run's folder in a process of its own."""
    return [sys.executable, "-m", "tna_lightning.running.start", str(folder)]


def environment_of_child() -> dict[str, str]:
    """This process's environment, for one that calls :func:`end_with_parent`."""
    return {**os.environ, _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Get a SIGTERM when the process ends that started this one with :func:`environment_of_child`.

    It is the warning that a cluster would send: whoever trains saves and leaves. Processes further down, such as other
    ranks, are their parent's to end.
    """
    _end_with(os.environ.get(_PARENT))


def begin_sweep() -> None:
    """Let the workers that this process starts know that they are its sweep's (:func:`end_with_sweep`)."""
    os.environ[_SWEEP] = str(os.getpid())


def end_with_sweep() -> None:
    """In a launcher's worker: get a SIGTERM when the sweep's process ends, unless the worker is detached from it."""
    sweep = os.environ.get(_SWEEP)
    if sweep == str(os.getppid()) and os.getsid(0) == os.getsid(os.getppid()):
        _end_with(sweep)


def _end_with(parent: str | None) -> None:
    if parent != str(os.getppid()) or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
