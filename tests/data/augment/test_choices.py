"""From the group ``augment`` to batches: which operations, in which order, with which draws."""

from dataclasses import dataclass, replace

import pytest
import torch

from tna_lightning.data import Batch, DigitsDataModule, DigitsDVSDataModule, ImageDataModule
from tna_lightning.data.augment.erasing import cutout
from tna_lightning.data.augment.events import nda, roll
from tna_lightning.data.augment.geometry import random_crop, random_horizontal_flip
from tna_lightning.data.augment.mixing import class_probabilities, cutmix
from tna_lightning.data.augment.policies import AutoAugment
from tna_lightning.data.module import BatchedDataModule
from tna_lightning.running.companions import pretraining_config
from tna_lightning.running.config import check, compose
from tna_lightning.running.factory import build_data
from tna_lightning.running.home import options

AUGMENT = "tna_lightning.data.augment"
EVENT_CHOICES = ("flip_roll", "nda", "nda_cutmix", "nda_ncaltech101", "nda_policy", "event_drop", "chosen_events")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data_of(*overrides):
    return build_data(compose(list(overrides)))


def images():
    x = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator(1))
    return Batch(x, torch.arange(16) % 10, torch.arange(16))


def frames():
    """As a data module's operations get them: prepared."""
    x = torch.randint(0, 9, (16, 4, 2, 12, 12), generator=generator(2)).float()
    return Batch(x, torch.arange(16) % 10, torch.arange(16))


def flip_frames(x, g):
    return random_horizontal_flip(x.flatten(1, 2), g).view_as(x)


class TestDraws:
    """What the flags of version 0.1.0 drew, in their order: the same batches to the bit."""

    def test_the_cifar_sets_crop_then_flip(self):
        g = generator()
        expected = random_horizontal_flip(random_crop(images().x, 4, g), g)
        for name in ("cifar10", "cifar100"):
            assert torch.equal(data_of(f"data={name}").augment(images(), generator()).x, expected)

    def test_policy_and_cutout_follow(self):
        g = generator()
        x = random_horizontal_flip(random_crop(images().x, 4, g), g)
        x = AutoAugment("autoaugment").apply(x, g)
        mean = torch.tensor([0.4914, 0.4822, 0.4465]).mul(255).round()
        expected = cutout(x, 16, g, mean)
        assert torch.equal(data_of("data=cifar10", "augment=strong").augment(images(), generator()).x, expected)

    def test_event_sets_flip_then_roll(self):
        g = generator()
        expected = roll(flip_frames(frames().x, g), g)
        for name in ("cifar10dvs", "cifar10_simdvs"):
            assert torch.equal(data_of(f"data={name}").augment(frames(), generator()).x, expected)

    def test_nda_flip_cutout_cutmix(self):
        data = data_of(
            "data=digits_dvs",
            "augment=nda",
            f"+augment.flip={{_target_: {AUGMENT}.Flip}}",
            f"+augment.cutout={{_target_: {AUGMENT}.Cutout, size: 4}}",
            f"+augment.cutmix={{_target_: {AUGMENT}.CutMix, probability: 0.7}}",
        )
        g = generator()
        x = flip_frames(nda(frames().x, g), g)
        x = cutout(x.flatten(1, 2), 4, g, torch.zeros(8)).view_as(x)
        x, partner, share = cutmix(x, 0.7, g)
        labels, weight = class_probabilities(frames().target, 10), share[:, None]
        done = data.augment(frames(), generator())
        assert torch.equal(done.x, x)
        assert torch.equal(done.target, (1 - weight) * labels + weight * labels[partner])

    @pytest.mark.parametrize("name", ["digits", "digits_dvs"])
    def test_none(self, name):
        batch = images()
        data = data_of(f"data={name}")
        assert data.operations == {}
        if name == "digits":
            assert data.augment(batch, generator()) is batch


@pytest.mark.parametrize("choice", options("augment"))
def test_every_choice_fits_images_or_events(choice):
    fitting, other = ("digits_dvs", "digits") if choice in EVENT_CHOICES else ("digits", "digits_dvs")
    data = data_of(f"data={fitting}", f"augment={choice}")
    batch = frames() if fitting == "digits_dvs" else replace(images(), x=images().x[:, :1])
    done = data.augment(batch, generator())
    assert (done.x.shape, done.x.dtype) == (batch.x.shape, batch.x.dtype)
    assert torch.equal(done.x, batch.x) == (choice == "none")
    assert done.target.ndim == (2 if "mix" in choice or choice in ("nda_policy", "transformer") else 1)
    if choice in (*EVENT_CHOICES, "strong", "transformer", "chosen"):
        with pytest.raises(ValueError, match=r"^augment\.\w+=\w+: works on .*, and these data are \w+( frames)?$"):
            data_of(f"data={other}", f"augment={choice}")


