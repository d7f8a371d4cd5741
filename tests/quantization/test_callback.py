"""Quantisation-aware training with a plain Lightning trainer."""

import copy

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tna_lightning.quantization import (
    Binary,
    Ternary,
    TernaryTTQ,
    Uniform,
    WeightQuantization,
    dequantize_network,
    quantize_network,
    quantized_share,
    weight_report,
)
from tna_lightning.quantization.parametrized import quantized_layers
from tna_lightning.running.record import precision_words

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"
    ),  # lightning 2.6.6
]


class Learner(lightning.LightningModule):
    """Base and companion, each fitted to random targets; keeps what the base's weights were in each step."""

    lr = 0.1

    def __init__(self, with_companion=False):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.companion = copy.deepcopy(self.base) if with_companion else None
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, target = batch
        self.seen.append(self.base[0].weight.detach().clone())
        networks = [self.base] if self.companion is None else [self.base, self.companion]
        return sum(nn.functional.mse_loss(network(x), target) for network in networks)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def fit(learner, callback, folder, epochs=3, stop_after=None, more=(), **settings):
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch + 1 == stop_after

    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*more, *([Stop()] if callback is None else [callback, Stop()])],
        enable_checkpointing=False,
    )
    trainer.fit(learner, DataLoader(dataset, batch_size=4), **settings)
    return trainer


def num_values(weight):
    return [len(row.unique()) for row in weight]


def test_training_sees_codes_and_the_optimizer_full_precision(tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(Ternary()), tmp_path)
    assert all(count <= 3 for weight in learner.seen for count in num_values(weight))
    full_precision = learner.base[0].parametrizations.weight.original
    assert min(num_values(full_precision)) == 6
    assert torch.equal(learner.base.eval()[0].weight, Ternary()(full_precision))


def test_full_precision_until_start_epoch_in_training_but_never_in_eval(tmp_path):
    learner = Learner()
    in_eval = []

    class Look(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            in_eval.append(copy.deepcopy(pl_module.base).eval()[0].weight.detach())

    callback = WeightQuantization(Ternary(), start_epoch=2)
    trainer_callbacks = Look()
    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator))
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback, trainer_callbacks],
    )
    trainer.fit(learner, DataLoader(dataset, batch_size=4))
    assert [max(num_values(weight)) > 3 for weight in learner.seen] == [True] * 4 + [False] * 2
    assert len(in_eval) == 3
    assert all(max(num_values(weight)) <= 3 for weight in in_eval)

    plain = Learner()
    fit(plain, None, tmp_path)
    assert all(torch.equal(*pair) for pair in zip(learner.seen[:4], plain.seen[:4], strict=True))


