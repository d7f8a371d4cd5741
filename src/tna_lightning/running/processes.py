"""Processes that end with the one that started them, on Linux: a killed sweep must leave no training on a GPU.

And signals: SIGTERM ends all processes of a run, Ctrl-C waits until modules are imported. A pipe that nobody reads any
more (``| head``) ends nothing.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT  # as shells have it
GRACE_SECONDS = 30.0  # as Slurm and Kubernetes leave by default between SIGTERM and SIGKILL

_PARENT, _SWEEP, _FIRST = "TNA_LIGHTNING_PARENT", "TNA_LIGHTNING_SWEEP", "TNA_LIGHTNING_FIRST"
_SERVED = "TNA_LIGHTNING_SERVED"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def training_command(folder: Path) -> list[str]:
    """What trains the ``config.yaml`` of a run's folder in a process of its own."""
    return [sys.executable, "-m", "tna_lightning.running.start", str(folder)]


def environment_of_child(parent: int | None = None) -> dict[str, str]:
    """This process's environment, for a child of it, or of this parent, that calls :func:`end_with_parent`."""
    return {**os.environ, _PARENT: str(parent or os.getpid())}


def end_with_parent() -> None:
    """Get a SIGTERM when the process ends that started this one with :func:`environment_of_child`.

    It is the warning that a cluster would send: whoever trains says so in its record and leaves. A further process of
    a run on several devices is killed where the first one ends, which started it: it may be waiting for it, in C code
    that no handler of a signal interrupts.
    """
    _end_with(os.environ.get(_PARENT))
    _end_with(os.environ.get(_FIRST), signal.SIGKILL)


def begin_serving() -> None:
    """Let the server that this process starts know whose it is (:func:`end_server_with_parent`)."""
    os.environ[_SERVED] = str(os.getpid())


def end_server_with_parent() -> None:
    """In a server that processes are forked from: be killed when the process ends that started it.

    It would find out by itself, but then waits for threads of what it has imported.
    """
    _end_with(os.environ.get(_SERVED), signal.SIGKILL)


def begin_sweep() -> None:
    """Let the workers that this process starts know that they are its sweep's (:func:`end_with_sweep`)."""
    os.environ[_SWEEP] = str(os.getpid())


def end_with_sweep() -> None:
    """In a launcher's worker: get a SIGTERM when the sweep's process ends, unless the worker is detached from it."""
    sweep = os.environ.get(_SWEEP)
    if sweep == str(os.getppid()) and os.getsid(0) == os.getsid(os.getppid()):
        _end_with(sweep)


def _end_with(parent: str | None, by: int = signal.SIGTERM) -> None:
    if parent != str(os.getppid()) or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != int(parent):  # it ended before it could be watched
        os.kill(os.getpid(), by)


class Terminated(SystemExit):
    """SIGTERM has ended a training; a process that does not catch it leaves with :data:`TERMINATED`."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def was_interrupted(error: BaseException) -> bool:
    """Whether an error comes from Ctrl-C; Lightning turns that into a ``SystemExit``."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__ or error.__cause__, KeyboardInterrupt)
    )


def end_together(trainer: lightning.Trainer) -> None:
    """Let SIGTERM end all processes of a run on several devices after the same step.

    Lightning's own handler sends the others word from within, while they may be waiting for another message: then all
    wait for ever (Lightning#20806). Here the handler makes a note, and before each step the processes tell each other
    their notes, in place of Lightning's message of the same kind. Where no step comes in :data:`GRACE_SECONDS`, because
    a process waits for one that is gone, this one ends without a word.
    """
    if trainer.num_devices * trainer.num_nodes == 1:
        return
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    asked = threading.Event()

    def tell_each_other() -> None:
        flag = torch.tensor([asked.is_set()], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if flag.item():
            raise SIGTERMException

    trainer._signal_connector._sigterm_notifier_fn = lambda *_: asked.set()  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = tell_each_other  # type: ignore[method-assign]
    os.environ[_FIRST] = str(os.getpid())  # for those that the trainer is about to start
    _limit_time_after_sigterm(trainer)


def _limit_time_after_sigterm(trainer: lightning.Trainer) -> None:
    """In a thread of its own, which goes on where the main one waits in C code, and Python's handlers with it."""
    if threading.current_thread() is not threading.main_thread():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 1):
            pass
        time.sleep(GRACE_SECONDS)
        for process in getattr(trainer.strategy.launcher, "procs", ()):
            process.kill()
        os._exit(TERMINATED)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Let Ctrl-C wait for the end of this block: an import that is broken off leaves half a module behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: noted.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted and callable(before):
        before(*noted[0])


def outlive_readers() -> None:
    """Let this process go on where nobody reads what it prints, as behind ``| head``: that is lost, and nothing else.

    The same for a standard output or error that was closed when the process began.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            stream.flush()
            raw = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            lines = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, **lines))


class _Pipe(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)
