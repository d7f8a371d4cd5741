"""Objectives against closed forms written with torch's own losses."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tna_lightning.data import Batch
from tna_lightning.objectives import Cohort, Distillation, MutualLearning, Plain, TwinAugmentation, cross_entropy

T, B, K = 3, 5, 7


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(T, B, K, generator=generator, requires_grad=True)
    companion = torch.randn(T, B, K, generator=generator, requires_grad=True)
    return base, companion, torch.randint(K, (B,), generator=generator)


def call(objective, base, companion, target, epoch=0, weight=None):
    networks = {"base": base} if companion is None else {"base": base, "companion": companion}
    return objective(networks, Batch(None, target, weight=weight), epoch)


def gradient(loss, tensor):
    (result,) = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)
    return torch.zeros_like(tensor) if result is None else result


def test_plain_is_cross_entropy_of_the_time_average(logits):
    base, _, target = logits
    expected = F.cross_entropy(base.mean(0), target)
    losses = call(Plain(), base, None, target)
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["cross_entropy"], expected)


def test_per_step_cross_entropy_is_the_mean_of_each_steps_own(logits):
    base, _, target = logits
    expected = torch.stack([F.cross_entropy(step, target) for step in base]).mean()
    torch.testing.assert_close(call(Plain(per_step_cross_entropy=True), base, None, target)["loss"], expected)


@pytest.mark.parametrize("batch_size", [14, 64])  # 1/14 is no float
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradients_are_those_of_torchs_own_mean_to_the_bit(batch_size, mixed, label_smoothing):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(T, batch_size, K, generator=generator, requires_grad=True)
    target = torch.randint(K, (batch_size,), generator=generator)
    if mixed:
        target = torch.randn(batch_size, K, generator=generator).softmax(-1)
    expected = F.cross_entropy(logits.mean(0), target, label_smoothing=label_smoothing)
    loss = call(Plain(label_smoothing=label_smoothing), logits, None, target)["loss"]
    torch.testing.assert_close(loss, expected)
    assert torch.equal(gradient(loss, logits), gradient(expected, logits))


OBJECTIVES = [
    Plain(),
    Plain(label_smoothing=0.1),
    Plain(per_step_cross_entropy=True),
    TwinAugmentation(),
    TwinAugmentation(match="kl", per_step_match=True),
    Distillation(),
    Distillation(match="squared_error"),
    MutualLearning(temperature=2.0),
    Cohort(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_samples_weight_multiplies_its_losses_and_the_mean_is_over_the_batch(logits, objective):
    base, companion, target = logits
    companion = None if isinstance(objective, Plain) else companion
    plain, ones = (call(objective, base, companion, target, weight=weight) for weight in (None, torch.ones(B)))
    assert all(torch.equal(plain[name], ones[name]) for name in plain)
    assert torch.equal(gradient(plain["loss"], base), gradient(ones["loss"], base))
    weight = torch.tensor([0.0, 2.0, 0.0, 0.0, 2.0])
    weighted = call(objective, base, companion, target, weight=weight)
    chosen = [1, 4]  # a batch of these two alone has the mean over two, not five
    alone = call(objective, base[:, chosen], companion if companion is None else companion[:, chosen], target[chosen])
    assert weighted.keys() == alone.keys()
    for name, value in weighted.items():
        torch.testing.assert_close(value, 2 * 2 / 5 * alone[name])
    assert not gradient(weighted["loss"], base)[:, weight == 0].any()


@pytest.mark.parametrize("per_step", [False, True])
def test_class_probabilities_as_target_agree_with_indices(logits, per_step):
    base, _, target = logits
    probabilities = F.one_hot(target, K).float()
    torch.testing.assert_close(
        cross_entropy(base, probabilities, per_step=per_step), cross_entropy(base, target, per_step=per_step)
    )


def test_twin_augmentation_is_two_cross_entropies_and_the_squared_error(logits):
    base, twin, target = logits
    match = F.mse_loss(base.mean(0), twin.mean(0), reduction="sum") / B
    expected = F.cross_entropy(base.mean(0), target) + F.cross_entropy(twin.mean(0), target) + 0.3 * match
    losses = call(TwinAugmentation(match_weight=0.3), base, twin, target)
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["match"], match)
    for tensor in (base, twin):
        torch.testing.assert_close(gradient(losses["loss"], tensor), gradient(expected, tensor))


def test_per_step_match_averages_the_steps(logits):
    base, twin, target = logits
    expected = F.mse_loss(base, twin, reduction="sum") / (T * B)
    torch.testing.assert_close(call(TwinAugmentation(per_step_match=True), base, twin, target)["match"], expected)


def test_per_step_match_needs_equal_numbers_of_steps(logits):
    base, twin, target = logits
    with pytest.raises(ValueError, match=r"per_step_match=True.*3 and 2"):
        call(TwinAugmentation(per_step_match=True), base, twin[:2], target)


def test_averaged_match_takes_networks_of_different_time_steps(logits):
    base, twin, target = logits
    expected = F.mse_loss(base.mean(0), twin[0], reduction="sum") / B
    torch.testing.assert_close(call(TwinAugmentation(), base, twin[:1], target)["match"], expected)


def test_kl_match_is_symmetric(logits):
    base, twin, target = logits
    log_base, log_twin = base.mean(0).log_softmax(-1), twin.mean(0).log_softmax(-1)
    expected = F.kl_div(log_base, log_twin, reduction="batchmean", log_target=True) + F.kl_div(
        log_twin, log_base, reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(call(TwinAugmentation(match="kl"), base, twin, target)["match"], expected)


def test_late_matching_adds_the_match_term_from_its_epoch_on(logits):
    base, twin, target = logits
    objective = TwinAugmentation(match_weight=0.5, match_start_epoch=2)
    early, late = call(objective, base, twin, target, 1), call(objective, base, twin, target, 2)
    torch.testing.assert_close(late["loss"] - early["loss"], 0.5 * late["match"])
    torch.testing.assert_close(early["match"], late["match"])


def test_twin_without_cross_entropy_gets_the_match_terms_gradient_alone(logits):
    base, twin, target = logits
    losses = call(TwinAugmentation(match_weight=0.5, companion_cross_entropy=False), base, twin, target)
    assert "companion_cross_entropy" not in losses
    by_hand = 0.5 * 2 * (twin.mean(0) - base.mean(0)) / B / T
    torch.testing.assert_close(gradient(losses["loss"], twin), by_hand.expand(T, B, K).detach())


def test_detached_twin_trains_as_if_alone(logits):
    base, twin, target = logits
    losses = call(TwinAugmentation(match_weight=0.5, detach_companion=True), base, twin, target)
    torch.testing.assert_close(gradient(losses["loss"], twin), gradient(F.cross_entropy(twin.mean(0), target), twin))


@pytest.mark.parametrize("settings", [{}, {"match": "kl"}, {"per_step_match": True}, {"match_start_epoch": 1}])
def test_a_cohort_of_two_is_twin_augmentation(logits, settings):
    base, twin, target = logits
    cohort = call(Cohort(match_weight=0.3, **settings), base, twin, target)
    pair = call(TwinAugmentation(match_weight=0.3, **settings), base, twin, target)
    assert cohort.keys() == pair.keys()
    for name in pair:
        torch.testing.assert_close(cohort[name], pair[name])
    for tensor in (base, twin):
        torch.testing.assert_close(gradient(cohort["loss"], tensor), gradient(pair["loss"], tensor))


def test_a_network_of_a_cohort_is_pulled_by_the_mean_over_the_others(logits):
    base, twin, target = logits
    networks = {"base": base, "companion": twin, "third": twin.detach().flip(-1).requires_grad_()}
    losses = Cohort(match_weight=0.3)(networks, Batch(None, target))
    outputs = [tensor.mean(0) for tensor in networks.values()]
    apart = [((a - b) ** 2).sum() / B for a, b in itertools.combinations(outputs, 2)]
    torch.testing.assert_close(losses["match"], sum(apart) / 2)
    own = [F.cross_entropy(output, target) for output in outputs]
    names = ["cross_entropy", "companion_cross_entropy", "third_cross_entropy"]
    torch.testing.assert_close([losses[name] for name in names], own)
    torch.testing.assert_close(losses["loss"], sum(own) + 0.3 * sum(apart) / 2)
    pull = [gradient(0.3 * part, base) for part in apart[:2]]
    expected = gradient(own[0], base) + sum(pull) / 2
    torch.testing.assert_close(gradient(losses["loss"], base), expected)


def test_an_objective_of_two_refuses_a_third(logits):
    base, twin, target = logits
    with pytest.raises(ValueError, match=r"companion=twin, third: TwinAugmentation compares the base with 1 of them"):
        TwinAugmentation()({"base": base, "twin": twin, "third": twin}, Batch(None, target))


def test_a_companions_parts_are_named_after_it(logits):
    base, twin, target = logits
    losses = MutualLearning()({"base": base, "peer": twin}, Batch(None, target))
    assert list(losses) == ["loss", "cross_entropy", "peer_cross_entropy", "match"]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_hintons(logits, temperature):
    base, teacher, target = logits
    divergence = F.kl_div(
        F.log_softmax(base.mean(0) / temperature, -1),
        F.softmax(teacher.mean(0) / temperature, -1),
        reduction="batchmean",
    )
    expected = 0.3 * F.cross_entropy(base.mean(0), target) + 0.7 * temperature**2 * divergence
    losses = call(Distillation(temperature=temperature, alpha=0.7), base, teacher, target)
    torch.testing.assert_close(losses["loss"], expected)
    assert not gradient(losses["loss"], teacher).any()


def test_distillation_by_squared_error(logits):
    base, teacher, target = logits
    match = F.mse_loss(base.mean(0), teacher.mean(0), reduction="sum") / B
    expected = 0.5 * F.cross_entropy(base.mean(0), target) + 0.5 * match
    torch.testing.assert_close(call(Distillation(match="squared_error"), base, teacher, target)["loss"], expected)


def test_mutual_learning_is_two_cross_entropies_and_two_divergences(logits):
    base, peer, target = logits
    log_base, log_peer = base.mean(0).log_softmax(-1), peer.mean(0).log_softmax(-1)
    expected = (
        F.cross_entropy(base.mean(0), target)
        + F.cross_entropy(peer.mean(0), target)
        + F.kl_div(log_base, log_peer, reduction="batchmean", log_target=True)
        + F.kl_div(log_peer, log_base, reduction="batchmean", log_target=True)
    )
    losses = call(MutualLearning(), base, peer, target)
    torch.testing.assert_close(losses["loss"], expected)
    for tensor in (base, peer):
        torch.testing.assert_close(gradient(losses["loss"], tensor), gradient(expected, tensor))


@given(scale=st.floats(1e-3, 1e4), weight=st.floats(0, 10))
@settings(deadline=None, max_examples=25)
def test_half_precision_logits_are_compared_in_float32(scale, weight):
    base = (scale * torch.linspace(-1, 1, B * K).reshape(1, B, K)).bfloat16()
    twin = base.flip(-1)
    match = call(TwinAugmentation(match_weight=weight), base, twin, torch.zeros(B, dtype=torch.int64))["match"]
    assert match.dtype == torch.float32
    torch.testing.assert_close(match, F.mse_loss(base[0].float(), twin[0].float(), reduction="sum") / B)


@pytest.mark.parametrize("objective", [TwinAugmentation(), Distillation(), MutualLearning(), Cohort()])
def test_a_missing_companion_is_an_error(logits, objective):
    with pytest.raises(ValueError, match=f"companion=None: {type(objective).__name__}"):
        call(objective, logits[0], None, logits[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwinAugmentation(match_weight=-1.0), r"match_weight=-1.0: must be at least 0"),
        (lambda: TwinAugmentation(match_weight=float("nan")), r"match_weight=nan: must be at least 0"),
        (lambda: TwinAugmentation(match="l1"), r"match='l1': allowed are squared_error, kl"),
        (lambda: Distillation(temperature=0), r"temperature=0: must be above 0"),
        (lambda: Distillation(alpha=1.5), r"alpha=1.5: must lie in \[0, 1\]"),
        (lambda: Cohort(match_weight=-1.0), r"match_weight=-1.0: must be at least 0"),
        (lambda: MutualLearning(match_weight=-0.1), r"match_weight=-0.1: must be at least 0"),
        (lambda: Plain(label_smoothing=1.0), r"label_smoothing=1.0: must lie in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_and_ignored_labels_are_torchs(per_step, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 8, 4, generator=generator), torch.arange(8) % 4
    weights = (0.5, 2.0, 0.0, 1.0)
    settings = {"label_smoothing": smoothing, "per_step_cross_entropy": per_step}
    steps = logits if per_step else logits.mean(0, keepdim=True)

    def by_torch(target, samples, **torchs):
        losses = [F.cross_entropy(step, target, label_smoothing=smoothing, reduction="sum", **torchs) for step in steps]
        return sum(losses) / len(losses) / samples

    def ours(target, weight=None, **more):
        return Plain(**settings, **more)({"base": logits}, Batch(logits[0], target, weight=weight))["loss"]

    weighted = by_torch(target, 8, weight=torch.tensor(weights))
    torch.testing.assert_close(ours(target, class_weights=list(weights)), weighted)
    soft = F.one_hot(target, 4).float()
    torch.testing.assert_close(ours(soft, class_weights=weights, ignore_index=-1), weighted)
    with pytest.raises(ValueError, match=r"^ignore_index=3: is a class here, and labels are class probabilities"):
        ours(soft, ignore_index=3)
    some = target.where(target != 1, -1)
    torch.testing.assert_close(ours(some, ignore_index=-1), by_torch(some, 6, ignore_index=-1))
    torch.testing.assert_close(ours(some, torch.full((8,), 0.5), ignore_index=-1), ours(some, ignore_index=-1) / 2)
    torch.testing.assert_close(ours(target, ignore_index=-1), ours(target))
    assert ours(torch.full((8,), -1), ignore_index=-1) == 0


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1, float("inf")]])
def test_class_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match=r"^class_weights=.*must be finite numbers of 0 or more, not all 0"):
        Plain(class_weights=weights)
