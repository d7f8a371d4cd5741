"""Quantisers against the formulas of the papers, written once more in numpy without looking."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tna_lightning.quantization import Binary, Ternary, TernaryAbsmean, TernaryTTQ, Uniform
from tna_lightning.quantization.codes import alphabet

# magnitudes that training meets, and exact zeros; one layer may mix them all
MAGNITUDES = st.floats(2.0**-20, 2.0**4, width=32) | st.just(0.0)
VALUES = st.builds(lambda magnitude, sign: magnitude * sign, MAGNITUDES, st.sampled_from([-1.0, 1.0]))
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)) | st.tuples(
    st.integers(1, 5), st.integers(1, 9)
)
WEIGHTS = hnp.arrays(np.float32, SHAPES, elements=VALUES).map(torch.from_numpy)
PER = st.sampled_from(["channel", "layer"])

SCHEMES = {
    "ternary": Ternary,
    "ternary_ttq": TernaryTTQ,
    "ternary_absmean": TernaryAbsmean,
    "binary": Binary,
    **{f"int{bits}": lambda per, bits=bits: Uniform(bits, per=per) for bits in (2, 3, 4, 8)},
    **{f"int{bits}_lsq": lambda per, bits=bits: Uniform(bits, scale="learned", per=per) for bits in (2, 3, 4, 8)},
}


def groups(array, per):
    return list(array) if per == "channel" else [array]


def numpy_reference(scheme, weights, **settings_):
    """Codes and scale of one group of weights, in float64."""
    w = weights.astype(np.float64)
    if scheme == "ternary":
        delta = settings_["threshold"] * np.mean(np.abs(w))
        codes = np.where(w > delta, 1, np.where(w < -delta, -1, 0))
        return codes, np.abs(w)[codes != 0].mean() if (codes != 0).any() else 0.0
    if scheme == "ternary_absmean":
        gamma = np.mean(np.abs(w))
        return np.clip(np.round(w / (gamma + 1e-30)), -1, 1), gamma
    if scheme == "binary":
        return np.where(w < 0, -1, 1), np.mean(np.abs(w))
    limit = 2 ** (settings_["bits"] - 1) - 1
    step = settings_.get("step", np.max(np.abs(w)) / limit)
    return (np.clip(np.round(w / step), -limit, limit) if step > 0 else np.zeros_like(w)), step


@given(
    weight=WEIGHTS, per=PER, scheme=st.sampled_from(["ternary", "ternary_absmean", "binary", "int2", "int4", "int8"])
)
@settings(deadline=None)
def test_encode_follows_the_formula(weight, per, scheme):
    given_settings = (
        {"threshold": 0.7} if scheme == "ternary" else {"bits": int(scheme[3:])} if scheme.startswith("int") else {}
    )
    codes, scale = SCHEMES[scheme](per=per).encode(weight)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert scale.shape == (weight.shape[0] if per == "channel" else 1, *[1] * (weight.ndim - 1))
    for ours, our_scale, group in zip(
        groups(codes.numpy(), per), scale.flatten(), groups(weight.numpy(), per), strict=True
    ):
        expected, expected_scale = numpy_reference(scheme, group, **given_settings)
        # a weight that lies on a threshold to within float32's rounding may fall on either side
        is_on_edge = _is_on_edge(scheme, group, **given_settings)
        assert np.array_equal(ours[~is_on_edge], expected[~is_on_edge])
        if not is_on_edge.any():
            assert math.isclose(our_scale, expected_scale, rel_tol=2e-6)


def _is_on_edge(scheme, weights, **settings_):
    w = np.abs(weights.astype(np.float64))
    if scheme == "binary":
        return np.zeros(w.shape, dtype=bool)
    if scheme == "ternary":
        return np.isclose(w, settings_["threshold"] * w.mean(), rtol=1e-6, atol=0)
    if scheme == "ternary_absmean":
        return np.isclose(w, w.mean() / 2, rtol=1e-6, atol=0)
    ratio = w / max(w.max() / (2 ** (settings_["bits"] - 1) - 1), 1e-30)
    return np.abs(ratio - np.floor(ratio) - 0.5) < 1e-4


@given(weight=WEIGHTS, per=PER, scheme=st.sampled_from(sorted(SCHEMES)))
@settings(deadline=None, max_examples=300)
def test_quantising_twice_is_quantising_once(weight, per, scheme):
    quantizer = SCHEMES[scheme](per=per).for_weight(weight)
    codes = quantizer.encode(weight)
    assert set(codes.values.flatten().tolist()) <= set(alphabet(quantizer.bits))
    once = codes.weight
    again = quantizer.encode(once)
    is_lost = once == 0 if scheme == "binary" else torch.zeros_like(once, dtype=torch.bool)  # -1 times a scale of 0
    assert torch.equal(again.values[~is_lost], codes.values[~is_lost])
    if scheme == "ternary_absmean":  # its scale is a mean over the zeros too
        return
    if scheme in ("int3", "int4", "int8"):
        torch.testing.assert_close(again.weight, once, rtol=3e-7, atol=0)
    else:
        assert torch.equal(again.weight, once)


@given(weight=WEIGHTS, per=PER, scheme=st.sampled_from(sorted(SCHEMES)))
@settings(deadline=None)
def test_forward_is_decode_of_encode_to_the_bit(weight, per, scheme):
    quantizer = SCHEMES[scheme](per=per).for_weight(weight)
    forward = quantizer(weight)
    assert forward.shape == weight.shape
    assert torch.equal(forward, quantizer.encode(weight).weight)


@pytest.mark.parametrize("scheme", ["ternary", "ternary_ttq", "ternary_absmean", "binary", "int2", "int4", "int4_lsq"])
def test_bfloat16_keeps_its_dtype_and_its_codes(scheme):
    weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantizer = SCHEMES[scheme](per="channel").for_weight(weight)
    codes, scale = quantizer.encode(weight)
    assert scale.dtype == quantizer(weight).dtype == torch.bfloat16
    assert torch.equal(quantizer.encode(quantizer.encode(weight).weight).values, codes)
    from_float, _ = SCHEMES[scheme](per="channel").for_weight(weight.float()).encode(weight.float())
    assert (codes == from_float).float().mean() > 0.99  # an LSQ step rounded to bfloat16 moves an edge a little


def test_shares_of_zeros_of_gaussian_weights():
    weight = torch.randn(4, 100_000, generator=torch.Generator().manual_seed(1))

    def zeros(quantizer):
        return (quantizer.encode(weight).values == 0).float().mean().item()

    # P(|x| < t * sqrt(2 / pi)) of a standard normal x
    assert zeros(Ternary(0.7)) == pytest.approx(math.erf(0.7 / math.sqrt(math.pi)), abs=3e-3)
    assert zeros(TernaryAbsmean()) == pytest.approx(math.erf(0.5 / math.sqrt(math.pi)), abs=3e-3)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(scheme, value):
    weight = torch.ones(2, 3)
    weight[1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        SCHEMES[scheme](per="layer").encode(weight)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Ternary(threshold=-0.1), "threshold=-0.1"),
        (lambda: Ternary(threshold=math.nan), "threshold=nan"),
        (lambda: TernaryTTQ(threshold=1.0), "threshold=1.0"),
        (lambda: Binary(per="filter"), "per='filter'"),
        (lambda: Uniform(1), "bits=1"),
        (lambda: Uniform(9), "bits=9"),
        (lambda: Uniform(4, scale="lsq"), "scale='lsq'"),
    ],
)
def test_settings_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}: must "):
        make()


# ---- gradients -------------------------------------------------------------------------------------------------------


def backward(quantizer, weight, grad):
    weight = weight.clone().requires_grad_()
    quantizer(weight).backward(grad)
    return weight.grad


@pytest.fixture
def weight_and_grad():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 4, 2, 2, generator=generator), torch.randn(3, 4, 2, 2, generator=generator)


@pytest.mark.parametrize("scheme", ["ternary", "ternary_absmean", "binary", "int2", "int8"])
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_straight_through_gradient_is_the_gradient(scheme, per, weight_and_grad):
    weight, grad = weight_and_grad
    assert torch.equal(backward(SCHEMES[scheme](per=per), weight, grad), grad)


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_ttq_gradients(per, weight_and_grad):
    weight, grad = weight_and_grad
    quantizer = TernaryTTQ(threshold=0.3, per=per).for_weight(weight)
    assert quantizer.scale.tolist() == [[[1.0]] * (3 if per == "channel" else 1)] * 2
    scales = torch.rand_like(quantizer.scale) + 0.5
    quantizer.scale.data.copy_(scales)
    grad_weight = backward(quantizer, weight, grad)

    value = quantizer(weight)
    for index, (w, g, gw, v) in enumerate(
        zip(groups(weight, per), groups(grad, per), groups(grad_weight, per), groups(value, per), strict=True)
    ):
        positive, negative = scales[0, index].item(), scales[1, index].item()
        delta = 0.3 * w.abs().max()
        is_positive, is_negative = w > delta, w < -delta
        assert torch.equal(v, positive * is_positive - negative * is_negative)
        assert torch.equal(
            gw, g * (positive * is_positive + negative * is_negative + 1.0 * ~(is_positive | is_negative))
        )
        assert quantizer.scale.grad[0, index].item() == pytest.approx(g[is_positive].sum().item(), rel=1e-5, abs=1e-6)
        assert quantizer.scale.grad[1, index].item() == pytest.approx(-g[is_negative].sum().item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("per", ["channel", "layer"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_lsq_gradients(per, bits, weight_and_grad):
    weight, grad = weight_and_grad
    quantizer = Uniform(bits, scale="learned", per=per).for_weight(weight)
    limit = 2 ** (bits - 1) - 1
    for index, w in enumerate(groups(weight, per)):
        assert quantizer.scale[index].item() == pytest.approx(2 * w.abs().mean().item() / math.sqrt(limit), rel=1e-6)
    quantizer.scale.data.mul_(0.7)  # so that some weights are clipped
    grad_weight = backward(quantizer, weight, grad)
    for index, (w, g, gw) in enumerate(
        zip(groups(weight, per), groups(grad, per), groups(grad_weight, per), strict=True)
    ):
        # the paper's definition, differentiated by autograd, rounding passed through
        step = quantizer.scale.detach()[index].clone().requires_grad_()
        w = w.clone().requires_grad_()
        clipped = (w / step).clamp(-limit, limit)
        rounded = clipped + (clipped.round() - clipped).detach()
        (rounded * step).backward(g)
        assert torch.allclose(gw, w.grad, rtol=1e-5, atol=1e-6)
        expected = step.grad.item() / math.sqrt(w.numel() * limit)
        assert quantizer.scale.grad[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_learned_step_below_zero_counts_as_its_magnitude():
    weight = torch.tensor([[0.4, -1.1, 0.1]])
    quantizer = Uniform(3, scale="learned").for_weight(weight)
    value = quantizer(weight)
    quantizer.scale.data.neg_()
    assert torch.equal(quantizer(weight), value)
    assert (quantizer.encode(weight).scale > 0).all()


def test_learned_scales_start_anew_from_the_weights():
    quantizer = Uniform(4, scale="learned").for_weight(torch.ones(2, 5))
    before = quantizer.scale.clone()
    quantizer.reset_scale(torch.full((2, 5), 3.0))
    torch.testing.assert_close(quantizer.scale, 3 * before)
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]
    assert list(Ternary().for_weight(torch.ones(2, 5)).parameters()) == []
