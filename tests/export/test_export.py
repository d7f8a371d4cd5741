"""Exports compute what the kept network computes, or are refused and leave nothing behind."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import nir
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import tna_lightning
import tna_lightning.export.__main__ as door
from tna_lightning import evaluate as evaluate_door
from tna_lightning.data import CIFARDataModule, DigitsDataModule
from tna_lightning.evaluate import evaluate
from tna_lightning.export import (
    ExportMismatch,
    check,
    export,
    export_nir,
    export_onnx,
    export_packed,
    packed,
    spikes_of,
)
from tna_lightning.export.c.program import to_program
from tna_lightning.export.nir_graph import DT, NIRRunner, to_nir, write_nir
from tna_lightning.models import LIF, PerStep, build
from tna_lightning.models.surrogates import Surrogate
from tna_lightning.quantization import Ternary, load_packed, quantize_network, save_network
from tna_lightning.quantization.folding import fold_batch_norm
from tna_lightning.quantization.packing import read_packed
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build_network
from tna_lightning.running.home import options
from tna_lightning.running.record import measured_words


def make_spec(model="convnet", width=0.25, time_steps=3, **neuron):
    return {
        "model": {"_target_": f"tna_lightning.models.{model}", "width": width, "time_steps": time_steps},
        "neuron": {"_target_": "tna_lightning.models.LIF", **neuron},
        "in_channels": 1,
        "num_classes": 10,
    }


def make_network(spec):
    torch.manual_seed(0)
    network = build(spec)
    quantize_network(network, Ternary())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    for _ in range(5):
        network(torch.randn(32, 1, 8, 8))
    return network.eval()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [torch.randn(size, 1, 8, 8) for size in (32, 7)]


# ---- packed ----------------------------------------------------------------------------------------------------------


def test_packed_is_the_network_to_the_bit_and_folded_within_tolerance(tmp_path, batches):
    spec = make_spec("resnet20")
    network = make_network(spec)
    counts = export_packed(network, tmp_path / "plain.safetensors", batches, spec)
    assert counts["images"] == 39
    assert counts["predictions_differing"] == 0
    assert torch.equal(load_packed(tmp_path / "plain.safetensors")(batches[0]), network(batches[0]))
    counts = export_packed(network, tmp_path / "folded.safetensors", batches, spec, fold=True)
    assert counts["spikes"] > 5000
    assert counts["spikes_differing"] <= 1e-4 * counts["spikes"]
    assert not any("norm" in name for name in read_packed(tmp_path / "folded.safetensors")[0])


def test_a_mismatch_is_an_error_and_leaves_no_file(tmp_path, batches, monkeypatch):
    spec = make_spec()
    network = make_network(spec)
    path = tmp_path / "network.safetensors"
    path.write_text("what was there before")

    def damaged(temporary, _):
        loaded = load_packed(temporary)
        loaded.classifier.bias.data[0] += 10
        return loaded

    monkeypatch.setattr("tna_lightning.export.packed.load_packed", damaged)
    with pytest.raises(ExportMismatch, match=r"^logits differ by up to 10 from the network's"):
        export_packed(network, path, batches, spec)
    with pytest.raises(ExportMismatch, match=r"of 39 predictions and 0 of .* spikes differ"):
        export_packed(network, path, batches, spec, fold=True)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_spikes_beyond_the_tolerance_are_a_mismatch(batches):
    network = make_network(make_spec())

    def one_spike_too_many(x):
        logits, spikes = spikes_of(network, x)
        spikes[0] = spikes[0].clone()
        spikes[0].view(-1)[:40] = 1 - spikes[0].view(-1)[:40]
        return logits, spikes

    with pytest.raises(ExportMismatch, match=r"0 of 39 predictions and 80 of"):
        check(network, one_spike_too_many, batches)
    with pytest.raises(ExportMismatch, match="no image"):
        check(network, one_spike_too_many, [])


# ---- ONNX ------------------------------------------------------------------------------------------------------------


INPUTS = {"kind": "images", "shape": [1, 8, 8], "mean": [0.25], "std": [0.5], "class_names": list("abcdefghij")}


@pytest.mark.parametrize(("events", "opset"), [(False, 18), (True, 20)])
def test_onnx_runs_any_batch_with_the_same_logits(events, opset, tmp_path, batches):
    network = make_network(make_spec(width=0.1, time_steps=2))  # still with its quantisers, which are not written
    if events:
        network = fold_batch_norm(network)
        batches = [torch.stack([x, -x], 1) for x in batches]
    path = tmp_path / "network.onnx"
    assert export_onnx(network, path, batches, opset, INPUTS)["images"] == 39

    model = onnx.load(path)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    assert {each.key: json.loads(each.value) for each in model.metadata_props} == {
        "inputs": INPUTS | {"time_steps": None, "framing": None}
    }
    operators = {node.op_type for node in model.graph.node}
    assert operators & {"Sign", "Abs", "ReduceMean"} <= {"ReduceMean"}  # of average pooling, not of a quantiser
    casts = [node for node in model.graph.node if node.op_type == "Cast"]  # those of shapes, which stay whole numbers
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    assert not [node for node in casts if node.attribute[0].i in floats]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[0] == "batch"
    assert session.get_outputs()[0].shape == [2, "batch", 10]
    for size in (1, 2, 5):
        x = batches[0][:size]
        (logits,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(x), rtol=1e-5, atol=1e-5)


def test_opsets_that_cannot_be_are_refused_before_anything_is_written(tmp_path, batches):
    for opset in (17, 99):
        with pytest.raises(ValueError, match=rf"^opset={opset}: must lie in \[18, \d+\]"):
            export_onnx(nn.Flatten(), tmp_path / "network.onnx", batches, opset)
    assert list(tmp_path.iterdir()) == []


def test_onnx_holds_the_decoded_weights_of_a_network_that_is_still_parametrised(tmp_path, batches):
    network = make_network(make_spec(width=0.1, time_steps=2))
    assert "parametrizations" in str(list(network.state_dict()))
    export_onnx(network, tmp_path / "network.onnx", batches)
    graph = onnx.load(tmp_path / "network.onnx").graph
    assert not {"Sign", "Abs", "Round"} & {node.op_type for node in graph.node}  # the quantiser's
    written = [torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer]
    decoded = network.classifier.weight.detach().flatten().sort().values  # in whatever order ONNX has them
    assert any(torch.equal(each.flatten().sort().values, decoded) for each in written)
    assert network.classifier.parametrizations.weight.original.unique().numel() > 3  # which stays as it is


# ---- NIR -------------------------------------------------------------------------------------------------------------


class Layers(nn.Sequential):
    """A network of one's own, its modules in the order of its forward, which shows an image at each of three steps."""

    time_steps = 3

    def __init__(self):
        stem = PerStep(nn.Flatten(), nn.Linear(64, 24, bias=False), nn.BatchNorm1d(24))
        super().__init__(stem, LIF(), PerStep(nn.Linear(24, 10)))

    def forward(self, x):
        return super().forward(x.expand(self.time_steps, *x.shape))


