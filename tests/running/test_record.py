"""A run's identity, folder and record."""

import json
import subprocess
import sys

import pytest

from tna_lightning.running.identity import folder_name, identity
from tna_lightning.running.record import (
    RECORD,
    Run,
    find_runs,
    finished_record,
    is_active,
    limits_words,
    part_of_test,
    read_record,
)

CONFIG = {
    "seed": 0,
    "output_dir": "runs",
    "resume": True,
    "study": None,
    "data": {"_target_": "x.Digits", "root": ".data", "batch_size": 64},
    **{"model": {}, "neuron": {}, "trainer": {}, "optimizer": {"lr": 0.1}},
    **{"augment": {}, "callbacks": {}, "companions": {}},
    "choices": {"data": "digits", "model": "convnet", "baseline": "tna", "quant": "ternary", "neuron": "lif"},
}


def changed(**changes):
    return {**CONFIG, **changes}


def test_identity_ignores_where_and_how_to_work():
    same = changed(output_dir="elsewhere", resume=False, study="s", data={**CONFIG["data"], "root": "/data"})
    assert identity(same) == identity(CONFIG)


@pytest.mark.parametrize("change", [{"seed": 1}, {"optimizer": {"lr": 0.2}}, {"data": {"_target_": "x.Digits"}}])
def test_identity_follows_what_is_computed(change):
    assert identity(changed(**change)) != identity(CONFIG)


def test_it_is_said_which_settings_kept_samples_from_a_run():
    some = {"limit_train_batches": 1, "limit_val_batches": 1.0, "limit_test_batches": 0.5, "overfit_batches": 0.0}
    assert limits_words(changed(trainer=some)) == "trainer.limit_train_batches=1 trainer.limit_test_batches=0.5"
    assert limits_words(changed(trainer={"overfit_batches": 1})) == "trainer.overfit_batches=1"
    assert limits_words(CONFIG) == limits_words(changed(trainer={"limit_val_batches": None})) == ""
    fewer = changed(data={"train_subset": 9, "val_subset": None, "test_subset": 2}, trainer={"limit_test_batches": 1})
    assert limits_words(fewer) == "data.train_subset=9 data.test_subset=2 trainer.limit_test_batches=1"


def test_figures_on_a_part_of_the_test_set_are_told_from_those_on_all():
    about = {"test_samples": 50, "of_samples": {"train": 90, "test": 360}}
    assert part_of_test({"config": CONFIG, "data": about}) == "50 of 360 test samples"
    assert part_of_test({"config": changed(trainer={"limit_test_batches": 2})}) == "part of the test set"
    fewer = changed(trainer={"limit_train_batches": 2, "limit_test_batches": 1.0})
    assert part_of_test({"config": fewer, "data": {"of_samples": {"train": 90}}}) == ""


def test_identity_does_not_depend_on_the_order_of_keys():
    assert identity(dict(reversed(CONFIG.items()))) == identity(CONFIG)


def test_folder_is_named_by_choices_seed_and_identity():
    assert folder_name(CONFIG) == f"digits-convnet-lif-tna-ternary-s0-{identity(CONFIG)[:8]}"


def test_a_record_is_read_as_it_was_written(tmp_path):
    run = Run(tmp_path / "run", CONFIG)
    run.write(status="done", results={"test/acc": 0.5})
    record = read_record(tmp_path / "run")
    assert record["results"] == {"test/acc": 0.5}
    assert record["config"] == CONFIG
    assert finished_record(tmp_path / "run") == record
    assert not list((tmp_path / "run").glob(".run.json*"))


def test_entries_that_cannot_be_written_do_not_spoil_the_record(tmp_path):
    run = Run(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="nan"):
        run.write(results={"val/loss": float("nan")})
    run.write(status="failed")
    assert read_record(tmp_path)["status"] == "failed"
    assert "results" not in read_record(tmp_path)


def test_a_failing_write_leaves_the_earlier_record(tmp_path):
    run = Run(tmp_path, CONFIG)
    run.write(status="running")
    before = (tmp_path / RECORD).read_text()
    with pytest.raises(ValueError, match="Out of range float"):
        run.write(results={"test/acc": float("nan")})
    assert (tmp_path / RECORD).read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no run folder, it has no run.json"),
        ('{"status": "done", "ident', r"run.json is damaged"),
        ("[1, 2]", r"run.json is not the record of a run"),
        (
            json.dumps({"status": "done", "identity": "x", "format": 99}),
            r"run.json has format 99, this version reads up to 1",
        ),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=rf"run='{tmp_path}': {message}"):
        read_record(tmp_path)


def test_an_unfinished_run_is_not_read_as_finished(tmp_path):
    Run(tmp_path, CONFIG).write(status="failed")
    with pytest.raises(ValueError, match="the run is failed, not done"):
        finished_record(tmp_path)


def test_a_record_of_another_seed_than_its_config_is_none_to_rebuild_from(tmp_path):
    Run(tmp_path, CONFIG).write(status="done", results={"test/acc": 0.5}, seed=1)
    with pytest.raises(ValueError, match=r"run.json is damaged, its seed is not that of its config"):
        finished_record(tmp_path)


def test_a_folder_of_another_config_names_what_differs(tmp_path):
    Run(tmp_path, CONFIG).write()
    with pytest.raises(ValueError, match=r"resume=true: .* another config \(optimizer.lr: 0.1 -> 0.2\)"):
        Run(tmp_path, changed(optimizer={"lr": 0.2})).previous()


def test_putting_aside_keeps_what_was_there(tmp_path):
    folder = tmp_path / "run"
    run = Run(folder, CONFIG)
    for number in (1, 2):
        run.write(status="done", number=number)
        run.put_aside()
        assert not (folder / RECORD).exists()
        assert read_record(tmp_path / ".replaced" / f"run.{number}")["number"] == number


def test_find_runs_leaves_out_hidden_folders(tmp_path):
    for name in ("b", "a", "sub/c"):
        Run(tmp_path / name, CONFIG).write()
    Run(tmp_path / "a", CONFIG).put_aside()
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["b", "sub/c"]


def test_two_processes_do_not_train_one_run(tmp_path):
    program = (
        "import sys; from tna_lightning.running.record import Run\n"
        "with Run(sys.argv[1], {}).claimed():\n"
        "    print('claimed', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "claimed\n"
        assert is_active(tmp_path)
        with pytest.raises(ValueError, match="another process"), Run(tmp_path, {}).claimed():
            pass
        holder.kill()
    assert not is_active(tmp_path)  # a killed process leaves no claim
    with Run(tmp_path, {}).claimed():
        pass
