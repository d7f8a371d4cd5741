"""Reports: found runs, statistics against closed forms, and the files."""

import copy
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from scipy import stats

from tna_lightning.report import __main__ as door
from tna_lightning.report.__main__ import Wishes, report
from tna_lightning.report.collect import collect
from tna_lightning.report.latex import as_latex
from tna_lightning.report.page import _unbroken, page
from tna_lightning.report.plots import figures, learning_curves
from tna_lightning.report.references import is_of_whole_set, published
from tna_lightning.report.repeat import command
from tna_lightning.report.statistics import apart, missing, paired_difference, rows
from tna_lightning.report.tables import (
    answers,
    as_csv,
    as_markdown,
    best,
    cells,
    in_all_rows,
    legend,
    plain_words,
    shown,
)
from tna_lightning.running.archive import RECORDS, keep_records, read_records
from tna_lightning.running.config import compose, swept_by
from tna_lightning.running.home import home
from tna_lightning.running.identity import differences, folder_name, identity
from tna_lightning.running.record import Run


def record(baseline="tna", quant="none", seed=0, accuracy=0.9, *, simulated=False, match_weight=None, **entries):
    choices = {"data": "digits", "model": "convnet", "neuron": "lif", "baseline": baseline, "quant": quant}
    objective = {"_target_": f"x.{baseline}"} | ({} if match_weight is None else {"match_weight": match_weight})
    config = {
        "seed": seed,
        "epochs": 2,
        "data": {"_target_": "x.Digits", "seed": seed},
        "quant": {} if quant == "none" else {"quantizer": quant},
        "objective": objective,
        "companion": None if baseline == "plain" else {"freeze": baseline == "kd", "seed": seed},
        "choices": choices,
    }
    results = {"test/acc": accuracy, "val/acc": accuracy - 0.01}
    if baseline != "plain":
        results["test/companion_acc"] = accuracy + 0.01
    return {
        "format": 1,
        "status": "done",
        "name": folder_name(config),
        "identity": identity(config),
        "study": "study",
        "choices": choices,
        "seed": seed,
        "config": config,
        "data": {"name": "digits", "simulated": simulated, "train_samples": 9, "val_samples": 1, "test_samples": 2},
        "results": results,
        "weights": {
            "weights": 1000,
            "bytes": 250 if quant == "ternary" else 4000,
            "zero_share": 0.4,
            "bytes_float32": 4000,
        },
        "cost": {
            "firing_rate": 0.1,
            "synaptic_operations": 123_456,
            "macs": 78_900_000,
            "energy_uj": 2.0,
            "dense_macs": 8_888_000_000,
            "energy_dense_uj": 40_884.8,
            "pj_per_mac": 4.6,
            "pj_per_ac": 0.9,
        },
        "history": {"epoch": [0, 1], "val/acc": [accuracy - 0.2, accuracy - 0.01]},
        "epochs": 2,
        "device": "cpu",
    } | entries


def write(folder, *records):
    for content in records:
        path = folder / content["name"] / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


RESULTS = Path(__file__).parents[2] / "experiments" / "results"
PAGE_ALONE = Wishes(page_alone=True)
PLAIN, TNA = (0.90, 0.91, 0.95), (0.92, 0.94, 0.96)


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    for seed in range(3):
        write(folder, record("plain", seed=seed, accuracy=PLAIN[seed]), record("tna", seed=seed, accuracy=TNA[seed]))
    write(folder, record("kd", "ternary", seed=0, accuracy=0.8))
    return folder


def test_rows_that_differ_in_their_callbacks_say_which_they_have():
    def with_callbacks(callbacks, seed=0):
        made = record(seed=seed)
        made["config"] = made["config"] | ({} if callbacks is None else {"callbacks": callbacks})
        return made

    def ema(decay):
        return {"ema": {"_target_": "x.EMA", "decay": decay}}

    stop = {"stop": {"_target_": "x.Stop", "patience": 3}}
    variants = [
        {row.variant for row in rows([with_callbacks(each) for each in made])}
        for made in (
            [None, {}, ema(0.9)],  # a record of version 0.1 has no such node
            [{}, ema(0.9), ema(0.9) | stop],
            [ema(0.9), ema(0.99)],
        )
    ]
    assert variants[0] == {"callbacks=none", "callbacks=ema"}
    assert variants[1] == {"callbacks=none", "callbacks=ema", "callbacks=ema,stop"}
    assert variants[2] == {"decay=0.9", "decay=0.99"}


def test_rows_hold_mean_deviation_and_paired_interval(study):
    plain, tna, kd = rows(collect([study]).done)
    assert (plain.baseline, tna.baseline, kd.baseline, kd.precision) == ("plain", "tna", "kd", "ternary")
    assert tna.mean == pytest.approx(94.0)
    assert tna.deviation == pytest.approx(2.0)  # of 92, 94, 96
    assert kd.deviation is None
    assert tna.seeds == [0, 1, 2]
    difference = tna.differences["plain"]  # pairs 2, 3, 1: mean 2, standard deviation 1
    assert (difference.mean, difference.pairs) == (pytest.approx(2.0), 3)
    assert difference.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)  # t(0.975, 2) = 4.30265
    assert "kd" not in tna.differences  # distillation was run at another precision
    assert kd.bits == pytest.approx(2.0)


def test_a_difference_over_fewer_pairs_than_runs_says_so(tmp_path):
    write(tmp_path, *(record("plain", seed=seed, accuracy=PLAIN[seed]) for seed in (0, 1)))
    write(tmp_path, *(record("tna", seed=seed, accuracy=TNA[seed]) for seed in (0, 1, 2)))
    _, tna = table = rows(collect([tmp_path]).done)
    assert cells(tna)["to_plain"] == "+2.50 [-3.85, +8.85] (2 pairs)"
    assert "$+2.50$ [$-3.85$, $+8.85$] ($2$ pairs)" in as_latex(table)
    tna.differences["plain"] = dataclasses.replace(tna.differences["plain"], mean=-0.001)
    assert cells(tna)["to_plain"].startswith("+0.00 [")  # no minus before a zero


DAMAGE = {
    **{key: "x" for key in ("results", "weights", "cost", "data", "choices", "environment", "seed")},
    **{"history": [], "identity": ["x"], "config": None, "study": [], "results.test/acc": math.nan},
    **{"config.data": "x", "config.trainer": [], "config.objective": None, "status": None},
    **{"cost.not_counted": [{"name": "a"}], "cost.memory_model": {}, "cost.energy_uj": math.nan, "cost.macs": -1.0},
    **{"cost.quantized_ann": {"energy_uj": "x"}, "cost.pj_per_ac": None, "weights.layers": [{}], "weights.bytes": "x"},
    **{"history.val/acc": ["x", "y"], "history.epoch": 3, "choices.data": 3, "data.simulated": "x"},
    **{"results.test/companion_acc": "x"},
}


@pytest.mark.parametrize("key", [*DAMAGE, "percent", "another seed"])
def test_a_damaged_record_is_named_and_left_out(key, study):
    damaged = record("mutual", seed=0, config={**record("mutual")["config"], "trainer": {}})
    if key == "percent":
        damaged["results"] = {"test/acc": 97.2}
    elif key == "another seed":  # than in its config, of which the identity is made
        damaged["seed"] = 5
    elif "." in key:
        damaged[key.partition(".")[0]][key.partition(".")[2]] = DAMAGE[key]
    else:
        damaged[key] = DAMAGE[key]
    write(study, damaged)
    collection = collect([study])
    assert len(collection.done) == 7
    (line,) = collection.left_out
    assert line.startswith(f"run={str(study / damaged['name'])!r}: run.json ")


def test_copies_that_disagree_are_said_to(study):
    first = record("tna", seed=0, accuracy=TNA[0])
    path = study / "aaa" / "run.json"
    path.parent.mkdir()
    path.write_text(json.dumps(first | {"results": first["results"] | {"test/acc": 0.5}}))
    collection = collect([study])
    assert sorted(each["results"]["test/acc"] for each in collection.done if each["choices"]["baseline"] == "tna") == [
        *TNA
    ]
    (line,) = collection.left_out
    assert "aaa" in line
    assert "WITH ANOTHER RESULT: 50.00 %, and 92.00 % there" in line


