"""Sets that come as files of arrays: IDX and .npz, as their makers lay them out, and as they should not be."""

import gzip
import logging
from dataclasses import astuple

import numpy as np
import pytest
import torch
from PIL import Image

from tna_lightning.data import ArraysDataModule, IDXDataModule, ImageFolderDataModule, SVHNDataModule, folder
from tna_lightning.data.idx import FILES, SETS, read_idx
from tna_lightning.data.images import measure
from tna_lightning.running.own import digest_of, own_digests

GREY = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10


def idx(array, type_code=8):
    return bytes([0, 0, type_code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_set(folder, files=FILES, pack=gzip.compress, ending=".gz", first_label=0):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = GREY[:30], LABELS[:30] + first_label, GREY[30:], LABELS[30:] + first_label
    for name, array in zip(files, arrays, strict=True):
        (folder / (name + ending)).write_bytes(pack(idx(array)))


def module(root, name="fashion_mnist", **settings):
    return IDXDataModule(name, root, download=False, **settings)


@pytest.mark.parametrize("folder", ["fashion_mnist", "FashionMNIST/raw", "."])
@pytest.mark.parametrize(("pack", "ending", "dotted"), [(gzip.compress, ".gz", False), (bytes, "", True)])
def test_idx_files_are_found_as_they_are_laid_out(tmp_path, folder, pack, ending, dotted, caplog):
    files = [file.replace("-idx", ".idx") if dotted else file for file in FILES]
    write_set(tmp_path / folder, files, pack, ending)
    with caplog.at_level(logging.WARNING):
        data = module(tmp_path, val_fraction=0.1)
        data.setup("fit")
    assert "is not the official file" in caplog.text
    assert astuple(data.inputs)[:3] == (1, 28, 28)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [27, 3, 10]
    assert torch.equal(data.test_set.inputs[data.test_set.subset][:, 0], torch.from_numpy(GREY[30:]))
    assert data.test_set.targets[data.test_set.subset].tolist() == LABELS[30:].tolist()
    # over the training images, those of the validation among them
    assert data.mean == (pytest.approx(GREY[:30].mean() / 255, abs=1e-12),)
    assert data.std == (pytest.approx(GREY[:30].std() / 255, abs=1e-12),)
    x = data.prepare(data.train_set.inputs[:30])
    assert (x.mean().item(), x.std(correction=0).item()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_emnist_runs_down_the_columns_and_letters_begin_at_one(tmp_path):
    name = "emnist_letters"
    write_set(tmp_path, SETS[name].files, first_label=1)
    data = module(tmp_path, name)
    data.setup("fit")
    assert torch.equal(data.train_set.inputs[:, 0], torch.from_numpy(GREY).mT)
    assert data.train_set.targets.tolist() == LABELS.tolist()
    assert data.class_names[:3] == ["A", "B", "C"]
    assert [len(known.classes) for known in SETS.values()] == [10, 10, 10, 47, 47, 62, 26, 10]


def test_files_are_known_by_their_content_however_packed(tmp_path, monkeypatch, caplog):
    content = [read_idx(path, 3 if "images" in path.name else 1)[1] for path in _written(tmp_path)]
    known = SETS["mnist"]
    monkeypatch.setitem(SETS, "mnist", type(known)(known.classes, known.folder, content=tuple(content)))
    for level in (1, 9):
        write_set(tmp_path, pack=lambda raw, level=level: gzip.compress(raw, level))
        module(tmp_path, "mnist").setup("fit")
    assert "official" not in caplog.text


def _written(folder):
    write_set(folder)
    return [folder / f"{file}.gz" for file in FILES]


def test_what_is_missing_is_fetched_and_checked(tmp_path, serve, monkeypatch):
    import hashlib

    write_set(tmp_path / "there")
    files = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    server = serve({f"/set/{name}": content for name, content in files.items()})
    md5 = [hashlib.md5(files[f"{file}.gz"]).hexdigest() for file in FILES]
    known = SETS["kmnist"]
    monkeypatch.setitem(SETS, "kmnist", type(known)(known.classes, known.folder, f"{server.address}/set", tuple(md5)))
    data = IDXDataModule("kmnist", tmp_path / "root")
    data.setup("fit")
    assert sorted(path.name for path in (tmp_path / "root" / "kmnist").glob("*.gz")) == sorted(files)
    assert len(data.test_set) == 10
    with pytest.raises(
        FileNotFoundError, match=r"root='.*nowhere': holds no train-images-idx3-ubyte, plain or .gz; set"
    ):
        module(tmp_path / "nowhere", "kmnist").setup("fit")


@pytest.mark.parametrize(
    ("position", "content", "message"),
    [
        (0, b"", "is no IDX file"),
        (0, b"<html>not found</html>", "is no IDX file"),
        (0, idx(GREY[:30])[:-1], r"is cut off, or longer than it says; it holds 23519 values of \[30, 28, 28\]"),
        (0, idx(GREY[:30]) + b"\0", "is cut off, or longer"),
        (0, gzip.compress(idx(GREY[:30]))[:-9], "is cut off or damaged"),
        (0, idx(GREY[:30], 13), "must hold unsigned bytes"),
        (0, idx(GREY[0]), "must hold unsigned bytes .8. in 3 dimensions, not type 8 in 2"),
        (0, idx(GREY[:0]), "holds nothing"),
        (1, idx(LABELS[:29]), "holds 30 images, and .* 29 labels"),
        (1, idx(LABELS[:30] + 1), r"its labels must lie in \[0, 9\] for fashion_mnist"),
        (2, idx(GREY[30:, :4]), r"its images are \(4, 28\), must be \(28, 28\)"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named(tmp_path, position, content, message):
    write_set(tmp_path)
    (tmp_path / f"{FILES[position]}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        module(tmp_path).setup("fit")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_measure_is_exact_and_of_the_subset_alone():
    images = torch.zeros(3, 2, 1, 2, dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([51, 153])
    images[2] = 255
    mean, std = measure(images, torch.tensor([0, 1]))
    # channel 0: 51, 153, 0, 0 of 255; channel 1 never changes
    assert mean == (pytest.approx(0.2, abs=1e-15), 0.0)
    assert std == (pytest.approx((0.01 * 0 + (0 + 0.16 + 0.04 + 0.04) / 4) ** 0.5, abs=1e-15), 1.0)


def write_svhn(folder, **changed):
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(2).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    labels = np.where(LABELS == 0, 10, LABELS)[:, None]
    for name, part in (("train", slice(0, 30)), ("test", slice(30, 40))):
        held = {"X": pixels[part].transpose(2, 3, 1, 0), "y": labels[part]} | changed
        savemat(folder / f"{name}_32x32.mat", {key: value for key, value in held.items() if value is not None},
                do_compression=True)  # fmt: skip
    return pixels


@pytest.mark.parametrize("place", [".", "svhn", "SVHN"])
def test_svhn_is_read_and_its_ten_is_a_zero(tmp_path, place, caplog):
    pixels = write_svhn(tmp_path / place)
    data = SVHNDataModule(tmp_path, download=False)
    data.setup("fit")
    assert caplog.text.count("is not the official file") == 2
    assert torch.equal(data.train_set.inputs, torch.from_numpy(pixels))
    assert data.train_set.targets.tolist() == LABELS.tolist()
    assert data.test_set.subset.tolist() == list(range(30, 40))
    assert astuple(data.inputs) == (3, 32, 32, None, 10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": None}, r"its X is object \[\], must be uint8 \[32, 32, 3, N\]"),
        ({"X": GREY}, r"its X is uint8 \[40, 28, 28\]"),
        ({"y": LABELS[:3, None]}, r"its y is uint8 \[3, 1\], must be 30 whole numbers"),
        ({"y": np.full((30, 1), 11)}, "its y must hold whole numbers from 1 to 10"),
        (None, r"is damaged or no .mat file of version 5 \(.*\); fetch the file again"),
    ],
)
def test_svhn_that_is_not_as_it_should_be_is_named(tmp_path, changed, message):
    write_svhn(tmp_path, **changed or {})
    if changed is None:
        path = tmp_path / "train_32x32.mat"
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"^root='.*': .*train_32x32.mat: {message}") as error:
        SVHNDataModule(tmp_path, download=False).setup("fit")
    assert "\n" not in str(error.value)


def test_svhn_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^root='.*': holds no train_32x32.mat; set download=true, or fetch"):
        SVHNDataModule(tmp_path, download=False).setup("fit")


COLOUR = np.random.default_rng(1).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
SPLIT = {"x_train": COLOUR[:30], "y_train": LABELS[:30], "x_test": COLOUR[30:], "y_test": LABELS[30:]}


@pytest.mark.parametrize(
    "arrays",
    [
        SPLIT,
        {key: value.transpose(0, 3, 1, 2) if "x" in key else value[:, None] for key, value in SPLIT.items()},
        {key: value / 255 if "x" in key else value for key, value in SPLIT.items()},
        {key: value.astype(np.float32) if "x" in key else value for key, value in SPLIT.items()},
        {
            "train_images": COLOUR[:30], "train_labels": LABELS[:30, None], "val_images": COLOUR[:2],
            "val_labels": LABELS[:2, None], "test_images": COLOUR[30:], "test_labels": LABELS[30:, None],
        },
    ],
    ids=["Keras", "channels first", "shares", "floats", "MedMNIST"],
)  # fmt: skip
def test_arrays_in_the_usual_layouts_are_the_same_set(tmp_path, arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    data = ArraysDataModule(tmp_path / "mine.npz")
    data.setup("fit")
    assert torch.equal(data.train_set.inputs, torch.from_numpy(COLOUR).permute(0, 3, 1, 2))
    assert data.train_set.targets.tolist() == LABELS.tolist()
    assert data.test_set.subset.tolist() == list(range(30, 40))
    assert (data.name, data.num_classes, astuple(data.inputs)[:3]) == ("mine", 10, (3, 6, 5))


def test_arrays_without_parts_give_a_fifth_of_each_class_to_the_test(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", images=GREY, labels=LABELS)
    tests = []
    for seed in (0, 1):
        data = ArraysDataModule(tmp_path / "mine.npz", seed=seed, classes=list("abcdefghij"))
        data.setup("fit")
        tests.append(data.test_set.subset.tolist())
    assert tests[0] == tests[1]
    assert torch.from_numpy(LABELS)[tests[0]].bincount().tolist() == [1] * 8
    assert data.class_names[9] == "j"


def test_a_label_without_an_image_is_said(tmp_path, caplog):
    np.savez(tmp_path / "mine.npz", **SPLIT | {"y_train": LABELS[:30] + 1, "y_test": LABELS[30:] + 1})
    data = ArraysDataModule(tmp_path / "mine.npz")
    assert data.num_classes == 11
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "no image has the label 0; labels count from 0"
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": GREY, "labels": LABELS}, "holds pixels, labels; must hold x_train"),
        (SPLIT | {"y_test": LABELS[:3]}, "holds 10 images and 3 labels"),
        (SPLIT | {"x_test": GREY[30:]}, "training and test images differ in shape"),
        ({"images": GREY, "labels": LABELS * 1.0}, r"labels is float64 \[40\]; must hold whole numbers"),
        ({"images": GREY, "labels": np.eye(10)[LABELS]}, r"labels is float64 \[40, 10\]"),
        ({"images": GREY, "labels": LABELS.astype(int) - 1}, "labels holds -1"),
        ({"images": GREY, "labels": LABELS * 0}, "all labels are the same"),
        ({"images": GREY / 100, "labels": LABELS}, "images is float64; must hold whole grey levels"),
        ({"images": GREY.astype(int) - 1, "labels": LABELS}, "must hold whole grey levels"),
        ({"images": GREY * np.nan, "labels": LABELS}, "must hold whole grey levels"),
        ({"images": GREY[0], "labels": LABELS}, r"images is \[28, 28\]; must be"),
        ({"images": COLOUR[..., :2], "labels": LABELS}, "C = 1 or 3"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "images is empty"),
        (SPLIT | {"X_train": COLOUR[:30]}, "holds x_train, y_train, x_test, y_test, X_train; must hold"),
        ({"x_train": COLOUR, "y_train": LABELS, "train_x": COLOUR, "train_y": LABELS}, "must hold x_train, y_train"),
        ({"images": GREY, "labels": LABELS * 5}, "labels go up to 45 for 40 images"),
        ({"images": GREY, "labels": LABELS + np.uint64(2**63)}, "labels holds 9223372036854775"),
        ({"images": np.array([object()]), "labels": LABELS}, "is damaged or no .npz|allow_pickle"),
    ],
)
def test_arrays_that_are_not_as_they_should_be_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        ArraysDataModule(tmp_path / "mine.npz").setup("fit")
    assert str(error.value).startswith("file=")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", GREY)
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4 cut off")
    (tmp_path / "no.npz").write_bytes(b"\x89PNG\r\n")
    for name, message in (
        ("mine.npy", "is one array without a name"),
        ("cut.npz", "is damaged"),
        ("no.npz", "is no .npz of named arrays$"),
    ):
        with pytest.raises(ValueError, match=rf"file=.*{message}"):
            ArraysDataModule(tmp_path / name).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"file=.*is not there"):
        ArraysDataModule(tmp_path / "none.npz").setup("fit")


# ---- folders of pictures ---------------------------------------------------------------------------------------------


def paint(path, size=(9, 7), mode="RGB", seed=0, **save):
    shape = (size[1], size[0], *([3] if mode == "RGB" else []))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels


def folder_of(root, parts=(".",), per_class=5):
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            for number in range(per_class):
                paint(root / part / name / f"{number}.png", seed=10 * label + number + (part == "test") * 100)


def test_a_folder_a_class_gives_a_fifth_to_the_test(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "cat" / ".DS_Store").write_text("hidden")
    data = ImageFolderDataModule(tmp_path, size=(7, 9), val_fraction=0.25)
    data.setup("fit")
    assert data.class_names == ["cat", "dog"]
    assert astuple(data.inputs) == (3, 7, 9, None, 2)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 2, 2]
    assert data.train_set.targets.tolist() == [0] * 5 + [1] * 5
    held = data.train_set.inputs
    for number in range(5):  # as painted: the size is theirs
        expected = np.random.default_rng(10 + number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        assert torch.equal(held[5 + number], torch.from_numpy(expected).permute(2, 0, 1))
    training = torch.cat([data.train_set.subset, data.val_set.subset])
    share = held[training].double().transpose(0, 1).flatten(1) / 255
    assert data.mean == pytest.approx(share.mean(1).tolist(), abs=1e-12)
    assert data.std == pytest.approx(share.std(1, correction=0).tolist(), abs=1e-9)
    assert data.describe()["split"] == "a fifth of each class, seed 0"
    other = ImageFolderDataModule(tmp_path, size=(7, 9), seed=1)
    other.setup("fit")
    assert torch.equal(other.test_set.subset, data.test_set.subset)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    folder_of(tmp_path, ("train", "test"), per_class=2)
    data = ImageFolderDataModule(tmp_path, size=4, grey=True)
    data.setup("fit")
    assert data.test_set.subset.tolist() == [4, 5, 6, 7]
    assert data.test_set.targets[data.test_set.subset].tolist() == [0, 0, 1, 1]
    assert data.train_set.inputs.shape == (8, 1, 4, 4)
    assert data.describe()["split"] == "train and test folders"


def test_pictures_of_mixed_kinds_and_sizes_are_scaled_alike(tmp_path):
    folder_of(tmp_path, per_class=1)
    for name, size, mode in (("wide.jpg", (40, 10), "RGB"), ("tall.webp", (10, 40), "RGB"), ("grey.gif", (8, 8), "L")):
        paint(tmp_path / "cat" / "more" / name, size, mode)
    paint(tmp_path / "dog" / "alpha.PNG", mode="RGBA")
    deep = np.full((8, 8), 200 << 8, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "dog" / "deep.png")
    turned = Image.new("RGB", (8, 4))
    turned.paste((255, 255, 255), (0, 0, 4, 4))  # its left half is white; turned by a quarter it is the upper one
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "dog" / "turned.png", exif=exif)
    (tmp_path / "dog" / "notes.txt").write_text("mine")
    data = ImageFolderDataModule(tmp_path, size=8)
    with pytest.warns(UserWarning, match=r"left out, no pictures by their names: notes.txt"):
        data.setup("fit")
    assert len(data.train_set.inputs) == 8
    names = [name for name, _ in data._find().files]
    by_name = dict(zip(names, data.train_set.inputs, strict=True))
    assert (by_name["dog/deep.png"] == 200).all()
    upright = by_name["dog/turned.png"].float()
    assert upright[:, :3].mean() > 250
    assert upright[:, -3:].mean() < 5


def test_what_is_no_picture_is_named_and_may_be_left_out(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "dog" / "broken.jpg").write_bytes((tmp_path / "dog" / "0.png").read_bytes()[:60])
    (tmp_path / "cat" / "page.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"root='.*': .*page.png: is damaged or no picture .*skip_bad=true leaves"):
        ImageFolderDataModule(tmp_path, size=4).setup("fit")
    data = ImageFolderDataModule(tmp_path, size=4, skip_bad=True, val_fraction=0.2)
    with pytest.warns(UserWarning, match=r"2 bad picture\(s\) left out"):
        data.setup("fit")
    used = torch.cat([data.train_set.subset, data.val_set.subset, data.test_set.subset]).tolist()
    names = [name for name, _ in data._find().files]
    assert sorted(names[index] for index in used) == sorted(
        name for name in names if name not in ("dog/broken.jpg", "cat/page.png")
    )
    assert len(data.describe()["bad_pictures"]) == 2


def test_pictures_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder_of(tmp_path)
    ImageFolderDataModule(tmp_path, size=4).setup("fit")
    monkeypatch.setattr(folder, "read_picture", None)  # would fail
    again = ImageFolderDataModule(tmp_path, size=4, seed=3)
    again.setup("fit")
    before = again.train_set.inputs[0].clone()
    monkeypatch.undo()
    paint(tmp_path / "cat" / "0.png", seed=77)
    changed = ImageFolderDataModule(tmp_path, size=4)
    changed.setup("fit")
    assert not torch.equal(changed.train_set.inputs[0], before)
    assert own_digests({"data": {"_target_": "tna_lightning.data.ImageFolderDataModule", "root": str(tmp_path)}}) == {
        "data.root": digest_of(tmp_path)
    }


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tmp_path):
    for name in ("n01", "n02"):
        for number in range(3):
            paint(tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG")
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    lines = []
    for number in range(2):
        paint(tmp_path / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\tn0{2 - number}\t0\t0\t62\t62")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    paint(tmp_path / "test" / "images" / "test_0.JPEG")  # without labels
    data = ImageFolderDataModule(tmp_path, size=8)
    data.setup("fit")
    assert data.class_names == ["n01", "n02"]
    assert data.test_set.targets[data.test_set.subset].tolist() == [1, 0]
    assert len(data.train_set) + len(data.val_set) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no folders of classes"),
        (["cat/0.png"], r"holds one class alone \(cat\)"),
        (["cat/0.png", "dog/notes.txt"], r"dog: holds no pictures \(\.png, "),
        (["train/cat/0.png", "train/dog/0.png"], "has a folder train, and none called test beside it"),
        (["train/cat/0.png", "train/dog/0.png", "test/bird/0.png"], "test has the class bird, which train does not"),
    ],
)
def test_folders_that_are_not_as_they_should_be_are_named(tmp_path, files, message):
    for name in files:
        paint(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir(parents=True)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^root='.*': .*{message}"):
        ImageFolderDataModule(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ImageFolderDataModule(tmp_path / "none").setup("fit")
