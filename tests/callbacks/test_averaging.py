"""EMA and SWA with a plain Lightning trainer: averages by hand, batch norm, exceptions, and Lightning's own."""

import copy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import update_bn

from tna_lightning.callbacks import EMA, SWA
from tna_lightning.data import DigitsDataModule
from tna_lightning.learner import TwinLearner
from tna_lightning.models import LIF, convnet
from tna_lightning.objectives import TwinAugmentation
from tna_lightning.quantization import Ternary, TernaryTTQ, Uniform, WeightQuantization
from tna_lightning.quantization.kept import kept_weights
from tna_lightning.running.console import quiet_lightning

QUANTIZERS = {"ternary": Ternary(), "ttq": TernaryTTQ(), "lsq": Uniform(4, scale="learned")}


def a_learner(with_twin=False):
    torch.manual_seed(0)
    base, twin = (convnet(1, 10, LIF, width=0.125, time_steps=1) for _ in range(2))
    return TwinLearner(base, *([twin, TwinAugmentation()] if with_twin else []), num_classes=10)


def fit(learner, callbacks, epochs=3):
    data = DigitsDataModule(train_subset=120, batch_size=40, eval_batch_size=400)
    trainer = lightning.Trainer(
        **{"max_epochs": epochs, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
        callbacks=callbacks,
    )
    with quiet_lightning():
        trainer.fit(learner, datamodule=data)
    return trainer, data


class ByHand(lightning.Callback):
    """The parameters after every step, and the batches of the last epoch."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        self.steps.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})

    def on_train_epoch_end(self, trainer, pl_module):
        self.inputs = [trainer.datamodule.prepare(x) for x, *_ in trainer.train_dataloader]


def ema_by_hand(steps, decay):
    average = steps[0]
    for number, weights in enumerate(steps[1:], start=1):
        d = min(decay, (1 + number) / (10 + number))
        average = {name: d * average[name] + (1 - d) * weights[name] for name in weights}
    return average


def swa_by_hand(steps, start_epoch):
    ends = steps[2::3][start_epoch:]
    return {name: sum(weights[name] for weights in ends) / len(ends) for name in ends[0]}


EMA_BY_HAND = (lambda: EMA(decay=0.4), lambda steps: ema_by_hand(steps, 0.4))
SWA_BY_HAND = (lambda: SWA(start_epoch=1), lambda steps: swa_by_hand(steps, 1))


@pytest.mark.parametrize(
    ("average", "by_hand", "quantizer"),
    [(*EMA_BY_HAND, "ternary"), (*EMA_BY_HAND, "ttq"), (*EMA_BY_HAND, "lsq"), (*SWA_BY_HAND, "ttq")],
    ids=["ema-ternary", "ema-ttq", "ema-lsq", "swa-ttq"],
)
def test_the_average_is_the_one_by_hand_and_is_what_is_quantised(average, by_hand, quantizer):
    states = []
    for quantisation_first in (True, False):
        learner, hand = a_learner(with_twin=True), ByHand()
        quantization = WeightQuantization(QUANTIZERS[quantizer], network="both", start_epoch=1)
        fit(learner, [*[quantization, average()][:: 1 if quantisation_first else -1], hand])
        expected = by_hand(hand.steps)
        assert any("quantizer" in name for name in expected) is (quantizer != "ternary")  # learned scales as well
        for name, value in learner.named_parameters():
            torch.testing.assert_close(value.detach(), expected[name], rtol=1e-5, atol=1e-6)
        for layer, _, kept in kept_weights(learner.base.eval()):
            assert torch.equal(learner.base.get_submodule(layer).weight, kept.weight), layer
        states.append(learner.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_batch_norm_statistics_are_those_of_the_average_over_training_batches():
    learner, hand = a_learner(), ByHand()
    fit(learner, [EMA(decay=0.9), WeightQuantization(Ternary()), hand])
    reference = copy.deepcopy(learner.base)
    update_bn(hand.inputs, reference)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(dict(learner.base.named_buffers())[name], value, msg=name)
    one = a_learner()
    fit(one, [EMA(decay=0.9, recalibrate=1), WeightQuantization(Ternary())])
    update_bn(hand.inputs[:1], reference)
    torch.testing.assert_close(one.base.state_dict(), reference.state_dict())


def test_batch_norm_statistics_are_averaged_where_they_are_not_taken_anew():
    learner, statistics = a_learner(), []

    class Note(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *arguments):
            statistics.append({k: v.clone() for k, v in pl_module.named_buffers() if k.endswith("running_var")})

    fit(learner, [EMA(decay=0.4, recalibrate=0), Note()])
    expected = ema_by_hand(statistics, 0.4)
    for name, value in expected.items():
        torch.testing.assert_close(dict(learner.named_buffers())[name], value)


def test_an_exception_in_validation_leaves_each_set_of_weights_in_its_place(tmp_path):
    class Fail(lightning.Callback):
        def on_validation_batch_end(self, trainer, *arguments):
            if trainer.current_epoch == 1:
                raise InterruptedError

        def on_exception(self, trainer, *arguments):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    learner, hand = a_learner(), ByHand()
    with pytest.raises(InterruptedError):
        fit(learner, [EMA(decay=0.4), Fail(), hand])
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    average = ema_by_hand(hand.steps, 0.4)
    for name, value in learner.named_parameters():
        assert torch.equal(value, hand.steps[-1][name])
        assert torch.equal(checkpoint["current_model_state"][name], hand.steps[-1][name])
        torch.testing.assert_close(checkpoint["state_dict"][name], average[name])


def test_lightnings_own_average_may_stand_before_quantisation_or_after_and_is_tested(tmp_path):
    states = []
    for first in (True, False):
        learner = a_learner()
        callbacks = [EMAWeightAveraging(decay=0.5), WeightQuantization(Ternary())][:: 1 if first else -1]
        trainer, data = fit(learner, callbacks)
        average = {name: value.clone() for name, value in learner.state_dict().items()}
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
        saved["current_model_state"] = {name: torch.zeros_like(value) for name, value in average.items()}
        torch.save(saved, tmp_path / "end.ckpt")
        with quiet_lightning():
            trainer.test(learner, data, ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
        assert all(torch.equal(value, average[name]) for name, value in learner.state_dict().items())
        states.append(average)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_other_modules_must_be_quantised_before_lightning_copies_them():
    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.base, self.companion = torch.nn.Linear(2, 2), None

    trainer = lightning.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        callbacks=[EMAWeightAveraging(), quantization := WeightQuantization(Ternary())],
    )
    with pytest.raises(ValueError, match="callbacks: EMAWeightAveraging has copied the networks already; WeightQuant"):
        quantization.setup(trainer, Plain(), "fit")
