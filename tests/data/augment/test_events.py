"""Augmentation of event frames: what moves where, the same over time and polarities, different over the batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from tna_lightning.data.augment.events import nda, resample, roll, rolled, rotated, sheared


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(batch=6, time=3, side=12):
    return torch.randint(0, 50, (batch, time, 2, side, side + 2), generator=generator(1), dtype=torch.uint8)


def identical_samples(batch=24):
    """The same random picture in every sample, time step and polarity."""
    picture = torch.randint(1, 50, (1, 1, 1, 48, 48), generator=generator(2), dtype=torch.uint8)
    return picture.expand(batch, 4, 2, 48, 48).contiguous()


MOVES = {"nda": nda, "roll": roll}


@pytest.mark.parametrize("name", MOVES)
def test_time_steps_and_polarities_move_together_and_samples_apart(name):
    augmented = MOVES[name](identical_samples(), generator())
    assert torch.equal(augmented, augmented[:, :1, :1].expand_as(augmented))
    assert len({tuple(sample.flatten().tolist()) for sample in augmented[:, 0, 0]}) >= 8


@pytest.mark.parametrize("name", MOVES)
def test_the_generator_alone_decides(name):
    first = MOVES[name](identical_samples(), generator(3))
    torch.rand(5)
    assert torch.equal(first, MOVES[name](identical_samples(), generator(3)))
    assert not torch.equal(first, MOVES[name](identical_samples(), generator(4)))
    assert first.dtype == identical_samples().dtype


def test_roll_equals_torch_roll():
    x = frames()
    down, right = torch.tensor([0, 1, -2, 5, 12, -7]), torch.tensor([0, -1, 3, 13, 2, 1])
    rolled_frames = resample(x, rolled(12, 14, down, right))
    for sample in range(6):
        expected = torch.roll(x[sample], (int(down[sample]), int(right[sample])), dims=(-2, -1))
        assert torch.equal(rolled_frames[sample], expected)


@pytest.mark.parametrize(
    ("move", "degrees"),
    [*((move, d) for move in ("rotate", "shear") for d in (-30.0, -11.0, 0.0, 7.0, 30.0)), ("rotate", 90.0)],
)
def test_rotation_and_shear_equal_grid_sample(move, degrees):
    x = frames(batch=1).float()
    height, width = x.shape[-2:]
    angle = math.radians(degrees)
    if move == "rotate":
        source = rotated(height, width, torch.tensor([angle]))
        matrix = [
            [math.cos(angle), -math.sin(angle) * height / width, 0],
            [math.sin(angle) * width / height, math.cos(angle), 0],
        ]
    else:
        source = sheared(height, width, torch.tensor([angle]))
        matrix = [[1, -math.tan(angle) * height / width, 0], [0, 1, 0]]
    grid = F.affine_grid(torch.tensor([matrix]), [1, 6, height, width], align_corners=False)
    expected = F.grid_sample(x.flatten(1, 2), grid, mode="nearest", align_corners=False).view_as(x)
    moved = resample(x, source)
    assert (moved == expected).float().mean() > 0.97  # pixels halfway between two may go either way
    if degrees == 0:
        assert torch.equal(moved, x)


def test_a_quarter_turn_is_counter_clockwise():
    x = torch.arange(9, dtype=torch.uint8).view(1, 1, 1, 3, 3)
    turned = resample(x, rotated(3, 3, torch.tensor([math.pi / 2])))
    assert torch.equal(turned[0, 0, 0], torch.rot90(x[0, 0, 0]))


def test_nda_does_exactly_one_of_its_three_within_its_limits():
    x = identical_samples(batch=300)
    original = x[0, 0, 0].float()
    augmented = nda(x, generator())[:, 0, 0]
    rolls = [
        torch.roll(original, (down, right), dims=(0, 1)).to(torch.uint8)
        for down in range(-5, 6)
        for right in range(-5, 6)
    ]
    rolled_samples = sum(any(torch.equal(sample, roll) for roll in rolls) for sample in augmented)
    assert rolled_samples == pytest.approx(100, abs=30)
    centre_kept = [bool(sample[23:25, 23:25].eq(x[0, 0, 0, 23:25, 23:25]).all()) for sample in augmented]
    assert sum(centre_kept) == pytest.approx(200, abs=30)  # rotations and shears leave the centre where it is
    row_sums = augmented.float().sum(2)
    middle_rows_whole = (row_sums[:, 23] == original[23].sum()) & (row_sums[:, 24] == original[24].sum())
    assert middle_rows_whole.sum() >= 100  # shears move the middle rows by half a pixel at most, rotations turn them


def test_roll_goes_up_to_five_of_48():
    marker = torch.zeros(400, 1, 2, 48, 48, dtype=torch.uint8)
    marker[:, :, :, 10, 20] = 1
    rows, columns = roll(marker, generator())[:, 0, 0].nonzero()[:, 1:].T
    assert sorted(set((rows - 10).tolist())) == list(range(-5, 6))
    assert sorted(set((columns - 20).tolist())) == list(range(-5, 6))


def test_limits_scale_with_the_frame():
    marker = torch.zeros(400, 1, 2, 16, 16)
    marker[:, :, :, 8, 8] = 1
    rows = roll(marker, generator())[:, 0, 0].nonzero()[:, 1]
    assert sorted(set((rows - 8).tolist())) == [-2, -1, 0, 1, 2]
