"""A finished run goes on for more epochs: as the longer one would have, and what cannot be is refused."""

import json
import shutil

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from tna_lightning.callbacks import History
from tna_lightning.quantization.packing import read_packed
from tna_lightning.running.config import compose
from tna_lightning.running.extension import refuse_fixed_length
from tna_lightning.running.record import LAST_CHECKPOINT, NETWORK, finished_record, read_record
from tna_lightning.running.train import train

TINY = ["data.train_subset=120", "data.batch_size=40", "model.width=0.125", "model.time_steps=1", "callbacks=ema"]
TINY += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "keep=best"]
CONSTANT = """
from torch.optim.lr_scheduler import LambdaLR
def constant(optimizer, total_steps, steps_per_epoch, **settings):
    return LambdaLR(optimizer, lambda step: 1.0)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs, with a cosine."""
    folder = tmp_path_factory.mktemp("shorter") / "run"
    train(compose([*TINY, "epochs=2"]), folder)
    return folder


def tensors(folder):
    return read_packed(folder / NETWORK)[0]


def losses(folder):
    return finished_record(folder)["history"]["train/loss"]


def test_where_the_schedule_knows_no_end_it_is_the_longer_run_to_the_bit(tmp_path, monkeypatch):
    (tmp_path / "constant_rate.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*TINY, "baseline=plain", "schedule._target_=constant_rate.constant"]
    train(compose([*overrides, "epochs=1"]), tmp_path / "shorter")
    train(compose([*overrides, "epochs=3"]), tmp_path / "longer")
    extended = compose([*overrides, "epochs=3", f"extend={tmp_path / 'shorter'}"])

    class Stop(Exception):
        pass

    def stop(history, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise Stop
        after(history, trainer, pl_module)

    after = History.on_train_epoch_end
    with monkeypatch.context() as patched:  # it is cut off in its last epoch, and goes on without the shorter run
        patched.setattr(History, "on_train_epoch_end", stop)
        with pytest.raises(Stop):
            train(extended, tmp_path / "extended")
    identity = finished_record(tmp_path / "shorter")["identity"]
    shutil.rmtree(tmp_path / "shorter")
    record = train(extended, tmp_path / "extended")
    assert record["epochs"] == 3
    assert record["extends"] == {"run": str(tmp_path / "shorter"), "identity": identity}
    assert losses(tmp_path / "extended") == losses(tmp_path / "longer")
    one, other = tensors(tmp_path / "extended"), tensors(tmp_path / "longer")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_cosine_is_that_of_the_whole_length(run, tmp_path, caplog):
    caplog.set_level("INFO", "tna_lightning")
    record = train(compose([*TINY, "epochs=4", f"extend={run}"]), tmp_path / "run")
    assert f"extend: goes on after epoch 2 with what {run / LAST_CHECKPOINT} holds, optimizer included" in caplog.text
    assert "extend: the schedule is that of 4 epochs: 0 -> 0.001" in caplog.text  # half of 0.002 at half of the way
    assert losses(tmp_path / "run")[:2] == losses(run)
    assert record["history"]["epoch"] == [0, 1, 2, 3]
    state = torch.load(tmp_path / "run" / LAST_CHECKPOINT, weights_only=True)
    assert state["lr_schedulers"][0]["last_epoch"] == 12
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)
    assert set(record["sources"]) == {"extend"}
    assert finished_record(run)["epochs"] == 2  # it is left as it was


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=2"], r"extend='.*': epochs=2 must be more than that run's 2, in all"),
        (
            ["epochs=3", "optimizer.lr=0.1", "seed=1"],
            r"others are .*data\.seed: 0 -> 1; optimizer\.lr: 0\.002 -> 0\.1; .*From its weights with these: init",
        ),
        (["epochs=3", "ckpt_path=x.ckpt"], "ckpt_path='x.ckpt': must be left out with extend"),
    ],
)
def test_what_is_no_longer_run_is_refused_with_the_way_out(run, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(compose([*TINY, *overrides, f"extend={run}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, record: record.update(status="failed"), "extend='.*': the run is failed, not done"),
        (lambda folder, record: record.update(stopped={"epoch": 1}), "it was stopped early, and would end at once"),
        (lambda folder, record: (folder / LAST_CHECKPOINT).unlink(), r"has no checkpoints.last\.ckpt any more; from"),
        (lambda folder, record: shutil.rmtree(folder), r"extend='.*': no run folder, it has no run\.json"),
    ],
)
def test_a_run_that_cannot_go_on_is_refused(run, tmp_path, change, message):
    folder = tmp_path / "shorter"
    shutil.copytree(run, folder)
    change(folder, record := read_record(folder))
    if folder.exists():
        (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        train(compose([*TINY, "epochs=3", f"extend={folder}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_schedules_that_keep_their_length_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for scheduler in (LambdaLR(optimizer, lambda step: 1.0), StepLR(optimizer, 3)):
        refuse_fixed_length(scheduler)
    for scheduler in (CosineAnnealingLR(optimizer, 3), OneCycleLR(optimizer, 0.1, total_steps=3)):
        with pytest.raises(ValueError, match=r"^schedule=(Cosine|One)\w+: keeps the length that it was made for"):
            refuse_fixed_length(scheduler)
