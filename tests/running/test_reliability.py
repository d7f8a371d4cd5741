"""What happens around a run: it is cut off, moved, fed with other files, asked to end, read from a damaged record."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import ModelCheckpoint

from tna_lightning.data.digits import DigitsDataModule
from tna_lightning.models import compiled
from tna_lightning.report import __main__ as report
from tna_lightning.running import record as records
from tna_lightning.running import train as composition
from tna_lightning.running.archive import read_records
from tna_lightning.running.config import compose, read_config, write_config
from tna_lightning.running.console import BUSY, leave
from tna_lightning.running.processes import TERMINATED, Terminated, interrupts_later, outlive_readers
from tna_lightning.running.record import LAST_CHECKPOINT, NETWORK, RECORD, Busy, Run, as_record, read_record
from tna_lightning.running.train import main as start
from tna_lightning.running.train import train
from tna_lightning.running.trust import refuse_foreign

TINY = [
    *("data.train_subset=100", "data.batch_size=50", "data.eval_batch_size=400", "model.width=0.125", "epochs=3"),
    *("model.time_steps=1", "baseline=plain", "quant=none", "optimizer.lr=0.02", "trainer.accelerator=cpu"),
    *("keep=best", "trainer.enable_progress_bar=false"),
]


def config(*overrides):
    return compose([*TINY, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    record = train(config(), folder)
    best = max(record["history"]["val/acc"])
    assert record["results"]["val/acc"] == best
    return folder, record


@pytest.fixture(scope="module")
def cut(whole, tmp_path_factory):
    """The same run, cut off after the epoch behind its best one, or after the second."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    saved = ModelCheckpoint._save_checkpoint

    def save(self, trainer, path):
        saved(self, trainer, path)
        if trainer.current_epoch == 1 and Path(path).name == LAST_CHECKPOINT.name:
            raise KeyError("cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelCheckpoint, "_save_checkpoint", save)
        with pytest.raises(KeyError):
            train(config(), folder)
    return folder


def same(folder, whole):
    there, expected = whole
    record = read_record(folder)
    assert record["results"] == expected["results"]
    assert record["history"] == expected["history"]
    assert (folder / NETWORK).read_bytes() == (there / NETWORK).read_bytes()


@pytest.mark.parametrize("how", ["moved", "copied", "ckpt_path"])
def test_a_run_that_was_cut_off_goes_on_elsewhere_and_keeps_what_its_record_says(how, whole, cut, tmp_path, caplog):
    old, new = tmp_path / "old" / "run", tmp_path / "new" / "run"
    shutil.copytree(cut, old)
    if how == "ckpt_path":
        train(config(f"ckpt_path={old / LAST_CHECKPOINT}"), new)
    else:
        shutil.copytree(old, new)
        if how == "moved":
            shutil.rmtree(old.parent)
        train(config(), new)
    same(new, whole)
    if how == "copied":  # on its own, with nothing of the other
        assert read_record(old)["status"] == "failed"
    if how == "ckpt_path":
        shutil.rmtree(new)
        (old / "checkpoints" / "best.ckpt").unlink()
        with pytest.raises(ValueError, match=r"^ckpt_path: '.*last.ckpt': best.ckpt is missing beside it"):
            train(config(f"ckpt_path={old / LAST_CHECKPOINT}"), new)
        assert not new.exists()
        with pytest.raises(ValueError, match=r"^ckpt_path=.*: resume=false puts it aside"):
            train(config(f"ckpt_path={old / LAST_CHECKPOINT}", "resume=false"), old)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_in_which_one_bit_is_another_is_refused(name, cut, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    path = folder / "checkpoints" / f"{name}.ckpt"
    content = bytearray(path.read_bytes())
    largest = max(torch.load(path, weights_only=True)["state_dict"].values(), key=torch.numel)
    place = content.index(largest.numpy().tobytes()) + 3  # the exponent of a weight
    content[place] ^= 0x40
    path.write_bytes(content)
    before = (folder / RECORD).read_bytes()
    with pytest.raises(ValueError, match=rf"^ckpt_path.*{name}.ckpt': damaged, cut short or no checkpoint"):
        train(config(), folder)
    assert (folder / RECORD).read_bytes() == before


@pytest.mark.parametrize("entry", ["loops", "callbacks", "optimizer_states", "tna_lightning"])
def test_a_checkpoint_with_other_entries_gets_one_line(entry, cut, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    content = torch.load(folder / LAST_CHECKPOINT, weights_only=True)
    for value in (None, [{"state": 3}], {"x": 1}):
        torch.save(content | {entry: value}, folder / LAST_CHECKPOINT)
        with pytest.raises(ValueError, match=r"^ckpt_path="):
            train(config(), folder)


def test_a_run_goes_on_with_the_data_that_it_began_with_or_not_at_all(cut, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    load = DigitsDataModule.load
    monkeypatch.setattr(DigitsDataModule, "load", lambda self: (255 - load(self)[0], *load(self)[1:]))
    with pytest.raises(ValueError, match=r"^data: images_sha256 is not what it was when this training began"):
        train(config(), folder)


def test_a_run_that_goes_on_elsewhere_says_so_and_remembers_both(whole, cut, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    here = records.environment()
    monkeypatch.setattr(records, "environment", lambda: here | {"threads": 77})
    with caplog.at_level(logging.WARNING, "tna_lightning"):
        train(config(), folder)
    assert f"goes on elsewhere, not to the very same weights: threads {here['threads']} -> 77" in caplog.text
    assert [each["threads"] for each in read_record(folder)["environments"]] == [here["threads"], 77]
    assert "environments" not in whole[1]


def test_sigterm_ends_a_training_with_143_and_the_same_command_goes_on(whole, tmp_path, monkeypatch, capsys):
    saved = ModelCheckpoint._save_checkpoint

    def save(self, trainer, path):
        saved(self, trainer, path)
        if trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ModelCheckpoint, "_save_checkpoint", save)
        with pytest.raises(Terminated) as left:
            train(config(), tmp_path / "run")
    assert left.value.code == TERMINATED == 143
    record = read_record(tmp_path / "run")
    assert (record["status"], record["error"]) == ("interrupted", "SIGTERM")
    with pytest.raises(Terminated):
        leave(left.value)
    assert capsys.readouterr().err == "\nterminated; the same command goes on from here\n"
    train(config(), tmp_path / "run")
    same(tmp_path / "run", whole)


def test_a_run_that_is_done_is_said_to_be_so_where_nobody_can_write(whole, monkeypatch):
    folder, record = whole
    monkeypatch.setattr(Run, "claimed", None)  # it needs no lock
    assert train(config(), folder) == record


def test_a_folder_that_another_command_takes_away_is_made_again(tmp_path, monkeypatch, capsys):
    acquire, lost = FileLock.acquire, []

    def lose(self, **settings):
        if not lost:
            lost.append(True)
            (tmp_path / "run").rmdir()
        return acquire(self, **settings)

    monkeypatch.setattr(FileLock, "acquire", lose)
    with Run(tmp_path / "run", {}).claimed():
        assert (tmp_path / "run" / ".lock").exists()
        with pytest.raises(Busy) as busy, Run(tmp_path / "run", {}).claimed():
            pass
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as left:
        leave(busy.value)
    assert left.value.code == BUSY
    assert capsys.readouterr().err.startswith("error: run='")


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(8 * [f'*{last}'])}]\n" for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text", [BOMB, "[" * 5000, "seed: 2026-01-01", "seed: 2026-77-77", "1: x", "a: &a [*a]", "x", "a: !!set {x}"]
)
def test_a_config_yaml_that_is_no_config_gets_one_line(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^run='.*': config.yaml is (damaged|no config)"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"cost": [[]]}, r"^cost=\[\[\]\]: must be a node of settings"),
        ({"logger": True}, "^logger=True: must be a node of settings"),
        ({"neuron": 1}, "^neuron=1: must be a node of settings"),
        ({"trainer": None}, "^trainer=None: must be a node of settings"),
        ({"ckpt_path": 3}, "^ckpt_path=3: must be the path of a checkpoint"),
        ({"choices": []}, r"^choices=\[\]: must be a node of settings"),
        ({"companion": {"weights": "random", "seed": 0}}, "^companion.freeze: is missing"),
        ({"trainer": {"_target_": "lightning.Trainer"}}, "^trainer.accelerator: is missing"),
    ],
)
def test_a_node_that_is_none_gets_one_line(odd, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config() | odd, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_waits_for_imports_to_end():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    done = []

    def imports():
        with interrupts_later():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("imported")

    try:
        with pytest.raises(KeyboardInterrupt):
            imports()
        assert done == ["imported"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_whose_output_nobody_reads_is_done(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, pipe)
        os.close(reader)
        write_config(compose([*TINY[:-1], "epochs=1"]), tmp_path)
        start([str(tmp_path)])  # prints a line an epoch and a table
        print("and more", flush=True)
    assert read_record(tmp_path)["status"] == "done"


def test_an_output_that_is_closed_is_none_to_write_to(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    outlive_readers()
    with sys.stdout:
        print("this", flush=True)
        assert not sys.stdout.isatty()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.val_check_interval=0.6"], "trainer.val_check_interval=0.6: the last validation of an epoch (5 batc"),
        (["trainer.val_check_interval=6"], "trainer.val_check_interval=6: must be at most 5, the batches of an epoch"),
        (["trainer.limit_train_batches=0.1"], "trainer.limit_train_batches=0.1: is less than one of the 5 batches"),
        (["trainer.limit_val_batches=0.1"], "trainer.limit_val_batches=0.1: is less than the only batch"),
        (["trainer.limit_test_batches=0.1"], "trainer.limit_test_batches=0.1: is less than the only batch"),
        (["trainer.overfit_batches=0.1"], "trainer.overfit_batches=0.1: is less than one of the 5 batches"),
        (["trainer.min_steps=16"], "trainer.min_steps=16: must be at most 15, where training ends"),
        (
            ["trainer.min_steps=9", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=4"],
            "trainer.min_steps=9: must be at most 6, where",
        ),
        (["trainer.min_epochs=2", "trainer.max_steps=5"], "trainer.min_epochs=2: must be at most 1, where"),
        (["quant=ternary", "quant.start_epoch=1", "trainer.max_steps=5"], "quant.start_epoch=1: must be at most 0"),
        (["schedule.warmup_epochs=1", "trainer.max_steps=5"], "schedule.warmup_epochs=1: must be at least 0 and short"),
        (["trainer.max_steps=4"], "keep='best': training ends before its first validation"),
        (
            ["baseline=tna", "objective.match_start_epoch=1", "trainer.max_steps=5"],
            "objective.match_start_epoch=1: must be at most 0",
        ),
    ],
)
def test_what_does_not_fit_into_a_training_is_refused_before_it_has_a_folder(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        train(config("data.batch_size=20", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_is_said_that_the_first_steps_wait_for_the_compiler(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(composition, "compile_network", lambda *arguments: None)
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *arguments, **settings: 1 / 0)
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError):
        train(config("compile=network"), tmp_path)
    assert "compile=network: the first steps wait for torch.compile, a minute or so" in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_too_little_memory_gets_one_line(error, capsys):
    with pytest.raises(SystemExit) as left:
        leave(error)
    assert left.value.code == 1
    assert re.match(r"error: out of memory \(.+\); a smaller data.batch_size", capsys.readouterr().err)


def test_a_config_is_read_as_it_was_written(tmp_path):
    given = config("baseline=cohort", "callbacks=ema")
    write_config(given, tmp_path)
    assert read_config(tmp_path) == given


TARGETS = [
    *("os.system", "pathlib.Path.write_text", "shutil.copy", "torch.load", "numpy.save", "torch.nn.Linear"),
    *("tna_lightning.files.write_text", "tna_lightning.files.os.system", "tna_lightning.data.download.download"),
    *("tna_lightning.running.train.main", "tna_lightning.data.digits.torch.load", "tna_lightning.models.compiled.Path"),
    *("no_such_module.X", "", None, 3, ["tna_lightning.models.LIF"]),
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_record_chooses_nothing_that_is_called(target, whole):
    trained = whole[1]["config"]
    for key in ("data", "model", "neuron"):
        for node in ({"_target_": target}, {**trained[key], "inner": [{"x": {"_target_": target}}]}):
            with pytest.raises(
                ValueError, match=r"^run='r': its record names .*if you know where the record comes from"
            ):
                refuse_foreign("r", {**trained, key: node})


def test_every_committed_record_may_be_rebuilt(whole):
    refuse_foreign("r", whole[1]["config"])
    results = Path(__file__).parents[2] / "experiments" / "results"
    number = 0
    for path in sorted(results.rglob("records.jsonl.gz")):
        for folder, record in read_records(path).items():
            refuse_foreign(folder, as_record(folder, record)["config"])
            number += 1
    assert number >= 230


def test_a_record_that_no_check_foresees_leaves_the_report_to_the_others(whole, tmp_path, monkeypatch):
    names = ["good", "<b>bad</b>"]
    for seed, name in enumerate(names):
        (tmp_path / f"run{seed}").mkdir()
        config = whole[1]["config"] | {"seed": seed}
        record = whole[1] | {"name": name, "identity": f"{seed}", "seed": seed, "config": config}
        (tmp_path / f"run{seed}" / RECORD).write_text(json.dumps(record))
    rows = report.rows

    def fails(done, against):
        if any(record["name"] != "good" for record in done):
            raise KeyError("bits")
        return rows(done, against)

    monkeypatch.setattr(report, "rows", fails)
    collection = report.report([tmp_path], tmp_path / "report")
    assert [record["name"] for record in collection.done] == ["good"]
    (line,) = collection.left_out
    assert "run.json is damaged (KeyError: 'bits')" in line
    text = (tmp_path / "report" / "table.md").read_text()
    assert "- run='&lt;b>bad&lt;/b>': run.json is damaged" in text


@pytest.mark.parametrize("text", ['{"format": 1, "x": ' + "[" * 99999 + "]" * 99999 + "}", "9" * 5000, b"\xff\xfe"])
def test_a_record_that_no_reader_can_read_gets_one_line(text, tmp_path):
    (tmp_path / RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"^run=.*: run.json is (damaged|not the record)"):
        read_record(tmp_path)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(
    "words", [[], ["model=resnet18", "model.width=0.25", "neuron=plif"]], ids=["digits", "resnet18"]
)
def test_figures_are_the_same_to_the_bit_however_the_neurons_are_compiled(words, tmp_path, monkeypatch):
    """With `auto`, compiled code takes over amid an epoch."""
    built = []

    def build_here(code):
        compiled.build(code)
        built.append(code)
        process = subprocess.Popen(["true"])
        process.wait()
        return process

    monkeypatch.setattr(compiled, "_build_elsewhere", build_here)
    monkeypatch.setattr(compiled, "_WORTH", 1)
    monkeypatch.setattr(compiled, "_LOOK", 5)
    figures = {}
    for way in ("none", "auto", "neurons"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / way))
        for each in (compiled.at_once, compiled._library, compiled._waiting):
            each.cache_clear()
        train(config("epochs=2", "baseline=tna", "quant=ternary", f"compile={way}", *words), tmp_path / "runs" / way)
        figures[way] = (tmp_path / "runs" / way / "metrics.csv").read_text()
        if way == "auto":
            assert len(built) == 2  # forward and backward
            assert all(compiled._waiting(code).run is not None for code in built)
    assert figures["none"] == figures["auto"] == figures["neurons"]
