"""Exact resume with a network that draws random numbers; a stop on a loss that is no number."""

import lightning
import pytest
import torch
from torch import nn

from tna_lightning.callbacks import ExactResume, History, NonFiniteLoss, StopOnNonFiniteLoss
from tna_lightning.data import DigitsDataModule
from tna_lightning.data.augment import Crop
from tna_lightning.learner import TwinLearner
from tna_lightning.running.checkpoints import AtomicCheckpointIO, refuse_rest, savers
from tna_lightning.running.console import quiet_lightning


class Dropped(nn.Module):
    """A classifier whose training draws from the global generator."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    def forward(self, x):
        return self.layers(x)


class Spoiled(Dropped):
    """Its logits are NaN in training from a given call on."""

    def __init__(self, good_calls):
        super().__init__()
        self.calls_left = good_calls

    def forward(self, x):
        self.calls_left -= self.training
        return self.layers(x) * (float("nan") if self.training and self.calls_left < 0 else 1)


def fit(folder, network, epochs, stop_after=None, ckpt_path=None, identity="mine", more=(), **settings):
    """Train on a schedule of ``epochs``, and leave after ``stop_after`` of them as a killed process would."""
    kept, all_savers = savers(folder, "best")
    history = History(folder / "metrics.csv")

    class Leave(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == stop_after:
                raise InterruptedError

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[history, StopOnNonFiniteLoss(), ExactResume(identity), Leave(), *more, *all_savers],
        **settings,
    )
    data = DigitsDataModule(train_subset=200, batch_size=50, augment={"crop": Crop(1)})
    with quiet_lightning():
        trainer.fit(TwinLearner(network, num_classes=10), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return history, kept


def test_a_continued_run_draws_what_the_uninterrupted_one_draws(tmp_path):
    straight = Dropped()
    torch.manual_seed(5)
    history, kept = fit(tmp_path / "straight", straight, 4)

    broken = Dropped()
    torch.manual_seed(5)
    with pytest.raises(InterruptedError):
        fit(tmp_path / "broken", broken, 4, stop_after=2)
    continued = Dropped()
    torch.manual_seed(77)  # what a new process happens to start with
    again, kept_again = fit(tmp_path / "broken", continued, 4, ckpt_path=tmp_path / "broken" / "last.ckpt")

    for name, value in straight.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name
    assert again.columns() == history.columns()
    assert again.train_samples == history.train_samples == 4 * 200
    assert kept_again.best_model_score == kept.best_model_score
    assert (tmp_path / "broken" / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    fit(tmp_path, Dropped(), 1, identity="one")
    with pytest.raises(ValueError, match=r"ckpt_path='.*last.ckpt': belongs to a run of another config"):
        fit(tmp_path, Dropped(), 1, ckpt_path=tmp_path / "last.ckpt", identity="other")


def test_what_is_validated_last_in_an_epoch_is_what_is_kept(tmp_path):
    message = r"^trainer.val_check_interval=3: .*\(4 batches\) .*: 1, 2, 4$"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Dropped(), 1, val_check_interval=3)
    assert not list(tmp_path.glob("*.ckpt"))
    refuse_rest(8, 8, 4)  # counted over epochs: at the end of every second
    with pytest.raises(ValueError, match="allowed are"):
        refuse_rest(0.7, 2, 3)
    history, kept = fit(tmp_path, Dropped(), 2, val_check_interval=0.5)
    assert float(kept.best_model_score) == max(history.columns()["val/acc"])


def test_training_stops_where_the_loss_is_not_finite_and_keeps_the_epoch_before(tmp_path):
    steps_per_epoch = 4
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 6 \(epoch 1\)"):
        fit(tmp_path, Spoiled(good_calls=steps_per_epoch + 2), 3)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


def test_training_stops_where_the_last_step_spoils_the_weights(tmp_path):
    class SpoiledByItsLastStep(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 3):
                pl_module.base.layers[1].weight.data[0, 0] = float("inf")

    with pytest.raises(NonFiniteLoss, match=r"^base.layers.1.weight is not finite at the end of epoch 1: "):
        fit(tmp_path, Dropped(), 3, more=[SpoiledByItsLastStep()])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


def test_training_stops_where_inputs_spoil_the_running_statistics(tmp_path):
    class Huge(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1:
                pl_module.base.norm(torch.full((4, 3), 1e30) * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))

    network = Dropped()
    network.norm = torch.nn.BatchNorm1d(3)
    network.register_buffer("infinite", torch.tensor(float("inf")))  # from the start, and meant so
    with pytest.raises(
        NonFiniteLoss, match=r"^base.norm.running_var is not finite at the end of epoch 1: .* inputs may"
    ):
        fit(tmp_path, network, 3, more=[Huge()])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert checkpoint["state_dict"]["base.norm.running_var"].isfinite().all()


def test_a_failed_save_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path):
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="pickle"):
        saver.save_checkpoint({"epoch": 2, "cannot": lambda: None}, tmp_path / "last.ckpt")
    assert saver.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
