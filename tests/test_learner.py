"""The learner through a plain Trainer, with networks of its user's own."""

import copy
import math
import re
import warnings
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.lr_finder import _LRFinder
from sklearn.metrics import recall_score
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tna_lightning.callbacks import SWA
from tna_lightning.data import Batch
from tna_lightning.learner import TwinLearner, cosine
from tna_lightning.models import LIF, convnet
from tna_lightning.models.recording import spikes_of
from tna_lightning.objectives import Cohort, Distillation, Objective, Plain, TwinAugmentation
from tna_lightning.quantization import (
    Binary,
    Ternary,
    TernaryAbsmean,
    TernaryTTQ,
    Uniform,
    WeightQuantization,
    dequantize_network,
    quantize_network,
)
from tna_lightning.quantization.parametrized import QUANTIZERS
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


def fit(learner, loader, **settings):
    """An epoch without validation, of which and of much else Lightning warns."""
    fitted = trainer(**({"max_epochs": 1, "log_every_n_steps": 1} | settings))
    with quiet_lightning(), warnings.catch_warnings(action="ignore", category=PossibleUserWarning):
        fitted.fit(learner, loader)
    return fitted


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


def test_an_epoch_is_handed_to_lightning_once_and_one_that_was_broken_off_leaves_nothing(network, samples, monkeypatch):
    class Break(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                raise RuntimeError("broken off")

    learner = TwinLearner(network, num_classes=CLASSES)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(learner, Loader(samples), max_epochs=2, callbacks=[Break()])
    assert learner.accuracies["train_base_acc"].samples.sum() == BATCH
    seen, handed, log, losses = [], [], learner.log, learner.losses

    def watched(batch):
        found = losses(batch)
        seen.append((found[0]["loss"].item(), len(batch.target)))
        return found

    monkeypatch.setattr(learner, "losses", watched)
    monkeypatch.setattr(learner, "log", lambda name, *rest, **named: (handed.append(name), log(name, *rest, **named)))
    fitted = fit(learner, Loader(samples, 7), max_epochs=1)
    assert sorted(handed) == sorted(
        ["loss"] * (-(-len(seen) // 10)) + ["train/loss", "train/cross_entropy", "train/acc"]
    )
    assert not any(name.endswith("top5") for name in fitted.callback_metrics)
    assert sum(samples for _, samples in seen) == SAMPLES
    mean = sum(loss * samples for loss, samples in seen) / SAMPLES
    assert fitted.callback_metrics["train/loss"].item() == pytest.approx(mean)


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
    WeightQuantization(TernaryTTQ()).setup(
        SimpleNamespace(max_epochs=1, callbacks=[], fast_dev_run=False), learner, "fit"
    )
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


def test_cosine_ends_at_its_final_share():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = cosine(optimizer, total_steps=10, steps_per_epoch=5, final_share=0.2)
    assert schedule.lr_lambdas[0](0) == 1
    assert schedule.lr_lambdas[0](5) == pytest.approx(0.6)
    assert schedule.lr_lambdas[0](10) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"^final_share=1\.5: must lie in \[0, 1\]"):
        cosine(optimizer, total_steps=10, steps_per_epoch=5, final_share=1.5)


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


class Answers(nn.Module):
    """A linear layer whose logits come back in the way that a function says."""

    def __init__(self, answer=lambda logits: logits, classes=CLASSES):
        super().__init__()
        self.linear, self.answer = nn.Linear(128, classes), answer

    def forward(self, x):
        return self.answer(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Answers(lambda y: (y, y)), "base: returns a tuple; must be [T, 8, 7] ([T, B, K]) or [8, 7] ([B, K])"),
        (Answers(lambda y: {"logits": y}), "base: returns a dict; must be [T, 8, 7]"),
        (Answers(lambda y: y[0]), "base: its logits are [7], must be [T, 8, 7]"),
        (Answers(lambda y: y[None, None]), "base: its logits are [1, 1, 8, 7], must be [T, 8, 7]"),
        (
            Answers(lambda y: y.repeat(4, 1, 1).transpose(0, 1)),
            "base: its logits are [8, 4, 7], must be .*; time comes",
        ),
        (
            Answers(lambda y: y.repeat(8, 1, 1)[:, : len(y)].transpose(0, 1)),
            "base: its logits are [B, T, K], [1, 8, 7]",
        ),
        (Answers(classes=5), "base: its logits are [8, 5], must be .*; K of the network is 5, num_classes 7"),
    ],
)
def test_a_network_whose_logits_do_not_fit_is_refused_by_name(network, message, samples):
    pattern = "^" + re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern) as refused:
        fit(TwinLearner(network, num_classes=CLASSES), Loader(samples))
    assert "\n" not in str(refused.value)
    learner = TwinLearner(Answers(), {"teacher": network}, Distillation(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=pattern.replace("base", "teacher")):
        trainer().validate(learner, Loader(samples), verbose=False)


def test_as_many_steps_as_samples_are_no_confusion(samples):
    network = Answers(lambda y: y.repeat(BATCH, 1, 1))
    calls = []
    network.register_forward_hook(lambda *_: calls.append(network.training))
    network.linear.register_forward_hook(lambda *_: calls.append(network.training))
    fit(TwinLearner(network, num_classes=CLASSES), Loader(samples), max_epochs=2)
    assert calls == [True, True, False] + [True, True] * 11  # looked at once, in eval mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 3), "target=7: labels must lie in 0 to 6 (num_classes=7)"),
        (
            lambda x, y: (x, y.where(y != 3, -100)),
            "target=-100: labels must lie in 0 to 6 (num_classes=7); the objective",
        ),
        (lambda x, y: (x, y.int()), "target=[8] of torch.int32: must be class indices [B] of torch.int64"),
        (lambda x, y: (x, y[:, None]), "target=[8, 1] of torch.int64: must be class indices [B]"),
        (lambda x, y: (x, nn.functional.one_hot(y, 7)), "target=[8, 7] of torch.int64: must be class indices [B]"),
        (lambda x, y: (x, torch.ones(len(y), 5)), "target=[8, 5] of torch.float32: must be class indices [B]"),
        (lambda x, y: (x[None].repeat(4, 1, 1, 1, 1), y), "x=[4, 8, 2, 8, 8]: must begin with B=8, as the target does"),
        (lambda x, y: (x.numpy(), y), "x=ndarray: must be a tensor"),
        (lambda x, y: (x / 0, y), ": the inputs of batch 0 (counted from 0) are NaN or infinite somewhere"),
        (lambda x, y: (x, y, y), "batch=tuple: a data module must yield tna_lightning.data.Batch or (x, target)"),
        (lambda x, y: {"x": x, "y": y}, "batch=dict: a data module must yield"),
    ],
)
def test_batches_that_do_not_fit_are_refused_in_every_stage(change, message, network, samples):
    loader = Loader(samples)
    loader.batches = [change(x, y) for x, y in loader.batches]
    learner = TwinLearner(network, num_classes=CLASSES)
    stages = (
        lambda: fit(learner, loader),
        lambda: trainer().validate(learner, loader, verbose=False),
        lambda: trainer().test(learner, loader, verbose=False),
    )
    for stage in stages:
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            stage()
        assert "\n" not in str(refused.value)


