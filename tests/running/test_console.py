"""What a person is told: names with brackets, epochs from 1, one line for what is not ours."""

import re
from types import SimpleNamespace

import pytest
from hydra.errors import ConfigCompositionException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from tna_lightning.callbacks.progress import EpochBar
from tna_lightning.running import console
from tna_lightning.running.config import explain
from tna_lightning.running.sweep import SweepSummary


def test_names_with_brackets_are_no_markup(monkeypatch, capsys):
    rows = [("weights", "all but [stem]; [/b] {c}")]
    monkeypatch.setattr(console, "summary_rows", lambda record: iter(rows))
    console.print_record({"choices": {"data": "[red]mine"}, "seed": 0, "config": {}}, "[a]/{b}/[/b]")
    told = capsys.readouterr().out
    assert "data=[red]mine seed=0" in told
    assert "all but [stem]; [/b] {c}" in told
    assert told.endswith("\nfolder: [a]/{b}/[/b]\n")  # in a line of its own, to be copied


def test_the_table_says_how_fast_the_network_is_as_c_or_what_measures_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(console, "summary_rows", lambda record: iter([]))
    record = {"choices": {}, "seed": 0, "config": {}}
    console.print_record(record, tmp_path)
    assert "not measured yet: python -m tna_lightning.export RUN --format c" in capsys.readouterr().out
    (tmp_path / "network-exported-c").mkdir()
    (tmp_path / "network-exported-c" / "network.h").write_text("/* A network\n\n   Measured: 0.1 ms an image.\n*/")
    console.print_record(record, tmp_path)
    assert re.search(r"as C +│ +0.1 ms an image +│", capsys.readouterr().out)


def test_the_bar_counts_epochs_from_1(monkeypatch):
    bar = EpochBar()
    bar._trainer = SimpleNamespace(max_epochs=30)
    assert [bar._get_train_description(epoch) for epoch in (0, 29)] == ["Epoch 1/30", "Epoch 30/30"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory ([enforce fail] "),
        (MemoryError(), "out of memory (MemoryError); a smaller data.batch_size, model.width or T needs less"),
        (MisconfigurationException("No backend.\nMore words"), "No backend."),
        (RuntimeError("You set `--ntasks=2` in your SLURM bash script"), "SLURM_NTASKS=None: Lightning needs"),
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (
            ConfigCompositionException("Overriding hydra.searchpath is only supported from the primary config"),
            "config-name: must be config; settings of your own go into DIR/experiments/NAME.yaml",
        ),
    ],
)
def test_an_error_is_one_line(error, line, monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert explain(error).startswith(line)


def test_an_error_of_ours_keeps_its_traceback():
    assert explain(RuntimeError("something broke")) is explain(AssertionError()) is None


def test_a_sweep_whose_folder_cannot_be_made_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "file" / "unnamed")}}})
    with pytest.raises(SystemExit) as left:
        SweepSummary().on_multirun_start(config)
    assert left.value.code != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "file") in line
