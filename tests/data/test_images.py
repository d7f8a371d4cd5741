"""The module around images, seen through a plain Trainer. Digits and a small made-up colour set stand for all."""

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import Tensor

from tna_lightning.data import BatchedDataModule, DigitsDataModule, ImageDataModule
from tna_lightning.data.augment import AutoAugment, Crop, Cutout, Flip
from tna_lightning.data.loading import BatchSet

# Lightning 2.6.6 builds torch's LeafSpec, which torch 2.13 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


class Colours(ImageDataModule):
    """Sixty distinct colour images, the last twenty for the test."""

    name = "colours"
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.25, 0.3)

    @property
    def class_names(self) -> list[str]:
        return ["a", "b"]

    def load(self) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return images, torch.arange(60) % 2, torch.arange(40, 60)


def normalised(images: Tensor) -> Tensor:
    share = images.double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (Colours.mean, Colours.std))
    return ((share - mean) / std).float()


def test_every_stage_sees_its_own_images_normalised(trainer, probe) -> None:
    data = Colours(batch_size=8, eval_batch_size=6, val_fraction=0.25)
    model = probe(data)
    fitting = trainer(num_sanity_val_steps=0)
    fitting.fit(model, data)
    fitting.test(model, data, verbose=False)
    images, labels, _ = data.load()
    for stage, batches in (("train", data.train_set), ("val", data.val_set), ("test", data.test_set)):
        x = torch.cat([x for x, _ in model.seen[stage]])
        target = torch.cat([target for _, target in model.seen[stage]])
        assert x.dtype == torch.float32
        # without augmentation each image arrives once, with its own label
        expected = normalised(images[batches.subset])
        order = torch.cdist(x.flatten(1), expected.flatten(1)).argmin(1)
        assert sorted(order.tolist()) == list(range(len(batches)))
        torch.testing.assert_close(x, expected[order], rtol=0, atol=1e-5)
        assert torch.equal(target, labels[batches.subset][order])
    assert [len(target) for _, target in model.seen["train"]] == [8, 8, 8, 6]


@pytest.mark.parametrize(
    "operation",
    [Crop(), Flip(), Cutout(8), AutoAugment("trivialaugment")],
    ids=lambda operation: type(operation).__name__,
)
def test_training_images_alone_are_augmented(trainer, probe, operation) -> None:
    data = Colours(batch_size=8, val_fraction=0.25, augment={"it": operation})
    model = probe(data)
    fitting = trainer(max_epochs=2)
    fitting.fit(model, data)
    fitting.test(model, data, verbose=False)
    images = data.load()[0]
    assert torch.equal(data.normalization(images), data.prepare(images))
    known = {tuple(image.flatten().tolist()) for image in data.prepare(images)}
    changed = {
        stage: sum(tuple(image.flatten().tolist()) not in known for x, _ in batches for image in x)
        for stage, batches in model.seen.items()
    }
    assert changed["val"] == changed["test"] == 0
    assert changed["train"] > 15  # of 60


def test_cutout_fills_with_the_mean(trainer, probe) -> None:
    data = Colours(batch_size=8, augment={"cutout": Cutout(64)})  # covers a quarter at least, wherever its centre is
    model = probe(data)
    trainer().fit(model, data)
    x, _ = model.seen["train"][0]
    nearly_zero = (x.abs() < 0.5 / 255 / 0.2 + 1e-6).all(1)  # half a grey level of 255, over the smallest deviation
    assert (nearly_zero.float().mean((1, 2)) > 0.2).all()


def test_resumed_at_an_epoch_boundary_sees_the_same_batches(trainer, probe, tmp_path: Path) -> None:
    operations = {"crop": Crop(), "flip": Flip(), "policy": AutoAugment("randaugment"), "cutout": Cutout(8)}
    settings = {"batch_size": 8, "augment": operations}
    torch.manual_seed(0)
    whole = probe(Colours(**settings))
    initial = {name: weight.clone() for name, weight in whole.state_dict().items()}
    trainer(max_epochs=3).fit(whole, Colours(**settings))

    first = trainer(max_epochs=1)
    begun = probe(Colours(**settings))
    begun.load_state_dict(initial)
    first.fit(begun, Colours(**settings))
    first.save_checkpoint(tmp_path / "first.ckpt")
    torch.manual_seed(123)  # the state of the global generator does not matter
    rest = probe(Colours(**settings))
    trainer(max_epochs=3).fit(rest, Colours(**settings), ckpt_path=tmp_path / "first.ckpt")

    steps = len(whole.seen["train"]) // 3
    assert len(rest.seen["train"]) == 2 * steps
    for (x, target), (x_again, target_again) in zip(whole.seen["train"][steps:], rest.seen["train"], strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(target, target_again)
    for weight, weight_again in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(weight, weight_again)


def test_order_and_augmentation_differ_between_epochs_and_seeds(trainer, probe) -> None:
    def epochs(seed: int) -> list[Tensor]:
        data = Colours(batch_size=64, val_fraction=0, augment={"crop": Crop()}, seed=seed)
        model = probe(data)
        trainer(max_epochs=2, limit_val_batches=0).fit(model, data)
        return [x for x, _ in model.seen["train"]]

    (first, second), (other, _) = epochs(0), epochs(1)
    assert len(first) == len(second) == len(other) == 40
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first.sum((1, 2, 3)).sort().values, second.sum((1, 2, 3)).sort().values)  # other crops


