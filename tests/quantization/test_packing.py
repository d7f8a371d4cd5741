"""The packed file: the identity on codes, bit-equal logits, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tna_lightning.models import build
from tna_lightning.quantization import (
    Binary,
    Ternary,
    TernaryAbsmean,
    TernaryTTQ,
    Uniform,
    load_packed,
    network_bytes,
    plain_state_dict,
    quantize_network,
    quantized_share,
    save_network,
    weight_report,
)
from tna_lightning.quantization.codes import alphabet
from tna_lightning.quantization.packing import (
    _digest_of_tensors,
    decoded_state,
    pack,
    read_packed,
    unpack,
    write_packed,
)

DATA = Path(__file__).parent / "data"
SCHEMES = {
    "binary": Binary(),
    "ternary": Ternary(),
    "ternary_layer": Ternary(per="layer"),
    "ternary_ttq": TernaryTTQ(),
    "ternary_ttq_channel": TernaryTTQ(per="channel"),
    "ternary_absmean": TernaryAbsmean(),
    **{f"int{bits}": Uniform(bits) for bits in range(2, 9)},
    "int3_lsq": Uniform(3, scale="learned"),
}


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 36, 7),
        nn.Linear(7, 3),
    )


@pytest.fixture
def network():
    return make_network()


@given(data=st.data(), bits=st.integers(1, 8), count=st.integers(0, 70))
@settings(deadline=None)
def test_unpack_of_pack_is_the_identity_on_codes(data, bits, count):
    codes = data.draw(st.lists(st.sampled_from(alphabet(bits)), min_size=count, max_size=count))
    codes = torch.tensor(codes, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == int(np.ceil(count * bits / 8))
    assert torch.equal(unpack(packed, bits, [count]), codes)


def test_the_bits_are_where_the_format_says():
    assert pack(torch.tensor([-1, 0, 1, 1, 0], dtype=torch.int8), 2).tolist() == [0b10_10_01_00, 0b01]
    assert pack(torch.tensor([1, -1, 1], dtype=torch.int8), 1).tolist() == [0b101]
    assert pack(torch.tensor([-3, 3, 0], dtype=torch.int8), 3).tolist() == [0b11_110_000, 0b0]


@pytest.mark.parametrize(("bits", "code"), [(1, 0), (2, 2), (2, -2), (3, 4), (8, -128)])
def test_codes_outside_the_alphabet_are_not_packed(bits, code):
    with pytest.raises(ValueError, match=r"must lie in"):
        pack(torch.tensor([1, code], dtype=torch.int8), bits)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_packed_network_gives_the_logits_of_the_trained_one_to_the_bit(scheme, network, tmp_path):
    quantize_network(network, SCHEMES[scheme])
    x = torch.randn(4, 2, 8, 8)
    network(x)  # in training mode: running statistics move away from their start
    network.eval()
    path = tmp_path / "network.safetensors"
    save_network(path, network, metadata={"note": [1, 2]})
    kept = load_packed(path, network=make_network(seed=5))
    assert not kept.training
    assert torch.equal(kept(x), network(x))
    assert {type(module) for module in kept.modules()} == {type(module) for module in make_network().modules()}
    assert read_packed(path)[1]["note"] == [1, 2]
    bits = SCHEMES[scheme].bits
    assert read_packed(path)[0]["0.weight.codes"].numel() == int(np.ceil(90 * bits / 8))


def test_bytes_are_those_of_the_file(network, tmp_path):
    quantize_network(network, Ternary(), skip=["4"])
    save_network(tmp_path / "kept", network)
    sizes = network_bytes(network)
    numbers = 90 + 4 * 5 + 1 + (1260 + 7) + (21 + 3)  # convolution, batch norm and its counter, two linear layers
    assert sizes["float32"] == 4 * numbers
    # codes of 90 and 21 weights at 2 bits, 5 and 3 scales, the rest in float32, the counter in int64
    assert sizes["kept"] == 23 + 6 + 4 * (5 + 3) + 4 * (20 + 1267 + 3) + 8
    assert sizes["kept"] == sum(
        tensor.numel() * tensor.element_size() for tensor in load_file(tmp_path / "kept").values()
    )


def test_report_says_what_is_quantised_by_name_and_share(network):
    quantize_network(network, Ternary(), skip=["4"])
    network[0].parametrizations.weight.original.data.copy_(torch.linspace(-1, 1, 90).reshape(5, 2, 3, 3))
    assert quantized_share(network) == (90 + 21) / 1371
    report = weight_report(network)
    assert [(layer["name"], layer["scheme"]) for layer in report["layers"]] == [
        ("0", "ternary"),
        ("4", "float32"),
        ("5", "ternary"),
    ]
    first = report["layers"][0]
    codes, _ = Ternary().encode(torch.linspace(-1, 1, 90).reshape(5, 2, 3, 3))
    assert first["zeros"] == int((codes == 0).sum())
    assert first["code_shares"] == {str(c): pytest.approx((codes == c).sum().item() / 90) for c in (-1, 0, 1)}
    assert report["bytes"] == 23 + 20 + 5040 + 6 + 12
    assert report["bytes_float32"] == 4 * 1371
    json.dumps(report)


def test_a_kept_network_reports_what_the_trained_one_does(network, tmp_path):
    quantize_network(network, TernaryTTQ(per="channel"), skip=["4"])
    save_network(tmp_path / "kept", network)
    kept = load_packed(tmp_path / "kept", network=make_network())
    assert weight_report(kept) == weight_report(network)
    assert network_bytes(kept) == network_bytes(network)
    save_network(tmp_path / "again", kept)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "kept").read_bytes()


def test_a_kept_network_that_is_trained_on_is_no_longer_quantised(network, tmp_path):
    quantize_network(network, Ternary())
    save_network(tmp_path / "kept", network)
    kept = load_packed(tmp_path / "kept", network=make_network())
    kept[0].weight.data[0, 0, 0, 0] += 0.5
    assert [layer["is_quantized"] for layer in weight_report(kept)["layers"]] == [False, True, True]
    save_network(tmp_path / "again", kept)
    again = load_packed(tmp_path / "again", network=make_network())
    assert torch.equal(again[0].weight, kept[0].weight)


def test_plain_state_fits_the_plain_network(network):
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantize_network(network, TernaryTTQ())
    plain = plain_state_dict(network.state_dict())
    assert plain.keys() == weights.keys()
    assert all(torch.equal(plain[name], weights[name]) for name in weights)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(network, tmp_path):
    quantize_network(network, Ternary())
    path = tmp_path / "network.safetensors"
    save_network(path, network)
    return path


def refusal(path, network=None):
    with pytest.raises(ValueError, match=r"^path='") as error:
        load_packed(path, network=network)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(packed, size):
    content = packed.read_bytes()
    packed.write_bytes(content[:size])
    assert "cut short" in refusal(packed)


def test_a_wrong_magic_is_refused(packed):
    save_file({"a": torch.zeros(2)}, packed, {"format": "pt"})
    assert "not a packed network, its header has no tna_lightning.packed" in refusal(packed)
    packed.write_bytes(b"\x80\x04" + bytes(200))
    assert "not a packed network" in refusal(packed)


@pytest.mark.parametrize("position", [-1, -40, -200])
def test_a_flipped_bit_is_refused(packed, position):
    content = bytearray(packed.read_bytes())
    content[position] ^= 1
    packed.write_bytes(content)
    assert "damaged" in refusal(packed, make_network())


def test_names_of_the_format_are_not_given_away(packed, network):
    before = packed.read_bytes()
    with pytest.raises(ValueError, match=r"^metadata=\['layers', 'version'\]: must have other names"):
        save_network(packed, network, metadata={"version": 7, "layers": {}})
    assert packed.read_bytes() == before


@pytest.mark.parametrize("file", ["format1", "format1_folded"])
def test_files_of_version_1_are_read_as_they_were(file, tmp_path):
    """Written and decoded by the code of commit 95ada24: a layer of each scheme, and each with batch norm folded."""
    path = DATA / f"{file}.safetensors"
    state, kept, metadata = decoded_state(path)
    assert metadata["version"] == 1
    expected = load_file(DATA / "format1_decoded.safetensors")
    expected = {name.partition("/")[2]: value for name, value in expected.items() if name.startswith(f"{file}/")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    axes = {
        name.removesuffix(".weight"): None if codes.scale is None else codes.scale_axes for name, codes in kept.items()
    }
    if file == "format1_folded":
        assert axes == {"0.0": None, "1.0": None, "2.0": ("sign", "channel"), "3.0": None, "4.0": None}
        network = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), nn.BatchNorm2d(2)) for _ in range(6)))
    else:
        by_layer = {"ternary_layer": (), "int4_layer": (), "ternary_ttq": ("sign",)}
        by_layer |= {"ternary_ttq_channel": ("sign", "channel"), "conv": ("sign", "channel")}
        assert axes == {name: by_layer.get(name, ("channel",)) for name in axes}
        assert len(axes) == 18
        network = nn.ModuleDict({name: nn.Linear(5, 3) for name in axes})
        network["conv"], network["conv1d"] = nn.Conv2d(2, 3, 3), nn.Conv1d(2, 3, 2)
        network["one_channel"], network["plain"] = nn.Linear(4, 1), nn.Linear(2, 2)
    # and are the same once written anew
    save_network(tmp_path / "again", load_packed(path, network))
    tensors, metadata = read_packed(tmp_path / "again")
    assert metadata["version"] == 3
    before = load_file(path)
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_a_file_says_what_its_network_expects(packed, network):
    assert set(read_packed(packed)[1]["inputs"].values()) == {None}
    inputs = {"kind": "events", "shape": [2, 8, 8], "mean": (0.1, 0.2), "std": [1, 0.5], "class_names": ["a", "b"]}
    inputs["framing"] = {"sensor": [16, 8], "slicing": "count"}
    save_network(packed, network, inputs=inputs)
    known = inputs | {"mean": [0.1, 0.2], "time_steps": None}
    assert read_packed(packed)[1]["inputs"] == known
    for name, value in {
        "kind": "sound",
        "shape": [8, 8],
        "mean": [0.1],
        "std": [1.0, 0.0],
        "class_names": "ab",
        "time_steps": 0,
        "framing": {"sensor": [16], "slicing": "count"},
        "pixels": 64,
    }.items():
        with pytest.raises(ValueError, match=rf"^inputs.*{name}"):
            save_network(packed, network, inputs=inputs | {name: value})
        rewrite(packed, inputs=known | {name: value})
        assert name in refusal(packed, make_network())
        save_network(packed, network)
    for value in (None, [], "x"):
        rewrite(packed, inputs=value)
        assert f"inputs={value!r}" in refusal(packed, make_network())
        save_network(packed, network)


def rewrite(path, tensors=None, **metadata):
    """As somebody would who makes such a file by hand, its digest included."""
    old_tensors, old = read_packed(path)
    del old["sha256"]
    write_packed(path, old_tensors | (tensors or {}), old | metadata)


def test_a_newer_version_is_refused(packed):
    rewrite(packed, version=4)
    assert "newer version (format 4; this one reads up to 3)" in refusal(packed)


def test_a_file_of_version_2_is_read_and_its_digest_is_that_of_its_tensors(packed, network):
    tensors, header = read_packed(packed)
    header |= {"version": 2}
    for digest, is_right in ((_digest_of_tensors(tensors), True), (None, True), ("0" * 64, False)):
        header = {name: value for name, value in header.items() if name != "sha256"}
        header |= {} if digest is None else {"sha256": digest}
        save_file(tensors, packed, {"tna_lightning.packed": json.dumps(header)})
        if is_right:
            x = torch.randn(2, 2, 8, 8)
            assert torch.equal(load_packed(packed, make_network())(x), network.eval()(x))
        else:
            assert "its tensors are not those that were written" in refusal(packed, make_network())


def test_codes_outside_the_alphabet_are_refused(packed):
    codes = read_packed(packed)[0]["0.weight.codes"]
    codes[3] |= 0b11
    rewrite(packed, {"0.weight.codes": codes})
    assert "0.weight: code 2: must lie in -1 .. 1" in refusal(packed)


def test_damaged_entries_are_refused(packed):
    rewrite(packed, {"0.weight.codes": torch.zeros(3, dtype=torch.uint8)})
    assert "0.weight: 3 bytes" in refusal(packed)
    layers = read_packed(packed)[1]["layers"]
    rewrite(packed, layers={"1.weight": layers["0.weight"]})
    assert "1.weight.codes" in refusal(packed)


@pytest.mark.parametrize(
    ("entry", "values", "words"),
    [
        ("bits", [0, 9, "2", True, 1.5], "bits="),
        ("shape", [[5, 2, 9], [5, 18], 90, None, [], [-1, -90], [5, 2, 3, 3.0], [0, 2, 3, 3], [True, 90]], "shape"),
        ("axes", [[], ["step"], ["channel", "step"], "channel", None, [["channel"]], ["time", "channel"]], "axes="),
        ("scale_axes", [[], ["step", "channel"], ["channel", "sign"], ["sign"], "channel", {}, 0, [[]]], "scale"),
        ("scale_axes", [None], "scale_axes=None"),
        ("encoding", ["runs", None, 0], "encoding="),
        ("scheme", [None, 2], "scheme="),
    ],
)
def test_an_entry_of_the_header_is_not_believed(packed, entry, values, words):
    layers = read_packed(packed)[1]["layers"]
    for value in values:
        rewrite(packed, layers=layers | {"0.weight": layers["0.weight"] | {entry: value}})
        assert words in refusal(packed, make_network())
    rewrite(packed, layers=layers | {"0.weight": {k: v for k, v in layers["0.weight"].items() if k != entry}})
    assert entry in refusal(packed, make_network())
    # codes that differ by step, where no weight meets time
    as_steps = {"shape": [5, 2, 9], "axes": ["step", "channel"], "scale_axes": ["step"]}
    rewrite(
        packed, {"0.weight.scale": torch.ones(5, 1, 1)}, layers={**layers, "0.weight": layers["0.weight"] | as_steps}
    )
    assert "0: its weight differs by time step" in refusal(packed, make_network())


@pytest.mark.parametrize("version", ["1", None, 0, -1, True, [1]])
def test_a_version_that_is_none_is_refused(packed, version):
    rewrite(packed, version=version)
    assert f"damaged, its version is {version!r}" in refusal(packed)


BROKEN = {
    "model": {"_target_": "tna_lightning.models.convnet", "width": 1e30},
    "neuron": {"_target_": "torch.nn.ReLU"},
    "in_channels": 1,
    "num_classes": 10,
}


@pytest.mark.parametrize("spec", ["x", 3, BROKEN, {"model": {}}, {"model": {"_target_": "x"}, "neuron": {}}])
def test_a_spec_of_no_network_is_refused(packed, spec):
    rewrite(packed, spec=spec)
    with pytest.raises(ValueError, match=r"^path=.*: no network can be built from its spec"):
        load_packed(packed)


def test_scales_that_are_none_are_refused(packed):
    tensors, metadata = read_packed(packed)
    scale = tensors["0.weight.scale"]
    for damaged in (scale * float("nan"), scale.int(), scale.flatten()[:-1]):
        rewrite(packed, {"0.weight.scale": damaged})
        assert "0.weight" in refusal(packed) or "damaged" in refusal(packed)
    for shape in ((1, 5, 1, 1, 1), (5,), (3, 5, 1, 1, 1), (1, 2, 1, 1)):
        rewrite(packed, {"0.weight.scale": torch.ones(shape)})
        assert f"0.weight: its scale has the shape {list(shape)}" in refusal(packed)
    del tensors["0.weight.scale"]
    del metadata["sha256"]
    write_packed(packed, tensors, metadata)
    assert "0.weight: its scale is missing" in refusal(packed)


def test_weights_that_are_not_finite_are_refused(packed):
    tensors, _ = read_packed(packed)
    name, value = next((name, value) for name, value in tensors.items() if name.endswith("running_var"))
    rewrite(packed, {name: value * float("nan")})
    assert f"{name}: holds NaN or infinite values" in refusal(packed, make_network())


def test_a_network_of_ones_own_has_to_be_passed_and_has_to_fit(packed):
    assert "network=..." in refusal(packed)
    assert "size mismatch for 0.weight" in refusal(
        packed, nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), *make_network()[1:])
    )


def test_an_extra_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    class Gain(nn.Linear):
        def get_extra_state(self):
            return {"gain": 3.0}

    network = nn.Sequential(Gain(4, 2))
    with pytest.raises(ValueError, match=r"^0._extra_state: is a dict; a packed file holds tensors alone"):
        save_network(tmp_path / "kept.safetensors", network)
    assert network_bytes(network) == {"float32": 40, "kept": 40}
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path='.*none\.safetensors': there is no such file"):
        load_packed(tmp_path / "none.safetensors")


def test_nothing_is_left_of_a_save_that_fails(packed, network):
    before = packed.read_bytes()
    network[0].parametrizations.weight.original.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        save_network(packed, network)
    with pytest.raises(TypeError):
        save_network(packed, make_network(), metadata={"mine": object()})
    assert packed.read_bytes() == before
    assert list(packed.parent.iterdir()) == [packed]


def test_a_network_of_ours_is_rebuilt_from_the_file_alone(tmp_path):
    spec = {
        "model": {"_target_": "tna_lightning.models.resnet20", "width": 0.5, "time_steps": 2},
        "neuron": {"_target_": "tna_lightning.models.LIF", "reset": "subtract", "learn_beta": True},
        "in_channels": 3,
        "num_classes": 5,
    }
    torch.manual_seed(0)
    network = build(spec)
    quantize_network(network, Ternary(), skip=["stem"])
    x = torch.randn(2, 3, 12, 12)
    network(x)
    save_network(tmp_path / "network.safetensors", network.eval(), spec)
    assert torch.equal(load_packed(tmp_path / "network.safetensors")(x), network(x))
    assert network(x).std() > 0
