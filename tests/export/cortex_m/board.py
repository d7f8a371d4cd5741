"""An exported folder, compiled by its own Makefile for a Cortex-M and run on a board that qemu emulates."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm", "make")
BOARDS = {
    "cortex-m4": ("mps2-an386", "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16"),
    "cortex-m0": ("mps2-an385", "-mcpu=cortex-m0 -mthumb"),  # no float unit, no unaligned access; runs on a Cortex-M3
}


def missing_tools():
    """Those that are not installed (`make cross` installs them)."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@dataclass
class Answer:
    """What a board computed, and what it took.

    Attributes:
        logits: float32 ``[N, K]``.
        flash: bytes of ``network.o`` and ``tna_kernels.o``, code and tables.
        state: bytes of the struct of the network's state.
        stack: bytes, with those of what calls it.
    """

    logits: np.ndarray
    flash: int
    state: int
    stack: int


def run_on_board(folder, pixels, cpu):
    """Run a network for images on a board.

    Args:
        folder: as `export --format c` has written it; what is compiled is left there.
        pixels: uint8 ``[N, C, H, W]``.
        cpu: of `BOARDS`.
    """
    folder = Path(folder)
    machine, architecture = BOARDS[cpu]
    command = ["make", "-s", "-C", folder, "clean", "objects", "CC=arm-none-eabi-gcc", "CFLAGS=-Os"]
    run([*command, f"ARCH={architecture}"])
    objects = [folder / "network.o", folder / "tna_kernels.o"]
    sizes = [
        [int(word) for word in line.split()[:3]] for line in run(["arm-none-eabi-size", *objects]).splitlines()[1:]
    ]
    assert [size[1:] for size in sizes] == [[0, 0]] * 2  # no mutable data
    rows = ",\n".join("{" + ", ".join(map(str, image.reshape(-1).tolist())) + "}" for image in pixels)
    (folder / "images.h").write_text(f"static const uint8_t images[][{pixels[0].size}] = {{\n{rows}\n}};\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Os", *architecture.split(), "-nostartfiles", f"-I{folder}"]
    program = folder / "board.elf"
    run(["arm-none-eabi-gcc", *flags, HERE / "main.c", *objects, "-T", HERE / "link.ld", "-o", program])
    emulator = ["qemu-system-arm", "-M", machine, "-display", "none", "-monitor", "none", "-serial", "none"]
    *logits, last = run([*emulator, "-semihosting-config", "enable=on,target=native", "-kernel", program]).splitlines()
    bits = np.array([[int(word, 16) for word in line.split()] for line in logits], dtype=np.uint32)
    state, stack = (int(word, 16) for word in re.fullmatch(r"(\w{8}) (\w{8})", last).groups())
    return Answer(bits.view(np.float32), sum(size[0] for size in sizes), state, stack)


def run(command):
    """What a command prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
