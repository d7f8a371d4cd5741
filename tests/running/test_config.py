"""Every YAML composes and instantiates; the wheel carries them; what must not be installed is not."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException

from tna_lightning import __main__ as front
from tna_lightning.data import Inputs
from tna_lightning.running.companions import pretraining_config
from tna_lightning.running.config import check, companion_nodes, compose, explain, leaves, nearest, register_resolvers
from tna_lightning.running.factory import build
from tna_lightning.running.home import GROUPS, home, options
from tna_lightning.running.identity import folder_name
from tna_lightning.running.record import finished_record, limits_words
from tna_lightning.running.signatures import SOURCES, render

ROOT = Path(__file__).parents[2]


def test_no_arguments_are_the_demo():
    choices = compose()["choices"]
    assert choices | {"data": "digits", "model": "convnet", "baseline": "tna", "quant": "ternary"} == choices


def test_a_data_set_brings_its_recipe_and_the_command_line_wins():
    config = compose(["data=cifar10"])
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    assert config["trainer"]["max_epochs"] == config["epochs"] == 200
    config = compose(["data=cifar10", "optimizer=adamw", "epochs=3"])
    assert config["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert config["trainer"]["max_epochs"] == 3


def test_the_companion_is_built_like_the_base_unless_chosen():
    assert "model" not in compose()["companion"]
    companion = compose(["model@companion.model=resnet20", "companion.model.width=0.5"])["companion"]
    assert companion["model"]["_target_"] == "tna_lightning.models.resnet20"
    assert companion["model"]["width"] == 0.5


def test_further_companions_are_as_the_first_unless_they_say_otherwise():
    third, fourth = "model@companions.third.model=resnet8", "+companions.fourth={device: null}"
    nodes = companion_nodes(compose(["baseline=cohort", "companion.device=cpu", third, fourth]))
    assert list(nodes) == ["companion", "third", "fourth"]
    assert [node["device"] for node in nodes.values()] == ["cpu", "cpu", None]
    targets = [node.get("model", {}).get("_target_") for node in nodes.values()]
    assert targets == [None, "tna_lightning.models.resnet8", None]
    assert companion_nodes(compose(["baseline=plain"])) == {}
    old = companion_nodes({"companion": {"weights": "random", "freeze": False, "seed": 0}, "companions": {}})
    assert (old["companion"]["device"], old["companion"]["precision"]) == (None, "full")


def test_a_companions_model_has_the_time_of_events_unless_another_is_asked_for():
    def time_steps(*overrides):
        config = compose(["model@companion.model=resnet20", *overrides])
        return config["model"]["time_steps"], config["companion"]["model"]["time_steps"]

    assert time_steps("model.time_steps=2") == (2, 4)
    assert time_steps("data=digits_dvs", "data.time_steps=6") == (6, 6)
    assert time_steps("data=digits_dvs", "data.time_steps=6", "companion.model.time_steps=4") == (6, 4)  # refused later
    assert "model" not in compose(["data=digits_dvs"])["companion"]
    of_a_yaml = "+companion.model={_target_: tna_lightning.models.resnet8, time_steps: 7}"  # as a study may say it
    assert compose(["data=digits_dvs", of_a_yaml])["companion"]["model"]["time_steps"] == 7  # refused later


def test_the_run_folder_is_named_by_hydra_as_by_us(tmp_path):
    overrides = ["seed=3", "quant=none", f"output_dir={tmp_path}", "data=digits_dvs", "model@companion.model=resnet20"]
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = hydra_compose("config", overrides, return_hydra_config=True)
    assert config["hydra"]["run"]["dir"] == str(tmp_path / folder_name(compose(overrides)))


@pytest.mark.parametrize("choice", options("optimizer"))
def test_optimizers(choice):
    config = compose([f"optimizer={choice}"])
    parameters = [torch.nn.Parameter(torch.ones(2, 2))]
    groups = [
        {"params": parameters, "name": "base.weights"},
        {"params": [torch.nn.Parameter(torch.ones(2))], "name": "base.no_decay", "weight_decay": 0.0},
    ]
    optimizer = build("optimizer", config["optimizer"])(groups)
    schedule = build("schedule", config["schedule"])(optimizer, 1000, 10)
    first_share = 1 / max(1, 10 * config["schedule"]["warmup_epochs"])
    assert schedule.get_last_lr() == pytest.approx([first_share * config["optimizer"]["lr"]] * 2)
    assert optimizer.param_groups[0]["weight_decay"] == config["optimizer"]["weight_decay"] > 0
    assert optimizer.param_groups[1]["weight_decay"] == 0


@pytest.mark.parametrize("choice", options("trainer"))
def test_trainers(choice):
    config = compose([f"trainer={choice}", "trainer.accelerator=cpu", "epochs=4"])
    trainer = build("trainer", config["trainer"], logger=False, enable_checkpointing=False)
    assert isinstance(trainer, lightning.Trainer)
    assert trainer.max_epochs == 4
    assert trainer.num_devices == config["trainer"]["devices"]


# whose classes stand in the user's own files
OF_FILES = {"arrays", "event_folder", "image_folder", "ncaltech101", "tiny_imagenet"}
CLASSES = {"cifar100": 100, "emnist": 47, "dvsgesture": 11}
SIZES = {"digits": 8, "digits_dvs": 12, "nmnist": 34}


@pytest.mark.parametrize("choice", sorted(options("data").keys() - OF_FILES))
def test_data_modules_know_their_classes_before_they_read_anything(choice):
    config = compose([f"data={choice}", "seed=5"])
    datamodule = build("data", config["data"])
    assert isinstance(datamodule, lightning.LightningDataModule)
    assert datamodule.seed == 5
    assert datamodule.num_classes == len(datamodule.class_names) == CLASSES.get(choice, 10)
    assert datamodule.in_channels in (1, 2, 3)
    sizes = SIZES.get(choice, 48 if "dvs" in choice else 28 if "mnist" in choice else 32)
    time_steps = config["data"].get("time_steps")
    assert datamodule.inputs == Inputs(datamodule.in_channels, sizes, sizes, time_steps, datamodule.num_classes)
    assert config["model"]["time_steps"] == (time_steps or 4)


@pytest.mark.parametrize("name", SOURCES)
def test_the_signatures_are_those_of_the_code(name):
    """`make conf` writes them anew."""
    assert (home() / "conf" / "signatures" / f"{name}.yaml").read_text() == render(SOURCES[name])


def test_every_setting_of_a_signature_stands_in_its_file_with_its_default_and_meaning():
    text = render(SOURCES["resnet8"])
    assert yaml.safe_load(text) == {
        "_target_": "tna_lightning.models.resnet8", "time_steps": 4, "width": 1.0, "norm": "bn", "stem_stride": 1
    }  # fmt: skip
    assert "stem_stride: 1 # 2 halves the pixels in the stem already" in text  # of the function that it hands them to
    for path in [*(home() / "conf" / "signatures").glob("*.yaml"), *(home() / "conf" / "optimizer").glob("*.yaml")]:
        for line in path.read_text().splitlines():
            assert re.match(r" *_|#|(defaults|optimizer|schedule):$|  - |.* # .", line), (
                f"{path.stem}: {line} has no meaning"
            )
    assert set(SOURCES) == {path.stem for path in (home() / "conf" / "signatures").glob("*.yaml")}
    assert "signatures" not in GROUPS
    with pytest.raises(ValueError, match="signatures"):
        compose(["signatures=LIF"])


@pytest.mark.parametrize("choice", options("experiments"))
def test_studies_compose(choice):
    assert compose([f"experiments={choice}"])["study"] == choice


def test_a_smoke_run_wins_over_an_experiment_and_is_called_so():
    config = compose(["experiments=evidence", "debug=smoke"])
    assert (config["epochs"], config["trainer"]["max_epochs"], config["output_dir"]) == (1, 1, ".smoke")
    assert {config["trainer"][f"limit_{part}_batches"] for part in ("train", "val", "test")} == {2}
    assert limits_words(config).endswith("trainer.limit_test_batches=2")
    assert "-smoke-s0-" in folder_name(config)
    assert "-smoke-s0-" in folder_name(pretraining_config(compose(["baseline=kd", "debug=smoke"])))
    assert config["choices"]["logger"] == "csv"


def test_every_choice_describes_itself():
    for group in GROUPS:
        for choice, description in options(group).items():
            assert 10 < len(description) <= 110, f"{group}={choice}: {description!r}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=nothing", r"model=nothing: allowed are convnet"),
        ("neuron=lf", r"neuron=lf: allowed are alif, .*; did you mean lif\?$"),
        ("nothing=1", r"nothing: no such group or setting; groups are data"),
        ("model.T=1", r"model.T: no such setting here; there are pool, time_steps, width, norm; `--cfg job`"),
        ("model.nothing.at.all=1", r"model.nothing.at.all: no such setting here; `--cfg job` prints all of them$"),
        ("optimiser.lr=1", r"optimiser.lr: no such setting here; did you mean optimizer.lr\? `--cfg job`"),
        ("optimizer.amsgrad=1", r"optimizer.amsgrad: no such setting here; \+optimizer.amsgrad=VALUE adds it"),
        ("modle@companion.model=resnet8", r"did you mean model@companion.model\?$"),
        ("data.time_steps=3", r"data.time_steps: these are static images, .* model.time_steps"),
    ],
)
def test_compose_names_what_is_wrong(override, message):
    with pytest.raises(ValueError, match=message):
        compose([override])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init_from=epoch=0.ckpt"], "init_from: epoch=0.ckpt has characters .* 'init_from=\"epoch=0.ckpt\"'$"),
        (["output_dir=~/x"], "output_dir: ~/x has characters that must be quoted"),
        (["output_dir=a#b"], "output_dir: a#b has characters that must be quoted"),
        (["epochs", "=", "3"], "^epochs: must be KEY=VALUE or GROUP=CHOICE, without blanks around the =$"),
        (["study='a"], "^study: 'a cannot be read: a quotation mark, bracket or brace in it has no partner$"),
        (["data.camera=1"], "data.camera: no such setting here; there are batch_size, "),
    ],
)
def test_words_that_cannot_be_read_are_told_how_to_be_written(words, message):
    with pytest.raises(ValueError, match=message):
        compose(words)
    assert compose(["init_from='epoch=0.ckpt'"])["init_from"] == "epoch=0.ckpt"


def test_a_setting_is_found_by_the_last_part_of_its_name():
    known = [*(key for key in leaves(compose()) if not key.startswith("choices.")), *GROUPS]
    assert {key: nearest(key, known) for key in MEANT} == MEANT
    error = ConfigCompositionException("Could not override 'model.widths'.\nKey is not in struct")
    told = explain(error, ["lr=0.1", "model=resnet8,vgg11", "model.widths=3"])  # a sweep, and one more that is none
    assert told == "model.widths: no such setting here; did you mean model.width? `--cfg job` prints all of them"


@pytest.mark.parametrize("words", [["baseline=plain,tna"], ["baseline=tna,plain"], ["experiments=first_look"]])
def test_a_setting_of_some_jobs_of_a_sweep_is_told_as_that(words):
    error = ConfigCompositionException("Could not override 'objective.match_weight'.\nKey is not in struct")
    told = explain(error, [*words, "objective.match_weight=0.1"])
    assert told.startswith("objective.match_weight: not every job of the sweep has this setting; ")


MEANT = {
    **{"lr": ["optimizer.lr"], "learning_rate": ["optimizer.lr"], "batch_size": ["data.batch_size"]},
    **{"time_steps": ["model.time_steps"], "device": ["companion.device", "trainer.devices"]},
    **{"quantization": ["quant"], "epoch": ["epochs"], "quant.per": ["quant.quantizer.per"]},
    **{"trainer.max_epoch": ["trainer.max_epochs"], "gadgets": []},
}


def hydras(*overrides):
    register_resolvers()
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return hydra_compose("config", list(overrides), return_hydra_config=True)["hydra"]


@pytest.mark.parametrize("value", ["", "null", "'  '", "[1]"])
def test_no_place_is_no_output_dir(value):
    with pytest.raises(Exception, match=r"output_dir=.*: must be a folder") as refused:
        _ = hydras(f"output_dir={value}")["run"]["dir"]  # before Hydra makes it: it would be in the root
    assert explain(refused.value).startswith("output_dir=")


def test_output_dir_is_heard_in_a_sweep():
    assert hydras()["sweep"]["dir"] == "multirun/unnamed"
    assert hydras("study=s")["sweep"]["dir"] == "multirun/s"
    assert hydras("study=s", "output_dir=/elsewhere")["sweep"]["dir"] == "/elsewhere/s"
    assert hydras("output_dir=runs")["sweep"]["dir"] == "runs/unnamed"


@pytest.fixture
def own(tmp_path):
    """A user's own folder with a data set, a study and a model."""
    for name, text in {
        "data/mine": "# my digits\ndefaults: [digits, _self_]\nbatch_size: 7\n",
        "experiments/my_study": "# @package _global_\n# my study\nseed: 9\n",
        "model/my_net": "# my network\n_target_: tna_lightning.models.convnet\n",
    }.items():
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text.replace("batch_size", "data:\n  batch_size") if "data" in name else text)
    (tmp_path / "own/data/mine.yaml").write_text(
        "# @package _global_\n" + (tmp_path / "own/data/mine.yaml").read_text()
    )
    return tmp_path / "own"