def test_inputs_that_are_not_finite_are_found_at_the_end_of_an_epoch_where_looking_means_to_wait(network):
    learner, x = TwinLearner(network, num_classes=CLASSES), torch.zeros(2, 3, device="meta")
    learner._look_at_inputs("val", x, 0)  # nothing is read
    learner._first_bad_inputs["val"] = torch.tensor(4)  # as an accelerator would have it
    with pytest.raises(ValueError, match=r"^val: the inputs of batch 4 "):
        learner.on_validation_epoch_end()
    learner.on_validation_epoch_end()


def test_networks_must_not_share_statistics():
    norm = nn.BatchNorm1d(4, affine=False)
    base, twin = (nn.Sequential(norm, nn.Linear(4, CLASSES)) for _ in range(2))
    with pytest.raises(ValueError, match=r"^companion: shares its 0 with the base; each network needs its own stat"):
        TwinLearner(base, twin, TwinAugmentation(), num_classes=CLASSES)


def test_networks_must_not_share_parameters(network):
    other = convnet(in_channels=2, num_classes=CLASSES, neuron=LIF, width=0.125)
    other.stem = network.stem
    for companion, freeze in ((network, None), (network, True), (other, None)):
        with pytest.raises(ValueError, match=r"^twin: shares its parameter stem\.conv\.weight with the base"):
            TwinLearner(network, {"twin": companion}, TwinAugmentation(), num_classes=CLASSES, freeze_companion=freeze)


