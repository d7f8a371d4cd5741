"""Where a callback stands, when training is validated or ends, a copy and a second fit must not matter."""

import copy
import pickle

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner.lr_finder import _LRFinder
from torch.optim.swa_utils import update_bn

import tna_lightning.callbacks
import tna_lightning.objectives
from tna_lightning.callbacks import EMA, SWA, ChooseCopies, ExactResume, History, StopOnNonFiniteLoss
from tna_lightning.callbacks.inference_cost import InferenceCost
from tna_lightning.data import DigitsDataModule
from tna_lightning.data.augment import Chosen, Crop
from tna_lightning.data.digits import load_digits
from tna_lightning.learner import TwinLearner
from tna_lightning.models import LIF, convnet
from tna_lightning.objectives import Objective, Plain
from tna_lightning.quantization import Ternary, WeightQuantization
from tna_lightning.running.console import quiet_lightning

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings(
        "ignore:SWA is currently only supported every epoch"
    ),  # Lightning's, which has no choice
]
IMAGES = load_digits()


class Digits(DigitsDataModule):
    def load(self):
        return IMAGES


def a_learner(objective=None):
    torch.manual_seed(0)
    objective = objective or Plain()
    networks = [convnet(1, 10, LIF, width=0.125, time_steps=1) for _ in range(2)]
    return TwinLearner(*networks[: 1 if objective.num_companions == 0 else 2], objective=objective, num_classes=10)


def fit(learner, callbacks, folder, **settings):
    torch.manual_seed(1)
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {"max_epochs": 2, "enable_checkpointing": checkpoints, "num_sanity_val_steps": 0} | settings
    trainer = lightning.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        **settings,
        callbacks=callbacks,
        default_root_dir=folder,
    )
    needs_copies = any(isinstance(callback, ChooseCopies) for callback in callbacks)
    augment = {"chosen": Chosen(Crop(1))} if needs_copies else {}
    data = Digits(train_subset=60, batch_size=20, eval_batch_size=400, augment=augment)
    with quiet_lightning():
        trainer.fit(learner, datamodule=data)
    return trainer


OTHERS = {
    "EMA": lambda: EMA(decay=0.5),
    "SWA": lambda: SWA(start_epoch=0),
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.5),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1),
    "EarlyStopping": lambda: EarlyStopping("val/loss", patience=1, min_delta=9),
    "BatchSizeFinder": lambda: BatchSizeFinder(steps_per_trial=1, init_val=15, max_trials=1),
    "LearningRateFinder": lambda: LearningRateFinder(num_training_steps=3),
    "ModelCheckpoint": lambda: ModelCheckpoint(monitor="val/acc", mode="max"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_callback_of_others_may_stand_before_ours_or_after(other, tmp_path, monkeypatch):
    monkeypatch.setattr(_LRFinder, "suggestion", lambda self, *_: 0.01)
    ends = []
    for place in (0, 4):
        learner, history = a_learner(), History()
        ours = [WeightQuantization(Ternary(), start_epoch=1), history, StopOnNonFiniteLoss(), ExactResume()]
        trainer = fit(learner, [*ours[:place], OTHERS[other](), *ours[place:]], tmp_path)
        assert trainer.current_epoch >= 2  # Lightning's SWA adds one for the batch norm statistics
        ends.append((learner.state_dict(), history.rows))
    state, rows = ends[0]
    assert any("parametrizations" in name for name in state)
    assert [row["epoch"] for row in rows][:2] == [0, 1]
    for other_state, other_rows in ends[1:]:
        assert other_rows == rows
        assert all(torch.equal(value, other_state[name]) for name, value in state.items())


class Recalibrated(lightning.Callback):
    """At every validation: are the batch norm statistics those of the network that is validated?"""

    times = 0

    def on_validation_batch_end(self, trainer, pl_module, *arguments):
        inputs = [trainer.datamodule.prepare(x) for x, *_ in trainer.train_dataloader][: trainer.num_training_batches]
        reference = copy.deepcopy(pl_module.base)
        update_bn(inputs, reference)
        for name, value in reference.named_buffers():
            torch.testing.assert_close(dict(pl_module.base.named_buffers())[name], value, msg=name)
        self.times += 1

    def on_fit_end(self, trainer, pl_module):
        self.on_validation_batch_end(trainer, pl_module)


@pytest.mark.parametrize(
    ("settings", "validations"),
    [
        ({}, 2),
        ({"max_steps": 5}, 1),
        ({"val_check_interval": 1}, 6),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, 3),
        ({"check_val_every_n_epoch": 2}, 1),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, 2),
        ({"limit_val_batches": 0}, 0),
        ({"max_epochs": -1, "max_steps": 4, "max_time": {"days": 1}, "accumulate_grad_batches": 2}, 2),
        ({"fast_dev_run": True}, 1),
    ],
)
def test_the_average_has_its_own_statistics_whenever_it_is_looked_at(settings, validations, tmp_path):
    check, history = Recalibrated(), History()
    callbacks = [check, EMA(decay=0.5), WeightQuantization(Ternary()), history, StopOnNonFiniteLoss(), ExactResume()]
    fit(a_learner(), callbacks, tmp_path, **settings)
    assert check.times == validations + 1
    assert all(row["train/loss"] > 0 for row in history.rows)


