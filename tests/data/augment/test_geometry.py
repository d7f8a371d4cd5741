import pytest
import torch
from torch import Tensor

from tna_lightning.data import Batch
from tna_lightning.data.augment import Crop, Cutout, Flip
from tna_lightning.data.augment.erasing import cutout
from tna_lightning.data.augment.geometry import crop, random_crop, random_horizontal_flip


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


@pytest.mark.parametrize("operation", [Crop(3), Flip(), Cutout(6)], ids=lambda operation: type(operation).__name__)
def test_frames_of_a_recording_go_together_and_recordings_apart(operation) -> None:
    picture = torch.randint(1, 50, (1, 1, 1, 12, 14), generator=generator(2)).float()
    batch = Batch(picture.expand(24, 4, 2, -1, -1).contiguous(), torch.arange(24), torch.arange(24))
    done = operation(batch, generator())
    assert done.x.shape == batch.x.shape
    assert torch.equal(done.x, done.x[:, :1, :1].expand_as(done.x))
    assert len(done.x[:, 0, 0].flatten(1).unique(dim=0)) >= 2
    assert torch.equal(batch.x, picture.expand_as(batch.x))  # what came in is as it was
    assert done.target is batch.target
    assert done.index is batch.index


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(0), "padding=0: must be at least 1 pixel"),
        (lambda: Cutout(0), "size=0: must be at least 1 pixel"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
