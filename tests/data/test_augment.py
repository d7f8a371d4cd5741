import pytest
import torch
from torch import Tensor

from tna_lightning.data.augment import crop, cutout, erase, random_crop, random_horizontal_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (500, 3, 8, 10), dtype=torch.uint8, generator=generator(7))


def crop_one_by_one(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    result = torch.zeros_like(images)
    _, _, height, width = images.shape
    for b, image in enumerate(images):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + int(top[b]) - padding, x + int(left[b]) - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[b, :, y, x] = image[:, from_y, from_x]
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_equals_a_loop_over_pixels(images: Tensor, dtype: torch.dtype) -> None:
    images = images[:40].to(dtype)
    top, left = torch.randint(7, (2, 40), generator=generator())
    cropped = crop(images, 3, top, left)
    assert cropped.dtype == dtype
    torch.testing.assert_close(cropped, crop_one_by_one(images, 3, top, left), rtol=0, atol=0)


def test_crop_in_the_middle_changes_nothing(images: Tensor) -> None:
    middle = torch.full((500,), 2)
    assert torch.equal(crop(images, 2, middle, middle), images)


def test_random_crop_reaches_every_offset_equally(images: Tensor) -> None:
    one_pixel = torch.zeros(9000, 1, 5, 5)
    one_pixel[:, :, 2, 2] = 1
    where = random_crop(one_pixel, 1, generator()).flatten(1).argmax(1)
    counts = where.bincount(minlength=25).view(5, 5)
    assert counts[1:4, 1:4].sum() == 9000  # all within one pixel of the middle
    # 1000 expected at each of the nine offsets; 4 standard deviations of a binomial count are 119
    assert (counts[1:4, 1:4] - 1000).abs().max() < 120


def test_random_crop_moves_whole_images_with_their_channels(images: Tensor) -> None:
    same_channels = images[:, :1].expand(-1, 3, -1, -1)
    cropped = random_crop(same_channels, 3, generator())
    assert torch.equal(cropped[:, 0], cropped[:, 1])
    assert torch.equal(cropped[:, 0], cropped[:, 2])


def test_random_horizontal_flip_mirrors_half(images: Tensor) -> None:
    flipped = random_horizontal_flip(images, generator())
    is_same = (flipped == images).flatten(1).all(1)
    is_mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (is_same ^ is_mirrored).all()
    assert 200 < is_mirrored.sum() < 300  # 250 expected, standard deviation 11


def erase_one_by_one(images: Tensor, size: int, row: Tensor, column: Tensor, fill: Tensor) -> Tensor:
    result = images.clone()
    for b in range(len(images)):
        first_y, first_x = int(row[b]) - size // 2, int(column[b]) - size // 2
        for channel in range(images.shape[1]):
            y, x = max(0, first_y), max(0, first_x)
            result[b, channel, y : first_y + size, x : first_x + size] = fill[channel].to(images.dtype)
    return result


@pytest.mark.parametrize("size", [1, 4, 5])
def test_erase_equals_a_loop_over_images(images: Tensor, size: int) -> None:
    row = torch.randint(8, (500,), generator=generator(1))
    column = torch.randint(10, (500,), generator=generator(2))
    fill = torch.tensor([10.0, 20.0, 30.0])
    erased = erase(images, size, row, column, fill)
    assert erased.dtype == torch.uint8
    assert torch.equal(erased, erase_one_by_one(images, size, row, column, fill))


def test_cutout_centres_lie_anywhere() -> None:
    ones = torch.ones(8000, 1, 8, 10)
    erased = cutout(ones, 1, generator(), fill=torch.zeros(1)) == 0
    assert (erased.flatten(1).sum(1) == 1).all()
    counts = erased.sum(0)  # 100 expected at each of the 80 pixels, standard deviation 10
    assert counts.min() > 55
    assert counts.max() < 145


@pytest.mark.parametrize(
    "augment",
    [
        lambda images, g: random_crop(images, 3, g),
        random_horizontal_flip,
        lambda images, g: cutout(images, 4, g, torch.zeros(3)),
    ],
    ids=["crop", "flip", "cutout"],
)
def test_draws_differ_over_the_batch_and_repeat_with_the_seed(images: Tensor, augment) -> None:
    same_image = images[:1].expand(64, -1, -1, -1)
    first = augment(same_image, generator(3))
    assert len(first.flatten(1).unique(dim=0)) > 1
    assert torch.equal(first, augment(same_image, generator(3)))
    assert not torch.equal(first, augment(same_image, generator(4)))
