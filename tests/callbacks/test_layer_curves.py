"""Curves of every layer: right, and without a trace in the run."""

import csv
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tna_lightning import TwinLearner, WeightQuantization
from tna_lightning.callbacks import LayerCurves
from tna_lightning.callbacks.layer_curves import firing_rates
from tna_lightning.cost import inference_cost
from tna_lightning.data import DigitsDataModule
from tna_lightning.models import LIF, convnet
from tna_lightning.quantization import Ternary


def network():
    torch.manual_seed(0)
    return convnet(in_channels=1, num_classes=10, neuron=LIF, width=0.125, time_steps=2)


def test_firing_rates_are_those_of_the_cost_counter():
    base, x = network().eval(), torch.rand(6, 1, 8, 8)
    counted = {layer["name"]: layer["firing_rate"] for layer in inference_cost(base, [x])["neuron_layers"]}
    assert firing_rates(base, x) == pytest.approx(counted)
    assert len(counted) > 1
    assert not any(module._forward_hooks for module in base.modules())


def fit(folder, *callbacks):
    lightning.seed_everything(0, verbose=False)
    learner = TwinLearner(network(), num_classes=10)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[WeightQuantization(Ternary()), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(learner, datamodule=DigitsDataModule(train_subset=100))
    return learner, trainer


def test_curves_are_logged_and_change_nothing(tmp_path):
    with_curves, trainer = fit(tmp_path / "with", LayerCurves())
    without, other = fit(tmp_path / "without")
    for name, value in without.state_dict().items():
        assert torch.equal(with_curves.state_dict()[name], value), name
    assert trainer.callback_metrics == other.callback_metrics
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["zeros/classifier"]]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert 0 < float(rows[-1]["zeros/classifier"]) < 1
    assert {name for name in rows[0] if name.startswith("firing_rate/")} == {
        f"firing_rate/{name}" for name in firing_rates(network(), torch.rand(1, 1, 8, 8))
    }
