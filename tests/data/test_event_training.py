"""Every way of training takes event frames, from config to kept network; and the demo of the event path."""

import json

import pytest
import torch

from tna_lightning.data import DigitsDVSDataModule, EventCamera
from tna_lightning.data.augment import CutMix, Roll
from tna_lightning.running.config import compose
from tna_lightning.running.record import part_of_test
from tna_lightning.running.train import train

TINY_CAMERA = ["data.camera.sensor=12", "data.camera.display=24", "data.camera.leg=4", "data.time_steps=3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the runs of this file cache the frames, and teachers."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(
    ("model", "baseline"),
    [
        ("resnet18", "tna"),
        ("vggsnn", "kd"),
        pytest.param("vggsnn", "plain", marks=pytest.mark.slow),
        pytest.param("resnet18", "mutual", marks=pytest.mark.slow),
        pytest.param("resnet18", "plain", marks=pytest.mark.slow),
        pytest.param("vggsnn", "tna", marks=pytest.mark.slow),
        pytest.param("resnet18", "kd", marks=pytest.mark.slow),
        pytest.param("vggsnn", "mutual", marks=pytest.mark.slow),
    ],
)
def test_event_frames_train_in_every_way_at_ternary_precision(tmp_path, monkeypatch, root, baseline, model):
    monkeypatch.chdir(tmp_path)
    overrides = ["data=digits_dvs", *TINY_CAMERA, f"data.root={root}", f"model={model}", "model.width=0.05"]
    overrides += [f"baseline={baseline}", "quant=ternary", "debug=smoke", "optimizer=adamw"]
    overrides += ["augment=nda_cutmix", "data.batch_size=32", "trainer.enable_progress_bar=false"]
    folder = tmp_path / "run"
    train(compose(overrides), folder)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    assert record["data"]["simulated"] is True
    assert record["data"]["time_steps"] == 3
    assert part_of_test(record) == "part of the test set"
    assert record["epochs"] == 1
    assert record["split_hash"] == record["data"]["split_hash"]
    assert 0 <= record["results"]["test/acc"] <= 1
    assert ("test/companion_acc" in record["results"]) == (baseline != "plain")


@pytest.mark.parametrize("key", ["model", "companion.model"])
def test_a_model_of_other_time_steps_than_the_frames_is_refused(key, root, tmp_path):
    overrides = ["data=digits_dvs", *TINY_CAMERA, f"data.root={root}", "model@companion.model=resnet8"]
    with pytest.raises(ValueError, match=rf"^{key}\.time_steps=8: .* their own T; set data\.time_steps \(3\)"):
        train(compose([*overrides, f"{key}.time_steps=8"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mixed_labels_reach_the_loss(root):
    camera = EventCamera(sensor=12, display=24, leg=4, loops=1)
    data = DigitsDVSDataModule(root, camera=camera, time_steps=3, augment={"roll": Roll(), "cutmix": CutMix(1.0)})
    data.setup("fit")
    frames, labels = data.augment(next(iter(data.train_dataloader())), torch.Generator().manual_seed(0))
    assert frames.dtype == torch.float32
    assert labels.shape == (16, 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(16))
    assert ((labels > 0).sum(1) == 2).any()