def test_the_better_distillation_is_chosen_on_validation_images(tmp_path):
    for seed in (0, 1):
        write(tmp_path, record("plain", seed=seed, accuracy=0.5), record("tna", seed=seed, accuracy=0.9 + 0.01 * seed))
        for name, test, val in (("kd", 0.88, 0.7), ("kd_ann", 0.80, 0.8)):  # the test set prefers the other one
            write(tmp_path, record(name, seed=seed, accuracy=test, results={"test/acc": test, "val/acc": val}))
    table = {row.baseline: row for row in rows(collect([tmp_path]).done)}
    assert {row.distillation for row in table.values()} == {"kd_ann"}
    assert table["tna"].differences["kd_ann"].mean == pytest.approx(10.5)
    assert "kd_ann" not in table["kd_ann"].differences
    assert cells(table["tna"])["to_distillation"] == "+10.50 [+4.15, +16.85] KD (ANN)"
    assert cells(table["kd_ann"])["to_distillation"] == ""
    assert "+16.85] KD (ANN) |" in as_markdown([table["tna"]])
    (tna,) = [line for line in csv.DictReader(io.StringIO(as_csv([table["tna"]])))]
    assert tna["better_distillation"] == "kd_ann"
    assert (float(tna["kd_difference"]), float(tna["kd_ann_difference"])) == (pytest.approx(2.5), pytest.approx(10.5))
    assert "$+16.85$] KD (ANN)" in as_latex([table["tna"]], columns=["accuracy", "to_distillation"])


def test_no_distillation_is_the_better_one_without_validation_images(tmp_path):
    write(tmp_path, *(record(name, results={"test/acc": 0.5}) for name in ("kd", "kd_ann", "plain")))
    table = rows(collect([tmp_path]).done)
    assert [row.distillation for row in table] == [None, None, None]
    assert table[0].differences.keys() == {"kd", "kd_ann"}


def test_a_cohort_has_an_accuracy_for_each_companion():
    records = [record("cohort", accuracy=0.9, seed=seed) for seed in (0, 1)]
    for each in records:
        each["results"] |= {"test/companion_acc_top5": 0.99, "test/third_acc": 0.8}
        each["config"]["companions"] = {"third": {"seed": each["seed"] + 7}}  # a seed is no setting
    (row,) = rows(records)
    cell = cells(row)["companion"]
    assert re.findall(r"[\d.]+(?= . 0.00)", cell) == ["91.00", "80.00"]


def test_the_companions_accuracy_has_its_deviation(study):
    (line,) = [line for line in as_markdown(rows(collect([study]).done)).splitlines() if "| TNA |" in line]
    assert "| 95.00 \u00b1 2.00 |" in line


def test_interval_agrees_with_scipy():
    values = [0.3, -0.2, 1.1, 0.4]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    difference = paired_difference(values)
    assert difference.mean - difference.half_width == pytest.approx(low)
    assert difference.mean + difference.half_width == pytest.approx(high)


def test_pairs_are_of_one_seed_only(tmp_path):
    write(tmp_path, record("plain", seed=0, accuracy=0.5), record("plain", seed=1, accuracy=0.9))
    write(tmp_path, record("tna", seed=1, accuracy=0.91), record("tna", seed=2, accuracy=0.99))
    difference = rows(collect([tmp_path]).done)[1].differences["plain"]
    assert (difference.mean, difference.half_width, difference.pairs) == (pytest.approx(1.0), None, 1)


def test_other_settings_make_rows_of_their_own_and_seeds_do_not(tmp_path):
    weights = (0.001, 0.05)
    write(tmp_path, *(record(seed=seed, match_weight=weight) for seed in (0, 1) for weight in weights))
    write(tmp_path, record("plain", seed=0), record("plain", seed=1))
    table = rows(collect([tmp_path]).done)
    assert [(row.label, len(row.records)) for row in table] == [
        ("plain", 2),
        ("TNA match_weight=0.001", 2),
        ("TNA match_weight=0.05", 2),
    ]
    assert all(row.differences["plain"].pairs == 2 for row in table[1:])


def test_optimizers_are_called_by_their_names_and_their_own_settings_are_no_differences(tmp_path):
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    adamw = {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.9, 0.999]}
    records = [record() for _ in range(3)]
    for made, optimizer in zip(records, (sgd, adamw, adamw | {"lr": 0.01}), strict=True):
        made["config"]["optimizer"] = optimizer
        made["identity"] = identity(made["config"])
        made["name"] = folder_name(made["config"])
    write(tmp_path, *records)
    variants = {row.variant for row in rows(collect([tmp_path]).done)}
    assert variants == {"optimizer=SGD lr=0.1", "optimizer=AdamW lr=0.1", "optimizer=AdamW lr=0.01"}
    assert "optimizer._target_=torch.optim.AdamW" in apart(records)[1]  # as a command has it


def test_what_is_not_done_is_listed(study):
    failed = record("mutual", seed=0) | {"status": "failed", "error": "NonFiniteLoss: the loss is not finite\nmore"}
    cut_off = record("mutual", seed=1) | {"status": "running", "started": "yesterday"}
    write(study, failed, cut_off)
    running = record("mutual", seed=2)
    (study / "ready").mkdir()
    (study / "ready" / "config.yaml").write_text("seed: 0\n")
    with Run(study / running["name"], running["config"]).claimed():
        write(study, running | {"status": "running"})
        collection = collect([study])
        unfinished = {run.name: (run.state, run.detail) for run in collection.unfinished}
    assert unfinished == {
        failed["name"]: ("failed", "NonFiniteLoss: the loss is not finite"),
        cut_off["name"]: ("cut off", "since yesterday"),
        running["name"]: ("running", "since unknown"),
        "ready": ("not started", ""),
    }
    assert {run.name: run.settings for run in collection.unfinished} == {
        **{each["name"]: f"baseline=mutual quant=none seed={each['seed']}" for each in (failed, cut_off, running)},
        "ready": "",
    }


def test_what_failed_says_its_settings_and_where_its_log_is(study, capsys, monkeypatch):
    failed = with_subset("mutual", 600, 0.5, seed=1) | {"status": "failed", "error": "ValueError: a <b>"}
    write(study, failed)
    (study / failed["name"] / "output.log").write_text("many lines")
    monkeypatch.setattr(sys, "argv", ["report", str(study), "--output", str(study.parent / "out")])
    monkeypatch.setattr(door, "figures", lambda *_: iter(()))
    door.main()
    words = f"failed: {failed['name']} (baseline=mutual quant=none data.train_subset=600 seed=1) ValueError: a <b>"
    printed = capsys.readouterr()
    assert printed.err == f"{words}; see {study / failed['name'] / 'output.log'}\n"
    assert printed.out == f"7 finished runs: {study.parent / 'out' / 'index.html'}\n"
    assert f"- {plain_words(words)}\n" in (study.parent / "out" / "table.md").read_text()
    text = (study.parent / "out" / "index.html").read_text()
    assert '<td class="free">baseline=mutual quant=none data.train_subset=600 seed=1</td>' in text
    assert f'<td><a href="../study/{failed["name"]}/output.log">output.log</a></td>' in text
    (alone,) = apart([record("tna", seed=3)])
    assert alone == "data=digits model=convnet neuron=lif baseline=tna quant=none seed=3"
    lr = [record() | {"config": record()["config"] | {"optimizer": {"lr": rate}}} for rate in (0.1, 3.0)]
    assert apart(lr) == ["optimizer.lr=0.1 seed=0", "optimizer.lr=3 seed=0"]


def test_moments_are_told_by_the_clock_on_the_wall(tmp_path):
    now = datetime.now(UTC)
    moments = (now, now - timedelta(days=3))
    for seed, moment in enumerate(moments):
        write(tmp_path, record(seed=seed) | {"status": "running", "started": moment.isoformat()})
    here = [moment.astimezone() for moment in moments]
    told = {run.settings: run.detail for run in collect([tmp_path]).unfinished}
    assert told == {"seed=0": f"since {here[0]:%H:%M}", "seed=1": f"since {here[1]:%Y-%m-%d %H:%M}"}


def test_the_gaps_of_the_grid_are_named(study):
    collection = collect([study])
    lacking = missing(rows(collection.done), ["digits-convnet-lif-plain-ternary-s1-0123abcd"])
    assert lacking == [
        "digits convnet lif plain ternary: seed 0, 2",
        "digits convnet lif kd full: seed 0, 1, 2",
        "digits convnet lif kd ternary: seed 1, 2",
        "digits convnet lif tna ternary: seed 0, 1, 2",
    ]


def test_what_cannot_be_read_is_named_and_left_out(study):
    before = rows(collect([study]).done)
    (study / "cut").mkdir()
    (study / "cut" / "run.json").write_text('{"status": "done", "ident')
    (study / "notes").mkdir()
    twice = record("tna", seed=0, accuracy=0.1) | {"name": "twice"}
    write(study, twice)
    lacking = record("tna", seed=7) | {"name": "lacking"}
    del lacking["weights"]
    write(study, lacking)
    nothing = record("tna", seed=8) | {"name": "nothing", "results": {}}
    write(study, nothing)
    collection = collect([study])
    assert [row.mean for row in rows(collection.done)] == [row.mean for row in before]
    assert sorted(line.partition(": ")[2].split("(")[0].strip() for line in collection.left_out) == [
        "no run folder, it has no run.json",
        "run.json has no test accuracy from 0 to 1, but None",
        "run.json is damaged",
        "run.json says done, but has no weights",
        f"the same run as {study / record('tna', seed=0)['name']}",
    ]