def test_nir_and_folding_take_a_network_of_linear_layers(tmp_path, batches):
    torch.manual_seed(0)
    network = Layers()
    quantize_network(network, Ternary())
    for x in batches:
        network(x)
    network.eval()

    def folded(*arguments):
        return export_packed(*arguments, fold=True, rebuild=Layers)

    for write in (export_nir, folded):
        counts = write(network, tmp_path / write.__name__, batches)
        assert (counts["images"], counts["predictions_differing"]) == (39, 0)
        assert counts["spikes"] > 100
    with pytest.raises(ValueError, match=r"^network: NIR has no node for ModuleDict; a network of one's own must"):
        to_nir(nn.ModuleDict({"stem": network[0]}), (1, 8, 8))


@pytest.mark.parametrize(
    "neuron",
    [{"beta": 0.5}, {"beta": 0.9, "threshold": 0.7}, {"beta": 1.0}, {"beta": 0.0}, {"beta": 1.0, "reset": "subtract"}],
)
def test_nir_gives_the_same_spikes(neuron, tmp_path, batches):
    network = make_network(make_spec("resnet20", **neuron))
    counts = export_nir(network, tmp_path / "network.nir", batches)
    assert counts["images"] == 39
    assert counts["spikes"] > 3000


def test_nir_gives_the_same_spikes_for_events(tmp_path, batches):
    network = make_network(make_spec())
    counts = export_nir(network, tmp_path / "network.nir", [torch.stack([x, -x, x], 1) for x in batches])
    assert counts["spikes"] > 1000