def test_two_processes_share_the_batches() -> None:
    loaders = []
    for rank in range(2):
        data = DigitsDataModule(batch_size=64, eval_batch_size=50)
        data.trainer = RankOfTwo(rank)
        data.setup("fit")
        loaders.append((data.train_dataloader(), data.test_dataloader()))
    for first, second in zip(*loaders, strict=True):
        images = [torch.cat([x for x, _ in loader]).flatten(1) for loader in (first, second)]
        assert len(first) == len(second)
        assert abs(len(images[0]) - len(images[1])) <= 1
        assert not {tuple(row) for row in images[0].tolist()} & {tuple(row) for row in images[1].tolist()}
    assert sum(len(target) for loader in loaders for _, target in loader[0]) == 1293
    assert sum(len(target) for loader in loaders for _, target in loader[1]) == 360


class RankOfTwo:
    """What a data module asks of the trainer of one of two processes."""

    world_size = 2
    overfit_batches = 0.0
    strategy = SimpleNamespace(root_device=torch.device("cpu"))

    def __init__(self, rank: int) -> None:
        self.global_rank = rank


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")  # Lightning's word for overfit_batches
def test_overfitting_takes_the_same_batch_each_epoch(trainer, probe) -> None:
    data = Colours(batch_size=8)
    model = probe(data)
    trainer(max_epochs=3, overfit_batches=1, limit_val_batches=0).fit(model, data)
    (first, _), *others = model.seen["train"]
    assert len(others) == 2
    assert all(torch.equal(x, first) for x, _ in others)


def test_train_subset_is_stratified_and_leaves_validation_alone() -> None:
    all_of_it, some = DigitsDataModule(seed=4), DigitsDataModule(seed=4, train_subset=200)
    for data in (all_of_it, some):
        data.setup("fit")
    assert torch.equal(all_of_it.val_set.subset, some.val_set.subset)
    assert set(some.train_set.subset.tolist()) < set(all_of_it.train_set.subset.tolist())
    counts = Counter(some.train_set.targets[some.train_set.subset].tolist())
    assert sum(counts.values()) == 200
    assert set(counts.values()) <= {19, 20, 21}


def test_validation_and_test_subsets_are_drawn_once_and_said() -> None:
    whole = DigitsDataModule(seed=4)
    parts = [DigitsDataModule(seed=seed, val_subset=20, test_subset=50) for seed in (4, 4, 5)]
    for data in (whole, *parts):
        data.setup("fit")
    some, again, other = parts
    assert torch.equal(some.train_set.subset, whole.train_set.subset)
    for name in ("val_set", "test_set"):
        subset = getattr(some, name).subset
        assert torch.equal(subset, getattr(again, name).subset)
        assert set(subset.tolist()) < set(getattr(whole, name).subset.tolist())
    assert torch.equal(some.test_set.subset, other.test_set.subset)
    assert not torch.equal(some.val_set.subset, other.val_set.subset)
    counts = Counter(some.test_set.targets[some.test_set.subset].tolist())
    assert (sum(counts.values()), set(counts.values())) == (50, {5})
    about = some.describe()
    assert (about["val_samples"], about["test_samples"]) == (20, 50)
    assert about["of_samples"] == {"val": 144, "test": 360}
    assert "of_samples" not in whole.describe()
    assert some.split_hash != whole.split_hash


def test_a_subset_that_a_module_of_ones_own_does_not_draw_is_refused() -> None:
    class Own(BatchedDataModule):
        def setup(self, stage: str) -> None:
            samples = BatchSet(torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64))
            self.train_set = self.val_set = self.test_set = samples

    for count, message in ((8, None), (3, r"^train_subset=3: Own\.setup does not draw it, by reduce\(\)")):
        data = Own(train_subset=count)
        data.setup("fit")
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            data.check_subsets()


def test_images_that_a_test_subset_leaves_out_do_not_count_in_the_mean() -> None:
    class Measured(DigitsDataModule):
        mean = std = None

    whole, some = Measured(), Measured(test_subset=20)
    for data in (whole, some):
        data.setup("fit")
    assert (some.mean, some.std) == (whole.mean, whole.std)


def test_no_validation_images(trainer, probe) -> None:
    data = DigitsDataModule(val_fraction=0)
    model = probe(data)
    trainer(limit_train_batches=2, limit_val_batches=0).fit(model, data)
    assert len(data.train_set) == 1437
    assert model.seen["val"] == []