def test_the_order_is_the_order_written():
    assert list(compose(["augment=strong"])["augment"]) == ["crop", "flip", "policy", "cutout"]
    config = compose(["data=cifar10", "~augment.flip", "augment.crop.padding=2", "+augment.it={_target_: x.Y}"])
    assert list(config["augment"]) == ["crop", "it"]
    assert config["augment"]["crop"]["padding"] == 2
    assert compose(["data=cifar10", "augment=none"])["augment"] == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augment=standard", "augment.crop.padding=0"], r"augment\.crop\.padding=0: must be at least 1 pixel"),
        (["augment=standard", "augment.crop.padding=few"], r"augment\.crop\.padding='few': must be a whole number"),
        (["augment=strong", "augment.policy.policy=augmix"], r"augment\.policy\.policy='augmix': must be one of auto"),
        (["augment=standard", "augment.crop=null"], r"augment\.crop=None: must be an operation; ~augment\.crop takes"),
        (["augment=heavy"], r"augment=heavy: allowed are chosen, chosen_events"),
        (["~augment"], "augment: is missing"),
    ],
)
def test_what_is_refused(overrides, message):
    def build():
        config = compose(overrides)
        check(config)
        build_data(config)

    with pytest.raises(ValueError, match=f"^{message}"):
        build()


class Plain(ImageDataModule):
    name = "plain"
    mean, std = (0.5,), (0.25,)
    class_names = ["a", "b"]


@dataclass(frozen=True)
class Noted:
    """A dataclass, which OmegaConf would take for a config."""

    calls: list

    def setup(self, data):
        self.calls.append(("setup", data.num_classes, data.in_channels, data.time_steps, data.blank.tolist()))

    def __call__(self, batch, generator):
        self.calls.append("call")
        return replace(batch, x=batch.x + 1)


def test_an_operation_may_ask_once_what_the_data_are():
    noted = Noted([])
    data = Plain(augment={"plain": lambda batch, generator: replace(batch, x=batch.x * 2), "noted": noted})
    batch = Batch(torch.ones(2, 1, 4, 4), torch.zeros(2))
    assert data.augment(batch, generator()).x.unique().tolist() == [3]  # doubled, then one more
    data.augment(batch, generator())
    assert noted.calls == [("setup", 2, 1, None, [128]), "call", "call"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch, generator: batch.x,
        lambda batch, generator: replace(batch, x=batch.x[..., 1:]),
        lambda batch, generator: replace(batch, x=batch.x.float()),
        lambda batch, generator: replace(batch, weight=torch.ones(3)),
        lambda batch, generator: Batch(batch.x[:1], batch.target[:1]),
    ],
    ids=["a tensor", "another shape", "another dtype", "weights of others", "fewer samples"],
)
def test_what_an_operation_returns_is_checked_before_training(wrong):
    data = DigitsDataModule(augment={"fine": Noted([]), "wrong": wrong})
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"^augment\.wrong=function: must return a Batch .* \[2, 1, 8, 8\] and torch.uint8"
    ):
        data.try_augmentation()
    DigitsDataModule(augment={"fine": Noted([])}).set_up_augmentation()


def test_operations_come_from_the_config_into_the_data():
    config = compose([f"+augment.noted={{_target_: {__name__}.Noted, calls: []}}"])
    data = build_data(config)
    assert isinstance(data, BatchedDataModule)
    assert data.operations["noted"].calls == [("setup", 10, 1, None, [78])]


def test_operations_within_operations_come_from_the_config():
    inner = f"{{_target_: {AUGMENT}.Sometimes, probability: 0.5, operation: {{_target_: {__name__}.Noted, calls: []}}}}"
    data = build_data(compose([f"+augment.x={{_target_: {AUGMENT}.On, subset: [3, 5], operation: {inner}}}"]))
    done = data.augment(Batch(torch.zeros(40, 1, 8, 8), torch.zeros(40), torch.arange(40) % 4), generator())
    assert set(done.index[done.x[:, 0, 0, 0] == 1].tolist()) == {3}
    assert 0 < done.x[:, 0, 0, 0].sum() < 10
    assert data.operations["x"].operation.operation.calls[0][0] == "setup"  # handed on by both
    crop = f"{{_target_: {AUGMENT}.Crop, padding: 0}}"
    wrong = compose([f"+augment.x={{_target_: {AUGMENT}.On, subset: [3, 5], operation: {crop}}}"])
    with pytest.raises(ValueError, match=r"^augment\.x\.operation\.padding=0: must be at least 1 pixel"):
        build_data(wrong)


def test_a_teacher_is_trained_with_the_same_augmentation():
    config = compose(["data=cifar10", "baseline=kd", "augment=strong"])
    alone = pretraining_config(config)
    assert list(alone["augment"].items()) == list(config["augment"].items())
    assert alone["choices"]["augment"] == "strong"


def test_data_sets_differ_in_what_their_files_say():
    ten, hundred = compose(["data=cifar10"]), compose(["data=cifar100"])
    assert hundred["choices"].pop("data") == "cifar100"
    assert ten["choices"].pop("data") == "cifar10"
    assert hundred == ten | {"data": ten["data"] | {"name": "cifar100"}}
    digits = compose(["data=digits_dvs", "seed=3"])["data"]
    assert (digits["time_steps"], digits["batch_size"], digits["seed"]) == (4, 16, 3)
    assert (digits["camera"]["sensor"], digits["camera"]["threshold"]) == (24, 0.2)
    assert build_data(compose(["data=digits_dvs"])).camera == DigitsDVSDataModule().camera


def test_settings_of_the_base_class_are_named_too():
    with pytest.raises(TypeError, match="crop_padding"):
        DigitsDataModule(crop_padding=2)
