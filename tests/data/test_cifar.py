"""CIFAR from small files in the exact official formats (see conftest.py)."""

import hashlib
import logging
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tna_lightning.data import CIFARDataModule, cifar

BOTH = pytest.mark.parametrize("name", ["cifar10", "cifar100"])
LAYOUTS = pytest.mark.parametrize("layout", ["binary", "pickle"])


def loaded(root: Path, name: str = "cifar10") -> CIFARDataModule:
    data = CIFARDataModule(name, root, download=False)
    data.prepare_data()
    data.setup("fit")
    return data


@BOTH
@LAYOUTS
def test_images_and_labels_are_those_of_the_files(cifar_files, name: str, layout: str) -> None:
    cifar_files.write(name, layout)
    data = loaded(cifar_files.root, name)
    parts = [cifar_files.content(name, index) for index in range(len(cifar_files.files[name]))]
    images = np.concatenate([pixels for pixels, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])  # for CIFAR-100 the fine ones
    inputs = data.train_set.inputs
    assert inputs.dtype == torch.uint8
    assert data.train_set.targets.tolist() == labels.tolist()
    for i in (0, 25, len(images) - 1):  # byte 1024 c + 32 y + x of a row is channel c, row y, column x
        for channel, y, x in ((0, 0, 0), (1, 3, 17), (2, 31, 31)):
            assert inputs[i, channel, y, x] == images[i, 1024 * channel + 32 * y + x]
    assert torch.equal(inputs.flatten(1), torch.from_numpy(images))
    num_test = len(parts[-1][0])
    assert data.test_set.subset.tolist() == list(range(len(images) - num_test, len(images)))
    assert data.num_classes == len(set(data.class_names)) == {"cifar10": 10, "cifar100": 100}[name]


@BOTH
def test_both_layouts_give_the_same_record(cifar_files, name: str) -> None:
    folders = [cifar_files.write(name, layout) for layout in ("binary", "pickle")]
    records = [loaded(folder, name).describe() for folder in folders]  # the root may be the folder itself
    assert records[0] == records[1]
    assert records[0]["name"] == name


def test_the_root_may_be_where_we_stand(cifar_files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cifar_files.write("cifar10", "binary"))
    assert len(loaded(Path()).test_set) == 20


def test_newer_pickles_of_arrays_are_read_too(cifar_files) -> None:
    folder = cifar_files.write("cifar10", "pickle")
    for index, file in enumerate(cifar_files.files["cifar10"]):
        pixels, labels = cifar_files.content("cifar10", index)
        content = {"data": pixels, "labels": labels.tolist(), "note": b"bytes"}
        (folder / file).write_bytes(pickle.dumps(content, protocol=index % 6))
    data = loaded(cifar_files.root)
    assert torch.equal(data.train_set.inputs[:20].flatten(1), torch.from_numpy(cifar_files.content("cifar10", 0)[0]))


