"""Files that are written as a whole or not at all, and nothing of what a killed process has left of them."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SUFFIX = ".unfinished"


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary file beside ``path``, moved to its place if all goes well and removed if not.

    What killed processes have left of their attempts at the same file is removed first.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_litter(path)
    try:
        with _locked_temporary(path, tempfile.mkstemp) as temporary:
            try:
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write that fails names no file
            error.filename = str(path)
        raise


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for what is to be moved there; removed at the end, and by a later call if killed."""
    remove_litter(path)
    with _locked_temporary(path, _make_folder) as temporary:
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary)


def remove_litter(path: Path) -> None:
    """Remove the temporary files and folders beside ``path`` whose writers are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{SUFFIX}"):
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except OSError:  # its writer has just finished, or it is another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
        except OSError:  # its writer is at work, or this file system has no locks that would tell
            pass
        finally:
            os.close(descriptor)


@contextmanager
def _locked_temporary(path: Path, make: Callable[..., tuple[int, str]]) -> Iterator[Path]:
    """A temporary file or folder under a lock, which the system takes off when its process ends, however it ends."""
    while True:
        descriptor, name = make(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
        try:
            with suppress(OSError):  # on a file system without locks nothing is taken for litter
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                yield Path(name)
                return
        finally:
            os.close(descriptor)
        # another process took it for litter before it was locked


def _make_folder(**settings: Any) -> tuple[int, str]:
    name = tempfile.mkdtemp(**settings)
    return os.open(name, os.O_RDONLY), name


def write_text(path: Path | str, text: str) -> None:
    """Replace a text file as a whole or, if anything fails, not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path | str, content: bytes | memoryview) -> None:
    """Replace a file as a whole or, if anything fails, not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
