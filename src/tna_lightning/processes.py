"""Processes that are started for a run, and end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT = "TNA_LIGHTNING_PARENT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def environment_of_child() -> dict[str, str]:
    """This process's environment, for one that shall end when this one does (:func:`end_with_parent`)."""
    return {**os.environ, _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Get a SIGTERM when the process ends that started this one with :func:`environment_of_child`; Linux only.

    A sweep that is killed must not leave a training behind that goes on holding a GPU: whoever trains gets the warning
    that a cluster would send, saves and leaves. Processes further down, such as other ranks, are their parent's to end.
    """
    parent = os.environ.get(_PARENT)
    if parent is None or not sys.platform.startswith("linux") or parent != str(os.getppid()):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
