"""What is imported is declared, what may be absent is named in one line, and plain torch needs no Lightning."""

import ast
import gc
import importlib.metadata
import logging
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from tna_lightning.packages import MissingPackage, quick_imports, quiet, require

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tna_lightning"
TESTED = ("wandb", "tensorboard", "tonic", "aedat", "snntorch", "sklearn", "scipy", "kornia", "matplotlib")
EXTRAS = ("onnx", "onnxscript", "onnxruntime", "nir", "h5py", "wandb_workspaces")

# whose modules are data modules or a callback of Lightning's
OF_LIGHTNING = [
    *(f"tna_lightning.data.{name}" for name in ("module", "images", "events", "cifar", "cifar10dvs", "digits")),
    *(f"tna_lightning.data.{name}" for name in ("arrays", "event_folder", "folder", "idx", "known_events")),
    *(f"tna_lightning.data.{name}" for name in ("simulated", "svhn")),
    "tna_lightning.quantization.callback",
]


def test_the_collector_rests_during_quick_imports_and_works_again_after_them():
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        gc.disable()
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


# what a user may have, and no extra brings: spikingjelly would bring torchvision
NEIGHBOURS = {"spikingjelly"}


def imported():
    """Every module from outside that our code names, by its first name."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or "").partition(".")[0]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
                yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in [*project["dependencies"], *extras]}
    providers = importlib.metadata.packages_distributions()
    modules = set(imported()) - sys.stdlib_module_names - {"tna_lightning"} - NEIGHBOURS
    assert {"wandb_workspaces", "onnxscript", "yaml"} <= modules
    undeclared = {
        module
        for module in modules
        if not {name.lower().replace("_", "-") for name in providers.get(module, [module])} & declared
    }
    assert not undeclared


def python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_models_objectives_quantization_and_data_need_no_lightning():
    modules = python(f"""
import sys
from importlib import import_module
from pkgutil import walk_packages
import tna_lightning.data as data, tna_lightning.models as models, tna_lightning.quantization as quantization
import tna_lightning.cost, tna_lightning.objectives
from tna_lightning import load_packed, save_network
for room in (data, models, quantization):
    for module in walk_packages(room.__path__, room.__name__ + "."):
        if module.name not in {OF_LIGHTNING}:
            import_module(module.name)
data.Batch, data.Inputs, data.EventCamera, data.augment.Crop
print(*sys.modules)
""")
    assert {"tna_lightning.data.loading", "tna_lightning.data.frame_cache", "tna_lightning.models.fused"} <= {*modules}
    assert not {"lightning", "hydra", "omegaconf", "torchmetrics", *TESTED, *EXTRAS} & {*modules}


def test_all_modules_import_without_any_optional_package():
    """The packages are hidden as if they were not installed, from imports and from who asks for their versions."""
    modules = python(f"""
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pkgutil import walk_packages

absent = {(*TESTED, *EXTRAS)}

class Without:
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)
    def find_distributions(context):
        return (found for found in PathFinder.find_distributions(context)
                if found.metadata["Name"].replace("-", "_").replace("scikit_learn", "sklearn") not in absent)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import tna_lightning
for module in walk_packages(tna_lightning.__path__, "tna_lightning."):
    import_module(module.name)
tna_lightning.data.DigitsDataModule()
print(*sys.modules)
""")
    assert {"tna_lightning.running.train", "tna_lightning.report.dashboard", "lightning"} <= {*modules}
    assert not {*TESTED, *EXTRAS} & {*modules}


@pytest.mark.parametrize(
    ("absent", "arguments", "message"),
    [
        ("wandb", ["logger=wandb"], "logger=wandb: needs the package wandb: pip install wandb"),
        (
            "tensorboard",
            ["logger=tensorboard"],
            "logger=tensorboard: needs the package tensorboard: pip install 'tna-lightning[tensorboard]'",
        ),
        ("sklearn", [], "data: needs the package scikit-learn: pip install scikit-learn"),
        ("matplotlib", [], "needs the package matplotlib: pip install matplotlib"),
        (
            "kornia",
            ["augment=strong"],
            "augment.policy=tna_lightning.data.augment.AutoAugment: needs the package kornia: pip install kornia",
        ),
    ],
)
def test_a_run_without_a_package_that_it_needs_gets_one_line(absent, arguments, message, tmp_path, monkeypatch, capsys):
    from tna_lightning.__main__ import main

    hide(monkeypatch, absent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tna_lightning", "epochs=1", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def hide(monkeypatch, module):
    for loaded in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # what Python takes for "not there"


@pytest.mark.parametrize(
    ("absent", "arguments", "message"),
    [
        ("scipy", [], "needs the package scipy: pip install scipy"),
        ("matplotlib", [], "needs the package matplotlib: pip install matplotlib"),
        (
            "wandb_workspaces",
            ["--wandb", "someone/twins"],
            "needs the package wandb-workspaces: pip install 'tna-lightning[dashboards]'",
        ),
    ],
)
def test_a_report_without_a_package_that_it_needs_gets_one_line(
    absent, arguments, message, tmp_path, monkeypatch, capsys
):
    from tna_lightning.report.__main__ import main

    hide(monkeypatch, absent)
    study = str(next((ROOT / "experiments" / "results" / "first_look").glob("*.jsonl*")))
    records = ["--records", str(tmp_path / "kept" / "records.jsonl.gz")]
    monkeypatch.setattr(sys, "argv", ["report", study, "-o", str(tmp_path / "report"), *records, *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_recordings_as_aedat4_name_the_reader_that_is_absent(tmp_path, monkeypatch):
    from tna_lightning.data import CIFAR10DVSDataModule
    from tna_lightning.data.cifar10dvs import CLASS_NAMES

    for name in CLASS_NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"cifar10_{name}_0.aedat4").write_bytes(b"#!AER-DAT4")
    hide(monkeypatch, "aedat")
    with pytest.raises(MissingPackage, match=r"^needs the package aedat: pip install aedat$"):
        CIFAR10DVSDataModule(tmp_path, skip_bad=True).setup("fit")
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(("absent", "export"), [("onnx", "export_onnx"), ("nir", "export_nir"), ("h5py", "export_nir")])
def test_an_export_without_its_package_names_the_extra(absent, export, tmp_path, monkeypatch):
    import tna_lightning.export

    hide(monkeypatch, absent)
    with pytest.raises(MissingPackage, match=rf"^needs the package {absent}: pip install 'tna-lightning\[export\]'$"):
        getattr(tna_lightning.export, export)(None, tmp_path / "file", [])
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_there_but_does_not_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import surely_absent")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"^needs the package half_installed, which does not import here \(No module named 'surely_absent'\): pip"
    with pytest.raises(MissingPackage, match=message):
        require("math", "half_installed")


def test_quiet_hides_what_it_names_and_nothing_else(caplog):
    logger = logging.getLogger("some.library")
    with quiet("some.library", logging.ERROR, ".*expected.*"):
        logger.warning("hidden")
        logger.error("shown")
        warnings.warn("an expected one", stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
    logger.warning("again")
    assert [record.message for record in caplog.records] == ["shown", "again"]
