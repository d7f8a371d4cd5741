"""The operations against PIL, whose they are by definition, and the draws against their distributions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from tna_lightning.data.augment.policies import FILL, OPERATIONS, WIDE, AutoAugment, operate


@pytest.fixture
def images() -> Tensor:
    """Eight smooth colour images with some grain, ``[8, 3, 32, 32]`` uint8."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    smooth = torch.stack([4 * x + 60, 3 * y + 80, 2 * (x + y) + 40])
    grain = torch.randint(-25, 25, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return (smooth + grain).clamp(0, 255).to(torch.uint8)


def by_pil(images: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    results = [np.asarray(function(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


def ours(operation: str, images: Tensor, strength: float, **settings) -> Tensor:
    result = operate(operation, images.float() / 255, torch.full((len(images),), strength), **settings)
    return (result * 255).round().clamp(0, 255)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.0, 0.7])
@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pils(images: Tensor, operation: str, enhancer: type, strength: float) -> None:
    expected = by_pil(images, lambda image: enhancer(image).enhance(1 + 0.9 * strength))
    assert (ours(operation, images, strength) - expected.float()).abs().max() <= 1  # PIL cuts off, we round


@pytest.mark.parametrize(
    ("operation", "strength", "function"),
    [
        ("identity", 1.0, lambda image: image),
        ("posterize", 0.5, lambda image: ImageOps.posterize(image, 6)),
        ("posterize", -1.0, lambda image: ImageOps.posterize(image, 4)),
        ("posterize", 0.0, lambda image: image),
        ("solarize", 1 / 3, lambda image: ImageOps.solarize(image, 170)),
        ("solarize", 1.0, lambda image: ImageOps.solarize(image, 0)),
        ("auto_contrast", 0.2, ImageOps.autocontrast),
        ("equalize", 0.2, ImageOps.equalize),
        ("invert", 0.2, ImageOps.invert),
    ],
)
def test_colour_maps_are_pils(images: Tensor, operation: str, strength: float, function) -> None:
    tolerance = 1 if operation == "auto_contrast" else 0
    assert (ours(operation, images, strength) - by_pil(images, function).float()).abs().max() <= tolerance


@pytest.mark.parametrize("strength", [-1.0, -0.37, 0.61])
@pytest.mark.parametrize(
    ("operation", "matrix"),
    [
        ("shear_x", lambda s: (1, 0.3 * s, 0, 0, 1, 0)),
        ("shear_y", lambda s: (1, 0, 0, 0.3 * s, 1, 0)),
        ("translate_x", lambda s: (1, 0, 32 * 150 / 331 * s, 0, 1, 0)),
        ("translate_y", lambda s: (1, 0, 0, 0, 1, 32 * 150 / 331 * s)),
    ],
)
def test_shears_and_translations_are_pils(images: Tensor, operation: str, matrix, strength: float) -> None:
    grey = (round(255 * FILL),) * 3
    expected = by_pil(
        images, lambda image: image.transform((32, 32), Image.Transform.AFFINE, matrix(strength), fillcolor=grey)
    )
    differs = (ours(operation, images, strength) - expected.float()).abs().amax(1) > 0
    assert differs.float().mean() < 0.01  # pixels that lie half-way between two


@pytest.mark.parametrize("strength", [-1.0, 0.5])
def test_rotation_is_pils(images: Tensor, strength: float) -> None:
    grey = (round(255 * FILL),) * 3
    expected = by_pil(images, lambda image: image.rotate(30 * strength, fillcolor=grey))
    differs = (ours("rotate", images, strength) - expected.float()).abs().amax(1) > 0
    assert differs.float().mean() < 0.01


def test_strength_is_each_images_own(images: Tensor) -> None:
    strengths = torch.linspace(-1, 1, 8)
    for operation in OPERATIONS:
        together = operate(operation, images.float() / 255, strengths)
        for i in range(8):
            alone = operate(operation, images[i, None].float() / 255, strengths[i, None])
            torch.testing.assert_close(together[i, None], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_grey_images_are_changed_as_their_colour_copies_are(images: Tensor, operation: str) -> None:
    grey, strengths = images[:, :1], torch.linspace(-1, 1, 8)
    result = operate(operation, grey.float() / 255, strengths)
    assert result.shape == grey.shape
    in_colour = operate(operation, grey.expand(-1, 3, -1, -1).float() / 255, strengths)
    torch.testing.assert_close(result.expand_as(in_colour), in_colour, rtol=0, atol=1 / 255)
    if operation == "color":
        assert torch.equal(result, grey.float() / 255)


def test_wide_scale(images: Tensor) -> None:
    assert torch.equal(ours("translate_x", images, 1.0, ranges=WIDE), torch.full((8, 3, 32, 32), round(255 * FILL)))
    expected = by_pil(images, lambda image: ImageOps.posterize(image, 2))
    assert torch.equal(ours("posterize", images, 1.0, ranges=WIDE), expected.float())


def test_unknown_operation(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^operation='blur': must be one of identity, shear_x"):
        ours("blur", images, 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestDraws:
    def test_autoaugment_follows_its_table(self) -> None:
        # sub-policies 1 and 21 of the paper's table: (Rotate, 0.7, 2) (TranslateX, 0.3, 9); (TranslateY, 0.9, 9) twice
        (first, first_strength), (second, second_strength) = AutoAugment("autoaugment").draw(100_000, generator())
        share = {name: (first == index).float().mean().item() for index, name in enumerate(OPERATIONS)}
        assert share["rotate"] == pytest.approx(0.7 / 25, abs=0.003)
        assert share["translate_y"] == pytest.approx((0.4 + 0.9 + 0.7) / 25, abs=0.004)
        assert share["invert"] == pytest.approx(0.1 / 25, abs=0.002)
        rotate, translate_x = OPERATIONS.index("rotate"), OPERATIONS.index("translate_x")
        assert first_strength[first == rotate].abs().unique().tolist() == pytest.approx([2 / 9])
        assert (first_strength[first == rotate] > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        moved = second[first == rotate] == translate_x
        assert moved.float().mean().item() == pytest.approx(0.3, abs=0.05)
        assert second_strength[first == rotate][moved].abs().unique().tolist() == pytest.approx([1.0])

    def test_randaugment_takes_two_of_one_strength(self) -> None:
        rounds = AutoAugment("randaugment").draw(50_000, generator())
        assert len(rounds) == 2
        for operation, strength in rounds:
            counts = operation.bincount(minlength=15)
            assert counts[14] == 0  # invert is not among its fourteen
            assert (counts[:14] / 50_000).tolist() == pytest.approx([1 / 14] * 14, abs=0.006)
            assert strength.abs().unique().tolist() == pytest.approx([0.3])
        assert (rounds[0][0] == rounds[1][0]).float().mean().item() == pytest.approx(1 / 14, abs=0.006)

    def test_trivialaugment_takes_one_of_any_strength(self) -> None:
        rounds = AutoAugment("trivialaugment").draw(50_000, generator())
        assert len(rounds) == 1
        operation, strength = rounds[0]
        assert (operation.bincount(minlength=15)[:14] / 50_000).tolist() == pytest.approx([1 / 14] * 14, abs=0.006)
        assert strength.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == pytest.approx(
            [-1, -0.5, 0, 0.5, 1], abs=0.02
        )


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
class TestPolicies:
    def test_each_sample_has_its_own_draw(self, policy: str, images: Tensor) -> None:
        result = AutoAugment(policy).apply(images[:1].expand(100, -1, -1, -1), generator())
        assert result.shape == (100, 3, 32, 32)
        assert result.dtype == torch.uint8
        assert len(result.flatten(1).unique(dim=0)) > 30

    def test_is_a_function_of_the_generator(self, policy: str, images: Tensor) -> None:
        before = torch.get_rng_state()
        augment = AutoAugment(policy).apply
        first = augment(images, generator(5))
        assert torch.equal(first, augment(images, generator(5)))
        assert not torch.equal(first, augment(images, generator(6)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_each_image_goes_through_its_operations_in_turn(self, policy: str, images: Tensor) -> None:
        augment = AutoAugment(policy)
        rounds = augment.draw(8, generator(3))
        result = augment.apply(images, generator(3))
        for i, image in enumerate(images):
            x = image[None].float() / 255
            for operation, strength in rounds:
                x = operate(OPERATIONS[operation[i]], x, strength[i, None], augment.ranges)
            expected = (x[0] * 255).round().clamp(0, 255)
            assert (result[i].float() - expected).abs().max() <= 1


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"^policy='augmix': must be one of autoaugment"):
        AutoAugment("augmix")


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_small_grey_images(policy: str) -> None:
    grey = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator())
    result = AutoAugment(policy).apply(grey, generator(1))
    assert result.shape == grey.shape
    assert (result != grey).flatten(1).any(1).sum() > 30


def test_randaugment_of_one_operation_is_the_first_of_its_two():
    one, two = (AutoAugment("randaugment", operations) for operations in (1, None))
    draws = [policy.draw(40, torch.Generator().manual_seed(3)) for policy in (one, two)]
    assert [len(each) for each in draws] == [1, 2]
    assert all(torch.equal(first, other) for first, other in zip(draws[0][0], draws[1][0], strict=True))
    for settings in (("autoaugment", 1), ("randaugment", 3)):
        with pytest.raises(ValueError, match=r"^operations=\d: must be 1 or 2 for policy=randaugment, else null"):
            AutoAugment(*settings)