def test_nir_nodes_have_the_parameters_of_the_network(tmp_path, batches):
    network = make_network(make_spec("resnet20", beta=0.75, threshold=0.5))
    folded = fold_batch_norm(network)
    export_nir(network, tmp_path / "network.nir", batches)
    graph = nir.read(tmp_path / "network.nir")
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Input": 1,
        "Conv2d": 21,
        "LIF": 19,
        "AvgPool2d": 1,
        "Flatten": 1,
        "Affine": 1,
        "Output": 1,
    }
    neuron = graph.nodes["body_0"]
    assert neuron.tau.shape == (4, 8, 8)
    assert neuron.tau.min() == neuron.tau.max() == pytest.approx(4 * DT)
    assert neuron.r.max() == pytest.approx(4)
    assert neuron.v_threshold.max() == 0.5
    assert neuron.v_reset.max() == 0
    stem = folded.stem.conv
    weight = torch.from_numpy(graph.nodes["stem_conv"].weight)
    torch.testing.assert_close(weight, (stem.weight * stem.scale.view(-1, 1, 1, 1)).detach())
    # the sum of a block: an identity shortcut adds the spikes themselves, another its convolution
    into = {target: {s for s, t in graph.edges if t == target} for _, target in graph.edges}
    assert into["body_1_neuron2"] == {"body_1_conv2_conv", "body_0"}
    assert into["body_4_neuron2"] == {"body_4_conv2_conv", "body_4_shortcut_conv"}


def test_a_nir_file_says_how_often_it_runs_and_what_it_expects(tmp_path, batches):
    export_nir(make_network(make_spec()), tmp_path / "network.nir", batches, INPUTS)
    metadata = nir.read(tmp_path / "network.nir").metadata
    assert json.loads(metadata.pop("inputs")) == INPUTS | {"time_steps": 3, "framing": None}
    assert metadata == {"dt": DT, "reset": "zero", "time_steps": 3}
    export_nir(make_network(make_spec()), tmp_path / "events.nir", [torch.stack([x] * 5, 1) for x in batches])
    assert nir.read(tmp_path / "events.nir").metadata["time_steps"] == 5


def test_a_soft_reset_is_written_as_the_version_whose_neurons_subtract(tmp_path):
    network = fold_batch_norm(make_network(make_spec(beta=1.0, reset="subtract")))
    write_nir(tmp_path / "network.nir", to_nir(network, (1, 8, 8)))
    assert "take this for a hard reset" in nir.read(tmp_path / "network.nir").metadata["note"]
    with h5py.File(tmp_path / "network.nir") as file:
        assert file["version"][()] == b"1.0.4"
        neuron = file["node/nodes/body_0"]
        assert neuron["type"][()] == b"IF"
        assert "v_reset" not in neuron


