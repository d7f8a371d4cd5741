"""Fetching files once: resumed, checked, and safe when several processes ask at the same time.

Why not pooch (1.9.0): it checks and renames as we do, but starts a broken download over (CIFAR10-DVS has gigabytes),
lets several processes fetch the same file at once, calls a web page for people a wrong checksum, and wants one more
package for a progress bar. All that would have to be handed to it, and it would save the six lines of `check`.
"""

from __future__ import annotations

import errno
import hashlib
import tarfile
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tna_lightning.files import temporary_folder

CHUNK = 1 << 18


class DownloadError(FileNotFoundError):
    """A file is not there and could not be fetched; the message says which one, from where, and where to put it."""


def check(path: Path, checksum: str) -> None:
    """Compare a file with ``<algorithm>:<hex digest>``, as in ``md5:c32a1d4a...``.

    Raises:
        ValueError: the file differs, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, must be the file itself; move or rename it")
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise ValueError(f"{path}: {algorithm} is {found}, must be {expected}; fetch the file again")


def download(url: str, path: Path, checksum: str, *, timeout: float = 30.0) -> Path:
    """Fetch ``url`` to ``path``, with a progress bar, unless it is there already.

    The file grows as ``<path>.part``, which a later call continues, and takes its name only when complete and checked.
    Of several processes one fetches, under ``<path>.lock``, and the others wait for it.

    Args:
        url: http or https address.
        path: where the file goes; folders are made.
        checksum: ``<algorithm>:<hex digest>``.
        timeout: seconds without an answer after which the server counts as silent.

    Raises:
        DownloadError: no network, an error or a web page for an answer, or an answer that breaks off.
        ValueError: the file is complete, here or there, and not the one that ``checksum`` names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(f"{path}.lock"):
        if path.exists():
            check(path, checksum)
            return path
        try:
            while not _fetch(url, part, timeout):
                pass
        except (OSError, HTTPException) as error:
            raise DownloadError(
                f"{path} is missing and could not be fetched: {error}\n"
                f"Fetch {url} yourself and put it there, or try again: what has arrived is kept."
            ) from error
        try:
            check(part, checksum)
        except ValueError:
            part.unlink()
            raise
        part.replace(path)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive whose only top folder is called ``folder.name``, unless that is there and not empty.

    It is unpacked beside its destination and renamed at the end, so that ``folder`` is complete or absent.

    Raises:
        ValueError: the archive is damaged, has another top folder, or wants to write outside of it.
    """
    with FileLock(f"{folder}.lock"):
        if folder.exists() and any(folder.iterdir()):
            return folder
        with temporary_folder(folder) as temporary:
            try:
                with tarfile.open(archive) as tar:
                    tar.extractall(temporary, filter="data")
            except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
                raise ValueError(f"{archive}: is damaged ({error}); fetch the file again") from error
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
                    raise  # of the disk, not of the names in the archive
                raise ValueError(f"{archive}: is damaged ({error.strerror}); fetch the file again") from error
            unpacked = temporary / folder.name
            if not unpacked.is_dir():
                raise ValueError(f"{archive}: must contain the folder {folder.name}")
            unpacked.replace(folder)
    return folder


def _fetch(url: str, part: Path, timeout: float) -> bool:
    """Append what is missing to ``part``; False where the answer broke off after some progress."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing lies beyond what we have: the checksum tells whether it is the file
            return True
        raise
    with response:
        if response.headers.get_content_type() == "text/html" or response.status not in (200, 206):
            raise OSError(f"the server answers with a web page for people (status {response.status})")
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        if length is not None and not length.isdecimal():
            raise OSError(f"the server says that the file has {length!r} bytes")
        total = None if length is None else int(length) + (have if resumed else 0)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with part.open("ab" if resumed else "wb") as file, Progress(*columns) as progress:
            task = progress.add_task(part.stem, total=total, completed=file.tell())
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    size = part.stat().st_size
    if total is None or size == total:
        return True
    if size <= have:
        raise OSError(f"the answer broke off after {size} of {total} bytes")
    return False
