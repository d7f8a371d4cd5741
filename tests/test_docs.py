"""What the README and docs/ show is run as it stands there, or a list here says why it is not."""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from PIL import Image

import tna_lightning
from tna_lightning import __main__ as front
from tna_lightning import evaluate, predict, show
from tna_lightning.cost import inference_cost
from tna_lightning.export import __main__ as export_door
from tna_lightning.models import LIF, convnet, resnet20
from tna_lightning.models.surrogates import ATan
from tna_lightning.quantization import Ternary, quantize_network
from tna_lightning.report import __main__ as report_door
from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import mean_and_deviation, paired_difference
from tna_lightning.running.archive import RECORDS
from tna_lightning.running.config import companion_nodes, compose
from tna_lightning.running.home import GROUPS, options
from tna_lightning.running.record import finished_record
from tna_lightning.running.train import build_quantization

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


def fences(path):
    return [match.groupdict() for match in FENCE.finditer((ROOT / path).read_text())]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the files that docs/extending.md shows."""
    folder = tmp_path_factory.mktemp("workshop")
    for fence in fences("docs/extending.md"):
        if fence["file"]:
            path = folder / fence["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence["text"])
    return folder


EXTENSIONS = [fence["text"] for fence in fences("docs/extending.md") if fence["language"] == "bash"]


@pytest.fixture
def command_line(workshop, monkeypatch, capsys):
    """Call a door in the workshop as a user does there, in this process; the workshop's modules are forgotten after."""
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(workshop)

    def call(door, *arguments):
        monkeypatch.setattr(sys, "argv", [door.__name__, *arguments])
        door.main()
        call.told = capsys.readouterr()
        return call.told.out

    yield call
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.mark.parametrize("command", EXTENSIONS, ids=lambda command: command.partition("my_conf ")[2].split()[0])
def test_each_extension_trains_through_the_command_line(command, command_line, workshop):
    assert command.startswith("python -m tna_lightning ")
    folder = workshop / "runs" / str(abs(hash(command)))
    arguments = shlex.split(command)[3:]
    few = ["trainer.limit_train_batches=5", "trainer.enable_progress_bar=false", f"hydra.run.dir={folder}"]
    command_line(front, *arguments, *few)
    record = finished_record(folder)
    choice = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    groups = ("neuron", "model", "quant", "baseline", "augment", "data", "callbacks")
    (group,) = [group for group in groups if group in choice]
    if group == "callbacks":
        assert list(record["config"]["callbacks"]) == ["ema", "weight_norm"]
        norms, largest = (record["history"][f"weights/{name}"] for name in ("norm", "largest_norm"))
        assert largest == [norms[0], max(norms)]
    else:
        assert record["choices"][group] == choice[group]
    assert f"test/acc {record['results']['test/acc']:.2%} " in command_line(evaluate, str(folder), "--trust")