def test_runner_follows_nirs_equations(tmp_path):
    shape = (1,)
    values = {"tau": 2 * DT, "r": 3.0, "v_leak": 0.25, "v_threshold": 1.0, "v_reset": 0.125}
    neuron = nir.LIF(**{name: torch.full(shape, value).double().numpy() for name, value in values.items()})
    graph = nir.NIRGraph.from_list(nir.Input({"input": shape}), neuron, nir.Output({"output": shape}))
    nir.write(tmp_path / "one.nir", graph)
    runner = NIRRunner(tmp_path / "one.nir")
    # v = v + (0.25 - v + 3 I) / 2 from 0: 0.875; 1.3125 > 1, so 0.125; then 0.9375; 1.34375 > 1
    current = torch.tensor([0.5, 0.5, 0.5, 0.5]).view(4, 1, 1)
    assert runner(current).flatten().tolist() == [0, 1, 0, 1]
    # 0.125 + (0.25 - 0.125 + 3 * 0.54) / 2 = 0.9975 stays below, where a reset to 0 would give 0.935
    assert runner(torch.tensor([0.5, 0.5, 0.545]).view(3, 1, 1)).flatten().tolist() == [0, 1, 1]


def test_neurons_with_values_per_channel_are_exported(tmp_path, batches):
    network = make_network(make_spec(learn_beta=True, per="channel"))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, LIF):
                module.beta.copy_(torch.linspace(0.2, 0.8, len(module.beta)))
                module.threshold.copy_(torch.linspace(0.5, 1.5, len(module.beta)))
    for write in (export_nir, export_onnx):
        counts = write(network, tmp_path / write.__name__, batches)
        assert (counts["images"], counts["predictions_differing"]) == (39, 0)
    written = nir.read(tmp_path / "export_nir").nodes["body_0"]
    decay = 1 - DT / torch.from_numpy(written.tau)
    torch.testing.assert_close(decay, torch.linspace(0.2, 0.8, 8).double().view(8, 1, 1).expand(8, 8, 8))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (make_spec(reset="subtract"), r"^network.body.0: reset='subtract' with beta < 1 cannot be said in NIR"),
        (make_spec(reset="none"), r"^network.body.0: .* reset='none' cannot be said"),
        (make_spec("vgg11", width=0.05), r"^network.body.1.0: NIR has no node for MaxPool2d"),
        ({**make_spec(), "neuron": {"_target_": "torch.nn.ReLU"}}, r"^network.body.0: NIR has no node for ReLU"),
    ],
)
def test_what_nir_cannot_say_is_a_clear_error(spec, message, tmp_path, batches):
    with pytest.raises(ValueError, match=message):
        export_nir(make_network(spec), tmp_path / "network.nir", batches)
    assert list(tmp_path.iterdir()) == []


def test_pooling_with_a_rest_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, ceil_mode=True))
    with pytest.raises(ValueError, match=r"^network.1: 5 x 5 pixels leave a rest"):
        to_nir(network, (1, 7, 7))
    assert to_nir(network, (1, 8, 8)).nodes["output"].output_type["output"].tolist() == [2, 3, 3]


