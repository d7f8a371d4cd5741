"""What a comparison is: contestants that do the same work, the check that they do, and the ratios asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], object]
"""One repetition."""


@dataclass(frozen=True)
class Settings:
    """Where and how large.

    Args:
        device: "cpu" or "cuda".
        toy: sizes that take no time, to try the code.
        peers: whether the other libraries take part.
    """

    device: str = "cpu"
    toy: bool = False
    peers: bool = True

    def settle(self) -> None:
        """Wait until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Ratio:
    """Time of the fastest of some contestants over that of the fastest of others."""

    label: str
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Contestants that are timed in one process, in turns.

    Args:
        title: heading on the page.
        sizes: says in words what is measured, for these settings.
        contestants: for these settings, by name, a function that builds a contestant and returns its repetition. An
            `ImportError` while building leaves it out, with its message.
        ratios: what to compare.
        check: given what was built, measured differences between contestants that should agree, as sentences; raises
            `AssertionError` where they do not.
        images: how many images a repetition sees, by contestant, where rates are wanted.
        memory: whether the peak memory of each contestant is measured, in a process of its own.
        repetitions: at most so many, for contestants that take long.
        warm_up: repetitions of each contestant before any is timed.
        system_malloc: leave glibc's memory settings alone, as where a user types the command.
    """

    title: str
    sizes: Callable[[Settings], str]
    contestants: Callable[[Settings], Mapping[str, Callable[[], Run]]]
    ratios: tuple[Ratio, ...] = ()
    check: Callable[[Mapping[str, Any]], list[str]] = field(default=lambda runs: [])
    images: Callable[[Settings], Mapping[str, int]] = field(default=lambda settings: {})
    memory: bool = True
    repetitions: int | None = None
    warm_up: int = 2
    system_malloc: bool = False
