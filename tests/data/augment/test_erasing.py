import pytest
import torch
from torch import Tensor

from tna_lightning.data import Batch
from tna_lightning.data.augment import Cutout, RandomErasing
from tna_lightning.data.augment.erasing import cutout, erase


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (500, 3, 8, 10), dtype=torch.uint8, generator=generator(7))


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


def test_cutout_empties_one_square_of_event_frames() -> None:
    batch = Batch(torch.ones(50, 2, 2, 20, 20), torch.arange(50))
    emptied = Cutout(6)(batch, generator()).x == 0
    rows, columns = emptied[:, 0, 0].any(2).sum(1), emptied[:, 0, 0].any(1).sum(1)
    assert torch.equal(emptied[:, 0, 0].sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == 6
    assert rows.min() >= 3


def test_random_erasing_takes_one_rectangle_of_the_published_sizes_from_some() -> None:
    batch = Batch(torch.ones(4000, 2, 2, 30, 40), torch.arange(4000))
    emptied = RandomErasing(0.25)(batch, generator()).x == 0
    assert torch.equal(emptied, emptied[:, :1, :1].expand_as(emptied))
    rows, columns = emptied[:, 0, 0].any(2).sum(1), emptied[:, 0, 0].any(1).sum(1)
    area = emptied[:, 0, 0].sum((1, 2))
    assert torch.equal(area, rows * columns)
    some = area > 0
    assert abs(float(some.float().mean()) - 0.25) < 0.03
    assert abs(float(area[some].float().mean() / 1200) - (0.02 + 1 / 3) / 2) < 0.02
    assert area[some].min() / 1200 > 0.015
    assert (rows[some] / columns[some]).max() < 3.7  # sides are rounded
    images = Batch(torch.ones(50, 3, 8, 8, dtype=torch.uint8), torch.arange(50))
    operation = RandomErasing(1)
    operation.blank = torch.tensor([5.0, 6.0, 7.0])
    done = operation(images, generator()).x
    assert (done.dtype, done.unique().tolist()) == (torch.uint8, [1, 5, 6, 7])
    with pytest.raises(ValueError, match="probability=0: must lie in"):
        RandomErasing(0)
