"""Operations for some of the samples: who is changed, and who is as before to the bit."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tna_lightning.data import Batch, DigitsDataModule
from tna_lightning.data.augment import CutMix, Flip, On, Sometimes, set_up


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch():
    x = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8, generator=generator(1))
    return Batch(x, torch.arange(8) % 3, torch.tensor([40, 7, 12, 3, 99, 8, 0, 55]))


def invert(batch, generator):
    return replace(batch, x=255 - batch.x)


def halve_weight(batch, generator):
    return replace(batch, weight=torch.full((len(batch),), 0.5))


@pytest.mark.parametrize("subset", [[12, 99, 1000], torch.tensor([99, 12])], ids=["list", "tensor"])
def test_on_changes_the_samples_of_the_subset_alone(subset):
    before = batch()
    done = On(subset, invert)(before, generator())
    is_changed = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    assert torch.equal(done.x[is_changed], 255 - before.x[is_changed])
    assert torch.equal(done.x[~is_changed], before.x[~is_changed])
    assert torch.equal(done.target, before.target)
    assert torch.equal(before.x, batch().x)


def test_none_of_the_subset_in_the_batch_changes_nothing():
    before = batch()
    assert On([1000], CutMix())(before, generator()) is before


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([3, 1797], r"^augment\.some=Sometimes: subset has 1797: the samples' numbers are 0 to 1796$"),
        ([-1, 3], r"subset has -1: "),
        ([], r"subset: none of these samples is trained on"),
        ("test", r"subset: none of these samples is trained on"),
    ],
)
def test_samples_that_are_not_there_are_refused_before_training(subset, message):
    data = DigitsDataModule()
    data.setup("fit")
    subset = data.test_set.subset if subset == "test" else subset
    refused, right = (
        DigitsDataModule(augment={"some": Sometimes(0.5, On(numbers, Flip()))})
        for numbers in (subset, [int(data.train_set.subset[0]), int(data.test_set.subset[0])])
    )
    for data in (refused, right):
        data.setup("fit")
    right.try_augmentation()
    with pytest.raises(ValueError, match=message):
        refused.try_augmentation()


def test_labels_of_the_others_become_one_hot():
    operation = On([40, 7, 12, 3], CutMix(1.0))
    set_up(operation, SimpleNamespace(num_classes=3))
    before = batch()
    done = operation(before, generator())
    alone = Batch(before.x[:4], before.target[:4], before.index[:4])
    mixed = operation.operation(alone, generator())  # the chosen are a batch of their own
    assert torch.equal(done.x, torch.cat([mixed.x, before.x[4:]]))
    assert torch.equal(done.target, torch.cat([mixed.target, torch.nn.functional.one_hot(before.target[4:], 3)]))
    again = operation(done, generator(1))  # labels of that kind already
    assert torch.equal(again.target[4:], done.target[4:])


def test_weights_of_the_others_are_one():
    done = On([7, 55], halve_weight)(batch(), generator())
    assert done.weight.tolist() == [1, 0.5, 1, 1, 1, 1, 1, 0.5]
    weighted = replace(batch(), weight=torch.arange(8.0))
    assert On([7, 55], halve_weight)(weighted, generator()).weight.tolist() == [0, 0.5, 2, 3, 4, 5, 6, 0.5]
    assert torch.equal(On([7], Flip())(weighted, generator()).weight, weighted.weight)


def test_sometimes_takes_each_sample_with_its_probability():
    many = Batch(torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64))
    done = Sometimes(0.3, invert)(many, generator())
    assert (done.x == 255).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(done.x, Sometimes(0.3, invert)(many, generator()).x)


def test_they_nest():
    done = On([40, 7], Sometimes(0.5, On([7], invert)))(batch(), generator(2))
    changed = (done.x != batch().x).flatten(1).any(1)
    assert not changed[[0, 2, 3, 4, 5, 6, 7]].any()


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"^On: batches must have the samples' numbers in their index"):
        On([1], invert)(replace(batch(), index=None), generator())
    with pytest.raises(ValueError, match=r"^function: must return as many samples as it gets, 2"):
        On([40, 7], lambda batch, generator: replace(batch, x=batch.x[:1]))(batch(), generator())
    for probability in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^probability=.*: must lie in \(0, 1\)"):
            Sometimes(probability, invert)
