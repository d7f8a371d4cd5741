"""AEDAT 4 files through the package aedat, in a process of its own: on some damaged files it ends its process.

This file is both sides. Run as a script it is that process: it imports nothing of this package, takes paths as lines of
JSON, answers each with one line of JSON and the columns' bytes, and leaves after some idle seconds or with its caller.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

COLUMNS = {"t": "<i8", "x": "<u2", "y": "<u2", "p": "u1"}
IDLE_SECONDS = 10.0
MOST_MEMORY = 4 << 30  # bytes of address space; compressed packets may say that they become any size


class DecodingError(ValueError):
    """What is wrong with a file."""


class _Decoder:
    """The process, started when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        answer = self._ask(path)
        if answer is None:  # it may have left, idle, just before
            answer = self._ask(path)
        if answer is None:
            raise DecodingError("its decoder breaks down")
        head = json.loads(answer)
        if "error" in head:
            raise DecodingError(head["error"])
        assert self._process is not None
        assert self._process.stdout is not None
        columns = {}
        for name, dtype in COLUMNS.items():
            size = head["events"] * np.dtype(dtype).itemsize
            content = self._process.stdout.read(size)
            if len(content) < size:
                raise DecodingError("its decoder breaks down")
            columns[name] = np.frombuffer(content, dtype)
        height, width = head["sensor"]
        return columns, (height, width)

    def _ask(self, path: Path) -> bytes | None:
        """The first line of the answer; None where the process left without one for another reason than the file."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # where the decoder says how it breaks down
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line:
            return line
        if self.close() != 0:
            raise DecodingError("its decoder breaks down")
        return None

    def close(self) -> int:
        """End the process; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(BrokenPipeError):
            process.communicate()
        return process.wait()


_decoders: dict[int, _Decoder] = {}  # by process: one that was forked must not share its parent's


def decode(path: Path) -> dict[str, np.ndarray]:
    """The columns ``t`` (int64, microseconds), ``x``, ``y`` (uint16) and ``p`` (uint8) of a file's events.

    Raises:
        DecodingError: the file is cut short or damaged, or holds no events.
    """
    return _decoder().read(path)[0]


def sensor_of(path: Path) -> tuple[int, int]:
    """``(H, W)`` of the camera, as a file says it; raises as :func:`decode`."""
    return _decoder().read(path)[1]


def _decoder() -> _Decoder:
    if os.getpid() not in _decoders:
        _decoders[os.getpid()] = decoder = _Decoder()
        atexit.register(decoder.close)
    return _decoders[os.getpid()]


def _serve() -> None:
    import resource

    import aedat

    # so that whatever prints cannot get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        try:
            decoder = aedat.Decoder(json.loads(line))
            streams = {number: each for number, each in decoder.id_to_stream().items() if each["type"] == "events"}
            if not streams:
                raise ValueError("it has no stream of events")
            first = min(streams)
            sensor = streams[first]["height"], streams[first]["width"]
            packets = [packet["events"] for packet in decoder if packet["stream_id"] == first]
            columns = [
                np.concatenate([packet[packet.dtype.names[index]] for packet in packets] or [[]]).astype(dtype)
                for index, dtype in enumerate(COLUMNS.values())
            ]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of aedat's Rust code are BaseExceptions
            answers.write(json.dumps({"error": " ".join(str(error).split())}).encode() + b"\n")
        else:
            answers.write(json.dumps({"events": len(columns[0]), "sensor": sensor}).encode() + b"\n")
            for column in columns:
                answers.write(column.tobytes())
        answers.flush()


if __name__ == "__main__":
    _serve()