def test_from_a_folder_of_recordings_to_the_class_of_one_in_the_five_commands_of_the_page(
    command_line, monkeypatch, tmp_path, capsys
):
    """But for a smaller and shorter training, and what a moved folder and other recordings ask for."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def events(label):
        t, y, p = np.sort(rng.integers(0, 100_000, 300)), rng.integers(0, 120, 300), rng.integers(0, 2, 300)
        x = rng.integers(0, 40, 300) + 80 * label  # where the events are says which class it is
        return {"t": t, "x": x, "y": y, "p": p}

    for folder in ("mine", "others"):
        for label, name in enumerate(("left", "right")):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(10):
                np.savez(tmp_path / folder / name / f"{number}.npz", **events(label))
    np.savez("another.npz", **events(1))
    np.save("columns.npy", np.stack([*events(0).values()], 1))
    (block,) = [fence["text"] for fence in fences("docs/events.md") if "data=event_folder" in fence["text"]]
    looking, training, testing, inside, asking = (shlex.split(line, comments=True)[2:] for line in block.splitlines())
    doors = [words[0].rpartition(".")[2] for words in (looking, training, testing, inside, asking)]
    assert doors == ["show", "tna_lightning", "evaluate", "show", "predict"]
    assert "20" in command_line(show, *looking[1:])
    few = [
        "epochs=8",
        "compile=none",
        "data.batch_size=4",
        "model.width=0.25",
        "data.time_steps=2",
        "optimizer.lr=0.02",
    ]
    command_line(front, *training[1:], *few, "neuron.threshold=0.3", "trainer.enable_progress_bar=false")
    record = finished_record(tmp_path / testing[1])
    about = {"train_samples": 14, "val_samples": 2, "test_samples": 4, "split": "random", "size": [24, 32]}
    assert record["data"] | about | {"sensor": [120, 160], "simulated": False} == record["data"]
    assert set(record["class_accuracy"]) == {"left", "right"}
    recorded = "test/acc {0:.2%} (recorded: {0:.2%})\n".format(record["results"]["test/acc"])
    assert recorded in command_line(evaluate, *testing[1:])
    judged = json.loads(Path("judged/evaluation.json").read_text())
    assert judged["confusion"] == [[2, 0], [0, 2]]  # a fifth of each class
    command_line(show, *inside[1:])
    for picture in ("event_folder.png", "judged/confusion.png", "inside.png"):
        assert Path(picture).stat().st_size > 5000
    with pytest.raises(SystemExit, match="0"):
        command_line(predict, *asking[1:], "columns.npy")
    table = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert table == [["another.npz", "right"], ["columns.npy", "left"]]

    # what is not where it was in training
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = str(tmp_path / testing[1])
    assert recorded in command_line(evaluate, run, "--data-root", "moved")
    assert "warning" not in command_line.told.err  # their content is what it was
    others = command_line(evaluate, run, "--data", "event_folder", "--data-root", "../others")  # of the same sensor
    assert "data=event_folder: 4 samples, its test set\n" in others
    assert "test/acc 100.00%\n" in others
    for door, words in ((evaluate, [run]), (show, [run]), (export_door, [run, "--format", "packed"])):
        with pytest.raises(SystemExit):
            command_line(door, *words)
        told = "data.root='mine': is no folder; --data-root says where they are now"
        assert capsys.readouterr().err == f"error: {told}\n"
    (tmp_path / "elsewhere" / "moved" / "left" / "0.npz").rename("moved/left/00.npz")
    command_line(show, run, "--data-root", "moved")
    assert "warning: data.root has changed since this run was trained\n" in command_line.told.err


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_readmes_result_is_that_of_the_records():
    results = ROOT / "experiments" / "results"
    columns = []
    for folder, first_seed in (("fashion_mnist/table", 0), ("fashion_mnist/epochs", 5), ("evidence/attempts", 0)):
        columns.append(test := {})
        fitted = []
        for record in collect([results / folder / RECORDS]).done:
            baseline = record["choices"]["baseline"]
            if record["seed"] >= first_seed:
                test.setdefault(baseline, {})[record["seed"]] = 100 * record["results"]["test/acc"]
                fitted += [100 * record["history"]["train/acc"][-1]] if baseline == "tna" else []
        test["fitted"] = sum(fitted) / len(fitted)
    shown = (ROOT / "README.md").read_text().partition("<!-- result -->")[2].partition("<!-- end -->")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in shown.splitlines() if line.startswith("|")
    ]
    assert [re.search(r"\d+ seeds$", cell)[0] for cell in head[1:]] == [f"{len(test['tna'])} seeds" for test in columns]
    names = {"plain": "plain", "plain, twice the epochs": "plain_twice", "distillation, spiking teacher": "kd"}
    told = {row[0]: row[1:] for row in rows}
    for words, baseline in names.items():
        for cell, test in zip(told.pop(words), columns, strict=True):
            if baseline not in test:
                assert cell == "under way"
                continue
            assert test[baseline].keys() == test["tna"].keys()
            gain = paired_difference([test["tna"][seed] - test[baseline][seed] for seed in sorted(test["tna"])])
            bold = "**" if gain.mean > gain.half_width else ""
            assert cell == f"{bold}{gain.words(1)}{bold}"
    tna = [mean_and_deviation(list(test["tna"].values())) for test in columns]
    assert told.pop("TNA, %") == [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in tna]
    assert told.pop("its training images, %") == [f"{test['fitted']:.1f}" for test in columns]
    assert not told


def test_the_readmes_python_example_runs(tmp_path):
    (example,) = [fence["text"] for fence in fences("README.md") if fence["language"] == "python"]
    assert len([line for line in example.splitlines() if line]) <= 12
    program = example.replace("max_epochs=15", "max_epochs=1, accelerator='cpu', logger=False")
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "base.safetensors").stat().st_size > 10_000
    assert "test/acc" in result.stdout


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
RUN_ELSEWHERE = ("docs/extending.md", "docs/precision.md")  # all their commands, by the tests above and below
NOT_RUN = {  # how a command begins, and why no test here runs it
    r"pip install": "needs a network; tests/running/test_config.py installs the wheel",
    r"torchrun ": "tests/running/test_ddp.py starts one",
    r"srun ": "needs a cluster",
    r"\. \.venv/bin/activate": "of the reader's shell",
    r"python -m tna_lightning\.export RUN --format (packed\|onnx|c \[)": "a synopsis; its options are those of --help",
    r"make -C FOLDER|python tests/export/cortex_m": "tests/export/cortex_m does it",
    r"python benchmarks/": "minutes on a quiet machine",
}
PYTHON_NOT_RUN = {
    "docs/c_runtime.md": "load_c: tests/export/test_c.py",
    "docs/extending.md": "its files are what the tests above use",
}


def commands(page):
    """The command lines of a page, of bash fences and of indented blocks that begin with a command."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    bare = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    known = r"python |make |torchrun |srun |pip |\. \.venv"
    blocks += [
        re.sub(r"^    ", "", block, flags=re.MULTILINE)
        for block in re.findall(r"(?:^    .+\n)+", bare, re.MULTILINE)
        if re.match(known, block.lstrip())
    ]
    for block in blocks:
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def test_hooks_and_continuous_integration_call_targets_that_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = [*ROOT.glob(".ci/**/*"), *ROOT.glob(".github/workflows/*.yml")]
    called = [re.findall(r"\bmake((?: [\w-]+)+)$", path.read_text(), re.MULTILINE) for path in files if path.is_file()]
    words = {word for lines in called for line in lines for word in line.split() if not word.startswith("--")}
    assert {"lint", "type", "docs", "test", "release"} <= words <= targets