def test_batches_come_from_the_trainers_device(trainer, probe) -> None:
    """The meta device stands for an accelerator: what is gathered from it never was on the CPU."""
    data = DigitsDataModule()
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, overfit_batches=0.0, strategy=SimpleNamespace(root_device=torch.device("meta"))
    )
    data.setup("fit")
    x, target = next(iter(data.train_dataloader()))
    assert x.device.type == target.device.type == "meta"
    assert x.dtype == torch.uint8
    on_cpu = DigitsDataModule(device_resident=False)
    on_cpu.trainer = data.trainer
    on_cpu.setup("fit")
    assert on_cpu.train_set.inputs.device.type == "cpu"


def test_half_precision_networks_get_half_precision_images(trainer, probe) -> None:
    data = DigitsDataModule()
    model = probe(data)
    trainer(precision="bf16-true", limit_train_batches=1, limit_val_batches=0).fit(model, data)
    assert model.seen["train"][0][0].dtype == torch.bfloat16


def test_without_a_trainer_batches_are_prepared_and_not_augmented() -> None:
    data = Colours(augment={"crop": Crop(), "flip": Flip()})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    prepared = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(prepared.x, normalised(batch.x), rtol=0, atol=1e-5)
    assert prepared.target is batch.target
    images, labels, _ = data.load()
    assert torch.equal(batch.x, images[batch.index])  # numbers count all images, whatever their split
    assert torch.equal(batch.target, labels[batch.index])
    assert prepared.index is batch.index


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0: must lie in \[0, 1\)"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Colours(**settings)


@pytest.mark.parametrize(("part", "number"), [("train", 1293), ("val", 144), ("test", 360)])
@pytest.mark.parametrize("beyond", [False, True])
def test_bad_subset(part: str, number: int, beyond: bool) -> None:
    count = number + 1 if beyond else 0
    data = DigitsDataModule(**{f"{part}_subset": count})
    with pytest.raises(ValueError, match=rf"^{part}_subset={count}: must be null or lie in \[1, {number}\]"):
        data.setup("fit")


def test_a_subset_of_no_validation_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^val_subset=5: must be null, there are no samples for val"):
        DigitsDataModule(val_fraction=0, val_subset=5).setup("fit")


def test_works_with_a_plain_trainer_without_warnings(tmp_path: Path, monkeypatch, probe) -> None:
    monkeypatch.chdir(tmp_path)
    data = DigitsDataModule()
    model = probe(data)
    fitting = lightning.Trainer(accelerator="cpu", logger=False, max_epochs=2)
    fitting.fit(model, data)  # warnings are errors in every test
    assert fitting.global_step == 2 * 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y, t: (x / 255, y, t),
            "its images are [60, 3, 32, 32] of torch.float32; must be a tensor [N, 3, H, W]",
        ),
        (
            lambda x, y, t: (x.numpy(), y, t),
            "its images are [60, 3, 32, 32] of uint8; must be a tensor [N, 3, H, W] of",
        ),
        (
            lambda x, y, t: (x[:, :1], y, t),
            "its images are [60, 1, 32, 32] of torch.uint8; must be a tensor [N, 3, H, W]",
        ),
        (lambda x, y, t: (x, y.int(), t), "its labels are [60] of torch.int32; must be a tensor [N] of torch.int64"),
        (
            lambda x, y, t: (x, y[:, None], t),
            "its labels are [60, 1] of torch.int64; must be a tensor [N] of torch.int64",
        ),
        (
            lambda x, y, t: (x, y, torch.tensor([1, len(x)])),
            "its test indices must lie in 0 to 59, each once; one is 60",
        ),
        (lambda x, y, t: (x, y, torch.tensor([1, -1])), "its test indices must lie in 0 to 59, each once; one is -1"),
        (
            lambda x, y, t: (x, y, torch.tensor([1, 1])),
            "its test indices must lie in 0 to 59, each once; one is there twice",
        ),
        (lambda x, y, t: (x, y, t.tolist()), "its test indices are [] of list; must be a tensor [N] of torch.int64"),
        (lambda x, y, t: (x, y[1:], t), "must give a label an image; there are 59 for 60"),
        (lambda x, y, t: (x, y + 1, t), "labels must lie in 0 to 1, as class_names has 2; one is 2"),
        (lambda x, y, t: (x, y - 1, t), "labels must lie in 0 to 1, as class_names has 2; one is -1"),
    ],
)
def test_images_and_labels_of_another_kind_are_refused(change, message) -> None:
    class Changed(Colours):
        def load(self):
            return change(*super().load())

    with pytest.raises(ValueError, match=f"^load: {re.escape(message)}"):
        Changed().setup("fit")


def test_predictions_are_asked_of_the_test_images_in_order() -> None:
    data = Colours()
    data.setup("predict")
    (batch,) = list(data.predict_dataloader())
    assert batch.index.tolist() == list(range(40, 60))