def test_a_twin_that_is_a_copy_is_told(network, samples, caplog):
    def told(objective, twin, **settings):
        caplog.clear()
        learner = TwinLearner(network, {"twin": twin}, objective, num_classes=CLASSES, **settings)
        fit(learner, Loader(samples), limit_train_batches=1)
        return [message for message in caplog.messages if message.startswith("twin: has the weights of the base")]

    assert len(told(TwinAugmentation(), copy.deepcopy(network))) == 1
    assert not told(Distillation(), copy.deepcopy(network))
    torch.manual_seed(1)
    assert not told(TwinAugmentation(), convnet(2, CLASSES, LIF, width=0.125, time_steps=2))


def test_a_teacher_is_frozen_and_nothing_else_will_do(network):
    teacher = copy.deepcopy(network)
    learner = TwinLearner(network, teacher, Distillation(), num_classes=CLASSES).train()
    assert (learner.training, network.training, teacher.training) == (True, True, False)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    untrained = TwinAugmentation(companion_cross_entropy=False, detach_companion=True)
    for objective in (Distillation(), untrained):
        for freeze in (False, []):
            with pytest.raises(ValueError, match=r"^freeze_companion=.*: the companion gets no gradient from this"):
                TwinLearner(network, teacher, objective, num_classes=CLASSES, freeze_companion=freeze)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (TwinAugmentation(match_start_epoch=2), {"max_epochs": 2}, "match_start_epoch=2: must be at most 1, the last"),
        (Cohort(match_start_epoch=1), {"max_steps": 6}, "match_start_epoch=1: must be at most 0, the last of 1 epochs"),
        (TwinAugmentation(), {"max_epochs": -1}, "total_steps=None: a cosine must know where training ends"),
    ],
)
def test_what_would_never_begin_is_refused(objective, settings, message, network, samples):
    twin = convnet(2, CLASSES, LIF, width=0.125)
    learner = TwinLearner(network, {"twin": twin}, objective, num_classes=CLASSES)
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(learner, Loader(samples), **{"max_epochs": -1, **settings})


def test_a_match_that_an_early_stop_forestalled_is_told(network, samples, caplog):
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    objective = TwinAugmentation(match_start_epoch=2)
    learner = TwinLearner(network, convnet(2, CLASSES, LIF, width=0.125), objective, num_classes=CLASSES)
    quantization = WeightQuantization(TernaryTTQ(), start_epoch=3)
    fit(learner, Loader(samples), max_epochs=4, callbacks=[Stop(), quantization, SWA()])
    assert [message.partition(":")[0] for message in caplog.messages[-3:]] == [
        "training ended after 1 epochs; start_epoch=3",
        "SWA",
        "training ended after 1 epochs; match_start_epoch=2",
    ]


def test_a_network_with_nothing_to_train_is_refused(network, samples):
    learner = TwinLearner(network.requires_grad_(False), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"^base: has no parameter that trains"):
        fit(learner, Loader(samples))
    with pytest.raises(ValueError, match=r"^num_classes=1: must be a whole number of at least 2"):
        TwinLearner(network, num_classes=1)


def test_a_state_that_outlives_a_batch_is_told(samples):
    class Remembers(Answers):
        state = 0.0

        def forward(self, x):
            self.state = super().forward(x) + self.state
            return self.state

    learner = TwinLearner(Remembers(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"^base: a network keeps a state .*snntorch\.utils\.reset"):
        fit(learner, Loader(samples))


def test_lazy_layers_are_decayed_as_others_and_named_by_quantisation(samples):
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, CLASSES))

    learner = TwinLearner(lazy(), num_classes=CLASSES)
    fitted = fit(learner, Loader(samples))
    shapes = [[parameter.ndim for parameter in group["params"]] for group in fitted.optimizers[0].param_groups]
    assert shapes == [[2, 2], [1, 1, 1, 1]]
    learner, quantization = TwinLearner(lazy(), num_classes=CLASSES), WeightQuantization(TernaryTTQ())
    with pytest.raises(ValueError, match=r"^network: the weights of 1 do not exist yet, being lazy"):
        fit(learner, Loader(samples), callbacks=[quantization])


