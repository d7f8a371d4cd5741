"""The user's own code and data enter a run's identity by their content, installed packages never."""

import importlib
import sys

import numpy as np
import pytest

from tna_lightning.running.config import compose
from tna_lightning.running.identity import differences, identity
from tna_lightning.running.own import changed_since, digest_of, own_digests, with_data_at


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two modules and a package of a user's own, where Python finds them; forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_neuron.py").write_text("import math, torch\nfrom my_package.inner import helper\nclass Mine: ...\n")
    (tmp_path / "my_data.py").write_text("import numpy\nclass Data: ...\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "inner.py").write_text("from . import deeper\ndef helper(): ...\n")
    (tmp_path / "my_package" / "deeper.py").write_text("")
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def digests(**nodes):
    return own_digests({key: {"_target_": target} for key, target in nodes.items()})


def test_only_the_users_own_files_count_with_what_they_import(folder):
    assert digests(model="tna_lightning.models.LIF", optimizer="torch.optim.SGD", data="builtins.dict") == {}
    found = digests(neuron="my_neuron.Mine", optimizer="torch.optim.SGD")
    assert set(found) == {
        f"code.{name}" for name in ("my_neuron", "my_package", "my_package.inner", "my_package.deeper")
    }
    assert set(digests(objective="my_neuron.Mine.of")) == set(found)  # an attribute of a class
    assert found["code.my_neuron"] == digest_of(folder / "my_neuron.py")
    nested = {"callbacks": {"mine": {"_target_": "lightning.Callback", "inner": [{"_target_": "my_data.Data"}]}}}
    assert set(own_digests(nested)) == {"code.my_data"}


@pytest.mark.parametrize("edited", ["my_neuron.py", "my_package/deeper.py"])
def test_an_edited_file_is_another_run(folder, edited):
    words = ["neuron._target_=my_neuron.Mine"]
    before, again = compose(words), compose(words)
    assert identity(before) == identity(again) != identity(compose())
    (folder / edited).write_text((folder / edited).read_text() + "# edited\n")
    after = compose(words)
    assert identity(after) != identity(before)
    (line,) = differences(before, after)
    assert line.startswith(f"own.code.{edited.removesuffix('.py').replace('/', '.')}: ")


def test_other_data_are_another_run_wherever_they_lie(folder):
    def run(root):
        return identity(compose(["data._target_=my_data.Data", f"+data.root={root}"]))

    pictures = folder / "pictures"
    (pictures / "cats").mkdir(parents=True)
    (pictures / "cats" / "1.bin").write_bytes(b"cat")
    first = own_digests(compose(["data._target_=my_data.Data", f"+data.root={pictures}"]))["data.root"]
    before = run(pictures)
    (pictures / ".cache").write_bytes(b"none of the data")
    assert run(pictures) == before
    pictures.rename(folder / "moved")
    assert run(folder / "moved") == before  # not the place but the content
    (folder / "moved" / "cats" / "1.bin").rename(folder / "moved" / "cats" / "2.bin")
    assert run(folder / "moved") != before
    (folder / "moved" / "cats" / "2.bin").write_bytes(b"dog")
    assert digest_of(folder / "moved") != first
    np.savez(folder / "x.npz", x=np.zeros(3))
    arrays = run(folder / "x.npz")
    np.savez(folder / "x.npz", x=np.ones(3))
    assert run(folder / "x.npz") != arrays


def test_a_file_that_does_not_parse_is_left_to_whoever_builds_from_it(folder):
    (folder / "my_neuron.py").write_text("class Mine(:")
    assert set(digests(neuron="my_neuron.Mine")) == {"code.my_neuron"}
    assert digests(neuron="my_nothing.Mine", model="no dots", data="my_package.nothing.X") == {
        "code.my_package": digest_of(folder / "my_package" / "__init__.py")
    }


def test_a_file_of_arrays_counts_by_its_content_wherever_it_lies(tmp_path):
    def run(name):
        return identity(compose(["data=arrays", f"data.file={tmp_path / name}"]))

    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_bytes(b"the same")
    before = run("a.npz")
    assert run("b.npz") == before
    (tmp_path / "b.npz").write_bytes(b"another!")
    assert run("b.npz") != before


def test_data_may_lie_elsewhere_and_have_changed_only_where_they_are_others(tmp_path):
    for name, content in (("mine.npz", b"1"), ("moved.npz", b"1"), ("others.npz", b"2")):
        (tmp_path / name).write_bytes(content)
    data = {"_target_": "tna_lightning.data.ArraysDataModule", "file": str(tmp_path / "mine.npz")}
    config = {"data": data, "own": own_digests({"data": data})}
    (tmp_path / "mine.npz").unlink()
    places = {None: [], "moved.npz": [], "others.npz": ["data.file"]}
    for place, changed in places.items():
        assert changed_since(with_data_at(config, place and str(tmp_path / place))) == changed
    with pytest.raises(ValueError, match=r"^data-root='x': must be left out, these data come from no folder and no"):
        with_data_at({"data": {"_target_": "tna_lightning.data.DigitsDataModule"}}, "x")
