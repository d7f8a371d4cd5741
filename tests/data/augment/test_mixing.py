"""CutMix and mixup: what each label weighs, against what the pixels say."""

from types import SimpleNamespace

import pytest
import torch

from tna_lightning.data import Batch
from tna_lightning.data.augment import CutMix, MixUp
from tna_lightning.data.augment.mixing import _span, cutmix, mixup


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def set_up(operation, num_classes):
    operation.setup(SimpleNamespace(num_classes=num_classes))
    return operation


@pytest.mark.parametrize("shape", [(3, 16, 20), (2, 2, 16, 20)], ids=["images", "frames"])
def test_cutmix_labels_weigh_the_pixels_of_each_class(shape):
    count = 64
    target = torch.randperm(count, generator=generator(5))
    x = target.view(-1, *[1] * len(shape)).expand(count, *shape).float().contiguous()
    mixed = set_up(CutMix(1.0), count)(Batch(x, target), generator())
    assert mixed.target.shape == (count, count)
    for sample, label in zip(mixed.x, mixed.target, strict=True):
        share = torch.bincount(sample.flatten(0, -3)[0].long().flatten(), minlength=count) / (16 * 20)
        torch.testing.assert_close(label, share)
        assert torch.equal(sample, sample.flatten(0, -3)[0].expand_as(sample))  # all channels and steps alike
    assert (mixed.target.max(1).values < 1).float().mean() > 0.7


def test_cutmix_boxes_cover_a_uniform_share_where_the_border_does_not_clip():
    side = _span(1000, torch.full((4000,), 0.5), torch.rand(4000, generator=generator()).sqrt())
    share = (side.float().mean(1) ** 2).sort().values
    torch.testing.assert_close(share, torch.linspace(0, 1, 4000), atol=0.03, rtol=0)


def test_cutmix_leaves_the_rest_alone():
    half = torch.arange(1, 401).view(-1, 1, 1, 1, 1).expand(400, 1, 2, 30, 30)
    mixed, _, share = cutmix(half, 0.5, generator())
    touched = (mixed != half).flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert not share[~touched].any()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_mixup_shares_follow_beta(alpha):
    x = torch.zeros(20_000, 1, 1, 1)
    _, partner, share = mixup(x, alpha, generator())
    expected = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha))
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(expected.variance.item(), abs=0.005)
    assert torch.equal(partner.sort().values, torch.arange(20_000))


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 2, 8, 8)], ids=["images", "frames"])
def test_mixup_labels_and_inputs_have_the_same_shares(shape):
    count = 32
    target = torch.arange(count)
    picture = torch.arange(count).view(-1, *[1] * len(shape)).expand(count, *shape).float()
    mixed = set_up(MixUp(1.0), count)(Batch(picture, target), generator())
    expected = (mixed.target * torch.arange(count)).sum(1).view(-1, *[1] * len(shape)).expand_as(picture)
    torch.testing.assert_close(mixed.x, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(count))


def test_mixup_rounds_grey_levels():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    mixed, partner, share = mixup(x, 1.0, generator(3))
    assert partner.tolist() == [1, 0]
    assert mixed.dtype == torch.uint8
    assert mixed[:, 0, 0, 0].tolist() == [round(255 * share[0].item()), round(255 * (1 - share[1].item()))]


def test_number_and_weight_of_a_mixed_sample():
    batch = Batch(torch.rand(8, 3, 6, 6), torch.arange(8), torch.arange(50, 58), torch.arange(8.0))
    once = set_up(MixUp(), 8)(batch, generator())
    assert torch.equal(once.index, batch.index)
    torch.testing.assert_close(once.weight, once.target @ batch.weight)  # a weight goes with its label
    twice = set_up(CutMix(1.0), 8)(once, generator(1))  # labels that are mixed already
    torch.testing.assert_close(twice.weight, twice.target @ batch.weight)
    torch.testing.assert_close(twice.target.sum(1), torch.ones(8))
    assert set_up(CutMix(), 8)(Batch(batch.x, batch.target), generator()).weight is None


def test_samples_without_a_label_are_not_mixed():
    x = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^label -100: samples without a label cannot be mixed"):
        set_up(MixUp(), 8)(Batch(x, torch.tensor([1, -100])), generator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CutMix(0.0), r"probability=0\.0: must lie in \(0, 1\]"),
        (lambda: CutMix(1.5), r"probability=1\.5: must lie in \(0, 1\]"),
        (lambda: MixUp(0.01), r"alpha=0\.01: must be at least 0\.05"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
