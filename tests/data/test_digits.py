import pytest
import torch

from tna_lightning.data import DigitsDataModule
from tna_lightning.data.digits import load_digits


def test_scans_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits as scikit_learn_digits

    scans = scikit_learn_digits()
    images, labels, _ = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal((images[:, 0].double() * 16 / 255).round(), torch.from_numpy(scans.images))
    assert labels.tolist() == scans.target.tolist()


def test_sizes_and_split() -> None:
    data = DigitsDataModule(val_fraction=0.1)
    data.setup("fit")
    subsets = [s.subset for s in (data.train_set, data.val_set, data.test_set)]
    assert [len(subset) for subset in subsets] == [1293, 144, 360]
    assert sorted(torch.cat(subsets).tolist()) == list(range(1797))
    # 36 of each class in the test set, give or take the sizes of the classes
    assert (data.test_set.targets[data.test_set.subset].bincount() - 36).abs().max() <= 1
    assert (data.num_classes, data.in_channels, data.class_names[7]) == (10, 1, "7")


def test_test_images_are_the_same_for_every_seed_and_version() -> None:
    splits = []
    for seed in (0, 1):
        data = DigitsDataModule(seed=seed)
        data.setup("fit")
        splits.append((data.val_set.subset.tolist(), data.test_set.subset.tolist()))
    assert splits[0][1] == splits[1][1]
    assert splits[0][0] != splits[1][0]
    # a change here changes every accuracy on digits that anyone has written down
    assert splits[0][1][:10] == [18, 19, 20, 23, 26, 34, 41, 42, 45, 46]


def test_constants_are_those_of_the_training_images() -> None:
    images, _, test = load_digits()
    is_train = torch.ones(len(images), dtype=torch.bool)
    is_train[test] = False
    share = images[is_train].double() / 255
    assert DigitsDataModule.mean == (pytest.approx(share.mean().item(), abs=5e-5),)
    assert DigitsDataModule.std == (pytest.approx(share.std(correction=0).item(), abs=5e-5),)


def test_describe_is_what_a_run_record_takes() -> None:
    import json

    data = DigitsDataModule(val_fraction=0)
    data.setup("fit")
    record = json.loads(json.dumps(data.describe()))
    assert record == {
        "name": "digits",
        "simulated": False,
        "train_samples": 1437,
        "val_samples": 0,
        "test_samples": 360,
        "split_hash": data.split_hash,
        "images_sha256": record["images_sha256"],
    }
