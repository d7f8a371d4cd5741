"""Corrupted images: a few of the common corruptions, drawn from a seed, and the files of CIFAR-10-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261). Kinds, names and the five severities are those of their CIFAR-10-C (make_cifar_c.py of
github.com/hendrycks/robustness); of the 15 and 4 further kinds there, the six below need no other library. The noise is
drawn from another generator than theirs, so that single images differ from those in their files; what is random is of
the same distribution, what is not the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tna_lightning.data.loading import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)
LABELS = "labels.npy"
CHUNK = 1000  # images at once; part of what is drawn


def _gaussian_noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Adds noise of this deviation."""
    return x + strength * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Counts photons, of which a white pixel sends so many on average."""
    return torch.poisson(x * strength, generator=generator) / strength


def _impulse_noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Makes this share of the values, of each channel for itself, 0 or 1, either as often."""
    drawn = torch.rand(x.shape, generator=generator)
    return x.masked_fill(drawn < strength, 0.0).masked_fill(drawn < strength / 2, 1.0)


def _gaussian_blur(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blurs with a Gaussian of this deviation in pixels, cut off at four of them; the border goes on as it ends."""
    radius = int(4 * strength + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / strength).square())
    kernel = (weights / weights.sum()).expand(x.shape[1], 1, -1)
    for shape, padding in (((-1, 1), (0, 0, radius, radius)), ((1, -1), (radius, radius, 0, 0))):
        padded = F.pad(x, padding, mode="replicate")
        x = F.conv2d(padded, kernel.reshape(x.shape[1], 1, *shape), groups=x.shape[1])
    return x


def _contrast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Draws each channel of an image to its mean, to this share of the distance."""
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * strength + mean


def _brightness(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Adds to the value of HSV, the largest channel; hue and saturation stay, black becomes grey."""
    value = x.amax(1, keepdim=True)
    brighter = (value + strength).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-9)), brighter)


# what is done to images, float32 [B, C, H, W] from 0 to 1, and its strength at each severity
_KINDS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
}
KINDS = tuple(_KINDS)


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupted copies of images, uint8 ``[N, C, H, W]``.

    Args:
        images: uint8 ``[N, C, H, W]``.
        kind: one of :data:`KINDS`.
        severity: 1 to 5.
        seed: of the noise; each kind and severity draws its own.

    Raises:
        ValueError: there is no such kind or severity.
    """
    refuse_unknown([kind], [severity], KINDS)
    change, strengths = _KINDS[kind]
    strength = strengths[severity - 1]
    generator = torch.Generator().manual_seed(derive_seed(seed, KINDS.index(kind), severity))
    changed = [
        # cut down to whole levels, as theirs
        change(part.float().div(255), strength, generator).clamp(0, 1).mul(255).to(torch.uint8)
        for part in images.cpu().split(CHUNK)
    ]
    return torch.cat(changed)


def refuse_unknown(kinds: Sequence[str], severities: Sequence[int], known: Sequence[str]) -> None:
    """Refuse corruptions that are not there.

    Raises:
        ValueError: ``corrupt=...`` or ``severity=...`` and what is allowed.
    """
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"corrupt={kind!r}: allowed are all, {', '.join(known)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"severity={severity!r}: allowed are {', '.join(map(str, SEVERITIES))}")


class CorruptedFiles:
    """A folder with the files of CIFAR-10-C or CIFAR-100-C.

    One ``KIND.npy`` a corruption, uint8 ``[5 N, H, W, 3]``: the N test images at severity 1, then at 2, and so on; and
    ``labels.npy``, ``[5 N]``.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: no such folder, or no such files in it.
        ValueError: the labels are damaged, or not those of five times the same images.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not (self.root / LABELS).is_file():
            raise FileNotFoundError(f"corrupt-root={str(root)!r}: must be a folder of KIND.npy and {LABELS}")
        self.kinds = sorted(path.stem for path in self.root.glob("*.npy") if path.name != LABELS)
        if not self.kinds:
            raise FileNotFoundError(f"corrupt-root={str(root)!r}: holds no KIND.npy beside {LABELS}")
        labels = torch.from_numpy(np.array(self._open(LABELS)).astype(np.int64))
        parts = labels.view(len(SEVERITIES), -1) if len(labels) and len(labels) % len(SEVERITIES) == 0 else labels[:0]
        if labels.ndim != 1 or not len(parts) or not (parts == parts[0]).all():
            raise ValueError(
                f"corrupt-root={str(root)!r}: {LABELS} must hold the labels of the same images {len(SEVERITIES)} times"
            )
        self.labels = parts[0]

    def images(self, kind: str, severity: int) -> Tensor:
        """Uint8 ``[N, 3, H, W]``.

        Raises:
            ValueError: there is no such kind or severity, or its file is damaged.
        """
        refuse_unknown([kind], [severity], self.kinds)
        array = self._open(f"{kind}.npy")
        number = len(self.labels)
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != number * len(SEVERITIES):
            raise ValueError(
                f"corrupt-root={str(self.root)!r}: {kind}.npy is {array.dtype} {list(array.shape)}, must be uint8 "
                f"[{number * len(SEVERITIES)}, H, W, C]"
            )
        part = array[number * (severity - 1) : number * severity]
        return torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C"))

    def _open(self, name: str) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.root / name, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"corrupt-root={str(self.root)!r}: {name} is damaged or no array ({error})") from error
        return array


def mean_by_kind(accuracies: dict[str, dict[int, float]]) -> float:
    """The mean over kinds of each one's mean over severities."""
    return math.fsum(math.fsum(each.values()) / len(each) for each in accuracies.values()) / len(accuracies)
