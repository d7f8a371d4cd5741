"""From a command to its answer: `--help`, and the first training step with and without compiled code on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.machine import ROOT

HELP = [sys.executable, "-m", "tna_lightning", "--help"]
TRAIN = [sys.executable, "-m", "benchmarks.speed.first_step"]


def _command(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"


def _caches(folder: str) -> dict[str, str]:
    """Where compiled code is kept: ours and torch's."""
    return {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": folder}


def _first_step(settings: Settings, way: str, cold: bool) -> Run:
    kept = tempfile.TemporaryDirectory()
    accelerator = "gpu" if settings.device == "cuda" else "cpu"

    def run(cache: str | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"compile={way}", f"output_dir={folder}", f"trainer.accelerator={accelerator}", "quant=none"]
            _command([*TRAIN, *overrides, "baseline=plain"], **_caches(cache or kept.name))

    def run_cold() -> None:
        with tempfile.TemporaryDirectory() as cache:
            run(cache)

    if cold:
        return run_cold
    run()
    return run


def _help(settings: Settings) -> dict[str, Callable[[], Run]]:
    return {
        "python -m tna_lightning --help": lambda: lambda: _command(HELP),
    }


def _first_steps(settings: Settings) -> dict[str, Callable[[], Run]]:
    return {
        "compile=none": lambda: _first_step(settings, "none", cold=False),
        "compile=auto, cold": lambda: _first_step(settings, "auto", cold=True),
        "compile=neurons, cold": lambda: _first_step(settings, "neurons", cold=True),
        "compile=neurons, warm": lambda: _first_step(settings, "neurons", cold=False),
        "compile=network, cold": lambda: _first_step(settings, "network", cold=True),
        "compile=network, warm": lambda: _first_step(settings, "network", cold=False),
    }


COMPARISONS = {
    "help": Comparison(
        title="Help",
        sizes=lambda settings: "From the command to its end, after two runs that are not counted.",
        contestants=_help,
        memory=False,
        system_malloc=True,
        ratios=(),
    ),
    "first_step": Comparison(
        title="From command to first training step",
        sizes=lambda settings: (
            "python -m tna_lightning on the embedded digits, plain, full precision: from the command to the end of the "
            "first optimizer step. Cold: empty folders for compiled code (XDG_CACHE_HOME, TORCHINDUCTOR_CACHE_DIR) "
            "each time; warm: such as an earlier run has filled."
        ),
        contestants=_first_steps,
        memory=False,
        system_malloc=True,
        repetitions=3,
        warm_up=0,
        ratios=(
            Ratio("neurons, cold over warm", ("compile=neurons, cold",), ("compile=neurons, warm",)),
            Ratio("network, cold over warm", ("compile=network, cold",), ("compile=network, warm",)),
        ),
    ),
}