def test_share_grows_with_the_largest_weights_first(tmp_path):
    callback = WeightQuantization(Binary(), start_epoch=1, growth_epochs=3)
    assert [callback.share(epoch) for epoch in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    learner = Learner()
    fit(learner, callback, tmp_path, epochs=5, stop_after=3)
    name, weight, quantized = next(quantized_layers(learner.base))
    assert name == "0"
    assert quantized.cutoff > 0
    quantized.set_share(weight, 0.25)
    is_quantized = learner.base.train()[0].weight == learner.base.eval()[0].weight
    assert is_quantized.sum() == 12  # a quarter of 48
    assert weight.abs()[is_quantized].min() >= weight.abs()[~is_quantized].max()


def test_learned_scales_are_trained_and_start_from_the_weights_of_the_start_epoch(tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(Uniform(3, scale="learned"), start_epoch=1), tmp_path, epochs=2, stop_after=1)
    (_, _, quantized), *_ = quantized_layers(learner.base)
    before = quantized.quantizer.scale.detach().clone()
    fit(learner, WeightQuantization(Uniform(3, scale="learned"), start_epoch=1), tmp_path, epochs=2)
    assert not torch.equal(quantized.quantizer.scale, before)

    ttq = Learner()
    fit(ttq, WeightQuantization(TernaryTTQ()), tmp_path)
    scales = ttq.base[0].parametrizations.weight[0].quantizer.scale
    assert not torch.equal(scales, torch.ones_like(scales))


def test_twin_keeps_full_precision_unless_asked(tmp_path):
    learner = Learner(with_companion=True)
    fit(learner, WeightQuantization(Ternary()), tmp_path)
    assert (quantized_share(learner.base), quantized_share(learner.companion)) == (1, 0)

    learner = Learner(with_companion=True)
    fit(learner, WeightQuantization(Ternary(), network="both", companion_quantizer=Uniform(8)), tmp_path)
    schemes = [{layer["scheme"] for layer in weight_report(n)["layers"]} for n in (learner.base, learner.companion)]
    assert schemes == [{"ternary"}, {"int8"}]

    learner = Learner(with_companion=True)
    fit(learner, WeightQuantization(Ternary(), network="companion"), tmp_path)
    assert (quantized_share(learner.base), quantized_share(learner.companion)) == (0, 1)


def test_named_networks_have_schemes_by_name(tmp_path):
    learner = Learner(with_companion=True)
    learner.third = copy.deepcopy(learner.base)  # frozen as far as the optimizer's steps go: it takes no part
    networks = {"network": ["companion", "third"], "companion_quantizer": {"third": Uniform(4)}}
    fit(learner, WeightQuantization(Ternary(), **networks), tmp_path)
    schemes = [weight_report(network)["layers"][0]["scheme"] for network in (learner.companion, learner.third)]
    assert schemes == ["ternary", "int4"]
    assert quantized_share(learner.base) == 0
    with pytest.raises(ValueError, match=r"^network=\['base', 'fourth'\]: there is no fourth to quantise"):
        fit(learner, WeightQuantization(Ternary(), network=["base", "fourth"]), tmp_path)


def test_skip_leaves_modules_by_name(tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(Ternary(), skip=["2"]), tmp_path)
    assert [layer["scheme"] for layer in weight_report(learner.base)["layers"]] == ["ternary", "float32"]


def test_modules_can_have_a_scheme_of_their_own(tmp_path):
    learner = Learner(with_companion=True)
    settings = {"network": "both", "companion_quantizer": Binary(), "layer_quantizers": {"2": Uniform(8)}}
    fit(learner, WeightQuantization(Ternary(), **settings), tmp_path)
    for network, scheme in {learner.base: "ternary", learner.companion: "binary"}.items():
        assert [layer["scheme"] for layer in weight_report(network)["layers"]] == [scheme, "int8"]
    assert precision_words(weight_report(learner.base)) == "all; 2: int8"


def test_the_innermost_scheme_counts():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), nn.Linear(3, 2))
    quantize_network(network, Ternary(), layer_quantizers={"0.1": Uniform(4), "0": Uniform(8)})
    assert [layer["scheme"] for layer in weight_report(network)["layers"]] == ["int8", "int4", "ternary"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layer_quantizers": {"stem": Binary()}},
            r"^layer_quantizers=\['stem'\]: no layer matches stem; there are 0, 2$",
        ),
        (
            {"layer_quantizers": {"2": Binary()}, "skip": ["2"]},
            r"^layer_quantizers=\['2'\]: must be quantised, yet skip",
        ),
    ],
)
def test_schemes_for_what_is_not_there_or_not_quantised_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(Learner(), WeightQuantization(Ternary(), **settings), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "twin"}, r"^network='twin': must be 'base', 'companion', 'both' or a list of networks"),
        ({"start_epoch": -1}, r"^start_epoch=-1: must be a whole number of 0 or more"),
        ({"growth_epochs": -2}, r"^growth_epochs=-2: must be a whole number of 0 or more"),
        ({"layer_quantizers": {"2": "int8"}}, r"^layer_quantizers\.2='int8': must be a quantizer"),
        ({"companion_quantizer": Binary()}, r"^companion_quantizer: has no effect with network='base'"),
        (
            {"network": ["base", "third"], "companion_quantizer": {"fourth": Binary()}},
            r"^companion_quantizer: has no effect with network=\['base', 'third'\]",
        ),
        (
            {"network": ["third"], "companion_quantizer": {"third": "int8"}},
            r"^companion_quantizer.third='int8': must be a quantizer",
        ),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        WeightQuantization(Ternary(), **settings)


def test_names_that_match_nothing_and_a_missing_companion_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^skip=\['2', 'stem'\]: no layer matches stem; there are 0, 2$"):
        fit(Learner(), WeightQuantization(Ternary(), skip=["2", "stem"]), tmp_path)
    with pytest.raises(ValueError, match=r"^network='both': there is no companion to quantise"):
        fit(Learner(), WeightQuantization(Ternary(), network="both"), tmp_path)