def hostile_array(code: bytes, shape: bytes = b"K\x08\x85", content: bytes = b"T\x08\x00\x00\x00AAAAAAAA") -> bytes:
    """A pickled array whose dtype's code, shape and content are given as pickled values."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + code + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


class Malicious:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestBadFiles:
    @pytest.fixture
    def folder(self, cifar_files) -> Path:
        return cifar_files.write("cifar10", "binary")

    @pytest.fixture
    def pickles(self, cifar_files) -> Path:
        return cifar_files.write("cifar10", "pickle")

    @staticmethod
    def refused(root: Path, error: type[Exception] = ValueError) -> str:
        """The message, which is one or two lines and names the setting."""
        with pytest.raises(error) as caught:
            loaded(root)
        message = str(caught.value)
        assert message.startswith(f"root={str(root)!r}: ")
        assert message.count("\n") <= 1
        return message

    def test_missing_file(self, folder: Path) -> None:
        (folder / "data_batch_3.bin").unlink()
        message = self.refused(folder.parent, FileNotFoundError)
        assert f"{folder / 'data_batch_3.bin'} is missing" in message
        assert "cifar-10-binary.tar.gz" in message

    def test_cut_off_within_a_record(self, folder: Path) -> None:
        path = folder / "data_batch_2.bin"
        path.write_bytes(path.read_bytes()[:-1])
        assert f"{path}: is cut off, 61459 bytes are not whole records of 3073 bytes" in self.refused(folder.parent)

    def test_cut_off_between_records(self, folder: Path) -> None:
        path = folder / "data_batch_2.bin"
        path.write_bytes(path.read_bytes()[: 3073 * 12])
        assert "one is cut off: data_batch_1.bin 20, data_batch_2.bin 12," in self.refused(folder.parent)

    def test_empty_file(self, folder: Path) -> None:
        (folder / "test_batch.bin").write_bytes(b"")
        assert f"{folder / 'test_batch.bin'}: holds no images" in self.refused(folder.parent)

    def test_label_out_of_range(self, folder: Path) -> None:
        path = folder / "data_batch_4.bin"
        content = bytearray(path.read_bytes())
        content[3073 * 5] = 10
        path.write_bytes(content)
        assert f"{path}: labels go from 0 to 10, must lie in [0, 9]" in self.refused(folder.parent)

    def test_negative_label(self, pickles: Path) -> None:
        labels = [-1] * 20
        content = {"data": np.zeros((20, 3072), np.uint8), "labels": labels}
        (pickles / "test_batch").write_bytes(pickle.dumps(content))
        assert "labels go from -1 to -1, must lie in [0, 9]" in self.refused(pickles.parent)

    def test_cut_off_pickle(self, pickles: Path) -> None:
        path = pickles / "data_batch_1"
        path.write_bytes(path.read_bytes()[:-100])
        assert f"{path}: is cut off or damaged" in self.refused(pickles.parent)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ([1, 2], "must hold a dict with 'data' and 'labels'"),
            ({"data": np.zeros((2, 3072), np.uint8)}, "must hold a dict with 'data' and 'labels'"),
            ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, r"its data must be uint8 [2, 3072]"),
            ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]}, r"its data must be uint8 [2, 3072]"),
            ({"data": [[0] * 3072] * 2, "labels": [0, 1]}, r"its data must be uint8 [2, 3072]"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": ["cat", "dog"]}, "must be a list of whole numbers"),
        ],
    )
    def test_pickle_of_something_else(self, pickles: Path, content: object, complaint: str) -> None:
        (pickles / "data_batch_1").write_bytes(pickle.dumps(content))
        assert f"{pickles / 'data_batch_1'}: " in self.refused(pickles.parent)
        assert complaint in self.refused(pickles.parent)

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("function", ["posix.system", "builtins.eval", "builtins.getattr", "numpy.load"])
    def test_pickle_that_would_run_code(self, pickles: Path, tmp_path: Path, function: str, protocol: int) -> None:
        module, name = function.split(".")
        called = getattr(__import__(module), name)
        trap = Malicious(
            called, f"open({str(tmp_path / 'was_run')!r}, 'w')" if name != "system" else f"touch {tmp_path}/was_run"
        )
        (pickles / "data_batch_1").write_bytes(pickle.dumps({"data": trap, "labels": []}, protocol=protocol))
        message = self.refused(pickles.parent)
        assert "the official file holds arrays only; do not trust it" in message
        assert name in message
        assert not (tmp_path / "was_run").exists()

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            # an array of pointers that the file chooses: numpy's own unpickling follows them
            (hostile_array(b"X\x02\x00\x00\x00O8"), "asks for an array of 'O8'"),
            (hostile_array(b"X\x02\x00\x00\x00V8"), "asks for an array of 'V8'"),
            (hostile_array(b"]"), "asks for an array of []"),
            (hostile_array(b"X\x02\x00\x00\x00u1", shape=b"J\x00\x00\x00\x7f\x85"), "is not made of 8 bytes"),
            (hostile_array(b"X\x02\x00\x00\x00u1", shape=b"J\xff\xff\xff\xff\x85"), "an array of the shape (-1,)"),
            (hostile_array(b"X\x02\x00\x00\x00u1", shape=b"J\x08\x00\x00\x00"), "an array of the shape 8"),
            (hostile_array(b"X\x02\x00\x00\x00u1", content=b"]"), "asks for an array made of list"),
            # BUILD with a slot state sets attributes of what it stands on
            (b"c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86b", "asks for a change of what it was handed"),
            (b"cnumpy\nndarray\nN}X\x09\x00\x00\x00_functionK\x01s\x86b", "asks for a change of what it was handed"),
            # the class of an object, by NEWOBJ, is to be a class
            (b"cnumpy\ndtype\n)\x81", "is cut off or damaged"),
        ],
    )
    def test_hostile_pickle_of_allowed_names(self, pickles: Path, data: bytes, complaint: str) -> None:
        (pickles / "data_batch_1").write_bytes(b"\x80\x02}(U\x04data" + data + b"U\x06labels](" + b"K\x00" * 8 + b"eu.")
        assert complaint in self.refused(pickles.parent)

    def test_nested_lists_are_not_unrolled(self, pickles: Path) -> None:
        nested: list = [1]
        for _ in range(40):
            nested = [nested, nested]  # 2^40 numbers, if someone counts them
        content = {"data": np.zeros((2, 3072), np.uint8), "labels": nested}
        (pickles / "data_batch_1").write_bytes(pickle.dumps(content))
        assert "must be a list of whole numbers" in self.refused(pickles.parent)

    @BOTH
    @LAYOUTS
    def test_a_file_that_is_a_copy_of_another(self, cifar_files, name: str, layout: str) -> None:
        folder = cifar_files.write(name, layout)
        first, last = (sorted(folder.iterdir())[index] for index in (0, -1))
        last.write_bytes(first.read_bytes())
        with pytest.raises(ValueError, match=r"^root=.* is a copy of .*; get cifar-.*\.tar\.gz again"):
            loaded(folder.parent, name)

    def test_official_files_in_each_others_place(self, pickles: Path, monkeypatch, caplog) -> None:
        layouts = dict(cifar.LAYOUTS)
        md5s = [hashlib.md5((pickles / file).read_bytes()).hexdigest() for file in layouts["cifar10"][1].files]
        layouts["cifar10"] = (layouts["cifar10"][0], replace(layouts["cifar10"][1], md5s=tuple(md5s)))
        monkeypatch.setattr(cifar, "LAYOUTS", layouts)
        loaded(pickles.parent)
        assert "MD5" not in caplog.text
        (pickles / "test_batch").rename(pickles / "aside")
        (pickles / "data_batch_5").rename(pickles / "test_batch")
        (pickles / "aside").rename(pickles / "data_batch_5")
        assert "data_batch_5 is the official test_batch" in self.refused(pickles.parent)
        with (pickles / "data_batch_5").open("ab") as file:
            file.write(b" ")
        (pickles / "data_batch_5").rename(pickles / "aside")
        (pickles / "test_batch").rename(pickles / "data_batch_5")
        (pickles / "aside").rename(pickles / "test_batch")
        loaded(pickles.parent)
        assert f"{pickles}: of test_batch the MD5 is not that of the official file" in caplog.text

    @LAYOUTS
    def test_the_official_test_images_where_training_images_belong(self, cifar_files, layout: str, monkeypatch) -> None:
        pixels, labels = cifar_files.content("cifar10", 5)
        content = cifar_files.content
        monkeypatch.setattr(
            cifar_files, "content", lambda name, index: (pixels, labels[::-1]) if index == 5 else content(name, index)
        )
        monkeypatch.setattr(cifar, "CIFAR10_TEST_BEGINS", tuple(labels[::-1].tolist()))
        folder = cifar_files.write("cifar10", layout)
        loaded(folder.parent)
        test, last = (next(folder.glob(f"{name}*")) for name in ("test_batch", "data_batch_5"))
        test.rename(folder / "aside")
        last.rename(test)
        (folder / "aside").rename(last)
        with pytest.raises(ValueError, match=r"^root=.*data_batch_5.* holds the official test images; get cifar-10-"):
            loaded(folder.parent)

    def test_coarse_and_fine_labels_swapped(self, cifar_files) -> None:
        folder = cifar_files.write("cifar100", "binary")
        records = np.fromfile(folder / "train.bin", np.uint8).reshape(-1, 3074)
        records[:, [1, 0, *range(2, 3074)]].tofile(folder / "train.bin")
        with pytest.raises(ValueError, match=r"train\.bin: the coarse labels, which come first, go up to 99.*swapped"):
            loaded(folder.parent, "cifar100")

    def test_pickle_that_asks_for_another_codec(self, pickles: Path) -> None:
        asks = b"\x80\x02}(U\x04datac_codecs\nencode\nX\x01\x00\x00\x00aU\x03hex\x86Ru."
        (pickles / "data_batch_1").write_bytes(asks)
        assert "asks for the codec 'hex'" in self.refused(pickles.parent)


class TestFolders:
    def test_an_empty_folder_hides_nothing(self, cifar_files) -> None:
        cifar_files.write("cifar10", "pickle")
        (cifar_files.root / "cifar-10-batches-bin").mkdir()
        assert len(loaded(cifar_files.root).test_set) == 20

    def test_a_whole_folder_comes_before_one_that_lacks_a_file(self, cifar_files) -> None:
        (cifar_files.write("cifar10", "binary") / "test_batch.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"test_batch\.bin is missing"):
            loaded(cifar_files.root)
        cifar_files.write("cifar10", "pickle")
        assert len(loaded(cifar_files.root).test_set) == 20

    @pytest.mark.parametrize("nested", [True, False])
    def test_what_was_unpacked_under_the_archives_name(self, cifar_files, nested: bool) -> None:
        folder = cifar_files.write("cifar10", "binary")
        place = cifar_files.root / "cifar-10-binary.tar.gz"
        if nested:
            place.mkdir()
        folder.rename(place / folder.name if nested else place)
        assert len(loaded(cifar_files.root).test_set) == 20

    def test_an_empty_folder_called_like_the_archive(self, tmp_path: Path) -> None:
        (tmp_path / "cifar-10-binary.tar.gz").mkdir()
        with pytest.raises(ValueError, match=r"^root=.*cifar-10-binary\.tar\.gz: is a folder, must be the file itself"):
            loaded(tmp_path)


class TestArchives:
    @staticmethod
    def pack(folder: Path) -> Path:
        layout = next(
            layout for layouts in cifar.LAYOUTS.values() for layout in layouts if layout.folder == folder.name
        )
        archive = folder.parent / layout.archive
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        return archive

    @staticmethod
    def trust(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
        """Let the small archive pass for the official one."""
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        layouts = {
            name: tuple(
                type(layout)(**{**vars(layout), "md5": md5}) if layout.archive == archive.name else layout
                for layout in layouts
            )
            for name, layouts in cifar.LAYOUTS.items()
        }
        monkeypatch.setattr(cifar, "LAYOUTS", layouts)

    @BOTH
    @LAYOUTS
    def test_archive_in_root_is_unpacked(self, cifar_files, monkeypatch, name: str, layout: str) -> None:
        folder = cifar_files.write(name, layout)
        before = loaded(cifar_files.root, name).describe()
        archive = self.pack(folder)
        self.trust(monkeypatch, archive)
        assert loaded(cifar_files.root, name).describe() == before
        assert folder.is_dir()

    def test_wrong_archive_is_not_unpacked(self, cifar_files) -> None:
        folder = cifar_files.write("cifar10", "binary")
        archive = self.pack(folder)
        with pytest.raises(ValueError, match=r"^root=.*tar.gz: md5 is \w+, must be c32a1d4ab5d03f1284b67883e8d87530"):
            loaded(cifar_files.root)
        assert archive.exists()
        assert not folder.exists()

    @BOTH
    def test_absent_set_is_fetched_once(self, cifar_files, monkeypatch, tmp_path: Path, serve, name: str) -> None:
        archive = self.pack(cifar_files.write(name, "binary"))
        self.trust(monkeypatch, archive)
        server = serve({f"/{archive.name}": archive.read_bytes()})
        monkeypatch.setattr(cifar, "HOST", server.address)
        for _ in range(2):
            data = CIFARDataModule(name, tmp_path / "elsewhere")
            data.prepare_data()
            data.setup("fit")
        assert len(data.test_set) == len(cifar_files.content(name, 0)[0])
        assert len(server.requests) == 1

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cifar, "HOST", "http://127.0.0.1:9")  # nobody listens
        with pytest.raises(FileNotFoundError) as caught:
            CIFARDataModule("cifar100", tmp_path).prepare_data()
        first, second = str(caught.value).split("\n")
        assert first.startswith(f"root={str(tmp_path)!r}: {tmp_path / 'cifar-100-binary.tar.gz'} is missing")
        assert second.startswith("Fetch http://127.0.0.1:9/cifar-100-binary.tar.gz yourself and put it there")

    def test_absent_and_not_to_be_fetched(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            CIFARDataModule("cifar10", tmp_path, download=False).prepare_data()
        assert str(caught.value) == (
            f"root={str(tmp_path)!r}: holds no cifar-10-batches-bin or cifar-10-batches-py; set download=true, or "
            "fetch https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz "
            f"and put it at {tmp_path}/cifar-10-binary.tar.gz"
        )


def test_a_set_of_another_size_is_said_to_be_one(cifar_files, caplog: pytest.LogCaptureFixture) -> None:
    cifar_files.write("cifar10", "binary")
    with caplog.at_level(logging.WARNING):
        loaded(cifar_files.root)
    assert "holds 100 + 20 images; the official set has 50000 + 10000" in caplog.text


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^name='cifar20': must be cifar10 or cifar100"):
        CIFARDataModule("cifar20")
