"""An exported network, compiled and called from Python."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from tna_lightning.packages import MissingPackage

KERNELS = Path(__file__).parent / "kernels"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
FAST = ("-O3", "-march=native", "-ffp-contract=off")  # fused products would differ from machine to machine
_COMMENT = re.compile(rb"/\*.*?\*/", re.DOTALL)  # one says how it was checked, which changes no code


class CNetwork:
    """A network that :func:`~tna_lightning.export.c.export_c` has written, on this processor.

    ``network(pixels)`` maps uint8 images ``[B, C, H, W]``, or event frames ``[B, T, C, H, W]`` of any T, to float32
    logits ``[B, K]``, their mean over time.

    Attributes:
        channels, height, width: of an image or frame.
        num_classes: K.
        class_names: K names.
        time_steps: T of an image; None where the inputs are event frames.
        state_bytes: of one running network.
    """

    def __init__(self, library: ctypes.CDLL, name: str = "network") -> None:
        self._run = getattr(library, f"{name}_bind_run")
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        size = getattr(library, f"{name}_bind_bytes")
        size.restype = ctypes.c_size_t
        self.state_bytes: int = size()
        sizes = (ctypes.c_uint32 * 5)()
        getattr(library, f"{name}_bind_sizes")(sizes)
        self.channels, self.height, self.width, self.num_classes, steps = sizes
        self.time_steps = steps or None
        class_name = getattr(library, f"{name}_bind_class_name")
        class_name.restype = ctypes.c_char_p
        self.class_names = [class_name(ctypes.c_size_t(k)).decode() for k in range(self.num_classes)]

    def __call__(self, pixels: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Logits ``[B, K]``.

        Args:
            pixels: uint8, as they were before any normalisation.
            threads: that share the inputs; by default one a core.

        Raises:
            ValueError: another shape or type.
        """
        pixels, steps = self._checked(pixels)
        logits = np.empty((len(pixels), self.num_classes), dtype=np.float32)
        threads = min(threads or _cores(), len(pixels)) or 1
        if threads == 1:
            self._call(pixels, steps, logits, None)
        else:
            parts = zip(np.array_split(pixels, threads), np.array_split(logits, threads), strict=True)
            with ThreadPoolExecutor(threads) as pool:  # a call lets go of Python's lock
                for done in [pool.submit(self._call, part, steps, out, None) for part, out in parts]:
                    done.result()
        return logits

    def trace(self, pixels: np.ndarray, words: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits of one input, ``[1, K]``, and the words uint64 ``[T, words]`` of each layer's spikes.

        Args:
            pixels: one image or one sequence of frames.
            words: of each layer at one step.
        """
        pixels, steps = self._checked(pixels)
        logits = np.empty((1, self.num_classes), dtype=np.float32)
        calls, at_once = (steps, 1) if self.time_steps is None else (1, self.time_steps)
        trace = np.empty((calls, at_once * sum(words)), dtype=np.uint64)
        self._call(pixels[:1], steps, logits, trace)
        layers = np.split(trace, at_once * np.cumsum(words)[:-1], axis=1)
        return logits, [layer.reshape(calls * at_once, -1) for layer in layers]

    def _checked(self, pixels: np.ndarray) -> tuple[np.ndarray, int]:
        """The inputs as they lie in memory, and their T, 0 for images."""
        frame = (self.channels, self.height, self.width)
        is_events = self.time_steps is None
        fits = pixels.ndim == 4 + is_events and pixels.shape[-3:] == frame
        if not fits or (is_events and pixels.shape[1] == 0):
            wanted = f"[B, {'T, ' * is_events}{', '.join(map(str, frame))}]"
            raise ValueError(f"pixels={list(pixels.shape)}: must be {wanted}")
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels={pixels.dtype}: must be uint8, as they were before any normalisation")
        return np.ascontiguousarray(pixels), pixels.shape[1] if is_events else 0

    def _call(self, pixels: np.ndarray, steps: int, logits: np.ndarray, trace: np.ndarray | None) -> None:
        where = None if trace is None else trace.ctypes.data
        if not self._run(pixels.ctypes.data, len(pixels), steps, logits.ctypes.data, where):
            raise MemoryError(f"{self.state_bytes:,} bytes of state")


def load_c(folder: Path | str) -> CNetwork:
    """The network of a folder that ``export --format c`` has written, compiled for this processor.

    It is compiled once for the same code, compiler and processor: the library stays in the user's cache, in
    ``tna_lightning`` below ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        ValueError: there is no such folder, or it cannot be compiled.
        MissingPackage: there is no C compiler.
    """
    folder = Path(folder)
    if not (folder / "network.c").is_file():
        raise ValueError(f"folder={str(folder)!r}: must hold network.c, as export --format c writes it")
    sources = [folder / "network.c", folder / "tna_kernels.c", KERNELS / "binding.c"]
    built = [*sources, folder / "network.h", folder / "tna_kernels.h"]
    missing = [each.name for each in built if not each.is_file()]
    if missing:
        raise ValueError(f"folder={str(folder)!r}: has no {missing[0]}")
    key = hashlib.sha256(repr((compiler_version(), FAST, _processor())).encode())
    for each in built:
        key.update(_COMMENT.sub(b"", each.read_bytes()))
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tna_lightning"
    library = cached / f"c-{key.hexdigest()[:32]}.so"
    if not library.is_file():
        compile_library(library, sources, folder)
    return CNetwork(ctypes.CDLL(str(library.resolve())))


def compile_library(library: Path, sources: list[Path], include: Path, *flags: str, name: str = "network") -> None:
    """Compile sources into one shared library, as a whole or not at all.

    Raises:
        ValueError: they cannot be compiled.
        MissingPackage: there is no C compiler.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    defines = [f"-DNAME={name}", f"-DUPPER={name.upper()}", f'-DHEADER="{name}.h"', "-DTNA_TRACE"]
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(descriptor)
    try:
        command = [compiler(), *FAST, "-std=c99", "-shared", "-fPIC", *defines, *flags, f"-I{include}"]
        done = subprocess.run(
            [*command, *map(str, sources), "-o", temporary], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise ValueError(f"folder={str(include)!r}: {command[0]} cannot compile it ({reason.strip()})")
        Path(temporary).replace(library)
    finally:
        Path(temporary).unlink(missing_ok=True)


def compiler() -> str:
    """Path of the C compiler: that of the environment's ``CC``, or the first of cc, gcc, clang.

    Raises:
        MissingPackage: there is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise MissingPackage("needs a C compiler: install gcc or clang, or say which in the environment's CC")


@cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def compiler_version() -> str:
    """What the C compiler says of itself."""
    path = compiler()
    return f"{path} {_version(path)}"


@cache
def _processor() -> str:
    """What ``-march=native`` depends on."""
    info = Path("/proc/cpuinfo")
    flags = (
        sorted(set(re.findall(r"^(?:flags|Features)\s*:.*$", info.read_text(), re.MULTILINE))) if info.is_file() else ""
    )
    return f"{platform.machine()} {platform.processor()} {flags}"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