def test_what_a_sequential_does_otherwise_than_nir_is_refused_and_what_it_does_twice_is_there_twice():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for module, message in (
        (nn.AvgPool2d(2, divisor_override=3), "NIR divides by the size of the window"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "NIR divides by the size of the window"),
        (Doubled(4, 4), "NIR has no node for Doubled, whose forward is its own"),
        (nn.Flatten(0), "NIR has no node for flattening but of a whole sample, here start_dim=2"),
        (nn.Flatten(1, 2), "NIR has no node for flattening but of a whole sample"),
        (nn.Linear(4, 4), r"NIR's Affine takes 4 numbers of a sample, not \(1, 4, 4\); flatten it before"),
    ):
        with pytest.raises(ValueError, match=f"^network.1: {message}"):
            to_nir(nn.Sequential(nn.Conv2d(1, 1, 1), module), (1, 4, 4))
    neuron, linear = LIF(), nn.Linear(4, 4)
    graph = to_nir(nn.Sequential(linear, neuron, linear, neuron), (4,))
    assert [*graph.nodes] == ["input", "0", "1", "2", "3", "output"]
    with pytest.raises(ValueError, match=r"^network.0.0: NIR has no node for flattening .*, here start_dim=1$"):
        to_nir(nn.Sequential(PerStep(nn.Flatten(2))), (1, 4, 4))
    assert to_nir(nn.Sequential(nn.Flatten(2)), (1, 4, 4)).nodes["output"].output_type["output"].tolist() == [16]
    assert to_nir(nn.Sequential(PerStep(nn.Flatten())), (1, 4, 4)).nodes["output"].output_type["output"].tolist() == [
        16
    ]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused_by_name_where_a_layer_is_written_down(register, tmp_path, batches):
    for name in ("stem.conv", "body.0", ""):
        network = make_network(make_spec())
        getattr(network.get_submodule(name), register)(lambda module, *arguments: None)
        with pytest.raises(ValueError, match=rf"^network{'.' * bool(name)}{name}: NIR has no node for a forward hook"):
            export_nir(network, tmp_path / "network.nir", batches)
        with pytest.raises(ValueError, match=rf"^network{'.' * bool(name)}{name}: there is no C kernel for a forward"):
            to_program(network, (1, 8, 8))
        if name == "stem.conv":
            with pytest.raises(ValueError, match=r"^network: cannot fold stem.norm: it, or the layer before it, has a"):
                fold_batch_norm(network)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [export_nir, export_onnx, save_network])
def test_a_file_does_not_say_another_t_than_its_network_has(write, tmp_path, batches):
    network, inputs = make_network(make_spec()), INPUTS | {"time_steps": 4}
    path = tmp_path / "file"
    arguments = (path, network) if write is save_network else (network, path, batches)
    with pytest.raises(ValueError, match=r"^inputs.time_steps=4: must be 3, as the network"):
        write(*arguments, inputs=inputs)
    assert list(tmp_path.iterdir()) == []


def test_what_the_package_nir_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"^network.0: the package nir does not read convolutions in 2 groups"):
        to_nir(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), (2, 6, 6))


def test_neurons_of_two_kinds_are_refused():
    mixed = nn.Sequential(LIF(beta=1.0), LIF(beta=1.0, reset="subtract"))
    with pytest.raises(ValueError, match=r"^network: some neurons reset to zero and some by subtraction"):
        to_nir(mixed, (2,))
    with pytest.raises(ValueError, match=r"^network.0: some neurons leak and some do not"):
        to_nir(nn.Sequential(LIF(beta=torch.tensor([1.0, 0.5]))), (2,))


# ---- other neurons ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", options("neuron"))
def test_a_network_of_any_neuron_is_packed_and_nir_refuses_those_that_it_cannot_say_by_name(neuron, tmp_path, batches):
    if neuron == "spikingjelly":
        pytest.importorskip("spikingjelly")
    spec = make_spec() | {"neuron": compose([f"neuron={neuron}"])["neuron"]}
    network = make_network(spec)
    assert export_packed(network, tmp_path / "network.safetensors", batches, spec)["predictions_differing"] == 0
    if neuron in ("lif", "plif", "if"):
        assert export_nir(network, tmp_path / "network.nir", batches)["spikes"] > 0
    else:
        kind = type(network.body[0]).__name__
        with pytest.raises(ValueError, match=rf"^network.body.0: NIR has no node for {kind}$"):
            export_nir(network, tmp_path / "network.nir", batches)


OTHERS = ("psn", "masked_psn", "psu", "ipsu", "rpsu", "alif", "ternary_lif", "integer_lif", "snntorch", "quant_relu")


@dataclass(frozen=True)
class Steep(Surrogate):
    """A surrogate of one's own, which a packed file names and must not call."""

    slope: float = 9.0

    def derivative(self, shifted):
        return torch.exp(-self.slope * shifted.square())


