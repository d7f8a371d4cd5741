"""Published test accuracies, for orientation beside our own rows.

Networks, time steps, recipes and splits differ from ours and among each other: they say where the
field stands and are no baselines. ``source`` tells how sure a number is: ``paper`` (the paper itself), ``quoted`` (in
another paper's table), ``third party`` (a summary that could not be checked).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """One accuracy in percent."""

    work: str
    network: str
    time_steps: str
    precision: str
    data: str
    accuracy: float
    source: str


_DATA = ("cifar10", "cifar100", "cifar10dvs")
_ROWS: tuple[tuple[str, str, str, str, tuple[float | None, float | None, float | None], str], ...] = (
    ("tdBN 2021", "ResNet-19", "4 (DVS 10)", "full", (92.92, None, 67.80), "quoted"),
    ("TET 2022", "ResNet-19; VGGSNN (DVS)", "4 (DVS 10)", "full", (94.44, 74.47, 83.17), "quoted"),
    ("TEBN 2022", "ResNet-19; VGGSNN (DVS)", "4 (DVS 10)", "full", (95.58, 78.71, 84.90), "quoted"),
    ("KDSNN 2023", "ResNet-18", "4", "full", (93.41, None, None), "quoted"),
    ("BKDSNN 2024", "ResNet-19", "4", "full", (94.64, 74.95, None), "quoted"),
    ("TKS 2024", "ResNet-19; VGGSNN (DVS)", "4 (DVS 10)", "full", (96.35, 79.89, 85.30), "quoted"),
    (
        "logit KD 2025 (arXiv 2501.15925)",
        "ResNet-19; ResNet-18 (DVS)",
        "4 (DVS 10)",
        "full",
        (96.97, 82.47, 86.40),
        "third party",
    ),
    ("Strong2Weak 2025", "ResNet-19; VGGSNN (DVS)", "4 (DVS 10)", "full", (96.62, 81.83, 85.60), "paper"),
    ("Weak2Strong 2025", "ResNet-19; VGGSNN (DVS)", "4 (DVS 10)", "full", (96.66, 82.02, 86.70), "paper"),
    ("DS-ATGO 2026", "ResNet-19; VGGSNN (DVS)", "2 (DVS 10)", "full", (96.91, 80.59, 83.70), "paper"),
    ("CKDSNN 2026", "ResNet-19; ResNet-20 (DVS)", "4 (DVS 10)", "full", (97.81, 83.88, 81.55), "third party"),
    ("ternarised SNN (Wu et al. 2022)", "not stated", "4", "ternary", (89.07, 65.24, None), "paper"),
    ("Q-SNN 2024", "VGG-11", "6 (DVS 10)", "1 bit", (93.20, 73.48, 79.10), "quoted"),
    ("T-BSO 2025", "VGG-11", "6 (DVS 10)", "1 bit", (94.70, 74.27, 81.00), "paper"),
    ("full precision beside T-BSO 2025", "VGG-11", "6 (DVS 10)", "full", (93.23, 71.15, 73.90), "paper"),
    ("QP-SNN 2025", "ResNet-20; VGGSNN (DVS)", "2 (DVS 10)", "2 bit", (95.06, 75.13, 81.30), "third party"),
)


def published(data: Iterable[str]) -> list[Published]:
    """What is published on these data sets (``cifar10``, ``cifar100``, ``cifar10dvs``; others have nothing)."""
    wanted = set(data)
    return [
        Published(work, network, steps, precision, name, accuracy, source)
        for name_index, name in enumerate(_DATA)
        if name in wanted
        for work, network, steps, precision, accuracies, source in _ROWS
        if (accuracy := accuracies[name_index]) is not None
    ]


def is_of_whole_set(record: Mapping[str, Any]) -> bool:
    """Whether a run was trained on and tested with all that its data set has, as what is published was."""
    data, trainer = (record["config"].get(key, {}) for key in ("data", "trainer"))
    parts = [data.get(f"{part}_subset") for part in ("train", "test")]
    limits = [trainer.get(f"limit_{part}_batches") for part in ("train", "test")]
    return not any(parts) and all(limit in (None, 1.0) for limit in limits) and not trainer.get("overfit_batches")
