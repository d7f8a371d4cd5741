"""A reader written from docs/packed_format.md alone, in numpy, json and safetensors, gives the logits."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from tna_lightning.models import build
from tna_lightning.quantization import Binary, Ternary, TernaryTTQ, Uniform, load_packed, quantize_network, save_network
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.quantization.quantizers import Quantizer, twn

PLANS = {
    "convnet": "64 pool 64 pool",
    "vgg11": "pool 128 pool 256 256 pool 512 512 pool 512 512 pool",
    "vgg16": "64 pool 128 128 pool 256 256 256 pool 512 512 512 pool 512 512 512 pool",
    "vggsnn": "128 pool 256 256 pool 512 512 pool 512 512 pool",
}
BLOCKS = {"resnet8": (1, 1, 1), "resnet20": (3, 3, 3), "resnet18": (2, 2, 2, 2), "resnet19": (3, 3, 2)}
NUMBERS = {"F32": "<f4", "U8": "u1", "I64": "<i8"}


class Reader:
    """Everything from the file's bytes."""

    def __init__(self, path):
        content = Path(path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + size])
        self.header = json.loads(entries.pop("__metadata__")["tna_lightning.packed"])
        assert self.header["version"] in (2, 3)
        self.tensors = {}
        for name, entry in entries.items():
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            self.tensors[name] = np.frombuffer(content[start:end], NUMBERS[entry["dtype"]]).reshape(entry["shape"])
        digest = self.header["sha256"]
        if self.header["version"] == 2:
            content = b"".join(self.tensors[name].tobytes() for name in sorted(self.tensors))
        else:
            content = content.replace(digest.encode(), b"0" * 64)
        assert hashlib.sha256(content).hexdigest() == digest
        for name, layer in self.header["layers"].items():
            self.tensors[name] = self.weight(name, layer)

    def weight(self, name, layer):
        assert layer["encoding"] == "values"
        bits, count = layer["bits"], int(np.prod(layer["shape"]))
        string = [byte >> position & 1 for byte in self.tensors.pop(f"{name}.codes").tolist() for position in range(8)]
        ranks = [sum(string[i * bits + k] << k for k in range(bits)) for i in range(count)]
        codes = np.array([2 * rank - 1 if bits == 1 else rank - (2 ** (bits - 1) - 1) for rank in ranks])
        codes = codes.reshape(layer["shape"]).astype(np.float32)
        if layer["scale_axes"] is None:
            return codes
        scale = self.tensors.pop(f"{name}.scale")
        return codes * (np.where(codes > 0, scale[0], scale[1]) if "sign" in layer["scale_axes"] else scale)

    def convolution(self, name, x_TBCHW, stride=1):
        """A convolution and its norm; steps of one entry stand for all."""
        get = self.tensors.get
        weight = get(f"{name}.conv.weight")
        by_step = weight.ndim == 5
        if by_step and len(x_TBCHW) == 1:
            x_TBCHW = np.repeat(x_TBCHW, len(weight), 0)
        pad = weight.shape[-1] // 2
        x = np.pad(x_TBCHW, [(0, 0)] * 3 + [(pad, pad)] * 2)
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[-2:], (3, 4))[..., ::stride, ::stride, :, :]
        y = np.einsum("tbchwij,tocij->tbohw" if by_step else "tbchwij,ocij->tbohw", windows, weight, optimize=True)
        channel = (slice(None), None, None)
        if f"{name}.norm.weight" in self.tensors:
            norm = {
                key: get(f"{name}.norm.{key}")[channel] for key in ("running_mean", "running_var", "weight", "bias")
            }
            return (y - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
        if f"{name}.conv.scale" in self.tensors:
            y = y * get(f"{name}.conv.scale")[channel]
        return y + get(f"{name}.conv.bias")[channel]

    def neuron(self, name, current_TBCHW):
        neuron = self.header["spec"]["neuron"]
        if neuron["_target_"] == "torch.nn.ReLU":
            return np.maximum(current_TBCHW, 0)
        reset = neuron.get("reset", "zero")
        beta, threshold = (self.tensors[f"{name}.{key}"].reshape(-1, 1, 1) for key in ("beta", "threshold"))
        beta = np.clip(beta, 0, 1)
        membrane = spikes = np.zeros_like(current_TBCHW[0])
        out = []
        for current in current_TBCHW:
            kept = membrane * (1 - spikes) if reset == "zero" else membrane
            membrane = beta * kept + current - (threshold * spikes if reset == "subtract" else 0)
            spikes = (membrane > threshold).astype(np.float32)
            out.append(spikes)
        return np.stack(out)

    def pool(self, name, x):
        kind = self.header["spec"]["model"].get("pool", "avg" if name in ("convnet", "vggsnn") else "max")
        rows, columns = (range(0, size, 2) for size in x.shape[-2:])
        reduce = np.mean if kind == "avg" else np.max
        return np.stack(
            [np.stack([reduce(x[..., r : r + 2, c : c + 2], (-2, -1)) for c in columns], -1) for r in rows], -2
        )

    def logits(self, x):
        spec = self.header["spec"]
        name = spec["model"]["_target_"].rpartition(".")[2]
        spiking = spec["neuron"]["_target_"] != "torch.nn.ReLU"
        x = x[None] if x.ndim == 4 else np.swapaxes(x, 0, 1)
        static = len(x) == 1
        x = self.convolution("stem", x, spec["model"].get("stem_stride", 1))
        if static and len(x) == 1 and spiking:
            x = np.repeat(x, self.header["inputs"]["time_steps"], 0)
        x, part = self.neuron("body.0", x), 1
        for entry in PLANS.get(name, "").split():
            if entry == "pool":
                x, part = self.pool(name, x), part + 1
            else:
                x, part = self.neuron(f"body.{part + 1}", self.convolution(f"body.{part}", x)), part + 2
        for stage, count in enumerate(BLOCKS.get(name, ())):
            for block in range(count):
                here, stride = f"body.{part}", 2 if stage > 0 and block == 0 else 1
                y = self.neuron(f"{here}.neuron1", self.convolution(f"{here}.conv1", x, stride))
                is_projected = f"{here}.shortcut.conv.weight" in self.tensors
                shortcut = self.convolution(f"{here}.shortcut", x, stride) if is_projected else x
                x = self.neuron(f"{here}.neuron2", self.convolution(f"{here}.conv2", y) + shortcut)
                part += 1
        n, (height, width) = 3 if name == "vggsnn" else 1, x.shape[-2:]
        windows = [[slice(i * size // n, -(-(i + 1) * size // n)) for i in range(n)] for size in (height, width)]
        x = np.stack([np.stack([x[..., r, c].mean((-2, -1)) for c in windows[1]], -1) for r in windows[0]], -2)
        if name == "resnet19":
            x = self.neuron("head.1", self.convolution("head.0", x))
        features = x.reshape(*x.shape[:2], -1)
        return (features @ self.tensors["classifier.weight"].T + self.tensors["classifier.bias"]).mean(0)


class Rising(Quantizer):
    """A threshold that rises from step to step, and a scale for each."""

    name = "rising"
    bits = 2
    scales_by = ("step",)
    time_steps = 3

    def quantize(self, rows):
        codes, scales = zip(*(twn(rows, threshold=0.4 + 0.2 * t) for t in range(self.time_steps)), strict=True)
        return torch.stack(codes), torch.stack(scales)


CASES = [
    ("convnet", Ternary(), {}, {}, False),
    ("convnet", Uniform(3), {}, {"beta": 0.9, "reset": "subtract"}, True),
    ("convnet", None, {"pool": "max"}, {"learn_beta": True, "per": "channel"}, False),
    ("vgg11", Binary(), {}, {}, True),
    ("vggsnn", TernaryTTQ(), {}, {"reset": "none", "beta": 0.25}, False),
    ("resnet8", Uniform(5, per="layer"), {"stem_stride": 2}, {}, False),
    ("resnet8", TernaryTTQ(per="channel"), {}, {"beta": 1.0}, True),
    ("resnet19", Ternary(per="layer"), {}, {"threshold": 0.5}, True),
    ("resnet8", Rising(), {}, {}, False),
    ("convnet", Uniform(8), {}, None, False),
]


@pytest.mark.parametrize(("model", "quantizer", "settings", "neuron", "fold"), CASES)
@pytest.mark.parametrize("events", [False, True])
def test_a_reader_from_the_page_alone_gives_the_logits(model, quantizer, settings, neuron, fold, events, tmp_path):
    torch.manual_seed(0)
    width = {"convnet": 0.25, "resnet8": 0.25}.get(model, 0.02)
    spec = {
        "model": {"_target_": f"tna_lightning.models.{model}", "width": width, "time_steps": 3, **settings},
        "neuron": {"_target_": "torch.nn.ReLU"}
        if neuron is None
        else {"_target_": "tna_lightning.models.LIF", **neuron},
        "inputs": {"channels": 2, "height": 9, "width": 11, "time_steps": 3 if events else None, "num_classes": 4},
    }
    network = build(spec)
    if quantizer is not None:
        quantize_network(network, quantizer, skip=["classifier"] if isinstance(quantizer, Rising) else [])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
    shape = (4, 3, 2, 9, 11) if events else (4, 2, 9, 11)
    network(torch.randn(shape))
    network.eval()
    inputs = {"kind": "events" if events else "images", "shape": [2, 9, 11], "time_steps": 3}
    path = tmp_path / "network.safetensors"
    save_network(path, fold_batch_norm(network) if fold else network, spec, inputs=inputs)

    images = torch.randn(shape)
    with torch.inference_mode():
        expected = load_packed(path)(images).mean(0)
    assert expected.std() > 0.01
    read = Reader(path).logits(images.numpy())
    torch.testing.assert_close(torch.from_numpy(read.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)


def test_the_example_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "packed_format.md").read_text()
    assert "-1, 0, 1, 1, 0 are the bytes `10100100 00000001`" in page
    from tna_lightning.quantization.packing import pack

    assert [f"{byte:08b}" for byte in pack(torch.tensor([-1, 0, 1, 1, 0]), 2).tolist()] == ["10100100", "00000001"]


def test_the_examples_of_the_guide_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = {
        "model": {"_target_": "tna_lightning.models.convnet", "width": 0.25},
        "neuron": {"_target_": "tna_lightning.models.LIF"},
        "inputs": {"channels": 1, "height": 8, "width": 8, "time_steps": None, "num_classes": 3},
    }
    inputs = {"kind": "images", "shape": [1, 8, 8], "mean": [0.5], "std": [0.25], "class_names": ["cat", "dog", "frog"]}
    network = build(spec).eval()
    save_network("network.safetensors", network, spec, inputs=inputs)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    levels = torch.arange(64, dtype=torch.uint8).view(8, 8)
    names = {"picture": Image.fromarray(levels.numpy())}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    torch.testing.assert_close(names["logits"], network((levels.view(1, 1, 8, 8) / 255 - 0.5) / 0.25).mean(0))
    assert names["answer"].name == inputs["class_names"][int(names["logits"].argmax())]
    assert "'mean': [0.3]" in capsys.readouterr().out


def test_the_container_is_as_the_page_says(tmp_path):
    save_network(tmp_path / "file", nn.Linear(3, 2))
    with safe_open(tmp_path / "file", "np") as file:
        assert list(file.metadata()) == ["tna_lightning.packed"]
        read = Reader(tmp_path / "file").tensors
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(read[name], file.get_tensor(name))
