"""Augmentation of event frames: what moves where, the same over time and polarities, different over the batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from tna_lightning.data.augment import NDA, EventDrop
from tna_lightning.data.augment.event_drop import event_drop, spans
from tna_lightning.data.augment.events import nda, nda_of_several, resample, roll, rolled, rotated, sheared


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


@pytest.mark.parametrize(("level", "pixels", "degrees", "hole"), [(1, 3, 15, 8), (2, 5, 30, 16), (3, 7, 45, 24)])
def test_levels_of_nda(level, pixels, degrees, hole):
    marker = torch.zeros(300, 1, 2, 48, 48)
    marker[..., 24, 24] = 1
    rows, columns = nda(marker, generator(), level, ["roll"])[:, 0, 0].nonzero()[:, 1:].T
    assert sorted(set((rows - 24).tolist())) == sorted(set((columns - 24).tolist())) == list(range(-pixels, pixels + 1))
    line = torch.zeros(200, 1, 2, 48, 48)
    line[..., 0, :] = torch.arange(1, 49)  # 23.5 pixels from the centre, along x
    moved = nda(line, generator(), level, ["shear"])[:, 0, 0, 0]
    shift = (moved - line[:, 0, 0, 0])[:, 24].abs()
    assert shift.max() == pytest.approx(23.5 * math.tan(math.radians(degrees)), abs=1.5)
    erased = nda(torch.ones(200, 1, 2, 48, 48), generator(), level, ["cutout"])[:, 0, 0].eq(0).sum((1, 2))
    assert erased.max() == hole**2
    beside = torch.zeros(200, 1, 2, 48, 48)
    beside[..., 23:25, 40:42] = 1  # 17 pixels right of the centre
    middle = torch.stack([sample.nonzero().float().mean(0) for sample in nda(beside, generator(), level, ["rotation"])])
    assert (middle[:, 2] - 23.5).abs().max() == pytest.approx(17 * math.sin(math.radians(degrees)), abs=1)


def test_nda_of_several_does_each_once():
    x = identical_samples(batch=64)
    both = nda_of_several(x, generator(), 2, 2, ["roll", "cutout"])
    assert torch.equal(both, both[:, :1, :1].expand_as(both))
    holes = both[:, 0, 0].eq(0).sum((1, 2))  # a square of 16 pixels, clipped by the border or not
    assert (holes > 0).all()
    assert holes.max() == 256
    rolls = [torch.roll(x[0, 0, 0], (down, right), (0, 1)) for down in range(-5, 6) for right in range(-5, 6)]
    for sample in both[:, 0, 0]:
        assert any(bool(((sample == 0) | (sample == each)).all()) for each in rolls)
    assert torch.equal(both, nda_of_several(x, generator(), 2, 2, ["roll", "cutout"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NDA(level=4), r"level=4: must be one of 1, 2, 3"),
        (lambda: NDA(operations=4), r"operations=4: must be 1 to 3"),
        (lambda: NDA(operations=0), r"operations=0: must be 1 to 3"),
        (lambda: NDA(pool=["roll", "blur"]), r"pool=\['roll', 'blur'\]: must be some of roll, rotation, shear, cutout"),
        (lambda: EventDrop(kinds=[]), r"kinds=\[\]: must be some of none, time, area, random"),
        (lambda: EventDrop(kinds=["time", "time"]), r"kinds=\['time', 'time'\]: must be some of"),
    ],
)
def test_what_the_events_operations_refuse(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


class TestEventDrop:
    x = torch.ones(600, 10, 2, 20, 40)

    def dropped(self, kind):
        return event_drop(self.x, generator(), [kind]).eq(0)

    def test_a_span_has_the_cells_whose_middle_it_covers(self):
        inside = spans(torch.tensor([0.0, 0.3, 0.9]), torch.tensor([0.2, 0.25, 0.9]), 10)
        assert [row.nonzero().flatten().tolist() for row in inside] == [[0, 1], [3, 4], [9]]

    def test_time_takes_whole_steps_in_a_row(self):
        dropped = self.dropped("time")
        steps = dropped[:, :, 0, 0, 0]
        assert torch.equal(dropped, steps[:, :, None, None, None].expand_as(dropped))
        assert (steps.int().diff(dim=1) == 1).sum(1).max() <= 1
        assert steps.sum(1).max() == 9
        # of s tenths from u: the mean over s and u of min(u + s, 1) - u
        assert steps.float().mean() == pytest.approx(
            sum(s / 10 - (s / 10) ** 2 / 2 for s in range(1, 10)) / 9, abs=0.03
        )

    def test_area_takes_a_rectangle_in_all_steps(self):
        dropped = self.dropped("area")
        assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
        rows, columns = dropped[:, 0, 0].any(2), dropped[:, 0, 0].any(1)
        assert torch.equal(dropped[:, 0, 0], rows[:, :, None] & columns[:, None])
        assert (rows.sum(1).max(), columns.sum(1).max()) == (5, 10)  # a quarter of each side
        assert (rows.int().diff(dim=1) == 1).sum(1).max() <= 1

    def test_random_takes_single_cells_of_every_share(self):
        share = self.dropped("random").float().mean((1, 2, 3, 4))
        assert sorted({round(each * 10) for each in share.tolist()}) == list(range(1, 10))

    def test_one_of_four_each_as_likely_and_the_generator_alone_decides(self):
        done = event_drop(self.x, generator(3), ["none", "time", "area", "random"])
        assert torch.equal(done, event_drop(self.x, generator(3)))
        kept = (done == self.x).flatten(1).all(1).float().mean()
        assert kept == pytest.approx(0.25, abs=0.1)
        counts = torch.randint(0, 50, (4, 2, 2, 6, 6), dtype=torch.uint8)
        done = event_drop(counts, generator())
        assert done.dtype == torch.uint8
        assert ((done == counts) | (done == 0)).all()
