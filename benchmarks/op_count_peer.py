"""Our operation counts beside spikingjelly's, layer by layer, on ternary networks that see random images.

    make bench-setup && .venv-bench/bin/python -m benchmarks.op_count_peer > benchmarks/results/op_count_peer.json

spikingjelly 2.0.0 stands in the environment of the benchmarks. Its SynOpCounter and MACCounter
watch torch's convolutions and matrix products as they run, so both counters see the same forward pass. docs/cost.md
explains where they differ. Layers that the backbones do not have (tokens, attention, grouped, transposed and recurrent
layers) are counted by torch's FlopCounterMode as well: half its flops are our dense MACs.
"""

import importlib.metadata
import json

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF, resnet20, vgg11, vggsnn
from tna_lightning.quantization import Ternary, quantize_network


def compare(name: str, network: nn.Module, x: torch.Tensor) -> dict:
    quantize_network(network, Ternary())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(0.5)
        for _ in range(5):
            network(x + 0.1 * torch.randn_like(x))
        network.eval()
        ours = inference_cost(network, [x])
        synops, macs = SynOpCounter(), MACCounter()
        with DispatchCounterMode([synops, macs]):
            network(x)

    def theirs(counter, layer):
        """A layer's count; records are kept under dotted names that begin with the network's class."""
        counts = [sum(ops.values()) for key, ops in counter.get_counts().items() if key.split(".", 1)[-1] == layer]
        return sum(counts) / len(x)

    layers = [
        {
            "name": layer["name"],
            "synaptic_operations": layer["synaptic_operations"],
            "theirs_synaptic_operations": theirs(synops, layer["name"]),
            "macs": layer["macs"],
            "dense_macs": layer["dense_macs"],
            "theirs_macs": theirs(macs, layer["name"]),
        }
        for layer in ours["layers"]
    ]
    differing = [
        layer["name"] for layer in layers if layer["synaptic_operations"] != layer["theirs_synaptic_operations"]
    ]
    totals = {
        key: ours[key] for key in ("firing_rate", "synaptic_operations", "macs", "first_layer_macs", "dense_macs")
    }
    totals["theirs_synaptic_operations"] = synops.get_total() / len(x)
    totals["theirs_macs"] = macs.get_total() / len(x)
    return {"network": name, **totals, "layers_with_other_synaptic_operations": differing, "layers": layers}


class Attention(nn.Module):
    """(x x^T) x of tokens ``[B, N, F]`` that spike, then a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(x @ x.mT @ x)


def compare_layer(name: str, layer: nn.Module, x: torch.Tensor) -> dict:
    """One layer by three counters; torch's fused kernels, into which no counter sees, are off for the other two."""
    layer.eval()
    ours = inference_cost(layer, [x])
    synops, macs = SynOpCounter(), MACCounter()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as flops:
            layer(x)
        with DispatchCounterMode([synops, macs]):
            layer(x)
    torch.backends.mha.set_fastpath_enabled(True)
    torch.backends.mkldnn.enabled = True
    return {
        "layer": name,
        **{key: ours[key] for key in ("dense_macs", "macs", "synaptic_operations", "not_counted")},
        "flop_counter_macs": flops.get_total_flops() / 2 / len(x),
        "theirs_macs": macs.get_total() / len(x),
        "theirs_synaptic_operations": synops.get_total() / len(x),
    }


def compare_layers() -> list[dict]:
    torch.manual_seed(0)
    tokens, pictures = (torch.rand(4, 6, 8) < 0.3).float(), (torch.rand(4, 4, 5, 5) < 0.3).float()
    return [
        compare_layer("linear on tokens", nn.Linear(8, 8), tokens),
        compare_layer("(x x^T) x and a projection", Attention(), tokens),
        compare_layer("encoder with attention", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), tokens),
        compare_layer("grouped convolution", nn.Conv2d(4, 8, 3, groups=2), pictures),
        compare_layer("transposed convolution", nn.ConvTranspose2d(4, 2, 3, stride=2), pictures),
        *(compare_layer(kind.__name__, kind(8, 6, batch_first=True), tokens) for kind in (nn.RNN, nn.GRU, nn.LSTM)),
    ]


def main() -> None:
    sizes = {"in_channels": 3, "num_classes": 10, "neuron": LIF}
    torch.manual_seed(0)  # before the networks are drawn
    images, events = torch.randn(8, 3, 32, 32), (torch.rand(4, 6, 3, 32, 32) < 0.1).float()
    results = [
        compare("resnet20, images, T=4", resnet20(width=0.5, **sizes), images),
        compare("vgg11, max pooling, images, T=4", vgg11(width=0.125, **sizes), images),
        compare("vggsnn, average pooling, binary events, T=6", vggsnn(width=0.125, **sizes), events),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("spikingjelly", "torch")}
    print(json.dumps({"versions": versions, "networks": results, "layers": compare_layers()}, indent=1))


if __name__ == "__main__":
    main()
