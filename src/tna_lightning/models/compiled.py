"""Code of Inductor, the compiler behind torch.compile, for the time loops of `fused.py`.

On a CPU it is a shared library, built once for a processor and kept in the user's cache, in ``tna_lightning`` below
``XDG_CACHE_HOME`` or ``~/.cache``. Loading it takes milliseconds and needs neither the C++ compiler nor Inductor, whose
import, worker processes and look-ups take seconds in every process. It may be built by another process while this one
trains without it. On CUDA it is compiled in each process, from torch's own cache.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import logging
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

log = logging.getLogger(__name__)

Run = Callable[..., Sequence[Tensor]]

_TRACED_SIZE = 2**20  # N of the tensors that code is compiled with: large, so that it uses all threads
_WORTH = 2**32  # values that pass a loop before it is built in the background: some ten seconds of it
_LOOK = 32  # calls between two looks for what is being built: each look asks the file system
_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Code:
    """What code is for: nothing else can differ between two calls of it.

    torch.compile would find its code by examining, at every call, the arguments and all that the function refers to:
    longer than the loop itself takes over a small batch.

    Attributes:
        function: a time loop of `fused.py`.
        settings: its arguments after the tensors.
        time_steps: T.
        kinds: of each tensor, the dtype, the number of dimensions, and whether it is one value for all neurons
            or one row for all steps.
        device: of the tensors.
        num_threads: of torch, for which code on a CPU is written.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    settings: tuple[Any, ...]
    time_steps: int
    kinds: tuple[tuple[torch.dtype, int, bool], ...]
    device: torch.device
    num_threads: int


def now(code: Code, values: int) -> Run | None:
    """The code if it is there, and None if not yet; it is built in the background once it is worth it.

    Args:
        code: what it is for.
        values: of the currents of this call, which are counted.
    """
    return _waiting(code).look(values) if code.device.type == "cpu" else at_once(code)


@cache
def at_once(code: Code) -> Run:
    """The code, of any N; if it is not there, it is built here and now.

    Raises:
        torch._inductor.exc.InductorError: the compiler fails.
    """
    with torch.inference_mode(False), torch.no_grad():
        if code.device.type != "cpu":
            run: Run = torch._inductor.compile(*_graph(code))
            return run
        library = _library(code)
        if not library.is_file():
            took = _seconds(library)
            log.info("Compiling a time loop of the neurons%s", f", which took {took} s the last time" if took else "")
            build(code)
        try:
            return _load(library)
        except RuntimeError:  # cut short by a full disk, say
            log.warning("%s: cannot be loaded; built again", library)
            library.unlink()
            build(code)
            return _load(library)


class _Waiting:
    """Code that another process may be building, and the calls that did without."""

    def __init__(self, code: Code):
        self.code = code
        self.library = _library(code)
        self.run: Run | None = None
        self.builder: subprocess.Popen[bytes] | None = None
        self.calls = self.values = 0
        self.is_given_up = False

    def look(self, values: int) -> Run | None:
        if self.run is None and not self.is_given_up:
            if self.calls % _LOOK == 0:
                self._look()
            self.calls += 1
            self.values += values
        return self.run

    def _look(self) -> None:
        if self.library.is_file():
            self.run = at_once(self.code)
            if self.builder is not None:
                log.info("The neurons' time loop is compiled: same spikes, less time")
        elif self.builder is not None:
            if self.builder.poll() is not None and not self.library.is_file():
                self.is_given_up = True
                log.warning("Neurons go on uncompiled: the compiler failed, see compile=neurons")
        elif self.values >= _WORTH:
            took = _seconds(self.library)
            log.info(
                "Compiling a time loop of the neurons beside the training%s",
                f", which took {took} s the last time" if took else "",
            )
            self.builder = _build_elsewhere(self.code)


@cache
def _waiting(code: Code) -> _Waiting:
    return _Waiting(code)


def _build_elsewhere(code: Code) -> subprocess.Popen[bytes]:
    """Another process that builds it, and ends with this one."""
    program = f"""
import os, pickle, sys
from {__name__} import build
if hasattr(os, "nice"):
    os.nice(10)  # the training comes first
build(pickle.load(sys.stdin.buffer))
"""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
    atexit.register(process.terminate)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(code))
    process.stdin.close()
    return process


def build(code: Code) -> None:
    """Compile it into its library in the cache, which is there as a whole or not at all; one process at a time.

    Raises:
        torch._inductor.exc.InductorError: the compiler fails.
    """
    library = _library(code)
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.parent / "loops.lock"):
        if library.is_file():  # another process was quicker
            return
        start = time.monotonic()
        threads = torch.get_num_threads()
        torch.set_num_threads(code.num_threads)
        try:
            with (
                tempfile.TemporaryDirectory() as folder,
                torch.inference_mode(False),
                torch.no_grad(),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # of torch's own, about itself
                made = torch._inductor.aot_compile(
                    *_graph(code), options={"aot_inductor.output_path": str(Path(folder, "loop.so"))}
                )
                copy = library.with_suffix(".new")
                shutil.copyfile(str(made), copy)
                copy.replace(library)
        finally:
            torch.set_num_threads(threads)
        _said(library).write_text(f"{time.monotonic() - start:.0f}\n")


def _graph(code: Code) -> tuple[torch.fx.GraphModule, Any]:
    """The loop's operations for any N, and what stands for its tensors."""
    examples = []
    for dtype, ndim, is_one in code.kinds:
        shape = (code.time_steps, _TRACED_SIZE)[2 - ndim :]
        example = torch.empty(shape, dtype=dtype, device=code.device)
        examples.append(example[:1].expand((*shape[:-1], -1)) if is_one else example)

    def loop(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = code.function(*tensors, *code.settings)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    graph = make_fx(loop, tracing_mode="symbolic")(*examples)
    return graph, tuple(node.meta["val"] for node in graph.graph.find_nodes(op="placeholder"))


def _load(library: Path) -> Run:
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    return lambda *tensors: runner.run(list(tensors))


@cache
def _library(code: Code) -> Path:
    """Where its library lies, named by all that it depends on: the loop's source or its operations among them."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tna_lightning"
    what = [torch.__version__, _processor(), code.time_steps, code.kinds, code.num_threads]
    if all(type(each).__module__.partition(".")[0] in ("builtins", _PACKAGE) for each in code.settings):
        what += [code.function.__qualname__, repr(code.settings), _sources()]
    else:  # a surrogate of one's own, whose source may lie anywhere
        with torch.inference_mode(False), torch.no_grad():
            what.append(_graph(code)[0].code)
    return folder / f"loop-{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.so"


def _said(library: Path) -> Path:
    return library.with_name("loop-seconds")


def _seconds(library: Path) -> str:
    """How long compiling took the last time, or nothing."""
    return _said(library).read_text().strip() if _said(library).is_file() else ""


@cache
def _sources() -> str:
    """A hash of what the loops are written in."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("compiled", "fused", "surrogates")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _processor() -> str:
    """What code for this very processor depends on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:.*$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return f"{platform.machine()} {platform.processor()} {found[0] if found else ''}"


@cache
def has_compiler(device_type: str) -> bool:
    """Whether torch.compile can work for this kind of device; the log says what is missing, once."""
    missing = []
    if device_type == "cpu":
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
            missing.append("a C++ compiler (g++ or clang++)")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            missing.append("Python.h (package python3-dev)")
    elif importlib.util.find_spec("triton") is None:
        missing.append("triton")
    if missing:
        log.warning("Neurons run uncompiled on %s: %s not found", device_type, " and ".join(missing))
    return not missing