def test_a_finished_copy_counts_rather_than_a_failed_one(tmp_path):
    write(tmp_path / "a", record(seed=0) | {"status": "failed"})
    write(tmp_path / "b", record(seed=0, accuracy=0.7))
    collection = collect([tmp_path])
    assert [done["results"]["test/acc"] for done in collection.done] == [0.7]
    assert not collection.unfinished
    assert "the same run as" in collection.left_out[0]


def test_a_study_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study='.*nowhere': no such folder"):
        collect([tmp_path / "nowhere"])


def test_tables_say_the_same(study):
    table = rows(collect([study]).done)
    line = "| full | TNA | 3 | **94.00 \u00b1 2.00** | +2.00 [-0.48, +4.48] |"
    assert line in as_markdown(table)
    assert in_all_rows(table).startswith("In all rows: data digits; model convnet; neuron LIF; zeros (%) 40.0;")
    (tna,) = [row for row in csv.DictReader(io.StringIO(as_csv(table))) if row["baseline"] == "tna"]
    assert float(tna["test_acc"]) == pytest.approx(94.0)
    assert float(tna["plain_low"]) == pytest.approx(-0.4841, abs=1e-4)
    assert (tna["seeds"], tna["plain_pairs"], "kd_pairs" in tna) == ("0 1 2", "3", False)  # no row has one
    assert "\nTNA & $\\mathbf{94.00}{\\scriptstyle\\,\\pm2.00}$ &  \\\\\n" in as_latex(table)


def test_a_column_is_there_where_it_says_something():
    one, other = rows([record("plain")])[0], rows([record("plain", "int4")])[0]
    assert shown([one])[:5] == ["data", "model", "neuron", "precision", "baseline"]  # a single row keeps all it has
    assert shown([one, other]) == ["precision", "accuracy"]
    assert "In all rows: data digits; model convnet; neuron LIF; baseline plain; n 1;" in in_all_rows([one, other])


def paper_of(study, tmp_path):
    """Records that differ in everything which a table of a paper must hold: data, precisions, settings, seeds."""
    names = ("none", "int8", "int4", "ternary", "ternary_hidden", "binary", "ternary_ttq")
    made = [record(base, quant, seed) for base in ("plain", "plain_twice", "tna") for quant in names for seed in (0, 1)]
    made += [record("tna", "my_quantiser_50%", 5), record("tna_frozen_twin", "ternary", 2)]
    made += [record("tna", "ternary", seed, match_weight=weight) for seed in (0, 1) for weight in (1e-5, 0.05)]
    for each in copy.deepcopy(made[:20]):
        each["choices"]["data"] = each["config"]["choices"]["data"] = "events_of & mine"
        made.append(each | {"identity": each["identity"][::-1]})
    return made


LATEX = shutil.which("pdflatex")


