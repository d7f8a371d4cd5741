"""What a person is told: names with brackets, epochs from 1, one line for what is not ours."""

import logging
import re
import sys
import warnings
from importlib import import_module
from logging.config import dictConfig
from types import SimpleNamespace

import lightning.fabric.utilities.warnings  # noqa: F401  # which writes warnings in its own way
import pytest
import yaml
from hydra.errors import ConfigCompositionException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from tna_lightning.callbacks.progress import EpochBar
from tna_lightning.running import console
from tna_lightning.running.config import explain
from tna_lightning.running.doors import Lines, Parser, enter
from tna_lightning.running.home import home
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


@pytest.mark.parametrize("name", ["__main__", "evaluate", "export.__main__", "predict", "report.__main__", "show"])
def test_every_door_ends_by_ctrl_c_with_one_line(name, capsys, monkeypatch):
    main = import_module(f"tna_lightning.{name}").main
    errors = [KeyboardInterrupt(), SystemExit(1), SystemExit(3)]
    errors[1].__context__ = KeyboardInterrupt()  # as Lightning's trainer ends by it

    def end(*_):
        raise errors[0]

    monkeypatch.setattr(Parser, "parse_args", end)
    monkeypatch.setattr("tna_lightning.running.home.own_folder", end)  # of the front door, which has Hydra's parser
    for status in (130, 130, 3):
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code, capsys.readouterr().err) == (status, "\ninterrupted\n" if status == 130 else "")
        errors.pop(0)


def test_a_warning_is_one_line_by_whichever_way_it_comes(capsys, monkeypatch):
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))  # of a process whose logging is bare
    enter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("2 left out:\n  a\n  b", stacklevel=1)
    settings = yaml.safe_load((home() / "conf" / "config.yaml").read_text())["hydra"]["job_logging"]["formatters"]
    mine = {"class": "logging.StreamHandler", "formatter": "simple", "level": "INFO", "stream": sys.stderr}
    log = logging.getLogger("told")
    log.propagate = False
    record = log.makeRecord(log.name, logging.WARNING, "", 0, "x=%r: left\nout", (3,), None)
    logging.lastResort.handle(record)
    dictConfig(
        {
            **{"version": 1, "disable_existing_loggers": False, "formatters": settings, "handlers": {"mine": mine}},
            "loggers": {"told": {"handlers": ["mine"], "level": "INFO", "propagate": False}},
        }
    )
    log.handle(record)
    log.info("epoch 1:\nnothing")
    assert isinstance(logging.lastResort.formatter, Lines)
    told = ["warning: 2 left out: a b", *["warning: x=3: left out"] * 2, "epoch 1:", "nothing"]
    assert capsys.readouterr().err.splitlines() == told


@pytest.mark.parametrize(
    ("door", "words", "line"),
    [
        ("__main__", ["--epochs", "3"], "--epochs: there is no such flag; settings are KEY=VALUE, --help lists what"),
        ("__main__", ["seed=1", "--cfg", "job", "epochs=2"], "epochs=2: settings must stand together, before the fl"),
        ("evaluate", [], "the following arguments are required: RUN; --help lists what there is"),
        ("evaluate", ["RUN", "--time-steps", "0"], "--time-steps='0': must be whole numbers from 1, commas between"),
        ("evaluate", ["RUN", "--time-steps", "2,x"], "--time-steps='2,x': must be whole numbers from 1, commas"),
        ("evaluate", ["RUN", "--corrupt", "all", "--severity", "0"], "--severity='0': must be whole numbers from 1"),
        ("evaluate", ["RUN", "--seed", "x"], "--seed: invalid int value: 'x'"),
        ("export.__main__", ["RUN", "--format", "tflite"], "--format: invalid choice: 'tflite' (choose from "),
        ("predict", ["RUN"], "the following arguments are required: INPUT; --help lists what there is"),
        ("predict", ["RUN", "INPUT", "--json", "--csv"], "--csv: not allowed with argument --json"),
        ("report.__main__", ["--latex"], "the following arguments are required: STUDY; --help lists what there is"),
        ("show", ["RUN", "--nothing"], "unrecognized arguments: --nothing; --help lists what there is"),
    ],
)
def test_words_that_a_door_does_not_know_are_one_line(door, words, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [door, *words])
    with pytest.raises(SystemExit) as left:
        import_module(f"tna_lightning.{door}").main()
    assert left.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {line}")


@pytest.mark.parametrize("door", ["evaluate", "export.__main__", "predict", "report.__main__", "show"])
def test_help_is_for_people(door, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [door, "--help"])
    with pytest.raises(SystemExit):
        import_module(f"tna_lightning.{door}").main()
    told = capsys.readouterr().out
    assert told.startswith(f"usage: python -m tna_lightning.{door.removesuffix('.__main__')} ")
    assert "`" not in told


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
