"""Our operation counts beside spikingjelly's, layer by layer, on ternary networks that see random images.

    PYTHONPATH=src PEER/bin/python benchmarks/op_count_peer.py > benchmarks/results/op_count_peer.json

In an environment of its own: spikingjelly 2.0.0 as in nir_peer.py, and safetensors. Its SynOpCounter and MACCounter
watch torch's convolutions and matrix products as they run, so both counters see the same forward pass. docs/cost.md
explains where they differ.
"""

import importlib.metadata
import json

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from torch import nn

from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF, resnet20, vgg11, vggsnn
from tna_lightning.quantization import Ternary, quantize_network


def compare(name: str, network: nn.Module, x: torch.Tensor) -> dict:
    torch.manual_seed(0)
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


def main() -> None:
    sizes = {"in_channels": 3, "num_classes": 10, "neuron": LIF}
    torch.manual_seed(0)
    images, events = torch.randn(8, 3, 32, 32), (torch.rand(4, 6, 3, 32, 32) < 0.1).float()
    results = [
        compare("resnet20, images, T=4", resnet20(width=0.5, **sizes), images),
        compare("vgg11, max pooling, images, T=4", vgg11(width=0.125, **sizes), images),
        compare("vggsnn, average pooling, binary events, T=6", vggsnn(width=0.125, **sizes), events),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("spikingjelly", "torch")}
    print(json.dumps({"versions": versions, "networks": results}, indent=1))


if __name__ == "__main__":
    main()
