"""Processes for the jobs of a sweep that begin with torch and Lightning imported: forks of a server that has them.

A job stays a process of its own, which a crash or a signal ends alone; it is spared the seconds of its imports.
Each process that starts jobs has its server, which ends with it, and its jobs with it (:func:`end_with_parent`). Not
beside CUDA, which survives no fork once it has been asked anything.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tna_lightning.running.processes import begin_serving, environment_of_child

_PRELOADED = ["tna_lightning.running.served"]


def train_warm(folder: Path, log: Path, environment: Mapping[str, str]) -> int:
    """Train the ``config.yaml`` of a run's folder in a fork of this process's server.

    Args:
        folder: of the run.
        log: file that its output is added to.
        environment: of the job, as a whole.

    Returns:
        Its exit status, negative for the signal that ended it.
    """
    begin_serving()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    child = context.Process(target=_job, args=(str(folder), str(log), dict(environment)))
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # a child is told it, and does not know joblib's "loky"
    try:
        child.start()
    finally:
        multiprocessing.set_start_method(usual, force=True)
    try:
        child.join()
    finally:
        child.join()  # after Ctrl-C, which reaches both, until the job has said so in its record
    assert child.exitcode is not None
    return child.exitcode


def _job(folder: str, log: str, environment: dict[str, str]) -> None:
    from tna_lightning.running import served, start

    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(environment_of_child(os.getppid()))  # the server's
    with Path(log).open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [start.__file__, folder]
    here = str(Path.cwd())
    if here not in sys.path:  # where python -m looks first
        sys.path.insert(0, here)
    try:
        served.main([folder])
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
