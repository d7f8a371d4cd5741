"""The learner through a plain Trainer, with networks of its user's own."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tna_lightning.data import Batch
from tna_lightning.learner import TwinLearner, cosine, time_first
from tna_lightning.models import LIF, convnet
from tna_lightning.models.recording import spikes_of
from tna_lightning.objectives import Cohort, Distillation, Objective, Plain, TwinAugmentation
from tna_lightning.quantization import TernaryTTQ, WeightQuantization
from tna_lightning.running.console import quiet_lightning

CLASSES, BATCH, SAMPLES = 7, 8, 48


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(SAMPLES, 2, 8, 8, generator=generator), torch.randint(CLASSES, (SAMPLES,), generator=generator)
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return convnet(in_channels=2, num_classes=CLASSES, neuron=LIF, width=0.125, time_steps=2)


def trainer(**settings):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(**(defaults | settings))


class Loader:
    """Batches in a fixed order; a DataLoader without workers makes Lightning warn."""

    def __init__(self, samples, batch_size=BATCH):
        self.batches = list(DataLoader(samples, batch_size))

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_every_move_brings_the_companion_back_to_its_own_device(network, monkeypatch):
    learner = TwinLearner(
        network, copy.deepcopy(network), TwinAugmentation(), num_classes=CLASSES, companion_device="cuda:1"
    )
    moves = []  # there may be no such device here
    monkeypatch.setattr(learner.companion, "to", moves.append)
    for number, move in enumerate((lambda: learner.to("cpu"), learner.cpu, learner.double), start=1):
        move()
        assert moves == [torch.device("cuda:1")] * number


def test_companions_have_names_and_each_its_own_device_and_freezing(network, samples, monkeypatch):
    third = copy.deepcopy(network)
    learner = TwinLearner(
        network,
        {"twin": copy.deepcopy(network), "third": third},
        Cohort(),
        num_classes=CLASSES,
        freeze_companion=["third"],
        companion_device={"twin": "cpu"},
    )
    assert list(learner.networks) == ["base", "twin", "third"]
    assert learner.third is third
    assert learner.companion is None
    assert {name.partition(".")[0] for name in learner.state_dict()} == {"base", "twin", "third"}
    assert [group["name"] for group in learner.parameter_groups()] == [
        f"{name}.{kind}" for name in ("base", "twin") for kind in ("weights", "no_decay")
    ]
    learner.train()
    assert (learner.twin.training, third.training) == (True, False)
    moves = []
    monkeypatch.setattr(third, "to", lambda device: moves.append(("third", device)))
    monkeypatch.setattr(learner.twin, "to", lambda device: moves.append(("twin", device)))
    learner.double().float()
    assert moves == [("twin", torch.device("cpu"))] * 2
    before = copy.deepcopy(third.state_dict())
    fitted = trainer(max_epochs=1, log_every_n_steps=1)
    with quiet_lightning():  # Lightning warns of modules in eval mode
        fitted.fit(learner, Loader(samples), Loader(samples))
    assert all(torch.equal(value, before[name]) for name, value in third.state_dict().items())
    assert {"val/acc", "val/twin_acc", "val/third_acc_top5", "train/third_cross_entropy"} <= set(
        fitted.callback_metrics
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"companion": ["3d"]}, r"^companion='3d': must be an identifier"),
        ({"companion": ["base"]}, r"^companion='base': must be an identifier that the learner does not use itself"),
        (
            {"companion": ["trainer"]},
            r"^companion='trainer': must be an identifier that the learner does not use itself",
        ),
        ({"freeze_companion": ["teacher"]}, r"^freeze_companion='teacher': companions are companion, third"),
        ({"companion_device": {"teacher": "cpu"}}, r"^companion_device='teacher': companions are companion, third"),
        ({"objective": TwinAugmentation()}, r"^companion=companion, third: TwinAugmentation compares"),
    ],
)
def test_names_that_do_not_fit_are_refused(network, settings, message):
    names = settings.get("companion", ["companion", "third"])
    arguments = {"objective": Cohort(), **settings, "companion": {name: copy.deepcopy(network) for name in names}}
    with pytest.raises(ValueError, match=message):
        TwinLearner(network, num_classes=CLASSES, **arguments)


def test_an_objective_of_the_old_call_is_told_the_new_one(network):
    class Old(Objective):
        def __call__(self, base_logits, companion_logits, target, epoch=0):
            return {}

    message = (
        r"^objective=Old: takes \(base_logits, companion_logits, target, epoch\), but is called as objective\(logits, "
    )
    with pytest.raises(ValueError, match=message):
        TwinLearner(network, None, Old(), num_classes=CLASSES)


def test_sample_weights_come_with_the_batch(network, samples):
    x, target = samples.tensors
    learner = TwinLearner(network.eval(), num_classes=CLASSES)
    loader = Loader(samples)
    loader.batches = [Batch(x, target, weight=(target == 3).float())]
    results = trainer().validate(learner, loader, verbose=False)[0]
    losses = nn.functional.cross_entropy(network(x).mean(0), target, reduction="none")
    assert results["val/loss"] == pytest.approx(losses[target == 3].sum().item() / SAMPLES, rel=1e-5)


def test_logged_accuracies_are_those_of_the_time_averaged_logits(network, samples):
    twin = copy.deepcopy(network)
    nn.init.normal_(twin.classifier.weight)
    learner = TwinLearner(network, twin, TwinAugmentation(), num_classes=CLASSES)
    results = trainer().validate(learner, Loader(samples, 20), verbose=False)[0]
    x, target = samples.tensors
    for prefix, module in (("", network), ("companion_", twin)):
        with torch.no_grad():
            logits = module.eval()(x).mean(0)
        assert results[f"val/{prefix}acc"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
        top5 = (logits.topk(5).indices == target[:, None]).any(1).float().mean().item()
        assert results[f"val/{prefix}acc_top5"] == pytest.approx(top5)
    expected = nn.functional.cross_entropy(network(x).mean(0), target).item()
    assert results["val/cross_entropy"] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(learner(x), network(x).mean(0))


def test_five_classes_have_no_top5(samples):
    few = TensorDataset(samples.tensors[0], samples.tensors[1] % 5)
    net = convnet(in_channels=2, num_classes=5, neuron=LIF, width=0.125, time_steps=2)
    results = trainer().validate(TwinLearner(net, num_classes=5), Loader(few), verbose=False)[0]
    assert "val/acc" in results
    assert "val/acc_top5" not in results


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_companion_does_not_change(network, samples, freeze):
    teacher = copy.deepcopy(network)
    before = copy.deepcopy(teacher.state_dict())
    learner = TwinLearner(
        network, teacher, Distillation() if freeze else TwinAugmentation(), num_classes=CLASSES, freeze_companion=freeze
    )
    with quiet_lightning():  # Lightning warns of modules in eval mode
        trainer(max_epochs=1, log_every_n_steps=1).fit(learner, Loader(samples), Loader(samples))
    unchanged = [torch.equal(value, before[name]) for name, value in teacher.state_dict().items() if value.ndim]
    assert all(unchanged) if freeze else not any(unchanged)
    assert teacher.training is not freeze


def test_no_weight_decay_on_norms_neurons_biases_and_learned_scales():
    def parametric():
        return LIF(learn_beta=True, learn_threshold=True)

    base, twin = (convnet(in_channels=2, num_classes=CLASSES, neuron=parametric, width=0.125) for _ in range(2))
    learner = TwinLearner(base, twin, TwinAugmentation(), num_classes=CLASSES)
    WeightQuantization(TernaryTTQ()).setup(SimpleNamespace(max_epochs=1, callbacks=[]), learner, "fit")
    groups = {group["name"]: group for group in learner.parameter_groups()}
    assert list(groups) == ["base.weights", "base.no_decay", "companion.weights", "companion.no_decay"]
    layers = [module for module in base.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    kept = {id(layer.parametrizations["weight"].original) for layer in layers}
    assert {id(parameter) for parameter in groups["base.weights"]["params"]} == kept
    assert "weight_decay" not in groups["base.weights"]
    assert groups["base.no_decay"]["weight_decay"] == 0
    everything = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(everything) == len(set(everything))
    assert set(everything) == {id(parameter) for parameter in learner.parameters()}
    scales = [layer.parametrizations["weight"][0].quantizer.scale for layer in layers]
    assert {id(scale) for scale in scales} <= {id(parameter) for parameter in groups["base.no_decay"]["params"]}


def test_one_optimizer_counts_each_step_once(network, samples):
    learner = TwinLearner(network, copy.deepcopy(network), TwinAugmentation(), num_classes=CLASSES)
    fitted = trainer(max_epochs=2, log_every_n_steps=1)
    fitted.fit(learner, Loader(samples), Loader(samples))
    assert fitted.global_step == 2 * SAMPLES / BATCH
    assert len(fitted.optimizers) == 1


def test_cosine_with_warmup_is_its_formula():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = cosine(optimizer, total_steps=50, steps_per_epoch=10, warmup_epochs=2)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warmup = [0.5 * (step + 1) / 20 for step in range(20)]
    decay = [0.25 * (1 + math.cos(math.pi * step / 30)) for step in range(30)]
    assert rates == pytest.approx(warmup + decay)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("epochs", [-1, 5])
def test_warmup_must_fit_into_the_training(epochs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.5)
    with pytest.raises(ValueError, match=f"warmup_epochs={epochs}: "):
        cosine(optimizer, total_steps=50, steps_per_epoch=10, warmup_epochs=epochs)


def test_a_network_without_time_is_one_step(samples):
    ann = nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES))
    learner = TwinLearner(ann, num_classes=CLASSES)
    x, target = samples.tensors
    losses, logits = learner.losses(Batch(x, target))
    assert logits["base"].shape == (1, SAMPLES, CLASSES)
    torch.testing.assert_close(losses["loss"], nn.functional.cross_entropy(ann(x), target))


def test_logits_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"logits of shape \[3\]: a network must return \[T, B, K\] or \[B, K\]"):
        time_first(torch.zeros(3))


def test_objective_and_companion_must_fit(network):
    with pytest.raises(ValueError, match="companion=None: TwinAugmentation"):
        TwinLearner(network, None, TwinAugmentation(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"companion=\w+: Plain has no use for one"):
        TwinLearner(network, copy.deepcopy(network), Plain(), num_classes=CLASSES)


def test_mixed_labels_count_for_their_larger_share(network, samples):
    x, target = samples.tensors
    mixed = 0.6 * nn.functional.one_hot(target, CLASSES) + 0.4 * nn.functional.one_hot(target.flip(0), CLASSES)
    hard = trainer().validate(TwinLearner(network, num_classes=CLASSES), Loader(samples), verbose=False)[0]
    soft = trainer().validate(
        TwinLearner(network, num_classes=CLASSES), Loader(TensorDataset(x, mixed)), verbose=False
    )[0]
    assert soft["val/acc"] == hard["val/acc"]


def test_a_firing_rate_is_weighed_beside_any_objective(network, samples):
    x, target = samples[:BATCH]
    twin = copy.deepcopy(network)
    plain, weighed = (
        TwinLearner(
            copy.deepcopy(network), copy.deepcopy(twin), TwinAugmentation(rate_weight=weight), num_classes=CLASSES
        )
        for weight in (0.0, 0.5)
    )
    (before, _), (after, _) = plain.losses(Batch(x, target)), weighed.losses(Batch(x, target))
    _, spikes = spikes_of(copy.deepcopy(network), x)
    rate = sum(layer.sum() for layer in spikes) / sum(layer.numel() for layer in spikes)
    assert 0 < rate < 1
    torch.testing.assert_close(after["firing_rate"], rate.detach())
    torch.testing.assert_close(after["loss"], before["loss"] + 0.5 * rate)
    assert "firing_rate" not in before
    after["loss"].backward()
    before["loss"].backward()
    first = [learner.base.stem.conv.weight.grad for learner in (plain, weighed)]
    assert not torch.equal(*first)
    others = [learner.companion.stem.conv.weight.grad for learner in (plain, weighed)]
    assert torch.equal(*others)
    with pytest.raises(ValueError, match=r"^rate_weight=-1: must be at least 0"):
        Plain(rate_weight=-1)
    silent = convnet(2, CLASSES, nn.ReLU, width=0.1)
    with pytest.raises(ValueError, match=r"^objective.rate_weight=0.1: must be 0, the base does not spike"):
        TwinLearner(silent, objective=Plain(rate_weight=0.1), num_classes=CLASSES)


@pytest.mark.parametrize("epochs", [1, 3])
def test_neurons_are_told_how_much_of_the_training_is_over(samples, epochs):
    told = {"base": [], "companion": []}

    class Told(LIF):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def progress(self, share):
            told[self.name].append(share)

    networks = [convnet(2, CLASSES, partial(Told, name), time_steps=1, width=0.1) for name in told]
    learner = TwinLearner(*networks, Distillation(), num_classes=CLASSES, freeze_companion=True)
    with quiet_lightning():
        trainer(max_epochs=epochs, log_every_n_steps=1).fit(learner, Loader(samples), Loader(samples))
    each = [0, 0.5, 1] if epochs == 3 else [1]
    assert told == {"base": [share for share in each for _ in range(3)], "companion": []}
