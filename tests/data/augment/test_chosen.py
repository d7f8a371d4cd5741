"""Copies of chosen samples: the greedy choice against brute force, what an epoch has, and that a training goes on."""

import itertools
import math
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tna_lightning.callbacks import ChooseCopies, ExactResume
from tna_lightning.data import Batch, DigitsDataModule
from tna_lightning.data.augment import Chosen, Crop, MixUp
from tna_lightning.data.augment.chosen import WithCopies
from tna_lightning.data.augment.coresets import (
    budgets,
    coreset,
    facility_location,
    gradient_proxies,
    similarities,
)
from tna_lightning.data.loading import BatchSet
from tna_lightning.learner import TwinLearner, cosine
from tna_lightning.running.console import quiet_lightning


def plus_one(batch, generator):
    return Batch(batch.x + 1, batch.target, batch.index, batch.weight, batch.is_copy)


def covered(similarity, chosen):
    """F of the docstring."""
    return float(similarity[:, list(chosen)].max(1).values.sum())


def is_greedy(similarity, chosen):
    """Whether each gains most of those that are left, every gain computed anew; two of a pair gain the same."""
    for place in range(len(chosen)):
        left = set(range(len(similarity))) - set(chosen[:place])
        values = {j: covered(similarity, [*chosen[:place], j]) for j in left}
        if values[chosen[place]] < max(values.values()) - 1e-9:
            return False
    return True


@pytest.mark.parametrize("seed", range(6))
def test_the_lazy_choice_is_the_greedy_one_and_keeps_its_bound(seed):
    torch.manual_seed(seed)
    similarity = similarities(torch.randn(11, 3).double())
    for count in (1, 3, 4):
        chosen = facility_location(similarity, count).tolist()
        assert is_greedy(similarity, chosen)
        best = max(covered(similarity, subset) for subset in itertools.combinations(range(11), count))
        assert (1 - 1 / math.e) * best <= covered(similarity, chosen) <= best + 1e-9
    assert covered(similarity, facility_location(similarity, 1).tolist()) == pytest.approx(
        max(covered(similarity, [j]) for j in range(11))
    )


def test_more_samples_than_are_looked_at_at_once_and_equal_ones():
    similarity = similarities(torch.randn(200, 4).double())
    assert is_greedy(similarity, facility_location(similarity, 40).tolist())
    assert not is_greedy(similarity, facility_location(similarity, 40).flip(0).tolist())
    alike = facility_location(similarities(torch.ones(5, 2)), 3)  # nothing is gained: the first ones
    assert alike.tolist() == [0, 1, 2]
    assert sorted(facility_location(similarity, 200).tolist()) == list(range(200))


def test_similarity_is_the_largest_distance_minus_the_distance():
    similarity = similarities(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    farthest = 5.0
    expected = farthest - torch.tensor([[0.0, 5.0, 1.0], [5.0, 0.0, 18**0.5], [1.0, 18**0.5, 0.0]])
    torch.testing.assert_close(similarity, expected)


def test_proxies_are_the_gradients_in_the_logits():
    logits, target = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 3, 1, 1, 2, 0])
    F.cross_entropy(logits, target, reduction="sum").backward()
    torch.testing.assert_close(gradient_proxies(logits.detach(), target), logits.grad)


@pytest.mark.parametrize(
    ("sizes", "share", "given"),
    [
        ([100, 100], 0.3, [30, 30]),
        ([10, 10, 10], 0.25, [3, 3, 3]),  # ceil(7.5 / 3)
        ([2, 50, 48], 0.3, [2, 14, 14]),  # the first gives 2 of 10; the others 8 more
        ([2, 50, 5], 0.5, [2, 23, 5]),
        ([3, 4], 1, [3, 4]),
        ([1, 1], 0.1, [1, 1]),
    ],
)
def test_what_a_small_class_lacks_others_give(sizes, share, given):
    assert budgets(torch.tensor(sizes), share).tolist() == given