def test_a_users_own_choices_are_composed_and_listed(own, monkeypatch, capsys):
    config = compose(["data=mine", "experiments=my_study", "model=my_net"], own)
    assert (config["data"]["batch_size"], config["seed"]) == (7, 9)
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["--help", "--config-dir", str(own)], [f"--config-dir={own}", "-h"], ["-cd", str(own), "-h"]):
        monkeypatch.setattr(sys, "argv", ["tna_lightning", *words])
        front.main()
        told = capsys.readouterr().out
        for name, description in (("mine", "my digits"), ("my_study", "my study"), ("my_net", "my network")):
            assert re.search(rf"^     {name} +{description}$", told, re.MULTILINE)


@pytest.mark.parametrize("name", ["data/digits", "experiments/first_look", "config", "signatures/LIF"])
def test_a_choice_of_ones_own_that_would_not_be_taken_is_refused(name, own, monkeypatch, capsys):
    path = own / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("seed: 3\n")
    message = f"config-dir='{own}': {name}.yaml has the name of a choice that comes along"
    with pytest.raises(ValueError, match=re.escape(message)):
        compose([], own)
    place = f"[pkg://mine,'file://{own}']"
    for words, setting in (
        (["--config-dir", str(own)], "config-dir"),
        (["--config-di", str(own)], "config-dir"),  # the beginning of a flag is enough for Hydra
        (["--config-dir", str(own.parent), f"--config-dir={own}"], "config-dir"),  # the last of several counts
        ([f"hydra.searchpath={place}"], "hydra.searchpath"),
    ):
        monkeypatch.setattr(sys, "argv", ["tna_lightning", *words])
        with pytest.raises(SystemExit) as left:
            front.main()
        assert left.value.code == 2
        assert message.replace("config-dir", setting) in capsys.readouterr().err


