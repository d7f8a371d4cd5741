"""A batch on its way: collated, pinned, moved, measured and converted by torch's loader and Lightning."""

import lightning
import pytest
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from tna_lightning.data import Batch, DigitsDataModule
from tna_lightning.data.augment import CutMix
from tna_lightning.learner import TwinLearner

# the loaders here have no workers, on purpose
pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


class Samples(Dataset):
    """Twenty samples with all that a batch can hold; ``kind`` says how they are handed out."""

    def __init__(self, kind):
        generator = torch.Generator().manual_seed(0)
        self.kind = kind
        self.x = torch.randn(20, 3, 2, 2, generator=generator)
        self.target = torch.arange(20) % 4

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x, target = self.x[index], self.target[index]
        if self.kind == "pair":
            return x, target
        if self.kind == "bare":
            return Batch(x, target)
        mixed = nn.functional.one_hot(target, 4).float()
        return Batch(x, mixed, torch.tensor(index), torch.tensor(1.0))


class OwnData(lightning.LightningDataModule):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def train_dataloader(self):
        return DataLoader(Samples(self.kind), batch_size=8)

    def val_dataloader(self):
        return DataLoader(Samples(self.kind), batch_size=8)


class LogsItself(lightning.Callback):
    """Logs the number of the batch, and leaves it to Lightning to find how many samples that stands for."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(batch)
        pl_module.log("number", float(batch_idx), on_step=False, on_epoch=True)


def fitted(kind, trainer, **settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    callback = LogsItself()
    run = trainer(callbacks=[callback], max_epochs=2, **settings)
    run.fit(TwinLearner(network, num_classes=4), datamodule=OwnData(kind))
    return network, callback, run


def test_default_collate_stacks_each_field():
    data = Samples("full")
    batch = default_collate([data[3], data[5]])
    assert isinstance(batch, Batch)
    assert torch.equal(batch.x, data.x[[3, 5]])
    assert torch.equal(batch.target.argmax(1), data.target[[3, 5]])
    assert batch.index.tolist() == [3, 5]
    assert batch.weight.tolist() == [1, 1]
    assert default_collate([Samples("bare")[0]]).index is None


def test_torchs_loader_pins_each_field(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *arguments: tensor + 1)  # there may be no GPU
    pinned = pin_memory(Batch(torch.zeros(2, 1), torch.zeros(2), index=torch.tensor([4, 5])))
    assert isinstance(pinned, Batch)
    assert pinned.x.tolist() == [[1], [1]]
    assert pinned.target.tolist() == [1, 1]
    assert pinned.index.tolist() == [5, 6]
    assert pinned.weight is None


@pytest.mark.parametrize("kind", ["pair", "bare", "full"])
def test_a_data_module_of_ones_own_trains_the_same_whatever_it_yields(kind, trainer):
    network, callback, run = fitted(kind, trainer)
    pair, _, _ = fitted("pair", trainer)
    for weight, expected in zip(network.parameters(), pair.parameters(), strict=True):
        torch.testing.assert_close(weight, expected)
    # batches of 8, 8 and 4: a mean over samples, by the size that Lightning found
    assert run.callback_metrics["number"].item() == pytest.approx((0 * 8 + 1 * 8 + 2 * 4) / 20)
    if kind != "pair":
        assert {type(batch) for batch in callback.seen} == {Batch}


def test_lightning_finds_the_size_of_a_batch():
    assert extract_batch_size(Batch(torch.zeros(6, 3), torch.zeros(6))) == 6  # it warns where it is unsure
    x, target = Batch(torch.zeros(6, 3), torch.ones(6))
    assert x.shape == (6, 3)
    assert target.shape == (6,)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_data_of_ones_own_in_other_precisions(precision, trainer):
    _, callback, run = fitted("full", trainer, precision=precision)
    assert run.callback_metrics["train/loss"].isfinite()
    assert callback.seen[0].index.dtype == torch.int64


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_inputs_get_the_networks_precision_and_labels_that_of_the_loss(precision, dtype, trainer):
    callback = LogsItself()
    run = trainer(precision=precision, callbacks=[callback], limit_train_batches=1, limit_val_batches=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run.fit(TwinLearner(network, num_classes=10), datamodule=DigitsDataModule(augment={"cutmix": CutMix()}))
    (batch,) = callback.seen
    assert batch.x.dtype == dtype
    assert batch.target.dtype == torch.float32
    assert batch.index.dtype == torch.int64