def test_an_average_of_weights_of_16_bits_is_taken_in_float32(tmp_path):
    class Steps(lightning.Callback):
        def __init__(self):
            self.weights, self.saved = [], {}

        def on_train_batch_end(self, trainer, pl_module, *arguments):
            self.weights.append({name: value.float() for name, value in pl_module.named_parameters()})

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    steps, learner = Steps(), a_learner()
    fit(learner, [EMA(decay=0.9), steps], tmp_path, precision="bf16-true")
    average = steps.weights[0]
    for number, weights in enumerate(steps.weights[1:], start=1):
        share = 1 - min(0.9, (1 + number) / (10 + number))
        average = {name: torch.lerp(value, weights[name], share) for name, value in average.items()}
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    for name, value in learner.named_parameters():
        assert value.dtype == torch.bfloat16
        assert torch.equal(saved[name], average[name])
        assert torch.equal(value, average[name].bfloat16())


def test_batches_that_come_once_cannot_be_averaged_over(tmp_path):
    class Once(Digits):
        def train_dataloader(self):
            return iter(super().train_dataloader())

    trainer = lightning.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        **{"enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": -1, "max_steps": 3},
        callbacks=[EMA()],
    )
    message = r"^recalibrate=100: must be 0 for training batches that cannot be read a second time"
    with quiet_lightning(), pytest.raises(ValueError, match=message):
        trainer.fit(a_learner(), datamodule=Once(train_subset=120, batch_size=40))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_strategies_whose_processes_keep_the_result_are_refused(method):
    callbacks = [WeightQuantization(Ternary()), History(), InferenceCost()]
    trainer = lightning.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        **{"strategy": f"ddp_{method}", "devices": 2, "callbacks": callbacks},
    )
    learner = a_learner()
    learner.trainer = trainer
    for callback, hook in (
        (callbacks[0], learner.configure_callbacks),
        (callbacks[1], lambda: callbacks[1].on_fit_start(trainer, learner)),
        (callbacks[2], lambda: callbacks[2].on_test_start(trainer, learner)),
    ):
        name = type(callback).__name__
        with pytest.raises(ValueError, match=rf"^strategy=ddp_{method}: must be ddp, .* what {name} does"):
            hook()


CALLBACKS = [
    each
    for each in [getattr(tna_lightning.callbacks, name) for name in tna_lightning.callbacks.__all__]
    if issubclass(each, lightning.Callback)
]
OBJECTIVES = [
    each
    for each in vars(tna_lightning.objectives).values()
    if isinstance(each, type) and issubclass(each, Objective) and each.__call__ is not Objective.__call__
]


def copies(thing):
    return copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("kind", [*CALLBACKS, WeightQuantization, InferenceCost])
def test_every_callback_survives_a_copy_and_a_second_fit(kind, tmp_path):
    def new():
        return WeightQuantization(Ternary()) if kind is WeightQuantization else kind()

    learner, callback = a_learner(), pickle.loads(pickle.dumps(new()))
    with_it = [callback] if kind is History else [callback, History()]
    fit(learner, with_it, tmp_path)
    ends = []
    for again in (new(), copy.deepcopy(callback), callback):
        trained = learner if again is callback else copy.deepcopy(learner)
        history = again if kind is History else History()
        fit(trained, [again] if kind is History else [again, history], tmp_path)
        ends.append((trained.state_dict(), history.rows))
    (state, rows), *others = ends
    assert len(rows) == 2
    for other_state, other_rows in others:
        assert other_rows == rows
        assert all(torch.equal(value, other_state[name]) for name, value in state.items())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_and_its_learner_survive_a_copy(kind, tmp_path):
    objective = kind(class_weights=[1] * 9 + [2], ignore_index=-100)
    assert all(each == objective for each in copies(objective))
    learner = a_learner(objective)
    before = copies(learner)
    fit(learner, [], tmp_path, max_epochs=1)
    for each in before:
        fit(each, [], tmp_path, max_epochs=1)
    for each in (*before, *copies(learner)):
        assert all(torch.equal(value, each.state_dict()[name]) for name, value in learner.state_dict().items())