def test_the_version_is_this_packages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tna_lightning", "--version"])
    front.main()
    assert capsys.readouterr().out == f"tna_lightning {importlib.metadata.version('tna-lightning')}\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_steps=0"], "trainer.max_steps=0: must be at least 1, or -1 for no limit"),
        (["trainer.max_time=00:00:00:00"], "trainer.max_time='00:00:00:00': must be above 0"),
        (["trainer.max_time={minutes: 0}"], "trainer.max_time={'minutes': 0}: must be above 0"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=None: must be a number"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: must be above 0"),
        (["trainer.accumulate_grad_batches=-1"], "trainer.accumulate_grad_batches=-1: must be at least 1"),
        (["trainer.min_epochs=31"], "trainer.min_epochs=31: must be at most the epochs (30)"),
        (["trainer.min_steps=5", "trainer.max_steps=4"], "trainer.min_steps=5: must be at most trainer.max_steps (4)"),
        (["trainer.val_check_interval=00:00:10:00"], "trainer.val_check_interval='00:00:10:00': must be a number"),
        (
            ["trainer.overfit_batches=3", "trainer.limit_val_batches=1"],
            "trainer.limit_val_batches=1: leave it out, trainer.overfit_batches says it",
        ),
        (["trainer.gradient_clip_algorithm=norm"], "trainer.gradient_clip_algorithm: needs trainer.gradient_clip_val"),
        (["trainer.log_every_n_steps=5"], "trainer.log_every_n_steps: needs a logger"),
        (["keep=best", "trainer.limit_val_batches=0"], "keep='best': needs a validation"),
        (["keep=best", "trainer.check_val_every_n_epoch=31"], "keep='best': no epoch is validated"),
        (["~trainer.precision"], "trainer.precision: is missing, and cannot be left out"),
        (["~companion.freeze"], "companion.freeze: is missing, and cannot be left out"),
        (["companion.seed=5"], "companion.seed=5: is that of companion.weights=pretrained alone"),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused(overrides, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check(compose(overrides))


def test_slurms_tasks_are_refused_where_lightning_would_end_in_a_traceback(monkeypatch):
    for name in ("SLURM_JOB_NAME", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    config = compose()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ValueError, match=r"^SLURM_NTASKS='2': Lightning needs SLURM_NTASKS_PER_NODE"):
        check(config)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # interactive: one process
    check(config)


def test_torchvision_and_torchaudio_are_not_installed():
    """A torchvision that does not fit the CPU build of torch breaks `import lightning`."""
    assert importlib.util.find_spec("torchvision") is None
    assert importlib.util.find_spec("torchaudio") is None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_conf_and_studies_and_no_results(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("tna_lightning/") for name in names}
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "experiments").glob("*.yaml")]:
        assert str(path.relative_to(ROOT)) in shipped
    assert not [name for name in names if "results" in name]
    kernels = (ROOT / "src" / "tna_lightning" / "export" / "c" / "kernels").iterdir()
    assert {f"export/c/kernels/{file.name}" for file in kernels} <= shipped


def test_the_wheel_runs_from_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)  # what installing a pure-Python wheel does
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def call(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    where = call("-c", "import tna_lightning; print(tna_lightning.__file__)")
    assert where.stdout.startswith(str(installed))
    assert "resnet19" in call("-m", "tna_lightning", "--help").stdout
    result = call("-m", "tna_lightning", "epochs=1", "model.width=0.25", "trainer.enable_progress_bar=false")
    assert result.returncode == 0, result.stderr
    (folder,) = (empty / "runs").iterdir()
    assert finished_record(folder)["environment"]["git"] is None