def test_unlabelled_samples_are_matched_but_have_no_loss_and_no_accuracy(network, samples):
    x, target = samples.tensors
    some = target.where(torch.arange(SAMPLES) % 3 > 0, -100)
    network.eval()
    learner = TwinLearner(network, num_classes=CLASSES, objective=Plain(ignore_index=-100))
    results = trainer().validate(learner, Loader(TensorDataset(x, some), 7), verbose=False)[0]  # unlike numbers of them
    labelled = TensorDataset(x[some >= 0], target[some >= 0])
    expected = trainer().validate(TwinLearner(network, num_classes=CLASSES), Loader(labelled, SAMPLES), verbose=False)[
        0
    ]
    assert results == pytest.approx(expected)
    twin = convnet(2, CLASSES, LIF, width=0.125, time_steps=2).eval()
    matched = [
        TwinLearner(network, twin, TwinAugmentation(ignore_index=ignored), num_classes=CLASSES).losses(
            Batch(x, labels)
        )[0]["match"]
        for ignored, labels in ((-100, some), (None, target))
    ]
    assert matched[0] == matched[1]


def test_macro_accuracy_is_scikit_learns_and_each_class_has_its_own(network, samples):
    x, target = samples.tensors
    target = target.clamp(max=4)  # two classes have no sample
    learner = TwinLearner(network, num_classes=CLASSES)
    assert learner.class_accuracy() == [None] * CLASSES
    results = trainer().test(learner, Loader(TensorDataset(x, target)), verbose=False)[0]
    with torch.no_grad():
        prediction = learner.eval()(x).argmax(1)
    expected = recall_score(target, prediction, average=None, labels=list(range(5)))
    assert learner.class_accuracy()[:5] == pytest.approx(expected.tolist())
    assert learner.class_accuracy()[5:] == [None, None]
    assert results["test/acc_macro"] == pytest.approx(expected.mean())


def test_several_validation_loaders_have_names_of_their_own(network, samples):
    x, target = samples.tensors
    halves = [TensorDataset(x[part], target[part]) for part in (slice(24), slice(24, None))]
    alone = [
        trainer().validate(TwinLearner(network, num_classes=CLASSES), Loader(half), verbose=False)[0] for half in halves
    ]
    learner = TwinLearner(network, num_classes=CLASSES)
    together = trainer().validate(learner, [Loader(half) for half in halves], verbose=False)
    assert together == [alone[0], {name.replace("val/", "val_1/"): value for name, value in alone[1].items()}]


def test_predictions_are_logits_by_sample_with_targets_or_without(network, samples):
    learner = TwinLearner(network.eval(), num_classes=CLASSES)
    x, target = samples.tensors
    expected = network(x).mean(0)
    for batch in ((x, target), [x], x, Batch(x, target)):
        loader = Loader(samples)
        loader.batches = [batch]
        (logits,) = trainer().predict(learner, loader)
        torch.testing.assert_close(logits, expected)