@pytest.mark.parametrize("network", ["companion", "both"])
def test_a_frozen_companion_is_not_quantised_behind_its_back(network, tmp_path):
    learner = Learner(with_companion=True)
    learner.companion.requires_grad_(False)
    with pytest.raises(ValueError, match=f"^network='{network}': the companion is frozen"):
        fit(learner, WeightQuantization(Ternary(), network=network), tmp_path)
    assert quantized_share(learner.companion) == 0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"start_epoch": 3}, r"^start_epoch=3: must be at most 2, the last of 3 epochs counted from 0"),
        ({"start_epoch": 9, "growth_epochs": 1}, r"^start_epoch=9: must be at most 2"),
        ({"start_epoch": 1, "growth_epochs": 2}, r"^growth_epochs=2: must be at most 1 after start_epoch=1"),
        ({"growth_epochs": 3}, r"^growth_epochs=3: must be at most 2 after start_epoch=0 in 3 epochs"),
    ],
)
def test_a_schedule_that_ends_after_training_is_refused_before_it(schedule, message, tmp_path):
    learner = Learner()
    with pytest.raises(ValueError, match=message):
        fit(learner, WeightQuantization(Ternary(), **schedule), tmp_path, epochs=3)
    assert learner.seen == []


def test_scales_that_start_far_from_the_weights_cannot_grow():
    with pytest.raises(ValueError, match=r"^growth_epochs=1: not with quantizer ternary_ttq"):
        WeightQuantization(TernaryTTQ(), growth_epochs=1)
    with pytest.raises(ValueError, match=r"^growth_epochs=1: not with layer_quantizers.0 ternary_ttq"):
        WeightQuantization(Ternary(), growth_epochs=1, layer_quantizers={"0": TernaryTTQ()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": "stem"}, r"^skip='stem': must be a list of names"),
        ({"skip": [1]}, r"^skip=\[1\]: must be a list of names"),
        ({"skip": {"stem": 1}}, r"^skip=.*: must be a list of names"),
        ({"layer_quantizers": ["stem"]}, r"^layer_quantizers=\['stem'\]: must map names"),
        ({"layer_quantizers": {"0": "int8"}}, r"^layer_quantizers.0='int8': must be a quantizer"),
        ({"start_epoch": 1.5}, r"^start_epoch=1.5: must be a whole number"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightQuantization(Ternary(), **arguments)
    if "start_epoch" not in arguments:
        with pytest.raises(ValueError, match=message):
            quantize_network(nn.Sequential(nn.Linear(2, 2)), Ternary(), **arguments)


@pytest.mark.parametrize("schedule", [{"start_epoch": 2}, {"start_epoch": 1, "growth_epochs": 1}, {"growth_epochs": 2}])
def test_a_schedule_that_ends_with_training_sees_all_weights_quantised(schedule, tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(Ternary(), **schedule), tmp_path, epochs=3)
    assert max(num_values(learner.seen[-3])) > 3
    assert max(num_values(learner.seen[-1])) <= 3


@pytest.mark.parametrize(
    "callback",
    [
        WeightQuantization(TernaryTTQ(), start_epoch=1),
        WeightQuantization(Uniform(4, scale="learned"), start_epoch=1, growth_epochs=2),
        WeightQuantization(Ternary()),
    ],
)
def test_resumed_training_equals_uninterrupted(callback, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "lr", 0.01)  # scales of 1 and no batch norm: TTQ would diverge
    whole = Learner()
    fit(whole, copy.deepcopy(callback), tmp_path, epochs=5)
    first = Learner()
    trainer = fit(first, copy.deepcopy(callback), tmp_path, epochs=5, stop_after=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second = Learner()
    fit(second, copy.deepcopy(callback), tmp_path, epochs=5, ckpt_path=tmp_path / "two.ckpt")
    state, expected = second.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_training_does_not_go_on_with_another_quantiser(tmp_path):
    trainer = fit(Learner(), WeightQuantization(Ternary(0.5)), tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    message = (
        r"^checkpoint: base is quantised there in another way than here \(0: Ternary\(.*threshold=0\.5.*here Binary"
    )
    with pytest.raises(ValueError, match=message):
        fit(Learner(), WeightQuantization(Binary()), tmp_path, ckpt_path=tmp_path / "one.ckpt")


def test_networks_can_be_copied_after_quantisation(tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(TernaryTTQ()), tmp_path)
    twin = copy.deepcopy(learner.base)
    x = torch.randn(2, 6)
    assert torch.equal(twin(x), learner.base(x))
    twin[0].parametrizations.weight[0].quantizer.scale.data.mul_(2)
    assert not torch.equal(twin(x), learner.base(x))


def test_a_second_fit_keeps_the_scales_that_the_first_has_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "lr", 0.01)
    for quantizer in (TernaryTTQ(), Uniform(2, scale="learned")):
        learner = Learner()
        fit(learner, WeightQuantization(quantizer), tmp_path, epochs=1)
        (_, _, quantized), *_ = quantized_layers(learner.base)
        learned = quantized.quantizer.scale.detach().clone()
        start = copy.deepcopy(quantized.quantizer)
        start.reset_scale(learner.base[0].parametrizations.weight.original)
        assert not torch.equal(learned, start.scale)

        # in the same process, and from a checkpoint in another
        fresh = Learner()
        quantize_network(fresh.base, quantizer)
        fresh.load_state_dict(learner.state_dict())
        for again in (learner, fresh):
            seen = []

            class Look(lightning.Callback):
                def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, seen=seen):
                    seen.append(pl_module.base[0].parametrizations.weight[0].quantizer.scale.detach().clone())

            trainer = fit(again, None, tmp_path, epochs=1, more=[WeightQuantization(quantizer), Look()])
            assert trainer.current_epoch == 1
            assert torch.equal(seen[0], learned)


def test_a_frozen_layer_keeps_its_learned_scale(tmp_path):
    learner = Learner()
    learner.base[0].requires_grad_(False)
    fit(learner, WeightQuantization(Uniform(2, scale="learned")), tmp_path)
    fresh = Learner().base[0].weight
    assert torch.equal(learner.base[0].parametrizations.weight.original, fresh)
    scales = [quantized.quantizer.scale for _, _, quantized in quantized_layers(learner.base)]
    assert [scale.requires_grad for scale in scales] == [False, True]
    assert torch.equal(scales[0], Uniform(2, scale="learned").for_weight(fresh).scale)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (WeightQuantization(Ternary()), r"ternary \(per='channel'\)"),
        (WeightQuantization(Uniform(8, per="layer")), r"int8 \(bits=8, scale='max', per='layer'\)"),
        (WeightQuantization(Uniform(8), skip=["0"]), "full precision"),
        (WeightQuantization(Uniform(8), layer_quantizers={"0": Binary()}), r"binary \(per='channel'\)"),
    ],
)
def test_another_quantisation_of_the_same_network_is_refused_until_the_first_is_taken_off(second, words, tmp_path):
    learner = Learner()
    fit(learner, WeightQuantization(Uniform(8)), tmp_path, epochs=1)
    weight = learner.base[0].parametrizations.weight.original
    steps = len(learner.seen)
    message = (
        rf"^network: 0 is quantised already, int8 \(bits=8, scale='max', per='channel'\), and {words} is asked for"
    )
    with pytest.raises(ValueError, match=message):
        fit(learner, second, tmp_path)
    assert len(learner.seen) == steps
    dequantize_network(learner.base)
    assert learner.base[0].weight is weight
    fit(learner, second, tmp_path, epochs=1)
    schemes = {layer["scheme"] for layer in weight_report(learner.base)["layers"]}
    assert schemes != {"int8"} or (second.skip == [] and second._quantizers["base"].per == "layer")


def test_a_quantiser_knows_its_like_by_class_and_settings():
    class Mine(Ternary):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    class Inner:
        def __init__(self, value):
            self.values = [value, {"a": torch.ones(value)}]

    weight = torch.randn(3, 4)
    assert Uniform(2, scale="learned").is_alike(Uniform(2, scale="learned").for_weight(weight))
    assert Mine(Inner(2)).is_alike(Mine(Inner(2)).for_weight(weight))
    for a, b in (
        (Ternary(), Ternary(0.6)),
        (Ternary(), Ternary(per="layer")),
        (Ternary(), TernaryTTQ(0.7, per="channel")),
        (Uniform(4), Uniform(4, scale="learned")),
        (Mine(Inner(2)), Mine(Inner(3))),
        (Mine(Inner(2)), Mine([2])),
        (Mine([1, 2]), Mine([1])),
    ):
        assert not a.is_alike(b)
