"""Hostile files and hostile weights: every bit of a packed file, sizes that are not believed, every quantiser."""

import pytest
import torch
from torch import nn

from tna_lightning.models import build
from tna_lightning.quantization import (
    Binary,
    Ternary,
    TernaryAbsmean,
    TernaryTTQ,
    Uniform,
    load_packed,
    quantize_network,
    save_network,
)
from tna_lightning.quantization.packing import read_packed, write_packed

SPEC = {
    "model": {"_target_": "tna_lightning.models.convnet", "width": 0.03, "time_steps": 2},
    "neuron": {"_target_": "tna_lightning.models.LIF"},
    "in_channels": 1,
    "num_classes": 2,
}


@pytest.fixture
def packed(tmp_path):
    network = build(SPEC)
    quantize_network(network, Ternary())
    save_network(tmp_path / "packed", network, SPEC)
    return tmp_path / "packed"


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_bit_of_a_packed_file_counts(every, tmp_path):
    path, network = tmp_path / "packed", nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    quantize_network(network, Ternary())
    save_network(path, network, inputs={"time_steps": 2})
    content = path.read_bytes()
    read_packed(path)
    cut = [content[:length] for length in range(0, len(content), 97)]
    flipped = []
    for bit in range(0, 8 * len(content), every):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(changed))
    assert len(flipped) > 500
    for changed in (*cut, content + b"\0", *flipped):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"^path="):
            read_packed(path)


@pytest.mark.parametrize(
    "sizes", [{"width": 100}, {"width": 1e4}, {"width": 100, "_target_": "tna_lightning.models.resnet20"}]
)
def test_a_file_takes_no_more_memory_than_it_fills(packed, sizes, monkeypatch):
    tensors, header = read_packed(packed)
    del header["sha256"]
    write_packed(packed, tensors, header | {"spec": SPEC | {"model": SPEC["model"] | sizes}})
    largest, empty = 0, torch.empty

    def watched(*size, **settings):
        nonlocal largest
        made = empty(*size, **settings)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(
        ValueError, match=r"no network can be built from its spec \(it is far larger than what the file holds"
    ):
        load_packed(packed)
    assert largest < 2**23


def hostile_weights():
    """Zeros, denormals, smallest and largest numbers, ties at thresholds and half steps, other dtypes and strides."""
    torch.manual_seed(0)
    normal = torch.randn(4, 3, 3, 3)
    steps = torch.arange(-6, 6).float().repeat(9).reshape(4, 3, 3, 3)
    found = {
        "normal": normal,
        "zeros": torch.zeros(4, 3, 3, 3),
        "minus zeros": -torch.zeros(4, 3, 3, 3),
        "a zero channel": torch.cat([torch.zeros(1, 3, 3, 3), normal[1:]]),
        "denormals": normal * 1e-40,
        "tiny": normal * 1e-38,
        "small": normal * 1e-8,
        "large": normal * 1e30,
        "too large": normal.sign() * 1e37,
        "largest": normal.sign() * torch.finfo(torch.float32).max,
        "equal": torch.full((4, 3, 3, 3), 0.1),
        "ties": 0.7 * torch.ones(4, 3, 3, 3) * normal.sign(),
        "half steps": steps / 2,
        "one large": torch.cat([torch.full((1, 3, 3, 3), 1e-6), torch.full((3, 3, 3, 3), 1e6)]).roll(1, 1),
        "permuted": normal.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "channels last": normal.to(memory_format=torch.channels_last),
    }
    for name, dtype in {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}.items():
        found[name] = normal.to(dtype)
        found[f"large {name}"] = (normal * 1e4).to(dtype)
    return found


QUANTISERS = [
    quantizer
    for per in ("channel", "layer")
    for quantizer in (
        Ternary(per=per),
        TernaryTTQ(per=per),
        TernaryAbsmean(per=per),
        Binary(per=per),
        *(Uniform(bits, scale, per=per) for bits in (2, 3, 8) for scale in ("max", "learned")),
    )
]


def test_what_is_packed_is_what_is_deployed_or_is_refused_by_layer(tmp_path):
    num_refused = 0
    for name, weight in hostile_weights().items():
        for quantizer in QUANTISERS:
            network, other = (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)) for _ in range(2))
            network[0].weight = nn.Parameter(weight.clone())
            other.to(weight.dtype)
            quantize_network(network, quantizer)
            deployed = network.eval()[0].weight.detach()
            case = f"{name}, {quantizer.name}, {quantizer!r}"
            if not deployed.isfinite().all():
                with pytest.raises(ValueError, match=r"^0.weight: (its scale .* must be finite|holds .* infinite)"):
                    save_network(tmp_path / "packed", network)
                num_refused += 1
                continue
            save_network(tmp_path / "packed", network)
            kept = load_packed(tmp_path / "packed", other)[0].weight
            assert torch.equal(kept, deployed), case
            assert kept.dtype == deployed.dtype, case
    assert 0 < num_refused < 40  # sums that overflow: large numbers alone


def test_inputs_of_whole_numbers_are_refused_in_a_line(packed):
    network = load_packed(packed)
    with pytest.raises(
        ValueError, match=r"^x of torch.uint8: must be floating-point numbers, normalised as in training"
    ):
        network(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert network(torch.zeros(1, 1, 8, 8)).shape == (2, 1, 2)