SCHEDULES = {
    "plateau": (
        lambda optimizer, *_: ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=9, threshold_mode="abs"),
        [1, 1, 0.1],
    ),
    "by epoch": (lambda optimizer, *_: {"scheduler": StepLR(optimizer, 1, 0.5)}, [1, 0.5, 0.25]),
    "by step": (lambda optimizer, *_: StepLR(optimizer, SAMPLES // BATCH, 0.5), [1, 0.5, 0.25]),
    "none": (None, [1, 1, 1]),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_by_step_by_epoch_and_on_plateau(schedule, network, samples):
    factory, factors = SCHEDULES[schedule]
    rates = []

    class Note(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    learner = TwinLearner(network, num_classes=CLASSES, schedule=factory)
    trainer(max_epochs=3, log_every_n_steps=1, callbacks=[Note()]).fit(learner, Loader(samples), Loader(samples))
    assert rates == pytest.approx([2e-3 * factor for factor in factors])


def test_a_schedule_is_told_the_epochs_length_however_training_is_bounded(network, samples):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(samples)

    told = []

    def schedule(optimizer, total_steps, steps_per_epoch):
        told.append((total_steps, steps_per_epoch))
        return StepLR(optimizer, 100)

    loaders = {"sized": Loader(samples), "endless": DataLoader(Endless(), BATCH)}
    bounds = {
        "sized": [{"max_epochs": 3}, {"max_steps": 4}, {"max_epochs": 3, "accumulate_grad_batches": 4}],
        "endless": [{"max_epochs": 1}, {"max_steps": 4, "max_epochs": -1}],
    }
    for kind, settings in bounds.items():
        for each in settings:
            learner = TwinLearner(network, num_classes=CLASSES, schedule=schedule)
            fit(learner, loaders[kind], **{"max_epochs": -1, **each})
    assert told == [(18, 6), (4, 6), (6, 2), (None, None), (4, None)]


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_a_schedule_of_a_second_fit_is_of_the_steps_that_are_left(from_checkpoint, network, samples, tmp_path):
    rates = []

    class Note(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 2e-3)

    fitter = trainer(max_epochs=1, callbacks=[Note()])
    learner = TwinLearner(network, num_classes=CLASSES)
    fitter.fit(learner, Loader(samples), Loader(samples))
    path = None
    if from_checkpoint:
        fitter.save_checkpoint(path := tmp_path / "last.ckpt")
    fitter.fit_loop.max_epochs = 3
    fitter.fit(learner, Loader(samples), Loader(samples), ckpt_path=path, weights_only=True)
    first = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    # anew over 12 steps; with the checkpoint's scheduler as planned over all 18
    second = [0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    if from_checkpoint:
        second = [0.0, *(0.5 * (1 + math.cos(math.pi * step / 18)) for step in range(7, 18))]
    assert rates == pytest.approx(first + second, abs=1e-12)


def test_the_learning_rate_that_a_finder_finds_is_the_one_that_trains(network, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(_LRFinder, "suggestion", lambda self, *_: 0.5)
    rates = []

    class Note(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    learner = TwinLearner(network, num_classes=CLASSES, schedule=partial(cosine, warmup_epochs=1))
    finder = LearningRateFinder(num_training_steps=3)
    fit(learner, Loader(samples), max_epochs=2, callbacks=[finder, Note()], default_root_dir=tmp_path)
    assert learner.lr == 0.5
    warmup = [0.5 * (step + 1) / 6 for step in range(6)]
    assert rates == pytest.approx(warmup + [0.25 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    rates.clear()
    fit(TwinLearner(network, num_classes=CLASSES, schedule=None), Loader(samples), callbacks=[Note()])
    assert rates == [2e-3] * 6


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


@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_tied_weight_is_stepped_once(samples, is_quantised):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(128, 128), nn.Linear(128, 128)
            self.b.weight = self.a.weight
            self.last = nn.Linear(128, CLASSES)

        def forward(self, x):
            return self.last(self.b(self.a(x.flatten(1))))

    torch.manual_seed(0)
    network = Tied()
    by_hand = copy.deepcopy(network)
    if is_quantised:
        quantize_network(by_hand, Ternary())
    x, target = samples[:BATCH]
    nn.functional.cross_entropy(by_hand(x), target).backward()
    if is_quantised:
        dequantize_network(by_hand)
    torch.optim.SGD(by_hand.parameters(), lr=0.1).step()

    def sgd(groups):
        return torch.optim.SGD(groups, lr=0.1)

    learner = TwinLearner(network, objective=Plain(), num_classes=CLASSES, optimizer=sgd, schedule=None)
    callbacks = [WeightQuantization(Ternary())] if is_quantised else []
    with quiet_lightning():
        trainer(max_steps=1, max_epochs=1, callbacks=callbacks).fit(learner, Loader(samples), Loader(samples))
    dequantize_network(network)
    assert network.a.weight is network.b.weight
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), parameter, rtol=0, atol=0)


def test_a_checkpoint_of_a_quantised_run_is_loaded_once_the_network_is_quantised(network, samples, tmp_path):
    fresh = copy.deepcopy(network)
    learner = TwinLearner(network, num_classes=CLASSES)
    with quiet_lightning():
        fitted = trainer(max_epochs=1, callbacks=[WeightQuantization(TernaryTTQ(), skip=["classifier"])])
        fitted.fit(learner, Loader(samples), Loader(samples))
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    plain = TwinLearner(copy.deepcopy(fresh), num_classes=CLASSES)
    plain_trainer = trainer(max_epochs=1)
    with quiet_lightning():
        plain_trainer.fit(plain, Loader(samples), Loader(samples))
    plain_trainer.save_checkpoint(tmp_path / "plain.ckpt")

    def load(path, base):
        return TwinLearner.load_from_checkpoint(path, base=base, num_classes=CLASSES, weights_only=True)

    advice = r"quantise it first as it was in training, quantize_network\(base, \.\.\.\), or give the trainer the same"
    message = rf"^checkpoint: base is quantised there \(stem.conv, body.1.conv, body.4.conv\), and not here; {advice}"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "last.ckpt", fresh)
    with quiet_lightning(), pytest.raises(ValueError, match=r"^checkpoint: base is quantised there"):
        trainer().test(plain, Loader(samples), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    quantize_network(fresh, TernaryTTQ(), skip=["classifier"])
    with pytest.raises(ValueError, match=r"^checkpoint: base is not quantised there .* and it is here; load before"):
        load(tmp_path / "plain.ckpt", fresh)
    loaded = load(tmp_path / "last.ckpt", fresh)
    x = samples[:BATCH][0]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), learner.eval()(x))
    dequantize_network(fresh)
    quantize_network(fresh, Ternary(), skip=["classifier"])
    with pytest.raises(ValueError, match=r"^checkpoint: base is quantised there in another way .*\(stem\.conv has"):
        load(tmp_path / "last.ckpt", fresh)
    dequantize_network(fresh)
    assert load(tmp_path / "plain.ckpt", fresh).base is fresh


def test_a_checkpoint_of_other_quantisers_is_refused_where_no_tensor_tells(network, samples, tmp_path):
    learner = TwinLearner(network, num_classes=CLASSES)
    with quiet_lightning():
        fitted = trainer(max_epochs=1, callbacks=[WeightQuantization(Ternary())])
        fitted.fit(learner, Loader(samples), Loader(samples))
    fitted.save_checkpoint(path := tmp_path / "last.ckpt")
    there = (
        r"^checkpoint: base is quantised there in another way than here \(stem\.conv: Ternary\(per='channel', thresh"
    )
    for other in (TernaryAbsmean(), Binary(), Ternary(0.5), Ternary(per="layer"), Uniform(2, scale="max")):
        dequantize_network(network)
        quantize_network(network, other)
        with pytest.raises(ValueError, match=rf"{there}.*, here {type(other).__name__}\("):
            TwinLearner.load_from_checkpoint(path, base=network, num_classes=CLASSES, weights_only=True)
    dequantize_network(network)
    quantize_network(network, Ternary())
    TwinLearner.load_from_checkpoint(path, base=network, num_classes=CLASSES, weights_only=True)
    for content in ({}, {"base": {"stem.conv": {"quantizer": "Ternary", "of_a_later_version": 1}}}):
        checkpoint = torch.load(path, weights_only=True) | {QUANTIZERS: content}
        torch.save(checkpoint, path)
        TwinLearner.load_from_checkpoint(path, base=network, num_classes=CLASSES, weights_only=True)


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
    network.checkpoint_stages = True
    with pytest.raises(ValueError, match=r"^objective.rate_weight=0.1: must be 0 with checkpoint_stages=true"):
        TwinLearner(network, objective=Plain(rate_weight=0.1), num_classes=CLASSES)


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


def mean_square(first, second):
    return (first - second).square().mean()


@pytest.mark.parametrize("kind", ["rates", "steps"])
def test_named_layers_are_matched_beside_the_logits(network, samples, kind):
    """By hand, from what hooks of the test's own see: neurons and a convolution with norm of base and twin."""
    torch.manual_seed(1)
    twin, names = convnet(2, CLASSES, LIF, width=0.125, time_steps=2), ["body.0", "body.2"]
    seen = {"base": {}, "companion": {}}
    for which, net in (("base", network), ("companion", twin)):
        for name in names:
            net.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name, which=which: seen[which].update({name: output})
            )
    batch = Batch(*(torch.stack(column) for column in zip(*(samples[i] for i in range(6)), strict=True)))
    plain, _ = TwinLearner(network, twin, TwinAugmentation(), num_classes=CLASSES).losses(batch)
    assert "features" not in plain
    matching = {"features": names, "feature_weight": 3.0, "feature_match": kind}
    losses, _ = TwinLearner(network, twin, TwinAugmentation(**matching), num_classes=CLASSES).losses(batch)
    pairs = [(seen["base"][name], seen["companion"][name]) for name in names]
    if kind == "rates":
        pairs = [(one.mean(0), other.mean(0)) for one, other in pairs]
    expected = sum(mean_square(*pair) for pair in pairs) / 2
    torch.testing.assert_close(losses["features"], expected.detach())
    torch.testing.assert_close(losses["loss"], plain["loss"] + 3 * expected)
    assert not any(
        hook for module in twin.modules() for hook in module._forward_hooks.values() if "outputs" in str(hook)
    )
    weighed, _ = TwinLearner(network, twin, TwinAugmentation(**matching), num_classes=CLASSES).losses(
        Batch(batch.x, batch.target, weight=torch.zeros(6))
    )
    assert weighed["features"] == 0


def test_who_is_pulled_by_the_layers_of_whom(network, samples):
    x, target = (torch.stack(column) for column in zip(*(samples[i] for i in range(4)), strict=True))
    torch.manual_seed(1)
    twin = convnet(2, CLASSES, LIF, width=0.125, time_steps=2)
    matching = {"features": ["body.1"], "feature_weight": 1.0}
    weight_of = {"base": network.body[1].conv.weight, "twin": twin.body[1].conv.weight}

    def gradients(objective, **settings):
        learner = TwinLearner(network, twin, objective, num_classes=CLASSES, **settings)
        losses, _ = learner.losses(Batch(x, target))
        return torch.autograd.grad(losses["loss"], list(weight_of.values()), allow_unused=True)

    alone = gradients(TwinAugmentation(match_weight=0.0))
    both = gradients(TwinAugmentation(match_weight=0.0, **matching))
    assert all((one != other).any() for one, other in zip(alone, both, strict=True))
    detached = gradients(TwinAugmentation(match_weight=0.0, detach_companion=True, **matching))
    torch.testing.assert_close(detached[0], both[0])
    torch.testing.assert_close(detached[1], alone[1])
    late = gradients(TwinAugmentation(match_weight=0.0, match_start_epoch=1, **matching))
    assert all(torch.equal(one, other) for one, other in zip(alone, late, strict=True))
    distilled = TwinLearner(network, twin, Distillation(**matching), num_classes=CLASSES)
    losses, _ = distilled.losses(Batch(x, target))
    losses["loss"].backward()
    assert losses["features"] > 0
    assert weight_of["twin"].grad is None


def test_layers_that_cannot_be_matched_are_refused(network, samples):
    twin = convnet(2, CLASSES, LIF, width=0.25, time_steps=2)
    for settings in ({"features": ["body.0"]}, {"feature_weight": 1.0}, {"features": [], "feature_weight": 1.0}):
        with pytest.raises(ValueError, match=r"^features=.*: must name layers where feature_weight is above 0"):
            TwinAugmentation(**settings)
    with pytest.raises(ValueError, match=r"^features=\['body\.0', 'body\.0'\]: must name each layer once"):
        TwinAugmentation(features=["body.0", "body.0"], feature_weight=1.0)

    def learner(*names, **settings):
        objective = TwinAugmentation(features=names, feature_weight=1.0, **settings)
        return TwinLearner(network, twin, objective, num_classes=CLASSES)

    with pytest.raises(ValueError, match=r"^objective\.features='body\.99': the base has no such module; its neurons"):
        learner("body.99")
    x, target = (torch.stack(column) for column in zip(*(samples[i] for i in range(3)), strict=True))
    with pytest.raises(ValueError, match=r"^features='body\.0': gives \[2, 3, 4, 8, 8\] in the base .* but for time"):
        learner("body.0").losses(Batch(x, target))
    with pytest.raises(ValueError, match=r"^features='stem\.conv': gives \[3, 4, 8, 8\] in the base; must be a layer"):
        learner("stem.conv").losses(Batch(x, target))
    network.checkpoint_stages = True
    with pytest.raises(ValueError, match=r"^objective\.features=\['body\.0'\]: must be null with checkpoint_stages"):
        learner("body.0")