class Parsed(Exception):
    """The door has understood its arguments."""


DOORS = {"evaluate": evaluate, "predict": predict, "show": show, "export": export_door, "report": report_door}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (*TUTORIALS, *RUN_ELSEWHERE)])
def test_every_command_is_understood(page, monkeypatch):
    def parse(self, *arguments, real=argparse.ArgumentParser.parse_args):
        raise Parsed(real(self, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        if any(re.match(start, line) for start in NOT_RUN):
            continue
        words = shlex.split(line, comments=True)
        if "&&" in words:
            words = words[: words.index("&&")]
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        elif words[:3] == ["python", "-m", "tna_lightning"]:
            understood(words[3:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("tna_lightning."):
            door = words[2].partition(".")[2]
            monkeypatch.setattr(sys, "argv", [door, *words[3:]])
            with pytest.raises(Parsed):
                DOORS[door].main()
        else:
            pytest.fail(f"{page}: no test runs {line!r}; run it, or say why not in NOT_RUN")


def understood(words):
    """Compose what a training's command says, of a sweep the first job; each choice of it is there."""
    if "--help" in words:
        return
    words = words[: words.index("--cfg")] if "--cfg" in words else words
    words = [word for word in words if word not in ("-m", "--multirun") and not word.startswith("hydra")]
    assert not any(word.startswith("-") for word in words), words
    firsts = []
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        values = list(override.sweep_iterator()) if override.is_sweep_override() and "(" not in word else None
        firsts += [f"{word.partition('=')[0]}={values[0]}"] if values else [] if "interval(" in word else [word]
        for value in (values or ()) if override.key_or_group in GROUPS else ():
            assert value in options(override.key_or_group), word
    compose(firsts)


PYTHON = [page for page in PAGES if page not in (*TUTORIALS, *PYTHON_NOT_RUN, "README.md")]


@pytest.mark.parametrize("page", [page for page in PYTHON if "```python" in (ROOT / page).read_text()])
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    """In one namespace a page, beside a packed network, with the names that a page takes for granted."""
    monkeypatch.chdir(tmp_path)
    network = convnet(1, 10, LIF, width=0.125, time_steps=2)
    quantize_network(network, Ternary())
    spec = {
        "model": {"_target_": "tna_lightning.models.convnet", "width": 0.125, "time_steps": 2},
        "neuron": {"_target_": "tna_lightning.models.LIF", "_partial_": True},
        "inputs": {"channels": 1, "height": 8, "width": 8, "time_steps": None, "num_classes": 10},
    }
    inputs = {"kind": "images", "shape": [1, 8, 8], "mean": [0.3], "std": [0.4], "time_steps": 2}
    inputs["class_names"] = [str(digit) for digit in range(10)]
    tna_lightning.save_network("network.safetensors", network, spec, inputs=inputs)
    images = torch.rand(2, 1, 8, 8)
    names = {"network": network, "images": images, "batches": [images], "picture": Image.new("RGB", (20, 30))}
    for fence in fences(page):
        if fence["language"] == "python":
            exec(compile(fence["text"], page, "exec"), names)


def test_from_a_folder_of_pictures_to_the_class_of_one_in_the_five_commands_of_the_page(tmp_path, monkeypatch, capsys):
    """But for a smaller and shorter training: pictures of mixed kinds and sizes, told apart by colour."""
    rng = np.random.default_rng(0)
    colors = {"apple": (200, 40, 40), "leaf": (40, 180, 60), "sky": (60, 90, 220)}
    for place, (name, color) in enumerate(colors.items()):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            height, width = rng.integers(20, 60, 2)
            levels = np.clip(np.array(color) + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
            suffix = ("png", "jpg", "bmp")[(number + place) % 3]
            Image.fromarray(levels).save(tmp_path / "pictures" / name / f"{number}.{suffix}")
    Image.new("RGB", (100, 70), (70, 80, 210)).save(tmp_path / "another.jpg")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands("docs/data.md") if "root=pictures" in line or "runs/mine" in line]
    few = ["epochs=4", "compile=none", "data.batch_size=12", "model.width=0.25", "model.time_steps=2"]
    few += ["data.size=8", "neuron.threshold=0.3", "trainer.enable_progress_bar=false"]
    for line, door in zip(lines, ("show", "", "evaluate", "show", "predict"), strict=True):
        words = shlex.split(line, comments=True)
        assert words[:3] == ["python", "-m", f"tna_lightning.{door}".rstrip(".")]
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:], *(few if not door else [])])
        with nullcontext() if door != "predict" else pytest.raises(SystemExit, match="0"):
            (DOORS[door] if door else front).main()
    table = capsys.readouterr().out.splitlines()[-1].split()
    assert table[:2] == ["another.jpg", "sky"]
    judged = json.loads(Path("judged/evaluation.json").read_text())
    assert np.array(judged["confusion"]).sum(1).tolist() == [4, 4, 4]  # a fifth of each class
    assert judged["accuracy"] == pytest.approx(finished_record("runs/mine")["results"]["test/acc"])
    assert judged["accuracy"] > 0.9
    for picture in ("image_folder.png", "judged/confusion.png", "inside.png"):
        assert Path(picture).stat().st_size > 5000


COMMANDS = [
    shlex.split(line, comments=True)
    for fence in fences("docs/precision.md")
    if fence["language"] == "bash"
    for line in fence["text"].splitlines()
    if " -m tna_lightning -m " not in line  # sweeps: test_every_command_is_understood
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[3:])[:60])
def test_the_precisions_shown_are_composed_and_built(command):
    assert command[:3] == ["python", "-m", "tna_lightning"]
    config = compose([word for word in command[3:] if not word.startswith("hydra.")])
    if (quantization := build_quantization(config)) is not None:
        names = ("base", *companion_nodes(config))
        networks = SimpleNamespace(**{name: convnet(1, 10, LIF, width=0.125) for name in names})
        quantization.check(networks, config["trainer"]["max_epochs"])