def test_a_coreset_takes_a_sample_of_each_heap_and_counts_whom_it_stands_for():
    heaps = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]])
    proxies = torch.cat([heap + 0.01 * torch.randn(size, 2) for heap, size in zip(heaps, (6, 3, 1), strict=True)])
    proxies = torch.cat([proxies, proxies.flip(0)])  # of a second class
    target = torch.tensor([0] * 10 + [1] * 10)
    places, weights = coreset(proxies, target, 0.3)
    of_first, of_second = places[:3].sort().values, places[3:].sort().values
    assert [int(place) // 6 + int(place) // 9 for place in of_first] == [0, 1, 2]
    assert of_second.min() >= 10
    assert sorted(weights[:3].tolist()) == pytest.approx([0.3, 0.9, 1.8])  # 1, 3 and 6 over their mean
    assert weights.mean() == pytest.approx(1)


def samples():
    return BatchSet(torch.arange(20.0).view(20, 1), torch.arange(20) % 2, subset=torch.arange(4, 16))


def test_what_is_chosen():
    logits, target = torch.randn(12, 2), torch.arange(12) % 2
    by_loss = Chosen(plus_one, share=0.25, by="max_loss")
    by_loss.choose(3, 0, logits, target)
    losses = F.cross_entropy(logits, target, reduction="none")
    assert by_loss.samples.tolist() == losses.topk(4).indices.tolist()
    at_random = [Chosen(plus_one, share=0.25, by="random") for _ in range(2)]
    for chosen, epoch in zip(at_random, (0, 5), strict=True):
        chosen.choose(epoch, 7, None, target)
    first, second = (chosen.samples.tolist() for chosen in at_random)
    assert first != second
    assert len(set(first)) == 4
    at_random[1].choose(0, 7, None, target)
    assert at_random[1].samples.tolist() == first
    by_gradient = Chosen(plus_one, share=0.25, weigh=True)
    by_gradient.choose(0, 0, logits, target)
    expected, weights = coreset(gradient_proxies(logits, target), target, 0.25)
    assert by_gradient.samples.tolist() == expected.tolist()
    assert torch.equal(by_gradient.weights, weights)


def test_copies_stand_behind_the_samples_and_they_alone_are_augmented_strongly():
    chosen = Chosen({"one": plus_one, "two": plus_one}, share=0.25)
    both = WithCopies(samples(), chosen)
    with pytest.raises(ValueError, match=r"^Chosen: nothing is chosen yet; a trainer .*ChooseCopies"):
        both[[0]]
    chosen.load_state_dict(
        {"epoch": 0, "samples": torch.tensor([2, 0, 7, 5]), "weights": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    )
    assert len(both) == 16
    batch = both[[0, 12, 14, 11]]
    assert batch.index.tolist() == [4, 6, 11, 15]
    assert batch.is_copy.tolist() == [False, True, True, False]
    assert batch.weight.tolist() == [1, 1, 3, 1]
    done = chosen(batch, torch.Generator())
    assert done.x.flatten().tolist() == [4, 8, 13, 15]
    mixing = MixUp()
    mixing.num_classes = 2
    assert Chosen(mixing)(batch, torch.Generator()).target.shape == (4, 2)
    assert chosen(samples()[[1, 2]], torch.Generator()).x.flatten().tolist() == [5, 6]  # of validation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, r"share=0\.0: must lie in \(0, 1\]"),
        ({"every": 0}, r"every=0: must be at least 1 epoch"),
        ({"by": "loss"}, r"by='loss': must be one of coreset, max_loss, random"),
        ({"by": "random", "weigh": True}, r"weigh=True: must be false with by=random"),
        ({"strong": {}}, r"strong=\{\}: must have an operation"),
        ({"strong": {"it": 3}}, r"strong\.it=3: must be an operation"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Chosen(**{"strong": plus_one, **settings})
    with pytest.raises(ValueError, match=r"^augment\.b=Chosen: augment\.a is one already"):
        DigitsDataModule(augment={"a": Chosen(plus_one), "b": Chosen(plus_one)})


class Dropped(nn.Module):
    """A classifier that draws from the global generator in training, and has a batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3))
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        return self.classifier(self.layers(x))


class Watch(lightning.Callback):
    """What was trained on, by epoch, and what was chosen."""

    def __init__(self, leave_at=None):
        self.leave_at, self.choices, self.trained = leave_at, {}, {}

    def on_train_epoch_start(self, trainer, learner):
        if trainer.current_epoch == self.leave_at:
            raise InterruptedError
        self.choices[trainer.current_epoch] = trainer.datamodule.chosen.samples.tolist()

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        rows = self.trained.setdefault(trainer.current_epoch, [])
        rows += [(int(number), bool(copy)) for number, copy in zip(batch.index, batch.is_copy, strict=True)]


def fit(network, folder, leave_at=None, ckpt_path=None, **settings):
    watch = Watch(leave_at)
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ChooseCopies(), watch, ExactResume(), saver],
    )
    augment = {"crop": Crop(1), "chosen": Chosen({"crop": Crop(2)}, share=0.25, every=2, **settings)}
    data = DigitsDataModule(train_subset=120, batch_size=50, augment=augment)
    learner = TwinLearner(network, num_classes=10, schedule=cosine)
    steps = []
    learner.schedule_factory = lambda optimizer, total, per_epoch: (
        steps.extend((total, per_epoch)) or cosine(optimizer, total, per_epoch)
    )
    with quiet_lightning():
        trainer.fit(learner, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return watch, steps


def test_an_epoch_is_longer_the_choice_is_renewed_and_a_training_goes_on_exactly(tmp_path):
    straight = Dropped()
    watch, steps = fit(straight, tmp_path / "straight", weigh=True)
    assert steps == [15, 3]  # 120 samples and 30 copies, in batches of 50
    assert watch.choices[0] == watch.choices[1] != watch.choices[2] == watch.choices[3] != watch.choices[4]
    for epoch, rows in watch.trained.items():
        numbers = [number for number, is_copy in rows if not is_copy]
        copies = [number for number, is_copy in rows if is_copy]
        assert (len(set(numbers)), len(set(copies))) == (120, 30), epoch
        assert [is_copy for _, is_copy in rows] != sorted(is_copy for _, is_copy in rows)  # in one random order

    broken = Dropped()
    with pytest.raises(InterruptedError):
        fit(broken, tmp_path / "broken", leave_at=3, weigh=True)  # in the middle of a choice's time
    continued = Dropped()
    torch.manual_seed(77)
    again, _ = fit(continued, tmp_path / "broken", ckpt_path=tmp_path / "broken" / "last.ckpt", weigh=True)
    assert again.choices == {epoch: watch.choices[epoch] for epoch in (3, 4)}
    for name, value in straight.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_choosing_leaves_the_training_as_it_was():
    """Nothing is drawn from the global generator, and no statistic of batch norm moves."""
    network = Dropped()
    learner = TwinLearner(network, num_classes=10)
    data = DigitsDataModule(train_subset=60, augment={"chosen": Chosen(plus_one, share=0.5)})
    data.setup("fit")
    trainer = SimpleNamespace(
        datamodule=data,
        current_epoch=0,
        is_global_zero=True,
        precision_plugin=lightning.pytorch.plugins.Precision(),
        strategy=SimpleNamespace(broadcast=lambda state: state),
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    callback = ChooseCopies()
    callback.setup(trainer, learner, "fit")
    callback.on_train_epoch_start(trainer, learner)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert len(data.chosen.samples) == 30
    x = data.prepare(data.train_set[list(range(60))].x)
    expected, _ = coreset(gradient_proxies(network.eval()(x).detach(), data.train_set[list(range(60))].target),
                          data.train_set[list(range(60))].target, 0.5)  # fmt: skip
    assert data.chosen.samples.tolist() == expected.tolist()
    data.operations.clear()
    with pytest.raises(ValueError, match=r"^ChooseCopies: the data module must have a Chosen"):
        callback.setup(trainer, learner, "fit")
