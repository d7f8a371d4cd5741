"""Augmentation of whole image batches on their device: pure functions of images and a generator.

Letters: B batch, C channels, H W pixels. Images are ``[B, C, H, W]`` of any dtype and keep it; every sample draws its
own numbers, without a loop over the batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

AUTO_AUGMENT_POLICIES = ("autoaugment", "randaugment", "trivialaugment")


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with zeros on all sides, then cut the original size out at ``top`` and ``left``.

    Both are int64 ``[B]`` and lie between 0 and ``2 * padding``; at ``padding`` an image comes out as it went in.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, C, top, left, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels along both axes; what comes in from outside is zero (black)."""
    top, left = torch.randint(2 * padding + 1, (2, len(images)), generator=generator, device=images.device)
    return crop(images, padding, top, left)


def random_horizontal_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def erase(images: Tensor, size: int, row: Tensor, column: Tensor, fill: Tensor) -> Tensor:
    """Fill the square of ``size`` pixels around (row, column), int64 ``[B]``, with ``fill``, ``[C]``.

    The square covers ``row - size // 2`` up to, not including, ``row - size // 2 + size``; the border clips it.
    """
    height, width = images.shape[-2:]
    below = torch.arange(height, device=images.device) - (row - size // 2)[:, None]
    beside = torch.arange(width, device=images.device) - (column - size // 2)[:, None]
    inside = ((below >= 0) & (below < size))[:, None, :, None] & ((beside >= 0) & (beside < size))[:, None, None, :]
    return torch.where(inside, fill.to(images)[:, None, None], images)


def cutout(images: Tensor, size: int, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Cutout (arXiv 1708.04552): one square per image, centred anywhere in it, so that the border may clip it."""
    height, width = images.shape[-2:]
    row = torch.randint(height, (len(images),), generator=generator, device=images.device)
    column = torch.randint(width, (len(images),), generator=generator, device=images.device)
    return erase(images, size, row, column, fill)


class AutoAugment:
    """A searched or random policy of kornia's, drawn anew for each sample; uint8 colour images in and out.

    kornia draws one sub-policy for a whole batch, so the samples that drew the same one go through it together. The two
    rounds of RandAugment choose independently, as its paper does.

    Args:
        policy: ``autoaugment`` (the CIFAR-10 policy of arXiv 1805.09501), ``randaugment`` (arXiv 1909.13719, two
            operations of magnitude 9 of 30) or ``trivialaugment`` (arXiv 2103.10158, kornia's ranges).
    """

    def __init__(self, policy: str) -> None:
        from kornia.augmentation import auto

        if policy not in AUTO_AUGMENT_POLICIES:
            raise ValueError(f"policy={policy!r}: must be one of {', '.join(AUTO_AUGMENT_POLICIES)}")
        self.rounds = 2 if policy == "randaugment" else 1
        self.policy: Any
        if policy == "autoaugment":
            self.policy = auto.AutoAugment("cifar10")
        elif policy == "randaugment":
            self.policy = auto.RandAugment(n=1, m=9)
        else:
            self.policy = auto.TrivialAugment()

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment each image by its own draw."""
        x = images.float() / 255
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        # kornia draws its parameters from the global generator of the CPU
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            for _ in range(self.rounds):
                choice = torch.randint(len(self.policy), (len(x),))
                for index in choice.unique():
                    drawn = (choice == index).nonzero().squeeze(1).to(x.device)
                    self.policy.get_forward_sequence = partial(self.policy.get_children_by_indices, index[None])
                    x[drawn] = self.policy(x[drawn])
        finally:
            torch.set_rng_state(state)
        return (x * 255).round().clamp(0, 255).to(images.dtype)