def test_the_precision_example_runs_and_says_what_is_what():
    example = "".join(fence["text"] for fence in fences("docs/precision.md") if fence["language"] == "python")
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    schemes = ast.literal_eval(result.stdout)
    assert schemes.pop("classifier") == "float32"
    assert set(schemes.values()) == {"ternary"}


def test_the_page_of_choices_names_every_one():
    text = (ROOT / "docs" / "choices.md").read_text()
    for group in GROUPS:
        if group != "experiments":
            row = next(line for line in text.splitlines() if line.startswith(f"| `{group}`"))
            missing = [choice for choice in options(group) if f"`{choice}`" not in row]
            assert not missing, f"{group}: {missing}"


def test_what_a_page_links_to_exists():
    for page in [
        *PAGES,
        "CHANGELOG.md",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/results/*/README.md")),
    ]:
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
            linked = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            headings = re.findall(r"^#+ (.+)", re.sub(r"^```.*?^```", "", linked.read_text(), flags=re.M | re.S), re.M)
            slugs = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }  # as GitHub has them
            assert anchor in slugs, f"{page}: {target}#{anchor}"


def test_every_page_is_in_the_navigation():
    named = set(
        re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("nav:")[2].partition("plugins:")[0])
    )
    results = {str(path.relative_to(ROOT / "experiments")) for path in ROOT.glob("experiments/results/*/[A-Z]*.md")}
    assert {page for page in named if page.startswith("results/")} == results
    assert {f"docs/{page}" for page in named - results} == set(PAGES) - {"README.md", "CONTRIBUTING.md"}


OTHERS = {
    **{"data": "cifar10", "augment": "strong", "model": "sdt_dvs", "neuron": "snntorch", "quant": "tawq"},
    **{"baseline": "cohort", "optimizer": "sgd", "trainer": "ddp", "callbacks": "early_stopping", "logger": "wandb"},
}


@pytest.mark.parametrize("choices", [{}, OTHERS], ids=["demo", "others"])
def test_the_page_of_settings_has_every_setting_of_a_command_with_its_default(choices, settings_page):
    config = compose([f"{group}={choice}" for group, choice in choices.items()])
    told = settings_page.top_settings()
    for group in sorted(settings_page.GROUPS, key=lambda group: group in ("baseline", "data")):  # which set others' too
        if group in config["choices"]:
            told |= settings_page.settings_of(group, config["choices"][group])
    composed = dict(leaves({name: node for name, node in config.items() if name != "choices"}))
    assert set(composed) <= set(told)
    above = {name for name in told if any(key.startswith(f"{name}.") for key in composed)}  # neuron.settings
    assert {name for name in told if told[name].default != "{}"} - above <= set(composed)
    fixed = {name: yaml.safe_load(told[name].default) for name in composed if "${" not in told[name].default}
    assert {name: composed[name] for name in fixed} == fixed


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif value != {} and not key.startswith("_"):
            yield f"{prefix}{key}", value


@pytest.fixture
def settings_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    yield importlib.import_module("settings")
    del sys.modules["settings"]


def test_the_page_of_settings_says_what_each_is_and_whose(settings_page):
    assert {*settings_page.GROUPS, "experiments"} == set(GROUPS)
    page = re.sub(r"<wbr>|</?(code|a)\b[^>]*>", "", whole := settings_page.settings_page())
    anchors = re.findall(r'<a id="([^"]+)"', whole)
    assert len(anchors) == len(set(anchors)) == len(re.findall(r"^\| <a ", whole, re.MULTILINE))
    rows = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("| ")]
    settings = {name: cells for name, *cells in rows if "=" in name}
    assert not [name for name, (meaning, *_) in settings.items() if not meaning.partition(" (`")[0]]
    assert settings["seed=0"] == ["of initial weights, splits, order and augmentation"]
    assert settings["optimizer.lr=0.1"][1] == "`sgd`"
    assert settings["optimizer.betas=[0.9, 0.999]"][0].endswith("; each from 0 to below 1 (`tuple[float, float]`)")
    assert "[Speed](../speed.md)" in settings["checkpoint_stages=false"][0]
    assert settings["companion.freeze=true"][1] == "`kd`, `kd_ann`, `tna_frozen_twin`"
    assert settings["quant.quantizer.bits=3"] == ["2 to 8 (`int`)", "`int3`"]
    assert settings["objective.feature_match=rates"][0].endswith("(`rates or steps`)")
    assert settings["model.time_steps=4"][1] == settings["trainer.max_time=null"][1] == "all"
    brought = next(row[1] for row in rows if row[0] == "`cifar100`")
    assert brought.endswith("; brings `augment=standard`, `optimizer=sgd`")
    assert "`Rect(alpha=1.0)`" in [row[1] for row in rows if row[0] == "its class's"]
    (width,) = re.findall(r"`'(neuron\.surrogate=\{.+\})'`", page)
    assert instantiate(compose([width])["neuron"])().surrogate == ATan(alpha=4.0)


