"""Callbacks as a choice: what an average keeps, early stopping, refusals; in any order, killed and continued."""

import hashlib
import re

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tna_lightning.quantization import WeightQuantization
from tna_lightning.running import callbacks
from tna_lightning.running import train as composition
from tna_lightning.running.checkpoints import AtomicCheckpointIO
from tna_lightning.running.config import compose
from tna_lightning.running.console import summary_rows
from tna_lightning.running.factory import build_data
from tna_lightning.running.record import LAST_CHECKPOINT, NETWORK
from tna_lightning.running.train import train

TINY = [
    *("data.train_subset=80", "data.batch_size=40", "data.eval_batch_size=400", "model.width=0.125", "epochs=3"),
    *("model.time_steps=1", "baseline=plain", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
]


class Killed(Exception):
    pass


class Kill(lightning.Callback):
    """Ends a training in the middle of something."""

    def __init__(self, where):
        self.where = where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.where == "training" and (trainer.current_epoch, batch_idx) == (2, 1):
            raise Killed

    def on_validation_batch_end(self, trainer, *arguments):
        if self.where == "validation" and trainer.current_epoch == 1:
            raise Killed

    def on_train_end(self, trainer, pl_module):
        if self.where == "end":
            raise Killed


class Watch(lightning.Callback):
    """The base as it is trained, validated, saved and tested."""

    def __init__(self):
        self.trained, self.validated, self.saved = {}, {}, {}

    def on_validation_start(self, trainer, pl_module):
        self.trained[trainer.current_epoch] = self.base(pl_module.state_dict())

    def on_validation_batch_end(self, trainer, pl_module, *arguments):
        self.validated[trainer.current_epoch] = self.base(pl_module.state_dict())

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saved[trainer.current_epoch] = self.base(checkpoint["state_dict"])

    def on_test_batch_end(self, trainer, pl_module, *arguments):
        self.tested = self.base(pl_module.state_dict())

    @staticmethod
    def base(state):
        return {name: value.clone() for name, value in state.items() if name.startswith("base.")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(monkeypatch):
    """Train in this process, with callbacks of a test's own, and quantisation first or last among all."""
    monkeypatch.setattr(composition, "plot_curves", lambda *arguments, **settings: None)
    monkeypatch.setattr(composition, "plot_inspection", lambda *arguments, **settings: None)
    build_trainer = composition.build_trainer

    def go(config, folder, more=(), quantisation_last=False):
        def with_more(config, folder, callbacks):
            callbacks.sort(key=lambda callback: isinstance(callback, WeightQuantization) is quantisation_last)
            return build_trainer(config, folder, [*callbacks, *more])

        monkeypatch.setattr(composition, "build_trainer", with_more)
        return train(config, folder)

    return go


@pytest.mark.parametrize("start_epoch", [0, 1])
@pytest.mark.parametrize("choice", ["ema", "swa"])
def test_an_average_is_kept_to_the_bit_in_any_order_and_after_a_kill(choice, start_epoch, run, tmp_path):
    quant = ["quant=ternary_ttq", f"quant.start_epoch={start_epoch}"]
    averaged = compose([*TINY, *quant, f"callbacks={choice}", *["callbacks.swa.start_epoch=1"][: choice == "swa"]])
    plain = run(compose([*TINY, *quant]), tmp_path / "plain")
    records, digests = [], set()
    for quantisation_last in (False, True):
        for kill in (None, "validation" if quantisation_last else "training"):
            folder = tmp_path / f"{quantisation_last}-{kill}"
            if kill is not None:
                with pytest.raises(Killed):
                    run(averaged, folder, [Kill(kill)], quantisation_last)
                assert torch.load(folder / LAST_CHECKPOINT, weights_only=True)["epoch"] == (kill == "training")
            records.append(run(averaged, folder, [], quantisation_last))
            digests.add(hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest())
    assert len(digests) == 1
    for record in records:
        assert record["history"] == records[0]["history"]
        assert record["results"] == records[0]["results"]
        assert record["history"]["train/loss"] == plain["history"]["train/loss"]  # it changes what is kept alone
    assert records[0]["history"]["val/loss"] != plain["history"]["val/loss"]


@pytest.mark.parametrize(
    "overrides", [["callbacks=ema", "keep=best"], ["callbacks=swa", "callbacks.swa.start_epoch=1"]], ids=["ema", "swa"]
)
def test_what_is_validated_is_what_is_saved_tested_and_packed(overrides, run, tmp_path):
    watch = Watch()
    record = run(compose([*TINY, *overrides]), tmp_path, [watch])
    assert all(equal(watch.saved[epoch], watch.validated[epoch]) for epoch in range(3))
    assert equal(watch.tested, watch.validated[record["results"]["kept_epoch"]])
    is_trained = [equal(watch.trained[epoch], watch.validated[epoch]) for epoch in range(3)]
    assert is_trained == ([False] * 3 if record["choices"]["callbacks"] == "ema" else [True, False, False])


def test_a_run_that_stopped_early_says_so_and_stays_stopped_when_killed_before_the_test(run, tmp_path):
    config = compose([*TINY, "epochs=6", "keep=best", "callbacks=early_stopping"])
    config["callbacks"]["early_stopping"] |= {"monitor": "val/acc", "mode": "max", "min_delta": 0.9, "patience": 2}
    undisturbed = run(config, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", [Kill("end")])
    killed = run(config, tmp_path / "killed")
    best = undisturbed["history"]["val/acc"][0]  # the first is better than nothing, no other is better by 0.9
    assert undisturbed["stopped"] == {
        **{"epoch": 2, "monitor": "val/acc", "mode": "max", "best": best, "patience": 2},
        "reason": "patience_exhausted",
        "message": f"Monitored metric val/acc did not improve in the last 2 records. Best score: {best:.3f}.",
    }
    assert undisturbed["epochs"] == len(undisturbed["history"]["epoch"]) == 3
    for key in ("stopped", "epochs", "history", "results"):
        assert killed[key] == undisturbed[key]
    assert dict(summary_rows(killed))["stopped early"].startswith("after epoch 3: Monitored metric val/acc did not ")
    assert (tmp_path / "killed" / NETWORK).read_bytes() == (tmp_path / "undisturbed" / NETWORK).read_bytes()


def test_epochs_that_are_not_validated_have_no_figures_and_are_not_the_best(run, tmp_path, capsys):
    more = ["keep=best", "trainer.check_val_every_n_epoch=2", "trainer.profiler=simple", "epochs=4"]
    config = compose([*TINY, *more, "trainer.enable_progress_bar=true"])
    record = run(config, tmp_path)
    accuracies = record["history"]["val/acc"]
    assert [accuracy is None for accuracy in accuracies] == [True, False, True, False]
    assert record["results"]["kept_epoch"] == (1 if accuracies[1] >= accuracies[3] else 3)
    assert record["results"]["val/acc"] == accuracies[record["results"]["kept_epoch"]]
    # nobody watches a file: a line an epoch
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    words = [
        re.fullmatch(r"epoch (\d) of 4: loss [\d.]+(, validation accuracy ([\d.]+%))?, [\d.]+ s", line)
        for line in lines
    ]
    assert [match[1] for match in words] == ["1", "2", "3", "4"]
    assert [match[3] for match in words] == [
        accuracy if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies
    ]
    for stage in ("fit", "test"):  # not into a log that nobody sees
        assert "run_training_epoch" in (tmp_path / "fit-profile.txt").read_text()
        assert (tmp_path / f"{stage}-profile.txt").read_text().startswith(f"{stage.upper()} Profiler Report")


class Stop(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_best_of_no_validation_is_said_in_one_line(run, tmp_path):
    config = compose([*TINY, "keep=best", "epochs=2", "trainer.check_val_every_n_epoch=2"])
    with pytest.raises(ValueError, match=r"^keep='best': training ended before its first validation; keep=last"):
        run(config, tmp_path, [Stop()])


def test_a_run_that_another_callback_stopped_says_so(run, tmp_path):
    record = run(compose(TINY), tmp_path, [Stop()])
    assert record["epochs"] == 1
    stopped = {name: value for name, value in record["stopped"].items() if value is not None}
    message = "A callback asked for the end of training."
    assert stopped == {"epoch": 0, "reason": "asked_for", "message": message}
    assert dict(summary_rows(record))["stopped early"] == f"after epoch 1: {message}"
    out_of_time = run(compose([*TINY, "trainer.max_time={milliseconds: 1}"]), tmp_path / "time")
    assert dict(summary_rows(out_of_time))["stopped early"] == "after epoch 1: trainer.max_time has come."


def test_the_runs_own_checkpoints_stay_apart_from_a_users(run, tmp_path):
    config = compose([*TINY, "epochs=1", "keep=best"])
    users = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}
    config["callbacks"] = {"all": users, "best": users | {"monitor": "val/acc", "mode": "max", "filename": "mine"}}
    assert run(config, tmp_path)["stopped"] is None
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "best.ckpt", "epoch=0-step=2.ckpt", "mine.ckpt"}


def test_a_checkpoint_of_version_0_1_is_read(tmp_path):
    """Its states of the run's own checkpoints stand under the keys that Lightning gives."""
    before = {
        ModelCheckpoint(tmp_path).state_key: {"best_model_path": "last"},
        ModelCheckpoint(tmp_path, monitor="val/acc", mode="max").state_key: {"best_model_path": "best"},
        "History": {},
    }
    io = AtomicCheckpointIO()
    io.save_checkpoint({"callbacks": before}, tmp_path / "old.ckpt")
    now = {"tna_lightning.last": {"best_model_path": "last"}, "tna_lightning.best": {"best_model_path": "best"}}
    assert io.load_checkpoint(tmp_path / "old.ckpt") == {"callbacks": now | {"History": {}}}
    io.save_checkpoint({"callbacks": now | before}, tmp_path / "new.ckpt")  # now those are a user's
    assert io.load_checkpoint(tmp_path / "new.ckpt") == {"callbacks": now | before}


@pytest.fixture(scope="module")
def every():
    """A config with every choice of callbacks."""
    return compose([*TINY, "callbacks=[ema,swa,early_stopping,lr_monitor,device_stats]"])


def of_lightning(name, **settings):
    return {"mine": {"_target_": f"lightning.pytorch.callbacks.{name}", **settings}}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ema": {}, "swa": {}}, "callbacks=[ema,swa]: a run keeps one average of the weights"),
        ({"ema": {"decay": 1}}, "callbacks.ema.decay=1: must lie in [0, 1)"),
        ({"ema": {"decay": "slow"}}, "callbacks.ema.decay='slow': must be a number"),
        ({"ema": {"recalibrate": -1}}, "callbacks.ema.recalibrate=-1: must be a whole number of 0 or more"),
        ({"swa": {"start_epoch": 3}}, "callbacks.swa.start_epoch=3: must be at most 2, the last of 3 epochs"),
        ({"lr_monitor": {}}, "callbacks.lr_monitor: needs a logger, logger=wandb or tensorboard"),
        ({"device_stats": {}}, "callbacks.device_stats: needs a logger"),
        ({"mine": "ema"}, "callbacks.mine='ema': must be {_target_: a callback's class, its settings}"),
        ({"mine": {"_target_": "builtins.dict"}}, "callbacks.mine=dict: must be a callback of Lightning's"),
        ({"mine": {"_target_": "nowhere.Mine"}}, "callbacks.mine._target_='nowhere.Mine': there is no"),
        ({"mine": {"_target_": "tna_lightning.callbacks.History"}}, "callbacks.mine=History: the run has one"),
        ({"ema": {}} | of_lightning("EMAWeightAveraging"), "callbacks=[ema,mine]: a run keeps one average"),
        (
            {"early_stopping": {"monitor": "val/xyz"}},
            "callbacks.early_stopping.monitor='val/xyz': is not logged; there are tr",
        ),
        ({"early_stopping": {"verbose": True}}, "callbacks.early_stopping.verbose=True: is not heard"),
        (
            of_lightning("ModelCheckpoint", monitor="acc"),
            "callbacks.mine.monitor='acc': is not logged; there are train/loss",
        ),
        (of_lightning("StochasticWeightAveraging", swa_lrs=1e-3), "use callbacks=swa"),
        (of_lightning("LearningRateFinder"), "set optimizer.lr"),
        (of_lightning("BatchSizeFinder"), "set data.batch_size"),
        (of_lightning("BackboneFinetuning"), "callbacks.mine=BackboneFinetuning: changes what the optimizer trains"),
        (
            of_lightning("ModelPruning", pruning_fn="l1_unstructured"),
            "callbacks.mine=ModelPruning: sets weights",
        ),
        (of_lightning("GradientAccumulationScheduler", scheduling={0: 2}), "set trainer.accumulate_grad_batches"),
    ],
)
def test_callbacks_that_would_break_the_word_of_a_config_are_refused_in_one_line(chosen, message, every, tmp_path):
    nodes = {
        name: every["callbacks"].get(name, {}) | node if isinstance(node, dict) else node
        for name, node in chosen.items()
    }
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        train(every | {"callbacks": nodes}, tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_device_statistics_of_a_cpu_need_a_package(every, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    config = every | {"callbacks": {"device_stats": every["callbacks"]["device_stats"]}, "logger": {"_target_": "x"}}
    with pytest.raises(ValueError, match=r"^callbacks\.device_stats: needs psutil on a CPU"):
        train(config, tmp_path)


def test_what_is_said_to_be_logged_is_logged(run, tmp_path):
    config = compose([*TINY, "epochs=1", "baseline=cohort"])
    datamodule = build_data(config)
    learner = composition.build_learner(config, datamodule)
    names = callbacks.logged_names(learner, datamodule.num_classes, is_validated=True)
    assert {name for name in names if "/" in name} == run(config, tmp_path)["history"].keys() - {"epoch"}


def test_early_stopping_needs_validation_images(every, tmp_path):
    config = every | {"callbacks": {"early_stopping": every["callbacks"]["early_stopping"]}}
    config["data"] = config["data"] | {"val_fraction": 0}
    with pytest.raises(ValueError, match=r"callbacks\.early_stopping\.monitor='val/loss': needs validation images"):
        train(config, tmp_path)


def test_a_choice_among_several_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"^callbacks=emma: allowed are device_stats, early_stopping, ema, "):
        compose(["callbacks=[ema,emma]"])


def test_callbacks_are_chosen_one_by_one_or_several_in_the_order_written():
    assert compose()["callbacks"] == compose(["callbacks=ema", "~callbacks.ema"])["callbacks"] == {}
    several = ["callbacks=[early_stopping,ema]", "callbacks.ema.decay=0.9", "+callbacks.mine={_target_: mine.It}"]
    nodes = compose(several)["callbacks"]
    assert list(nodes) == ["early_stopping", "ema", "mine"]
    assert nodes["ema"]["decay"] == 0.9


def test_a_teacher_is_trained_without_the_callbacks_of_the_run(tmp_path):
    from tna_lightning.running.companions import pretraining_config

    with_ema = pretraining_config(compose([*TINY[:-3], "baseline=kd", "callbacks=ema"]))
    assert with_ema == pretraining_config(compose([*TINY[:-3], "baseline=kd"]))
    assert with_ema["callbacks"] == {}
