"""Do other tools read our NIR files as we mean them? Spikes of every layer, ours against theirs, on the same input.

    python benchmarks/nir_peer.py write /tmp/nir_peer                          # here: files, inputs, our spikes
    PEER/bin/python benchmarks/nir_peer.py read /tmp/nir_peer spikingjelly     # in the other tool's own environment
    PEER/bin/python benchmarks/nir_peer.py read /tmp/nir_peer sinabs

Environments (torch first, so that no CUDA build is pulled; neither belongs into this project's own):

    pip install torch==2.13.0 && pip install sinabs==3.1.3
    pip install torch==2.13.0 && pip install --no-deps spikingjelly==2.0.0 nir==1.0.8 nirtorch==2.6 \
        && pip install loguru matplotlib SciencePlots tensorboard h5py scipy tqdm packaging requests sympy networkx

spikingjelly 2.0.0 reads NIR 1.0.8: hard reset, Euler's step of 0.1 ms, average pooling, residual sums. sinabs 3.1.3
reads NIR 1.0.4, whose neurons subtract, and refuses newer files; it takes no average pooling. Its neurons may fire
several times a step and keep their membrane above minus the threshold: here set to one spike and no floor, as NIR knows
neither.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

CASES = {
    "spikingjelly": ["convnet_lif_hard", "convnet_if_hard", "resnet20_lif_hard"],
    "sinabs": ["plain_if_soft"],
}


def write(folder: Path) -> None:
    from torch import nn

    from tna_lightning.export import spikes_of
    from tna_lightning.export.nir_graph import to_nir, write_nir
    from tna_lightning.models import LIF, convnet, resnet20
    from tna_lightning.quantization import Ternary, quantize_network
    from tna_lightning.quantization.folding import fold_batch_norm

    def plain(neuron):
        """What sinabs reads: convolutions, neurons, flattening, linear layers; here on `[T, B, C, H, W]`."""
        layers = [nn.Conv2d(2, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), neuron()]
        layers += [nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), neuron()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10), neuron())

    class OverTime(nn.Module):
        """Runs the layers of `plain` without state on `[T * B, ...]`."""

        def __init__(self, layers):
            super().__init__()
            self.layers, self.time_steps = layers, 1

        def forward(self, x):
            x = x.transpose(0, 1)
            for layer in self.layers:
                x = layer(x) if isinstance(layer, LIF) else layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return x

    def lif(**settings):
        return lambda: LIF(**settings)

    sizes = {"in_channels": 2, "num_classes": 10, "width": 0.5}
    networks = {
        "convnet_lif_hard": lambda: convnet(neuron=lif(beta=0.5), **sizes),
        "convnet_if_hard": lambda: convnet(neuron=lif(beta=1.0), **sizes),
        "resnet20_lif_hard": lambda: resnet20(neuron=lif(beta=0.75, threshold=0.8), **sizes),
        "plain_if_soft": lambda: OverTime(plain(lif(beta=1.0, reset="subtract"))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in networks.items():
        torch.manual_seed(0)
        network = make()
        quantize_network(network, Ternary())
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.bias.fill_(0.5)
            for _ in range(10):
                network(torch.randn(32, 6, 2, 8, 8))
            network.eval()
            x = torch.randn(16, 6, 2, 8, 8)
            folded = fold_batch_norm(network)
            outputs, spikes = spikes_of(folded, x)
        write_nir(folder / f"{name}.nir", to_nir(getattr(folded, "layers", folded), (2, 8, 8)))
        arrays = {f"spikes{index:02d}": layer.numpy() for index, layer in enumerate(spikes)}
        np.savez_compressed(folder / f"{name}.npz", x=x.numpy(), outputs=outputs.numpy(), **arrays)


def run_spikingjelly(path: Path, x_BT: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    from spikingjelly.activation_based import nir_exchange
    from spikingjelly.activation_based.neuron import IFNode, LIFNode

    network = nir_exchange.import_from_nir(str(path))
    spikes = {}
    for name, module in network.named_modules():
        if isinstance(module, IFNode | LIFNode):
            inner = module.functional_forward  # what the imported graph calls, past the hooks

            def recorded(inputs, states, inner=inner, name=name):
                outputs, states = inner(inputs, states)
                spikes.setdefault(name, []).append(outputs[0])
                return outputs, states

            module.functional_forward = recorded
    state, outputs = None, []
    for x in x_BT.transpose(0, 1):
        output, state = network(x, state)
        outputs.append(output)
    return torch.stack(outputs), [torch.stack(layer) for layer in spikes.values()]


def run_sinabs(path: Path, x_BT: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    import sinabs.layers as sl
    from sinabs.activation import SingleSpike
    from sinabs.nir import from_nir

    batch = len(x_BT)
    network = from_nir(str(path), batch_size=batch)
    spikes = []
    for module in network.modules():
        if isinstance(module, sl.IAFSqueeze):
            module.spike_fn, module.min_v_mem = SingleSpike, None
            module.register_forward_hook(lambda m, i, output: spikes.append(output))
    output, _ = network(x_BT.flatten(0, 1))
    return time_first(output, batch), [time_first(layer, batch) for layer in spikes]


def time_first(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x.unflatten(0, (batch, -1)).transpose(0, 1)


def read(folder: Path, consumer: str) -> None:
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in (consumer, "nir", "nirtorch", "torch")}
    result = {"consumer": consumer, "versions": versions, "networks": {}}
    for name in CASES[consumer]:
        arrays = np.load(folder / f"{name}.npz")
        x = torch.from_numpy(arrays["x"])
        with torch.no_grad():
            run = run_spikingjelly if consumer == "spikingjelly" else run_sinabs
            outputs, spikes = run(folder / f"{name}.nir", x)
        ours = [torch.from_numpy(arrays[key]) for key in sorted(arrays) if key.startswith("spikes")]
        result["networks"][name] = {
            "layers": len(ours),
            "spikes": int(sum(layer.sum() for layer in ours)),
            "differing": int(sum((a != b).sum() for a, b in zip(ours, spikes, strict=True))),
            "largest_output_difference": float((torch.from_numpy(arrays["outputs"]) - outputs).abs().max()),
        }
    print(json.dumps(result, indent=1))
    if any(network["differing"] for network in result["networks"].values()):
        sys.exit("spikes differ")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(Path(sys.argv[2]), sys.argv[3])