@pytest.mark.skipif(LATEX is None, reason="no pdflatex")
def test_tables_fit_a_column_of_a_paper(study, tmp_path):
    kinds = [rows(paper_of(study, tmp_path))]
    kinds += [rows(collect([path]).done) for path in sorted(RESULTS.rglob(RECORDS))]
    tables = [as_latex(kind) for kind in kinds]
    compared = rows(collect([RESULTS / "evidence" / RECORDS]).done, "baseline=plain_twice")
    tables += [as_latex(compared, against="baseline=plain_twice"), as_latex(compared, columns=["all"])]
    tables.append(as_latex(compared, ["precision", "baseline"], ["bits", "accuracy", "energy"]))
    tables.append(as_latex(compared, ["precision"], ["baseline"]))
    images = rows(collect([RESULTS / "fashion_mnist" / "images" / RECORDS]).done)
    tables += [as_latex(images, columns=["all"]), as_latex(images, columns=["memory", "few_bit_ann", "energy"])]
    text = "\\clearpage\n".join(tables)
    head = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\pagestyle{empty}\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(head + text + "\\end{document}\n")
    command = [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert result.returncode == 0, result.stdout[-2000:]
    assert [line for line in result.stdout.splitlines() if "Overfull" in line] == []


def test_epochs_are_one_setting_though_the_trainers_follow_them():
    table = rows(collect([RESULTS / "fashion_mnist" / "epochs" / RECORDS]).done)
    assert {(row.baseline, row.variant) for row in table} == {
        (baseline, f"epochs={epochs}") for baseline in ("plain", "plain_twice", "tna") for epochs in (20, 160)
    }


def test_epochs_that_the_trainer_does_not_follow_stay_a_setting(tmp_path):
    for most in (None, 4, 8):
        config = record("plain")["config"] | {"epochs": 8, "trainer": {"max_epochs": most}}
        named = {"name": folder_name(config), "identity": identity(config)}
        write(tmp_path, record("plain") | {"config": config} | named)
    assert {row.variant for row in rows(collect([tmp_path]).done)} == {f"max_epochs={most}" for most in (None, 4, 8)}


def test_latex_marks_the_best_and_what_is_told_from_plain(tmp_path):
    for seed in range(3):
        for quant in ("none", "ternary"):
            write(tmp_path, record("plain", quant, seed, accuracy=PLAIN[seed]))
            write(tmp_path, record("tna", quant, seed, accuracy=PLAIN[seed] + 0.01 + 0.001 * seed))
        write(tmp_path, record("mutual", "none", seed, accuracy=0.5 + 0.4 * (seed == 1)))
    write(tmp_path, record("kd", "ternary", 0, accuracy=0.99))
    text = as_latex(rows(collect([tmp_path]).done), name="my study")
    lines = {line.partition(" & ")[0]: line for line in text.splitlines() if line.endswith("\\\\")}
    assert lines["TNA"].count("\\mathbf{93.10}") == 1  # at full precision alone: distillation has more below
    assert lines["TNA"].count("^{*}") == 2
    assert lines["KD"] == "KD &  & $\\mathbf{99.00}^{\\dagger}$ \\\\"
    assert "*" not in lines["DML"] + lines["plain"]
    for words in ("over 3 seeds, 1 where marked $\\dagger$", "Bold: the highest mean of its column.", "leaves out 0"):
        assert words in text
    assert "\\label{tab:my-study}" in text
    assert "\\toprule\n & full & ternary \\\\\n\\midrule" in text


def test_rows_and_columns_of_the_paper_are_chosen_or_refused(study):
    table = rows(collect([study]).done)
    assert "\\toprule\n & plain & TNA & KD \\\\" in as_latex(table, ["precision"], ["baseline"])
    quantities = as_latex(table, ["precision", "baseline"], ["bits", "accuracy"])
    assert "\\emph{ternary}} \\\\\nKD & $2.00$ & $80.00$ \\\\" in quantities
    assert "\\begin{table*}" in as_latex(table, columns=["all"])
    blocks = as_latex(table, ["precision", "baseline"])  # of what no row stands for there is nothing: quantities
    assert "accuracy\\\\(\\%)" in blocks
    assert "\\emph{ternary}} \\\\\nKD & $80.00$ &" in blocks
    sizes = as_latex(rows(swept()))
    weights = as_latex(rows([record(match_weight=weight, accuracy=0.9 + weight) for weight in (0.001, 0.05)]))
    assert "LIF, full, TNA), one seed. Bold: the highest mean of all rows." in weights
    assert "match\\_weight=0.05 & $\\mathbf{95.00}$ \\\\\n" in weights
    assert "\\toprule\ntrain\\_subset & 600 & 2000 & 6000 \\\\\n\\midrule\nplain & $70.50" in sizes
    assert sizes.count("\\begin{tabular}") == 1
    assert sizes.count("\\mathbf") == 3
    two = [with_subset(name, 600, 0.9, seed) for name in ("plain", "tna") for seed in (0, 1)]
    for each in two:
        each["config"] |= {"optimizer": {"lr": 0.1 + each["seed"]}}
        each["config"]["data"] |= {"train_subset": 600 + each["seed"]}
    assert " & \\begin{tabular}[b]{@{}c@{}}train\\_subset=600\\\\lr=0.1\\end{tabular} & " in as_latex(
        rows(two), columns=["settings"]
    )
    assert "{\\emph{train\\_subset=600 lr=0.1}} \\\\\nplain & $90.00$ \\\\\nTNA &" in as_latex(
        rows(two), ["settings", "baseline"], ["accuracy"]
    )
    for arguments, message in (
        ((["nothing"], []), "rows='nothing': must be one of data, model"),
        ((["precision"], ["data"]), "rows=precision: several runs fall into one cell, they differ in baseline; add it"),
        (([], ["accuracy", "precision"]), "columns=accuracy,precision: must be one of data, model"),
        (([], ["against"]), "against needs --against"),
        ((["precision", "baseline"], ["precision"]), "rows=precision,baseline: precision is a column already"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            as_latex(table, *arguments)


def test_any_row_can_be_compared_with(tmp_path):
    for seed in range(3):
        for quant, accuracy in (("int2", 0.7), ("mine", 0.72 + 0.01 * seed)):
            write(tmp_path, record("tna", quant, seed, accuracy=accuracy), record("plain", quant, seed, accuracy=0.5))
    write(tmp_path, record("tna", "mine", 3, accuracy=0.1))  # without a partner
    done = collect([tmp_path]).done
    table = {(row.baseline, row.precision): row for row in rows(done, "quant=int2")}
    difference = table["tna", "mine"].differences["against"]
    assert (difference.mean, difference.pairs) == (pytest.approx(3.0), 3)
    assert table["plain", "mine"].differences["against"].mean == pytest.approx(0.0)
    assert "against" not in table["tna", "int2"].differences
    both = {(row.baseline, row.precision): row for row in rows(done, "baseline=plain,quant=int2")}
    assert both["tna", "mine"].differences["against"].mean == pytest.approx(23.0)
    assert both["tna", "int2"].differences["against"].mean == pytest.approx(20.0)
    report([tmp_path], tmp_path / "out", Wishes(against="quant=int2", page_alone=True))
    for name in ("table.md", "index.html"):
        assert "to 2 bits" in (tmp_path / "out" / name).read_text()
    assert "against_difference" in (tmp_path / "out" / "table.csv").read_text()
    assert "\\emph{minus 2 bits, 95\\,\\% interval}" in (tmp_path / "out" / "table.tex").read_text()


def test_differences_that_stand_in_the_table_are_not_there_twice(study):
    table = rows(collect([study]).done, "baseline=plain")
    assert [key for key in shown(table) if key in ("to_plain", "against")] == ["to_plain"]
    assert "against" in shown(rows(collect([study]).done, "baseline=tna"))


def with_data(baseline, root, content, accuracy=0.9, seed=0, size=9, **settings):
    """A run on pictures of one's own."""
    made = record(baseline, seed=seed, accuracy=accuracy)
    made["config"]["data"] |= {"root": root, **settings}
    made["config"] |= {"own": {"data.root": hashlib.sha256(content.encode()).hexdigest()}}
    made["choices"] = made["config"]["choices"] = made["choices"] | {"data": "image_folder"}
    made["data"] = made["data"] | {"train_samples": size}
    return made | {"identity": identity(made["config"]), "name": folder_name(made["config"])}


def test_data_of_ones_own_have_short_names_and_are_not_compared_with_each_other(tmp_path):
    made = [
        *(with_data("plain", "there/flowers", "1", 0.80), with_data("tna", "there/flowers", "1", 0.85)),
        *(with_data("plain", "birds/", "2", 0.90), with_data("tna", "birds/", "2", 0.95)),
        *(with_data("plain", "else/birds", "3", 0.70, size=12), with_data("tna", "else/birds", "3", 0.60, size=12)),
    ]
    digests = [hashlib.sha256(content).hexdigest() for content in (b"1", b"2", b"3")]
    birds = [f"image_folder (birds {digest[:8]})" for digest in digests[1:]]
    table = rows(made)
    assert {row.data for row in table} == {"image_folder (flowers)", *birds}
    bold = {(row.data, row.baseline) for row in best(table)}
    assert bold == {("image_folder (flowers)", "tna"), (birds[0], "tna"), (birds[1], "plain")}
    gains = [round(row.differences["plain"].mean, 6) for row in table if row.baseline == "tna"]
    assert sorted(gains) == [-10.0, 5.0, 5.0]
    write(tmp_path, *made)
    report([tmp_path], tmp_path / "report", PAGE_ALONE)
    texts = {path.name: path.read_text() for path in (tmp_path / "report").iterdir()}
    for name, text in texts.items():
        assert not any(digest in text for digest in digests), name
    (notes,) = re.findall(r"## How these numbers came about\n\n(.*?)\n\n", texts["table.md"] + "\n\n", re.DOTALL)
    assert notes.splitlines()[:3] == [
        *(f"- {name}: {size} train, 1 val, 2 test samples" for name, size in sorted(zip(birds, (9, 12), strict=True))),
        "- image_folder (flowers): 9 train, 1 val, 2 test samples",
    ]
    assert texts["table.tex"].count("\\mathbf") == 3
    text = as_latex(table, ["baseline", "data"], ["accuracy"])  # in each block a row of each data
    assert "mathbf" not in text
    assert "Bold" not in text
    alone = rows([with_data("tna", "flowers", "1"), with_data("tna", "flowers", "1", seed=1)])
    assert [row.data for row in alone] == ["image_folder"]
    assert command(alone[0].records).endswith(" data.root=flowers seed=0,1")


def test_bold_are_all_of_a_tie_or_none_and_only_of_the_same_test_samples():
    tie = rows([record("plain", accuracy=0.90001), record("tna", accuracy=0.90004), record("mutual", accuracy=0.8)])
    assert [row.baseline for row in best(tie)] == ["plain", "tna"]
    assert as_markdown(tie).count("**90.00**") == 2
    assert as_latex(tie, columns=["accuracy"]).count("\\mathbf{90.00}") == 2
    assert best(rows([record("plain", accuracy=0.9), record("tna", accuracy=0.9)])) == []
    firsts = [with_data("tna", "mine", "1", 0.9, split=split) for split in ("first", "random")]
    table = rows([*firsts, with_data("plain", "mine", "1", 0.8, split="first")])
    assert [(row.baseline, row.variant) for row in best(table)] == [("tna", "split=first")]
    assert "of all rows, of the same data settings." in as_latex(table, columns=["accuracy"])


def test_ones_own_code_is_part_of_the_choice_that_brings_it():
    def with_code(baseline, seed, target=None, **code):
        made = record(baseline, seed=seed, accuracy=0.5 + 0.1 * (target is not None))
        made["config"] |= {"own": {f"code.{name}": digest for name, digest in code.items()}} if code else {}
        made["config"] |= {"neuron": {"_target_": target or "tna_lightning.models.LIF"}}
        made["choices"] = made["choices"] | {"neuron": "mine" if target else "lif"}
        return made | {"identity": identity(made["config"])}

    made = [with_code("plain", seed) for seed in (0, 1)]
    made += [with_code("plain", seed, "mine.Neuron", mine="1", helper="2") for seed in (0, 1)]
    (mine,) = [row for row in rows(made, "neuron=lif") if row.neuron == "mine"]
    assert (mine.differences["against"].mean, mine.differences["against"].pairs) == (pytest.approx(10.0), 2)
    other = with_code("tna", 0, "mine.Neuron", mine="3", helper="2")  # edited since: no partner of the plain run
    assert "plain" not in rows([*made, other])[-1].differences
    digests = [hashlib.sha256(content).hexdigest() for content in (b"1", b"2")]
    edited = rows([with_code("tna", 0, "mine.Neuron", mine=digest) for digest in digests])
    assert {row.variant for row in edited} == {f"mine={digest[:8]}" for digest in digests}
    own_baseline = [with_code("my_baseline", seed, objective="4") for seed in (0, 1)]
    (mine,) = [row for row in rows([*made, *own_baseline]) if row.baseline == "my_baseline"]
    assert mine.differences["plain"].pairs == 2


def test_a_setting_can_be_compared_with_and_what_is_not_there_is_refused(tmp_path):
    write(tmp_path, *(record(seed=seed, match_weight=weight) for seed in (0, 1) for weight in (0.001, 0.05)))
    done = collect([tmp_path]).done
    first, second = rows(done, "objective.match_weight=0.05")
    assert (first.differences["against"].pairs, second.differences) == (2, {})
    for against, message in (
        ("objective.match_weight=3", "must be objective.match_weight=0.001, objective.match_weight=0.05"),
        ("baseline", "must be baseline=tna"),
        ("data=digits", "must be CHOICE=VALUE with one of baseline"),
        ("baseline=tna", "needs pairs of one seed that differ in nothing else"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            rows(done, against)
    with pytest.raises(ValueError, match=r"^against='baseline'"):
        report([tmp_path], tmp_path / "out", Wishes(against="baseline"))


def test_tables_say_which_layers_are_quantised_and_what_dense_costs(tmp_path):
    names = ("stem.conv", "body.0.conv1.conv", "body.0.shortcut.conv", "body.1.conv", "classifier")
    stem = "stem.conv"

    def layers_of(scheme, is_quantized, others=None):
        """As in a record: each layer with as many weights, `others` with a scheme of their own."""
        words = {name: (others or {}).get(name, scheme) if is_quantized(name) else "float32" for name in names}
        return [
            {"name": name, "is_quantized": is_quantized(name), "scheme": words[name], "weights": 200} for name in names
        ]

    hidden = layers_of("ternary", lambda name: name.startswith("body"))
    most = layers_of("int4", lambda name: name != "body.0.shortcut.conv")
    mixed = layers_of("ternary", lambda name: name != "classifier", {stem: "int8"})
    alike = [layers_of("binary", lambda _, value=value: value) for value in (True, False)]
    weights = {"weights": 1000, "bytes": 300, "bytes_float32": 4000, "zero_share": 0.4}
    layouts = {
        "ternary_hidden": (hidden, 0.9977),
        "int4": (most, 0.5),
        "ternary": (mixed, 0.8),
        "binary": (alike[0], 1),
        "none": (alike[1], 0),
    }
    for quant, (layers, share) in layouts.items():
        write(tmp_path, record("plain", quant, weights=weights | {"quantized_share": share, "layers": layers}))
    table = rows(collect([tmp_path]).done)
    assert {row.precision: row.quantized for row in table} == {
        "full": "none",
        "binary": "all",
        "ternary_hidden": "all but stem, classifier (99.8 %)",
        "int4": "all but body.0.shortcut (50.0 %)",
        "ternary": "all but classifier (80.0 %); stem: int8",
    }
    (hidden_row,) = [row for row in csv.DictReader(io.StringIO(as_csv(table))) if row["precision"] == "ternary_hidden"]
    assert hidden_row["quantized"] == "all but stem, classifier (99.8 %)"
    assert float(hidden_row["quantized_share"]) == 0.9977
    expected = {"synaptic_operations": 123_456, "macs": 78.9e6, "dense_macs": 8.888e9, "energy_dense_uj": 40_884.8}
    assert {name: float(hidden_row[name]) for name in expected} == expected
    assert "AC (M) 0.123; MAC (dense) (M) 78.9 (8888); energy (dense) (uJ) 2.00 (40885)." in in_all_rows(table)
    words = "ternary, hidden: all but stem, classifier (99.8 %); ternary: all but classifier (80.0 %); stem: int8"
    assert words in legend(table)
    assert "all but stem, classifier ($99.8$ \\%)" in as_latex(table, columns=["quantised"])
    assert "all but stem, classifier (99.8 %)" in page("", table, collect([tmp_path]), [], [], [], [])


def test_energy_of_memory_and_what_is_not_counted_where_records_have_them(tmp_path):
    old = rows([record("plain")])
    assert "memory" not in as_markdown(old) + as_csv(old) + legend(old)
    ann = {"activation_bits": 3, "operations": 5e6, "on_nonzero_weights": 2e6, "energy_uj": 4.5}
    cost = record()["cost"] | {"energy_memory_uj": 1.5, "quantized_ann": ann | {"energy_memory_uj": 0.25}}
    cost["not_counted"] = [{"name": name, "operation": "aten.mul"} for name in ("", "gate")]
    cost["memory_model"] = {"sram": [[8192, 10.0]], "dram": 1300.0, "access_bits": 64, "membrane_bits": 32}
    write(tmp_path, record("plain"), record("tna", cost=cost))
    table = rows(collect([tmp_path]).done)
    assert "| 1.50 | 4.50 (0.250) |" in as_markdown(table)
    assert "| memory (uJ) | few-bit ANN (memory) (uJ) |" in as_markdown(table)
    plain, tna = csv.DictReader(io.StringIO(as_csv(table)))
    assert (tna["energy_memory_uj"], tna["quantized_ann_bits"], plain["energy_memory_uj"]) == ("1.5", "3.0", "")
    assert as_latex(table, columns=["energy"]).count("$2.00$ ($40885$) \\\\") == 2
    for columns, words in (
        (
            ["energy"],
            "4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate (45 nm, Horowitz 2014); in brackets that of the",
        ),
        (["mac"], "MAC: multiply-accumulates; in brackets"),
        (["memory", "few_bit_ann"], "no part of the other energy. Few-bit ANN: energy of the same weights"),
        (["all"], "ceil(log2(T + 1)) bits, each layer once; in brackets that of moving them."),
    ):
        assert words in as_latex(table, columns=columns).partition("\\label")[0], columns
    assert "pJ" not in as_latex(table, columns=["accuracy", "bits"])
    report([tmp_path], tmp_path / "out", PAGE_ALONE)
    for name in ("table.md", "index.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "Not counted: aten.mul (the network, gate)." in text
        assert "an access of 64 bits to 8 kB 10 pJ, to DRAM 1300 pJ" in text
    more = rows([record("plain", cost=cost | {"energy_memory_uj": 9.0}), record("tna", cost=cost)])
    assert "accuracy_memory" in {name for name, _, _ in figures(more)}


def test_latex_escapes_what_it_must(tmp_path):
    write(tmp_path, record(quant="my_quant{50%}\\x~^"))
    assert "my\\_quant\\{50\\%\\}\\textbackslash{}x\\textasciitilde{}\\textasciicircum{}" in as_latex(
        rows(collect([tmp_path]).done)
    )


def test_figures_on_a_subset_of_the_test_set_stand_in_a_row_of_their_own(tmp_path):
    whole = record()
    about = whole["data"] | {"test_samples": 50, "of_samples": {"test": 360}}
    config = whole["config"] | {"data": whole["config"]["data"] | {"test_subset": 50}}
    write(tmp_path / "s", whole)
    write(tmp_path / "s", record(data=about, config=config, identity=identity(config), name="part"))
    report([tmp_path / "s"], tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| digits")] == [
        "| digits",
        "| digits (50 of 360 test samples)",
    ]
    assert "- digits: 9 train, 1 val, 50 of 360 test samples" in table
    assert "- digits: 9 train, 1 val, 2 test samples" in table
    assert "not on all of these samples: data.test_subset=50" in table
    assert "digits (50 of 360 test samples)" in (tmp_path / "out" / "table.csv").read_text()


def test_simulated_data_and_parts_of_the_samples_are_called_so(tmp_path):
    write(tmp_path / "s", record(simulated=True, data={"simulated": True, "test_samples": 2, "note": "a stand-in"}))
    limited = record(seed=1)["config"] | {"trainer": {"limit_test_batches": 2}}
    write(tmp_path / "s", record(seed=1, config=limited, simulated=True))
    report([tmp_path / "s"], tmp_path / "out", PAGE_ALONE)
    assert "not on all of these samples: trainer.limit_test_batches=2" in (tmp_path / "out" / "table.md").read_text()
    for name in ("table.md", "table.csv", "table.tex", "index.html"):
        assert "digits (simulated)" in (tmp_path / "out" / name).read_text(), name
        assert "digits (simulated) (part of the test set)" in (tmp_path / "out" / name).read_text(), name
    assert "SIMULATED events, no recordings of a camera; a stand-in" in (tmp_path / "out" / "table.md").read_text()


def test_rows_differ_by_the_name_of_their_augmentation():
    def augmented(name, seed, **padding):
        node = {"crop": {"_target_": "x.Crop", **padding}} if padding else {}
        one = record(seed=seed)
        one["choices"] = one["choices"] | {"augment": name}
        return one | {"config": one["config"] | {"augment": node}}

    none, some = augmented("none", 0), augmented("standard", 0, padding=4)
    assert {row.variant for row in rows([none, some])} == {"augment=none", "augment=standard"}
    more = augmented("standard", 0, padding=2)
    assert {row.variant for row in rows([some, more])} == {"padding=4", "padding=2"}


def test_rows_that_differ_in_a_number_stand_in_its_order():
    made = [record() for _ in range(4)]
    for each, number in zip(made, (2000, 600, 1e-05, 0.5), strict=True):
        each["config"] = {**each["config"], "data": {**each["config"]["data"], "train_subset": number}}
    assert [row.variant.partition("=")[2] for row in rows(made)] == ["1e-05", "0.5", "600", "2000"]


def test_runs_of_two_versions_are_one_row_and_are_named_by_todays_settings(tmp_path):
    images = "tna_lightning.data.cifar.CIFARDataModule"
    crop = {"crop": {"_target_": "tna_lightning.data.augment.Crop", "padding": 4}}

    def earlier(seed, padding=4, rate=0.1):
        data = {"_target_": images, "seed": seed, "crop_padding": padding}
        trainer = {"twin_device": None, "max_epochs": 2}
        return {"data": data, "neuron": {"beta": 0.5}, "trainer": trainer, "optimizer": {"lr": rate}}

    def today(seed, augment=crop, rate=0.1, per="layer"):
        return {
            "data": {"_target_": images, "seed": seed},
            "neuron": {"beta": 0.5, "per": per},
            "trainer": {"max_epochs": 2, "max_steps": -1, "check_val_every_n_epoch": 1},
            "optimizer": {"lr": rate},
            "channels_last": False,
            "augment": augment,
            "callbacks": {},
            "companions": {},
        }

    def found(*configs):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for seed, config in enumerate(configs):
            made = record("plain", seed=seed)
            made["config"] |= config
            if "augment" in config:
                made["choices"] = made["choices"] | {"augment": "crop" if config["augment"] else "none"}
            write(folder, made | {"name": str(seed), "identity": identity(made["config"])})
        return {row.variant: row.seeds for row in rows(collect([folder]).done)}

    assert found(earlier(0), earlier(1), today(2), today(3)) == {"": [0, 1, 2, 3]}
    assert found(earlier(0), today(1), today(2, rate=0.2)) == {"lr=0.1": [0, 1], "lr=0.2": [2]}
    assert found(earlier(0), today(1, per="channel")) == {"per=layer": [0], "per=channel": [1]}
    assert found(earlier(0), today(1, {}), earlier(2, 0)) == {"augment=crop": [0], "augment=none": [1, 2]}
    assert found(earlier(0), today(1, rate=0.2)) == {"lr=0.1": [0], "lr=0.2": [1]}
    assert found(earlier(0), earlier(1, 2)) == {"padding=4": [0], "padding=2": [1]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report, and beside it its study."""
    folder = tmp_path_factory.mktemp("written")
    for seed in range(3):
        write(folder / "study", record("plain", seed=seed, accuracy=PLAIN[seed]), record("kd", "ternary", seed))
    weights = (0.0, 0.05)
    write(folder / "study", *(record(match_weight=weight, seed=seed) for weight in weights for seed in (0, 1)))
    report([folder / "study"], folder / "report", Wishes())
    return folder / "report"


def test_report_writes_tables_plots_and_a_page(written):
    plots = {"curves", "accuracy_precision", "accuracy_bytes", "match_weight"}
    expected = {"table.md", "table.csv", "table.tex", "index.html"}
    expected |= {f"{name}{kind}" for name in plots for kind in (".png", ".svg", ".pdf", "_column.pdf")}
    assert {path.name for path in written.iterdir()} == expected  # all runs cost the same energy: no such plot
    for path in written.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in written.glob("*.pdf"):
        (width,) = set(re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+)", path.read_bytes()))
        assert float(width) == pytest.approx(72 * (3.35 if "column" in path.stem else 7.0), abs=0.5)
    for path in written.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_show_the_rows(tmp_path):
    for seed in (0, 1):
        for weight, accuracy in ((0.001, 0.90), (0.01, 0.94)):
            energy = {"cost": {"firing_rate": 0.1, "energy_uj": 1.0 + 100 * weight}}
            write(tmp_path, record(seed=seed, match_weight=weight, accuracy=accuracy + 0.02 * seed, **energy))
        write(tmp_path, record("plain", "ternary", seed=seed, accuracy=0.8 + 0.02 * seed))
    plots = {name: figure for name, _, figure in figures(rows(collect([tmp_path]).done))}
    assert plots.keys() == {"curves", "accuracy_precision", "accuracy_bytes", "accuracy_energy", "match_weight"}

    (axes,) = plots["match_weight"].axes
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert line.get_xdata() == pytest.approx([0.001, 0.01])
    assert line.get_ydata() == pytest.approx([91.0, 95.0])

    (axes,) = plots["accuracy_energy"].axes
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() in ("o", "s")}
    assert sorted(points) == [(pytest.approx(x), pytest.approx(y)) for x, y in ((1.1, 91.0), (2.0, 81.0), (2.0, 95.0))]

    (axes,) = plots["accuracy_bytes"].axes  # two rows of 4 kB, drawn beside each other around it
    assert axes.get_xlabel().endswith("\n(points of one value side by side)")
    drawn = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    places = [line.get_transform().transform(line.get_xydata())[0, 0] for line in drawn]
    true = [axes.transData.transform(line.get_xydata())[0, 0] for line in drawn]
    shifts = [72 / axes.figure.dpi * (place - at) for place, at in zip(places, true, strict=True)]
    assert shifts == pytest.approx([-2.25, 2.25, 0.0])
    assert [line.get_xdata()[0] for line in drawn] == [4.0, 4.0, 0.25]
    assert 78 < axes.get_ylim()[0] < 81 < 95 < axes.get_ylim()[1] < 98

    panels = {axes.get_title(): axes for axes in plots["curves"].axes}
    band = panels["digits, ternary"].collections[0].get_paths()[0].vertices  # around 80 % and 82 % at the end
    middle, deviation = 80.0, math.sqrt(2.0)
    assert max(y for x, y in band if x == 2) == pytest.approx(middle + deviation)
    assert min(y for x, y in band if x == 2) == pytest.approx(middle - deviation)


def test_curves_go_through_the_epochs_that_were_validated():
    def with_history(baseline, seed=0, **history):
        return record(baseline, seed=seed, history={"epoch": [*range(30)], **history})

    gaps = [0.5 + 0.01 * epoch if epoch % 10 == 9 else None for epoch in range(30)]
    more = [None if value is None else value + 0.02 for value in gaps]
    late = [*gaps[:29], None]  # cut short: its last epoch has no value
    trained = {"train/acc": [0.6] * 30, "train/match": [0.2 if epoch % 2 else None for epoch in range(30)]}
    made = [with_history("plain", seed, **{"val/acc": each}) for seed, each in enumerate((gaps, more, late))]
    made += [with_history("tna", **{"val/acc": [None] * 30}, **trained)]  # without validation
    plots = {name: figure for name, _, figure in figures(rows(made))}
    drawn = {axes.get_ylabel(): axes for axes in plots["curves"].axes}
    assert drawn.keys() == {"validation accuracy (%)", "training accuracy (%)"}
    axes = drawn["validation accuracy (%)"]
    (line,), (band,) = axes.lines, axes.collections
    assert ([*line.get_xdata()], line.get_marker()) == ([10, 20], "o")
    assert [*line.get_ydata()] == pytest.approx([59 + 2 / 3, 69 + 2 / 3])
    assert {x for x, _ in band.get_paths()[0].vertices} == {10, 20}
    assert axes.get_ylim()[0] < 60 < 69 < axes.get_ylim()[1]
    (line,) = plots["match_term"].axes[0].lines
    assert [*line.get_xdata()] == [*range(2, 31, 2)]


def test_a_penalty_on_firing_is_a_line_over_energy(tmp_path):
    for weight, energy, accuracy in ((0.0, 3.0, 0.9), (1.0, 1.0, 0.8), (0.1, 2.0, 0.88)):
        content = record("plain", accuracy=accuracy, cost={"firing_rate": 0.1, "energy_uj": energy})
        content["config"]["objective"] |= {"rate_weight": weight} if weight else {}
        write(tmp_path, content | {"identity": identity(content["config"]), "name": folder_name(content["config"])})
    write(tmp_path, record("tna"))  # of one weight alone
    plots = {name: figure for name, _, figure in figures(rows(collect([tmp_path]).done))}
    (axes,) = plots["rate_weight"].axes
    (line,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert line.get_xdata().tolist() == [3.0, 2.0, 1.0]
    assert line.get_ydata() == pytest.approx([90.0, 88.0, 80.0])
    assert [text.get_text() for text in axes.texts] == ["0", "0.1", "1"]


def test_panels_of_one_value_each_share_a_logarithmic_axis():
    made = [record("plain", cost=record()["cost"] | {"energy_uj": energy}) for energy in (1.0, 10.0)]
    made[1]["choices"] = made[1]["choices"] | {"model": "resnet8"}
    first, second = {name: figure for name, _, figure in figures(rows(made))}["accuracy_energy"].axes
    assert first.get_xlim() == second.get_xlim() == pytest.approx((10**-0.1, 10**1.1))


def test_the_match_term_has_a_panel_for_each_kind(tmp_path):
    for seed, terms in ((0, [0.4, 0.2]), (1, [0.6, 0.4])):
        for baseline, match in (("tna", "squared_error"), ("kd", "kl"), ("mutual", None)):
            content = record(baseline, seed=seed)
            content["config"]["objective"] |= {} if match is None else {"match": match}
            content |= {"identity": identity(content["config"])}
            write(tmp_path, content | {"history": content["history"] | {"train/match": terms}})
        write(tmp_path, record("plain", seed=seed))
    figure = dict((name, figure) for name, _, figure in figures(rows(collect([tmp_path]).done)))["match_term"]
    drawn = {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert drawn == {"match term (squared error)": ["TNA"], "match term (KL divergence)": ["KD", "DML"]}
    (line,) = figure.axes[[*drawn].index("match term (squared error)")].lines
    assert line.get_xdata() == pytest.approx([1, 2])
    assert line.get_ydata() == pytest.approx([0.5, 0.3])


def test_every_baseline_of_a_study_has_a_colour_of_its_own(tmp_path):
    names = [path.stem for path in (home() / "conf" / "baseline").glob("*.yaml")]
    write(tmp_path, *(record(name) for name in names))
    colors = [line.get_color() for line in learning_curves(rows(collect([tmp_path]).done)).axes[0].lines]
    assert len(colors) == len(set(colors)) == len(names)


def test_page_loads_nothing_from_elsewhere(written):
    text = (written / "index.html").read_text()
    sources = re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert sources
    inner = [source for source in sources if not source.startswith("data:image/svg+xml;base64,")]
    assert all(source.startswith("../study/digits-convnet-lif-") for source in inner), inner  # the runs' folders
    assert len(inner) == 10
    assert text.count("<figure") == 4
    assert text.count('<picture><source media="(max-width: 40rem)" srcset="data:image/svg+xml;base64,') == 4
    (folded,) = re.findall(
        r"<details><summary>missing: runs of (\d) rows</summary><ul>(.*?)</ul></details>", text, re.DOTALL
    )
    assert int(folded[0]) == folded[1].count("<li>")
    assert '<thead><tr><th class="key">baseline</th>' in text
    assert "+1.00\N{NO-BREAK SPACE}[" in _unbroken("+1.00 [-3.00,")
    assert _unbroken("+1.00 [-3.00, +5.00] (2 pairs) KD (ANN)").split(" ")[1:] == [
        "(2\N{NO-BREAK SPACE}pairs)",
        "KD\N{NO-BREAK SPACE}(ANN)",
    ]


def test_page_answers_the_question_first_and_has_each_rows_runs_behind_it(study, tmp_path):
    name = record("plain", seed=1)["name"]
    (study / name / "curves.png").write_bytes(b"a picture")
    report([study], tmp_path / "out", PAGE_ALONE)
    text = (tmp_path / "out" / "index.html").read_text()
    answer = "full: TNA 94.00 \u00b1 2.00 %, +2.00 [-0.48, +4.48] points (95 % interval) against plain training: "
    answer += "no difference is shown."
    assert text.index(_unbroken(answer)) < text.index("<h2>Results")
    assert f'<a href="../study/{name}/curves.png">curves.png</a>' in text
    assert "python -m tna_lightning -m baseline=plain quant=none" in text
    assert '<select name="precision"><option value="">all</option><option>full</option>' in text
    assert "<h2>Progress" not in text


@pytest.mark.parametrize(("gain", "word"), [(0.0001, "better"), (-0.0001, "worse")])
def test_an_answer_says_which_is_better_only_if_the_interval_leaves_out_0(gain, word):
    values = [(seed, 0.8 + 0.1 * seed) for seed in range(3)]
    made = [record("plain", seed=seed, accuracy=value) for seed, value in values]
    made += [record("tna", seed=seed, accuracy=value + gain) for seed, value in values]
    (text,) = answers(rows(made))
    assert text.endswith(f"points (95 % interval) against plain training: {word}.")
    (text,) = answers(rows(made[:1] + made[3:4]))
    assert text.endswith("(1 pair) points against plain training: one seed tells nothing of chance.")
    assert answers(rows(made[:3])) == []


def with_subset(baseline, train_subset, accuracy, seed=0):
    """A run on a part of the training images."""
    made = record(baseline, seed=seed, accuracy=accuracy)
    made["config"]["data"] |= {"train_subset": train_subset}
    return made | {"identity": identity(made["config"]), "name": folder_name(made["config"])}


def swept():
    """A study that sweeps the size of the training set."""
    sizes = {600: (0.70, 0.72), 2000: (0.80, 0.81), 6000: (0.87, 0.86)}
    return [
        with_subset(baseline, size, accuracy + 0.01 * seed, seed)
        for size, accuracies in sizes.items()
        for baseline, accuracy in zip(("plain", "tna"), accuracies, strict=True)
        for seed in (0, 1)
    ]


def test_every_swept_setting_has_its_answer_and_its_best():
    table = rows(swept())
    assert [text.partition(" points")[0] for text in answers(table)] == [
        "TNA train_subset=600 72.50 \u00b1 0.71 %, +2.00 [+2.00, +2.00]",
        "TNA train_subset=2000 81.50 \u00b1 0.71 %, +1.00 [+1.00, +1.00]",
        "TNA train_subset=6000 86.50 \u00b1 0.71 %, -1.00 [-1.00, -1.00]",
    ]
    assert sorted((row.label for row in best(table)), key=str.lower) == [
        "plain train_subset=6000",
        "TNA train_subset=2000",
        "TNA train_subset=600",
    ]
    weights = rows([record("plain"), *(record(match_weight=weight) for weight in (0.001, 0.05))])
    assert [text.partition(" 90")[0] for text in answers(weights)] == [
        "TNA match_weight=0.001",
        "TNA match_weight=0.05",
    ]
    others = [record("plain"), record("kd", accuracy=0.8), record("mutual", accuracy=0.7)]
    assert [text.partition(" 8")[0] for text in answers(rows(others))] == ["KD (of 2 the best by validation accuracy)"]
    others[1]["results"].pop("val/acc")
    assert [text.partition(" ")[0] for text in answers(rows(others))] == ["KD", "DML"]


def test_a_study_is_watched_until_nothing_runs(tmp_path, monkeypatch, capsys):
    study, running = tmp_path / "study", record("mutual", seed=2)
    write(study, record("plain"), record("tna", status="failed", error="OSError: disk full"))
    (study / ".sweeps" / "x").mkdir(parents=True)
    (study / ".sweeps" / "x" / "jobs").write_text("7")
    for number in range(5):
        (study / ".sweeps" / "x" / f"{number}.begun").touch()
    config = running["config"] | {"trainer": {"max_epochs": 8}}
    run = Run(study / running["name"], config)
    seen = []

    def wait(seconds):
        seen.append((tmp_path / "out" / "index.html").read_text())
        run.write(status="done", **{key: running[key] for key in ("results", "weights", "cost", "data", "history")})
        shutil.rmtree(study / ".sweeps")

    with run.claimed():
        run.write(status="running")
        (study / running["name"] / "metrics.csv").write_text("epoch\n0\n1\n")
        door.watch([study], tmp_path / "out", Wishes(against="baseline=mutual"), wait)  # of which none is done at first
    (text,) = seen
    assert "5 runs: 1 done, 1 running, 1 failed, 2 not begun." in text
    assert "epoch 2 of 8, about" in text
    assert "OSError: disk full" in text
    assert 'http-equiv="refresh"' in text
    assert capsys.readouterr().out == f"1 done, 1 running, 2 not begun: {tmp_path / 'out' / 'index.html'}\n"
    assert "2 finished runs in 2 rows" in (tmp_path / "out" / "index.html").read_text()


def test_the_same_runs_give_the_same_report(written):
    again = written.parent / "again"
    report([written.parent / "study"], again, Wishes(references=True))
    for path in written.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    for part in ({"data": {"train_subset": 500}}, {"trainer": {"limit_test_batches": 2}}):
        config = {key: node | part.get(key, {}) for key, node in {"data": {}, "trainer": {}}.items()}
        assert is_of_whole_set({"config": {"data": {}, "trainer": {}}}) > is_of_whole_set({"config": config})


def test_page_escapes_what_runs_say(study):
    collection = collect([study])
    collection.left_out.append("<script>alert(1)</script>")
    text = page("a & b", rows(collection.done), collection, [], [], [], [])
    assert "<script>alert" not in text
    assert "<title>a &amp; b</title>" in text
    assert plain_words("a|<b>\n[x](y)") == "a\\|&lt;b> [x]\\(y)"  # in table.md


def test_published_rows_name_their_source():
    lines = published(["cifar10dvs", "digits"])
    assert {line.data for line in lines} == {"cifar10dvs"}
    assert (lines[0].work, lines[0].accuracy, lines[0].source) == ("tdBN 2021", 67.80, "quoted")
    assert {line.source for line in lines} == {"paper", "quoted", "third party"}
    assert published(["digits"]) == []


@pytest.fixture
def other(tmp_path):
    folder = tmp_path / "other"
    write(folder, record("mutual"), record("mutual", seed=1) | {"status": "failed", "error": "ValueError: no"})
    write(folder / "deeper", record("plain", "int4", study=None))
    return folder


def test_a_file_of_records_gives_the_report_of_its_folders(study, other, tmp_path):
    file = tmp_path / "kept.jsonl.gz"
    assert keep_records([study, other], file) == (10, [])
    for sources, name in (([study, other], "folders"), ([file], "file")):
        report(sources, tmp_path / name, PAGE_ALONE)
    names = sorted(path.name for path in (tmp_path / "folders").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "file").iterdir())
    for name in names:
        texts = [(tmp_path / each / name).read_text() for each in ("folders", "file")]
        if name == "index.html":  # a file knows no folders to which a link could go
            assert "../study/" in texts[0]
            texts[0] = re.sub(r'<a href="[^"]*/">([^<]*)</a>', r"\1", texts[0])
        assert texts[0] == texts[1], name


def test_a_report_is_named_by_folder_or_file_where_no_run_names_a_study(tmp_path):
    write(tmp_path / "mine", record(study=None, status="failed"))
    files = [tmp_path / "mine.jsonl.gz", tmp_path / "mine" / RECORDS]
    for source in (tmp_path / "mine", *files):
        if source in files:
            keep_records([tmp_path / "mine"], source)
        report([source], tmp_path / "report", PAGE_ALONE)
        assert (tmp_path / "report" / "table.md").read_text().startswith("# Report on mine\n")


def test_files_of_records_are_found_beside_each_other_and_beside_runs(study, other, tmp_path):
    before = collect([study, other])
    for folder in (study, other):
        keep_records([folder], tmp_path / "kept" / folder.name / RECORDS)
    for sources in (
        [tmp_path / "kept"],
        [tmp_path / "kept" / folder.name / RECORDS for folder in (study, other)],
        [study, tmp_path / "kept" / "other"],
    ):
        found = collect(sources)
        assert by_identity(found.done) == by_identity(before.done)
        assert (found.unfinished, found.left_out) == (before.unfinished, [])


def by_identity(records):
    return {record["identity"]: record for record in records}


def test_a_study_is_kept_in_its_own_folder_while_it_changes_and_its_runs_go(study):
    first, file = record("plain"), study / RECORDS
    write(study, first | {"status": "failed"})
    keep_records([study], file)
    write(study, first)  # it was mended, and another one taken away
    gone = record("tna", seed=2)["name"]
    shutil.rmtree(study / gone)
    collection = collect([study])
    assert (len(collection.done), collection.unfinished, collection.left_out) == (7, [], [])
    assert keep_records([study], file) == (7, [])
    kept = read_records(file)
    assert (kept[first["name"]]["status"], kept[gone]["status"], len(kept)) == ("done", "done", 7)


def test_records_of_one_folder_in_two_files_are_told_apart(study, tmp_path):
    first, file = record("plain"), tmp_path / "first.jsonl.gz"
    keep_records([study], file)
    write(study, record("plain", accuracy=0.5) | {"results": {"test/acc": 0.5}})
    keep_records([study], tmp_path / "second.jsonl.gz")
    both = [file, tmp_path / "second.jsonl.gz"]
    (line,) = [line for line in collect(both).left_out if "WITH ANOTHER RESULT" in line]
    assert f"second.jsonl.gz/{first['name']}': the same run as {file / first['name']}" in line
    assert keep_records(both, tmp_path / "both.jsonl.gz") == (8, [])
    kept = read_records(tmp_path / "both.jsonl.gz")
    results = [kept[name]["results"]["test/acc"] for name in (first["name"], f"second.jsonl.gz/{first['name']}")]
    assert results == [PLAIN[0], 0.5]


@pytest.mark.parametrize("damage", ["cut off", "a byte", "not gzip", "no JSON", "no record", "twice", "empty"])
def test_a_damaged_file_of_records_is_refused(damage, study):
    file = study.parent / RECORDS
    keep_records([study], file)
    content = file.read_bytes()
    lines = gzip.decompress(content)
    file.write_bytes(
        {
            "cut off": content[:-20],
            "a byte": content[:200] + bytes([content[200] ^ 1]) + content[201:],
            "not gzip": b"{}\n",
            "no JSON": gzip.compress(lines[:-5]),
            "no record": gzip.compress(lines + b'{"folder": "x"}\n'),
            "twice": content + content,
            "empty": b"",
        }[damage]
    )
    for source in (file, file.parent):
        with pytest.raises(ValueError, match=r"^records='.*records.jsonl.gz': damaged, or no file of records \(.*\)$"):
            collect([source])


@pytest.mark.parametrize(
    "study",
    ["evidence/attempts", "evidence/match_weight", "mixed_precision", "fashion_mnist/match", "fashion_mnist/pairs"],
)
def test_the_command_that_repeats_a_row_gives_its_runs(study):
    for row in rows(collect([RESULTS / study / RECORDS]).done):
        configs, repeated = {record["seed"]: record["config"] for record in row.records}, []
        for line in command(row.records).splitlines():  # one, but where data have seeds of their own
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "tna_lightning"]
            *words, seeds = [word for word in words[3:] if word != "-m"]
            seeds = [int(seed) for seed in seeds.removeprefix("seed=").split(",")]
            (name,) = [word.partition("=")[2] for word in words if word.startswith("experiments=")] or [None]
            if name is not None:  # what the study varies is said, so that it is this row alone
                assert swept_by(name).keys() <= {word.partition("=")[0] for word in [*words, "seed="]}
            assert differences(configs[seeds[0]], compose([*words, f"seed={seeds[0]}"])) == []
            repeated += seeds
        assert repeated == row.seeds


def test_a_choice_of_ones_own_is_repeated_with_the_folder_that_has_it():
    line = command([record("tna", "my_own", seed) for seed in (0, 1)])
    assert line == "python -m tna_lightning -m --config-dir DIR quant=my_own seed=0,1"


def test_the_committed_tables_are_those_of_the_committed_records():
    for table in sorted(RESULTS.rglob("table.csv")):
        (file,) = [path / RECORDS for path in (table.parent, table.parent.parent) if (path / RECORDS).exists()]
        committed = list(csv.DictReader(io.StringIO(table.read_text())))
        rebuilt = list(csv.DictReader(io.StringIO(as_csv(rows(collect([file]).done)))))
        assert [{key: row.get(key, "") for key in committed[0]} for row in rebuilt] == committed, table


def test_command_line(study, monkeypatch, capsys):
    monkeypatch.setattr(door, "figures", lambda *_: ())  # which take most of the time

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        try:
            door.main()
            status = 0
        except SystemExit as left:
            status = left.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=out, stderr=err)

    (study / "empty").mkdir()
    result = command(str(study))
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"7 finished runs: {study / 'report' / 'index.html'}\n"
    assert result.stderr == f"left out: run='{study / 'empty'}': no run folder, it has no run.json\n"
    file = study.parent / "kept.jsonl.gz"
    again = command(str(study), "--records", str(file))
    assert again.stdout == f"7 records: {file}\n{result.stdout}"
    assert again.stderr == result.stderr  # the report's own folder is no run either, and is not taken for one
    from_file = command(str(file))
    assert (from_file.stdout, from_file.stderr) == (result.stdout.replace("/study/report", "/report"), "")
    wrong = command(str(study / "nowhere"))
    assert (wrong.returncode, wrong.stderr) == (2, f"error: study='{study / 'nowhere'}': no such folder or file\n")
    command(str(file), "--columns", "baseline", "--rows", "precision", "--against", "baseline=plain")
    text = (study.parent / "report" / "table.tex").read_text()
    assert "minus plain, 95" in text
    assert " & plain & TNA & KD \\\\" in text
    refused = command(str(file), "--against", "quant=x")
    assert refused.stderr == "error: against='quant=x': must be quant=none, quant=ternary\n"


def test_a_study_without_runs_is_refused_and_an_earlier_report_kept(tmp_path):
    (tmp_path / "study" / "report").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"study='.*study': no run is in it"):
        report([tmp_path / "study"], tmp_path / "study" / "report")
    assert not list((tmp_path / "study" / "report").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output='.*file': must be a folder, and is a file$"):
        report([tmp_path / "study"], tmp_path / "file")


def test_what_a_runs_own_folder_holds_is_none_of_its_runs(study):
    run = next(path for path in study.iterdir() if path.is_dir())
    (run / "checkpoints").mkdir()
    collection = collect([run])
    assert (len(collection.done), collection.left_out) == (1, [])


def test_a_study_in_which_nothing_is_finished_lists_why(tmp_path):
    write(tmp_path / "study", record() | {"status": "failed", "error": "ValueError: neuron.beta=1.5: must lie in"})
    collection = report([tmp_path / "study"], tmp_path / "report")
    assert [run.state for run in collection.unfinished] == ["failed"]
    text = (tmp_path / "report" / "table.md").read_text()
    assert "No run is finished yet." in text
    assert (
        f"- failed: {record()['name']} (data=digits model=convnet neuron=lif baseline=tna quant=none seed=0) " in text
    )
    assert " ValueError: neuron.beta=1.5" in text
    assert "| data |" not in text
    html = (tmp_path / "report" / "index.html").read_text()
    assert "0 finished runs in 0 rows" in html
    assert "<h2>Results" not in html
    assert "neuron.beta=1.5" in html


def test_records_are_not_changed(study):
    records = collect([study]).done
    before = copy.deepcopy(records)
    rows(records)
    assert records == before
