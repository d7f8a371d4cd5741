"""Augmentation of event frames: what moves where, the same over time and polarities, different over the batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from tna_lightning.data import event_augment
from tna_lightning.data.event_augment import cutmix, cutout, flip, flip_roll, nda, resample, rolled, rotated, sheared


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(batch=6, time=3, side=12):
    return torch.randint(0, 50, (batch, time, 2, side, side + 2), generator=generator(1), dtype=torch.uint8)


def identical_samples(batch=24):
    """The same random picture in every sample, time step and polarity."""
    picture = torch.randint(1, 50, (1, 1, 1, 48, 48), generator=generator(2), dtype=torch.uint8)
    return picture.expand(batch, 4, 2, 48, 48).contiguous()


POLICIES = {
    "nda": nda,
    "flip_roll": flip_roll,
    "flip": flip,
    "cutout": lambda x, g: cutout(x, 12, g),
    "cutmix": lambda x, g: cutmix(x * torch.arange(len(x))[:, None, None, None, None], torch.arange(24), 24, 1.0, g)[0],
}


@pytest.mark.parametrize("name", POLICIES)
def test_time_steps_and_polarities_move_together_and_samples_apart(name):
    augmented = POLICIES[name](identical_samples(), generator())
    assert torch.equal(augmented, augmented[:, :1, :1].expand_as(augmented))
    assert len({tuple(sample.flatten().tolist()) for sample in augmented[:, 0, 0]}) >= (2 if name == "flip" else 8)


@pytest.mark.parametrize("name", POLICIES)
def test_the_generator_alone_decides(name):
    first = POLICIES[name](identical_samples(), generator(3))
    torch.rand(5)
    assert torch.equal(first, POLICIES[name](identical_samples(), generator(3)))
    assert not torch.equal(first, POLICIES[name](identical_samples(), generator(4)))
    assert first.dtype == identical_samples().dtype or name == "cutmix"


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


def test_flip_roll_flips_half_and_rolls_by_up_to_five():
    marker = torch.zeros(400, 1, 2, 48, 48, dtype=torch.uint8)
    marker[:, :, :, 10, 20], marker[:, :, :, 10, 21] = 1, 2
    augmented = flip_roll(marker, generator())[:, 0, 0]
    rows, columns = (augmented == 1).nonzero()[:, 1:].T
    flipped = (augmented == 2).nonzero()[:, 2] < columns
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert sorted(set((rows - 10).tolist())) == list(range(-5, 6))
    assert sorted(set((columns[~flipped] - 20).tolist())) == list(range(-5, 6))
    assert sorted(set((columns[flipped] - 27).tolist())) == list(range(-5, 6))


def test_limits_scale_with_the_frame():
    marker = torch.zeros(400, 1, 2, 16, 16)
    marker[:, :, :, 8, 8] = 1
    rows = flip_roll(marker, generator())[:, 0, 0].nonzero()[:, 1]
    assert sorted(set((rows - 8).tolist())) == [-2, -1, 0, 1, 2]


def test_cutout_empties_one_square():
    emptied = cutout(torch.ones(50, 2, 2, 20, 20), 6, generator()) == 0
    rows, columns = emptied[:, 0, 0].any(2).sum(1), emptied[:, 0, 0].any(1).sum(1)
    assert torch.equal(emptied[:, 0, 0].sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == 6
    assert rows.min() >= 3


def test_cutmix_labels_weigh_the_pixels_of_each_class():
    count = 64
    target = torch.randperm(count, generator=generator(5))
    x = target[:, None, None, None, None].expand(count, 2, 2, 16, 20).float().contiguous()
    mixed, labels = cutmix(x, target, count, 1.0, generator())
    assert labels.shape == (count, count)
    for sample, label in zip(mixed, labels, strict=True):
        share = torch.bincount(sample[0, 0].long().flatten(), minlength=count) / (16 * 20)
        torch.testing.assert_close(label, share)
    assert (labels.max(1).values < 1).float().mean() > 0.7


def test_cutmix_boxes_cover_a_uniform_share_where_the_border_does_not_clip():
    side = event_augment._span(1000, torch.full((4000,), 0.5), torch.rand(4000, generator=generator()).sqrt())
    share = (side.float().mean(1) ** 2).sort().values
    torch.testing.assert_close(share, torch.linspace(0, 1, 4000), atol=0.03, rtol=0)


def test_cutmix_leaves_the_rest_alone():
    x, target = frames(), torch.tensor([0, 1, 2, 0, 1, 2])
    same, labels = cutmix(x, target, 3, 0.0, generator())
    assert torch.equal(same, x)
    assert torch.equal(labels, F.one_hot(target, 3).float())
    half = torch.arange(1, 401).view(-1, 1, 1, 1, 1).expand(400, 1, 2, 30, 30)
    mixed, _ = cutmix(half, torch.zeros(400, dtype=torch.long), 2, 0.5, generator())
    touched = (mixed != half).flatten(1).any(1).float().mean().item()
    assert touched == pytest.approx(0.5, abs=0.08)
