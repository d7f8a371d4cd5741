"""What the README and docs/ show is run as it stands there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tna_lightning import __main__ as front
from tna_lightning import evaluate, show
from tna_lightning.models import LIF, convnet
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
        return capsys.readouterr().out

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
    assert f"test/acc {record['results']['test/acc']!r} " in command_line(evaluate, str(folder), "--trust")


def test_recordings_of_ones_own_go_from_a_folder_to_figures(command_line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(10):
            t, y, p = np.sort(rng.integers(0, 100_000, 300)), rng.integers(0, 120, 300), rng.integers(0, 2, 300)
            x = rng.integers(0, 40, 300) + 80 * label  # where the events are says which class it is
            np.savez(tmp_path / "mine" / name / f"{number}.npz", t=t, x=x, y=y, p=p)
    (block,) = [fence["text"] for fence in fences("docs/events.md") if "data=event_folder" in fence["text"]]
    looking, training, testing = (shlex.split(line)[2:] for line in block.splitlines())
    assert [words[0].rpartition(".")[2] for words in (looking, training, testing)] == [
        "show",
        "tna_lightning",
        "evaluate",
    ]
    assert "20" in command_line(show, *looking[1:])
    command_line(
        front, *training[1:], "epochs=2", "compile=none", "data.batch_size=7", "trainer.enable_progress_bar=false"
    )
    record = finished_record(tmp_path / testing[1])
    about = {"train_samples": 14, "val_samples": 2, "test_samples": 4, "split": "random", "size": [24, 32]}
    assert record["data"] | about | {"sensor": [120, 160], "simulated": False} == record["data"]
    assert set(record["class_accuracy"]) == {"left", "right"}
    assert f"test/acc {record['results']['test/acc']!r} " in command_line(evaluate, *testing[1:])


def test_the_readmes_python_example_runs(tmp_path):
    (example,) = [fence["text"] for fence in fences("README.md") if fence["language"] == "python"]
    assert len([line for line in example.splitlines() if line]) <= 18  # seven imports and about ten lines of work
    program = example.replace("max_epochs=15", "max_epochs=1, accelerator='cpu', logger=False")
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "base.safetensors").stat().st_size > 10_000
    assert "test/acc" in result.stdout


COMMANDS = [
    shlex.split(line, comments=True)
    for fence in fences("docs/precision.md")
    if fence["language"] == "bash"
    for line in fence["text"].splitlines()
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


def test_the_readme_names_every_choice():
    text = (ROOT / "README.md").read_text()
    for group in GROUPS:
        if group != "experiments":
            row = next(line for line in text.splitlines() if line.startswith(f"| `{group}`"))
            missing = [choice for choice in options(group) if f"`{choice}`" not in row]
            assert not missing, f"{group}: {missing}"


def test_what_the_readme_links_to_exists():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/results/*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
            is_generated = target == "reference/settings.md"  # by `make docs`, which checks links too
            assert is_generated or (path.parent / target).exists(), f"{path}: {target}"