def test_the_hours_of_a_gpu_are_what_the_formula_beside_them_gives():
    text = (ROOT / "docs" / "speed.md").read_text()
    rows = re.findall(r"^\| `(\w+)`, (\S+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for _, data, _, gmacs, hours in rows:
        images = {"CIFAR": 45_000, "CIFAR10-DVS": 8_100}[data]  # less a tenth to test, and of the rest one to validate
        assert float(hours) == pytest.approx(2 * 3 * 2 * float(gmacs) * 1e9 * images * 200 / 50e12 / 3600, rel=0.04)
    (gmacs,) = [float(gmacs) for name, _, _, gmacs, _ in rows if name == "resnet20"]
    counted = inference_cost(resnet20(3, 10, LIF, time_steps=4), [torch.rand(1, 3, 32, 32)])["dense_macs"]
    assert counted == pytest.approx(gmacs * 1e9, rel=0.005)


def test_one_version_is_named_everywhere():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert tna_lightning.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "docs" / "index.md").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: Path(page).stem)
def test_a_tutorial_runs_as_it_stands(page, tmp_path):
    """Its files are written, then its blocks of bash and Python run in their order, in one folder and one shell."""
    script = ["set -e -o pipefail"]
    for number, fence in enumerate(fences(page)):
        if fence["file"]:
            (tmp_path / fence["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / fence["file"]).write_text(fence["text"])
        elif fence["language"] == "python":
            (tmp_path / f"block_{number}.py").write_text(fence["text"])
            script.append(f"python block_{number}.py")
        else:
            assert fence["language"] == "bash"
            script.append(fence["text"])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "default"}
    command = ["bash", "-c", "\n".join(script)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    expected = {
        "first_network": r"\[\d(, \d){9}\]\n",
        "sweep": r"6 jobs: 6 done[\s\S]*12 finished runs[\s\S]*12 records: mine\.jsonl\.gz",
        "own_data": r"'circle': [\d.]+.*\n(\[?\[\d+, \d+, \d+\](, |\]\n)){3}[\s\S]*shapes/circle/0\.png +circle",
        "own_neuron": r"tired .*a LIF that tires[\s\S]*test/acc",
        "to_a_device": r"2: class \d \(\d\), logits( -?[\d.e-]+){10}\n",
    }[Path(page).stem]
    assert re.search(expected, result.stdout), result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first_network", "reading_a_study"])
def test_a_notebook_runs(name, tmp_path):
    """Its cells of code, one after the other, as a program: they are plain Python."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = {"first_network": "equal: True", "reading_a_study": "6 jobs: 6 done"}[name]
    assert expected in result.stdout