def test_a_network_with_a_surrogate_of_ones_own_is_exported_and_rebuilt_by_who_has_it(tmp_path, batches):
    surrogate = {"_target_": f"{__name__}.Steep", "slope": 5.0}
    spec = make_spec() | {"neuron": {"_target_": "tna_lightning.models.LIF", "_partial_": True, "surrogate": surrogate}}
    network = build_network(spec)
    quantize_network(network, Ternary())
    for x in batches:
        network(x)
    network.eval()
    path = tmp_path / "network.safetensors"
    counts = export_packed(network, path, batches, spec, rebuild=lambda: build_network(spec))
    for each in (counts, export_nir(network, tmp_path / "network.nir", batches)):
        assert (each["predictions_differing"], each["spikes_differing"]) == (0, 0)
    assert export_onnx(network, tmp_path / "network.onnx", batches)["predictions_differing"] == 0
    with pytest.raises(
        ValueError, match=r"no network can be built from its spec \(neuron.surrogate._target_='.*Steep'"
    ):
        load_packed(path)
    loaded = load_packed(path, network=build_network(spec))
    assert next(module for module in loaded.modules() if isinstance(module, LIF)).surrogate == Steep(5.0)
    x = torch.cat(list(batches))
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("neuron", ["sliding_psn", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_onnx_computes_any_neuron(neuron, tmp_path, batches):
    spec = make_spec(width=0.1, time_steps=2) | {"neuron": compose([f"neuron={neuron}"])["neuron"]}
    assert export_onnx(make_network(spec), tmp_path / "network.onnx", batches)["predictions_differing"] == 0


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    spec = make_spec()
    data = {"_target_": "tna_lightning.data.DigitsDataModule", "seed": 0}
    return save_run(tmp_path / "run", make_network(spec), spec, data)


def save_run(folder, network, spec, data):
    folder.mkdir()
    save_network(folder / "network.safetensors", network, spec)
    config = {
        "data": data,
        "model": spec["model"],
        "neuron": {**spec["neuron"], "_partial_": True},
        "trainer": {},
    }
    record = {"format": 1, "status": "done", "identity": "0", "config": config, "seed": 0, "results": {}, "weights": {}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("packed", "network-exported.safetensors"),
        ("onnx", "network-exported.onnx"),
        ("nir", "network-exported.nir"),
    ],
)
def test_a_run_is_exported_and_checked_on_its_test_set(format, name, run_folder):
    path, counts = export(run_folder, format, fold=True)
    assert path == run_folder / name
    if format == "packed":
        written = read_packed(path)[1]["inputs"]
    elif format == "onnx":
        written = json.loads(onnx.load(path).metadata_props[0].value)
    else:
        written = json.loads(nir.read(path).metadata["inputs"])
    digits = [str(digit) for digit in range(10)]
    expected = {"kind": "images", "shape": [1, 8, 8], "mean": [0.3051], "std": [0.3758]}
    assert written == expected | {"class_names": digits, "time_steps": 3, "framing": None}
    assert counts["images"] == 360
    assert counts["spikes"] > 10_000 or format == "onnx"  # whose session gives logits alone
    _, counts = export(run_folder, format, num_images=40)
    assert counts["images"] == 40
    assert sorted(file.name for file in run_folder.iterdir()) == sorted([name, "network.safetensors", "run.json"])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_run_as_c_is_a_folder_that_evaluates_as_the_network(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["export", str(run_folder), "--format", "c"])
    record = json.loads((run_folder / "run.json").read_text())
    record["cost"] = {"synaptic_operations": 1234.4, "macs": 56.0}
    (run_folder / "run.json").write_text(json.dumps(record))
    door.main()
    written, checked, measured = capsys.readouterr().out.splitlines()
    folder = run_folder / "network-exported-c"
    assert re.fullmatch(rf"{folder}: [\d,]+ bytes of constant tables, [\d,]+ bytes of RAM", written)
    assert re.fullmatch(r"checked on 360 images: 0 predictions, \d of [\d,]{6,} spikes differ", checked)
    assert "Checked on 360 inputs" in (folder / "network.h").read_text()
    words = measured_words(folder)
    assert re.fullmatch(
        r"[\d.]+ ms an image \(median of \d+ passes, quartiles [\d.]+ to [\d.]+\), one thread of .+", words
    )
    low, high = (float(word) for word in re.search(r"quartiles ([\d.]+) to ([\d.]+)", words).groups())
    assert 0 < low <= float(words.split()[0]) <= high
    assert measured == f"measured: {words}; 1,234 AC, 56 MAC"
    digits = DigitsDataModule(seed=0)
    digits.setup("test")
    ours = load_packed(run_folder / "network.safetensors")
    batch = digits.test_set[range(360)]
    logits = ours(digits.prepare(batch.x)).mean(0).detach()
    loaded = tna_lightning.load_c(folder)
    torch.testing.assert_close(torch.from_numpy(loaded(batch.x.numpy())), logits, rtol=1e-4, atol=1e-5)
    accuracy = float((logits.argmax(1) == batch.target).float().mean())
    record["results"] = {"test/acc": accuracy}  # float32, as torchmetrics gives it
    (run_folder / "run.json").write_text(json.dumps(record))
    assert evaluate(run_folder, c=folder) == {"test/acc": accuracy}
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run_folder), "--c", str(folder)])
    evaluate_door.main()
    _, result, measured = capsys.readouterr().out.splitlines()  # measured again, here and now
    assert result == f"test/acc {accuracy:.2%} (recorded: {accuracy:.2%})"
    assert re.fullmatch(r"measured: [\d.]+ ms an image .*; 1,234 AC, 56 MAC", measured)

    (folder / "mine.txt").write_text("mine")  # replaced as a whole
    monkeypatch.setattr(sys, "argv", ["export", str(run_folder), "--format", "c", "--no-check"])
    monkeypatch.setenv("PATH", "")
    door.main()
    assert capsys.readouterr().out.splitlines()[1:] == ["not checked"]
    assert measured_words(folder) is None
    assert not (folder / "mine.txt").exists()
    monkeypatch.setattr(sys, "argv", ["export", str(run_folder), "--format", "c", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        door.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: needs a C compiler: install gcc or clang, or say which in the environment's CC\n"
    )
    with pytest.raises(ValueError, match=r"^output=.*: is there already; remove it, or name another folder"):
        export(run_folder, "c", folder)
    monkeypatch.setattr(DigitsDataModule, "normalization", None)  # a data module of one's own
    with pytest.raises(ValueError, match=r"^data=DigitsDataModule: must say what it does to uint8 inputs"):
        export(run_folder, "c", tmp_path / "other", is_checked=False)
    with pytest.raises(ValueError, match=r"^no-check: must be left out with format='nir'"):
        export(run_folder, "nir", is_checked=False)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_ternary_resnet_trained_on_files_of_cifar_is_the_same_in_c(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    textures = rng.integers(0, 256, (10, 3, 32, 32))  # one a class, under noise
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for file, count in [*((f"data_batch_{number}", 40) for number in range(1, 6)), ("test_batch", 100)]:
        labels = np.arange(count) % 10
        images = np.clip(0.4 * textures[labels] + rng.normal(80, 50, (count, 3, 32, 32)), 0, 255)
        rows = np.column_stack([labels, images.reshape(count, -1)]).astype(np.uint8)
        (folder / f"{file}.bin").write_bytes(rows.tobytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    node = {"_target_": "tna_lightning.data.CIFARDataModule", "root": str(tmp_path / "data"), "download": False}
    data = CIFARDataModule(root=tmp_path / "data", download=False, batch_size=20, seed=0)
    data.prepare_data()
    data.setup("fit")
    torch.manual_seed(0)
    spec = make_spec("resnet8", width=1.0, time_steps=2) | {"in_channels": 3}
    spec["model"]["stem_stride"] = 2
    network = build(spec)
    quantize_network(network, Ternary())
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for batch in (batch for _ in range(5) for batch in data.train_dataloader()):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data.prepare(batch.x)).mean(0), batch.target).backward()
        optimizer.step()
    save_run(tmp_path / "run", network.eval(), spec, node | {"seed": 0})
    path, counts = export(tmp_path / "run", "c")  # fails above one spike in 10,000 or one prediction in 1,000
    assert (counts["images"], counts["predictions_differing"]) == (100, 0)
    assert counts["spikes"] > 100_000
    assert 10_000 * counts["spikes_differing"] <= counts["spikes"]
    assert evaluate(tmp_path / "run", c=path)["test/acc"] > 0.5


def test_nothing_that_is_there_is_overwritten(run_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused = {
        run_folder / "run.json": "is there already",
        run_folder / "network.safetensors": "is there already",
        tmp_path / "mine.txt": "is there already",
        tmp_path: "is a folder",
        "": "is a folder",
        tmp_path / "mine.txt" / "out": "there is no folder",
        tmp_path / "none" / "out": "there is no folder",
    }
    before = sorted(tmp_path.rglob("*"))
    for output, reason in refused.items():
        with pytest.raises(ValueError, match=rf"^output=.*: {reason}"):
            export(run_folder, "packed", output, num_images=10)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine.txt").read_text() == "mine"
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"^images={count}: must be at least 1"):
            export(run_folder, "packed", num_images=count)
    with pytest.raises(ValueError, match=r"^opset=18: must be left out, format=packed has none"):
        export(run_folder, "packed", opset=18)
    with pytest.raises(ValueError, match=r"^data-root='x': must be left out"):
        export(run_folder, "packed", data_root="x")
    with pytest.raises(ValueError, match=r"^run=.*: no run folder"):
        export(run_folder / "run.json", "packed")


@pytest.mark.parametrize("missing", ["results", "config.data", "config"])
def test_a_record_that_lost_something_is_named(missing, run_folder):
    record = json.loads((run_folder / "run.json").read_text())
    if missing == "config":
        record["config"] = None
    elif missing == "results":
        del record["results"]
    else:
        del record["config"]["data"]
    (run_folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"^run=.*: run.json is damaged.* {missing}"):
        export(run_folder, "packed")


def test_the_command_says_what_it_wrote_or_why_not(run_folder, tmp_path):
    command = [sys.executable, "-m", "tna_lightning.export"]
    options = ["--format", "packed", "--output", str(tmp_path / "out.safetensors"), "--images", "10"]
    done = subprocess.run([*command, str(run_folder), *options], capture_output=True, text=True, check=True)
    size = (tmp_path / "out.safetensors").stat().st_size
    assert done.stdout.splitlines()[0] == f"{tmp_path / 'out.safetensors'}: {size:,} bytes"
    assert done.stdout.splitlines()[1].startswith("checked on 10 images: 0 predictions")
    failed = subprocess.run([*command, str(tmp_path / "none"), *options], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "none" in failed.stderr


def test_a_mismatch_is_one_line_and_leaves_no_file(run_folder, monkeypatch, capsys):
    load = packed.load_packed

    def spoiled(path, *arguments):
        network = load(path, *arguments)
        if Path(path).parent != run_folder or Path(path).name != "network.safetensors":  # what was written, read back
            network.classifier.bias.data[3] += 1
        return network

    monkeypatch.setattr(packed, "load_packed", spoiled)
    monkeypatch.setattr(sys, "argv", ["export", str(run_folder), "--format", "packed", "--images", "10"])
    before = sorted(run_folder.iterdir())
    with pytest.raises(SystemExit) as left:
        door.main()
    # a string is what the interpreter prints to stderr before it leaves with status 1
    assert left.value.code == "error: logits differ by up to 1 from the network's"
    assert sorted(run_folder.iterdir()) == before
