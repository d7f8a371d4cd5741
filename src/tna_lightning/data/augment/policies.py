"""AutoAugment, RandAugment and TrivialAugment for batches: every image has its own draw.

The operations on colours are kornia's functions, and so is the table of the CIFAR-10 policy. kornia's policy classes
are not used: they draw one policy for a whole batch, and read the table's levels on scales of their own, where level 9
of a translation always goes the same way, half an image far.

Letters: B batch, C channels (3, or 1 for grey images), H W pixels. Images are float ``[B, C, H, W]`` in [0, 1] within
this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tna_lightning.data.augment.operation import Samples, need_images
from tna_lightning.data.batch import Batch
from tna_lightning.packages import require

POLICIES = ("autoaugment", "randaugment", "trivialaugment")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
ENHANCING = ("brightness", "color", "contrast", "sharpness")
OPERATIONS = ("identity", *GEOMETRIC, *ENHANCING, "posterize", "solarize", "auto_contrast", "equalize", "invert")
FILL = 0.5
"""What comes in from outside of an image: grey."""


@dataclass(frozen=True)
class Ranges:
    """What an operation does at full strength."""

    shear: float = 0.3
    """Pixels per pixel."""
    translate: float = 150 / 331
    """Share of the side of the image."""
    rotate: float = 30
    """Degrees, counter-clockwise."""
    enhance: float = 0.9
    """Change of the factor of brightness, colour, contrast and sharpness, which is 1 for no change."""
    posterize: int = 4
    """Bits that are dropped."""


# arXiv 1805.09501 and 1909.13719 in the common reading (torchvision's); "wide" of arXiv 2103.10158 on 32 pixels
STANDARD = Ranges()
WIDE = Ranges(shear=0.99, translate=1.0, rotate=135, enhance=0.99, posterize=6)


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Fetch each output pixel from ``matrix @ (x, y, 1)``, nearest, as PIL's ``Image.transform`` does.

    ``matrix`` is ``[B, 2, 3]``; x and y go from 0 to 1 over the image, from its upper left corner.
    """
    # to torch's coordinates, -1 to 1: p = 2 q - 1, so q' = A q + b becomes p' = A p + A 1 + 2 b - 1
    linear, offset = matrix[:, :, :2], matrix[:, :, 2]
    theta = torch.cat([linear, (linear.sum(2) + 2 * offset - 1)[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - FILL, grid, mode="nearest", padding_mode="zeros", align_corners=False) + FILL


def operate(operation: str, images: Tensor, strength: Tensor, ranges: Ranges = STANDARD) -> Tensor:
    """Apply one of :data:`OPERATIONS`, with a strength in [-1, 1] for each image.

    The sign is the direction; ``posterize`` and ``solarize`` have none, and the last three no strength either. A grey
    image has no saturation: ``color`` leaves it as it is, as PIL's does; all others change it as they change colours.
    """
    from kornia import enhance

    if operation in GEOMETRIC:
        matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
        if operation == "shear_x":
            matrix[:, 0, 1] = ranges.shear * strength
        elif operation == "shear_y":
            matrix[:, 1, 0] = ranges.shear * strength
        elif operation == "translate_x":
            matrix[:, 0, 2] = ranges.translate * strength
        elif operation == "translate_y":
            matrix[:, 1, 2] = ranges.translate * strength
        else:
            angle = torch.deg2rad(ranges.rotate * strength)
            cos, sin = angle.cos(), angle.sin()
            matrix[:, 0] = torch.stack([cos, -sin, (1 - cos + sin) / 2], 1)  # about the middle, (1/2, 1/2)
            matrix[:, 1] = torch.stack([sin, cos, (1 - sin - cos) / 2], 1)
        return affine(images, matrix)

    factor = 1 + ranges.enhance * strength
    match operation:
        case "identity":
            return images
        case "brightness":
            return enhance.adjust_brightness_accumulative(images, factor)
        case "color":
            grey = images.shape[1] == 1
            return images if grey else enhance.adjust_saturation_with_gray_subtraction(images, factor)
        case "contrast":
            return enhance.adjust_contrast_with_mean_subtraction(images, factor)
        case "sharpness":
            return enhance.sharpness(images, factor)
        case "posterize":
            return enhance.posterize(images, 8 - (ranges.posterize * strength.abs()).round().int())
        case "solarize":
            return enhance.solarize(images, 1 - strength.abs())
        case "auto_contrast":
            return enhance.normalize_min_max(images)
        case "equalize":
            return enhance.equalize(images)
        case "invert":
            return enhance.invert(images)
    raise ValueError(f"operation={operation!r}: must be one of {', '.join(OPERATIONS)}")


class AutoAugment:
    """One of three policies, drawn anew for each image, colour or grey (see :func:`operate`).

    Args:
        policy: ``autoaugment``: one of the 25 pairs found for CIFAR-10 (arXiv 1805.09501), each half of a pair with its
            own probability and strength; ``randaugment`` (arXiv 1909.13719): two operations of strength 9 of 30;
            ``trivialaugment`` (arXiv 2103.10158): one operation of any strength, on the wide scale.
        operations: of ``randaugment``, 1 or 2 for each image; null leaves any policy as it is.
    """

    def __init__(self, policy: str = "autoaugment", operations: int | None = None) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r}: must be one of {', '.join(POLICIES)}")
        if operations is not None and (policy != "randaugment" or operations not in (1, 2)):
            raise ValueError(f"operations={operations!r}: must be 1 or 2 for policy=randaugment, else null")
        require("kornia")  # now, rather than in the first step of training
        self.policy = policy
        self.rounds = operations or (1 if policy == "trivialaugment" else 2)
        self.ranges = WIDE if policy == "trivialaugment" else STANDARD
        if policy == "autoaugment":
            from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy

            halves = [
                [(OPERATIONS.index(name), chance, (level or 0) / 9) for name, chance, level in pair]
                for pair in cifar10_policy
            ]
            self.operation, self.chance, self.strength = torch.tensor(halves).unbind(2)  # each [25, 2]

    def setup(self, data: Samples) -> None:
        """Refuse what is neither grey nor coloured."""
        need_images(data)
        if data.in_channels not in (1, 3):
            raise ValueError(f"works on images of 1 or 3 channels, and these have {data.in_channels}")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See :class:`~tna_lightning.data.augment.Operation`."""
        return replace(batch, x=self.apply(batch.x, generator))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment uint8 images ``[B, C, H, W]``."""
        x = images.float() / 255
        for operation, strength in self.draw(len(x), generator):
            for index in operation.unique().tolist():
                chosen = (operation == index).nonzero().squeeze(1).to(x.device)
                x[chosen] = operate(OPERATIONS[index], x[chosen], strength[chosen], self.ranges)
        return (x * 255).round().clamp(0, 255).to(images.dtype)

    def draw(self, num_images: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """What each round does to each image: indices into :data:`OPERATIONS`, on the CPU, and strengths."""
        device = generator.device
        random = torch.rand(3, 2, num_images, generator=generator, device=device)
        sign = 1 - 2 * (random[0] < 0.5).float()
        if self.policy == "autoaugment":
            pair = (random[1, 0] * len(self.operation)).long()
            tables = self.operation, self.chance, self.strength
            operation, chance, strength = (table.to(device)[pair].T for table in tables)
            operation = operation.long() * (random[2] < chance)  # or identity
        else:
            operation = (random[1] * OPERATIONS.index("invert")).long()  # all but the last
            strength = torch.full_like(sign, 9 / 30) if self.policy == "randaugment" else random[2]
        return list(zip(operation.cpu()[: self.rounds], (sign * strength)[: self.rounds], strict=True))
