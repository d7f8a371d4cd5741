"""What an inference costs: weights, spikes, operations and energy, counted while a network sees data. Plain torch.

An input of 0 costs nothing. Any other costs one operation at each of its synapses (a weight at an output position): an
accumulate (AC) in a layer that sees nothing but 0 and 1, a multiply-accumulate (MAC) in a layer that also sees other
numbers, such as pixels or averages of spikes. Synapses are counted exactly: at the borders of a convolution an input
has fewer of them. Not counted: biases, normalisation (it folds into scale and bias), pooling, the neurons' own
arithmetic, and memory traffic.

All counts are per image (or recording), over all of its time steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tna_lightning.data.batch import Batch
from tna_lightning.models import SpikingNeuron
from tna_lightning.models.over_time import OverTime
from tna_lightning.quantization.kept import network_bytes, weight_report
from tna_lightning.quantization.parametrized import WEIGHTED

# Horowitz, "Computing's energy problem", ISSCC 2014: 45 nm, 32-bit float, multiply and add 3.7 + 0.9, add 0.9
PJ_PER_MAC = 4.6
PJ_PER_AC = 0.9


def inference_cost(
    network: nn.Module, batches: Iterable[Any], pj_per_mac: float = PJ_PER_MAC, pj_per_ac: float = PJ_PER_AC
) -> dict[str, Any]:
    """Run a network on batches (inputs, or what a data module yields) and count; see :meth:`CostCounter.report`."""
    was_training = network.training
    network.eval()
    with CostCounter(network, pj_per_mac, pj_per_ac) as counter, torch.inference_mode():
        for batch in batches:
            network(batch if isinstance(batch, Tensor) else Batch.of(batch).x)
    network.train(was_training)
    return counter.report()


def check_energies(pj_per_mac: float, pj_per_ac: float) -> None:
    """Refuse energies an operation, in picojoule, that are negative or not finite.

    Raises:
        ValueError: one is.
    """
    for name, value in {"pj_per_mac": pj_per_mac, "pj_per_ac": pj_per_ac}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: must be 0 or more")


class CostCounter:
    """Counts what a network's layers and neurons do while this context is open; the network itself stays as it is.

    Args:
        network: takes inputs whose first dimension is the image.
        pj_per_mac: energy of a multiply-accumulate in picojoule.
        pj_per_ac: energy of an accumulate in picojoule.
    """

    def __init__(self, network: nn.Module, pj_per_mac: float = PJ_PER_MAC, pj_per_ac: float = PJ_PER_AC) -> None:
        check_energies(pj_per_mac, pj_per_ac)
        self.network = network
        self.pj_per_mac, self.pj_per_ac = pj_per_mac, pj_per_ac
        self.num_images = 0
        self._layers: dict[str, _LayerCount] = {}
        self._neurons: dict[str, _NeuronCount] = {}
        self._handles: list[Any] = []
        self._stance: Any = None

    def __enter__(self) -> CostCounter:
        self._stance = torch.compiler.set_stance("force_eager")  # compiled code does not call hooks
        self._stance.__enter__()
        self._handles.append(self.network.register_forward_pre_hook(self._count_images))
        for name, module in self.network.named_modules():
            if isinstance(module, WEIGHTED):
                self._layers[name] = _LayerCount(module)
                self._handles.append(module.register_forward_hook(self._layers[name]))
            elif isinstance(module, SpikingNeuron):
                self._neurons[name] = _NeuronCount()
                self._handles.append(module.register_forward_hook(self._neurons[name]))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stance.__exit__(None, None, None)

    def _count_images(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.num_images += len(inputs[0])

    def report(self) -> dict[str, Any]:
        """The counts, JSON-able.

        - ``weights``, ``quantized_share``, ``zero_share``: of convolutions and linear layers; ``bytes_kept`` and
          ``bytes_float32``: of all parameters and buffers;
        - ``neurons``, ``firing_rate`` (spikes a neuron and step; None without spiking neurons), ``spikes``;
        - ``dense_macs``: what the same network costs if zeros are not left out, over all time steps; ``ann_macs``: each
          layer once, as in an ANN of the same shape;
        - ``synaptic_operations``: ACs triggered by spikes, of which ``on_nonzero_weights`` meet a weight that is not 0;
        - ``macs``: MACs in layers whose inputs are no spikes, of which ``first_layer_macs`` in the first layer;
        - ``energy_uj``: of all ACs and MACs, in microjoule; ``energy_dense_uj`` and ``energy_ann_uj``: of
          ``dense_macs`` and ``ann_macs``;
        - ``layers`` and ``neuron_layers``: the same by name, in order.
        """
        if self.num_images == 0:
            raise ValueError("batches: the network has seen no image")
        weights = weight_report(self.network)
        layers = []
        for entry in weights["layers"]:
            layers.append(entry | self._layers[entry["name"]].report(self.num_images))
        for layer in layers:
            layer["energy_uj"] = self._energy(layer["macs"], layer["synaptic_operations"])
        neurons = [{"name": name} | count.report(self.num_images) for name, count in self._neurons.items()]
        spikes, chances = sum(n["spikes"] for n in neurons), sum(n.pop("chances") for n in neurons)
        first = next((layer for layer in layers if layer["dense_macs"] > 0), None)

        def total(key: str) -> float:
            return sum(layer[key] for layer in layers)

        return {
            "images": self.num_images,
            "weights": weights["weights"],
            "quantized_share": weights["quantized_share"],
            "zero_share": weights["zero_share"],
            **{f"bytes_{kind}": size for kind, size in network_bytes(self.network).items()},
            "neurons": sum(layer["neurons"] for layer in neurons),
            "firing_rate": spikes / chances if chances else None,
            "spikes": spikes,
            "dense_macs": total("dense_macs"),
            "ann_macs": total("ann_macs"),
            "synaptic_operations": total("synaptic_operations"),
            "on_nonzero_weights": total("on_nonzero_weights"),
            "macs": total("macs"),
            "first_layer_macs": first["macs"] if first else 0.0,
            "energy_uj": self._energy(total("macs"), total("synaptic_operations")),
            "energy_dense_uj": self._energy(total("dense_macs"), 0),
            "energy_ann_uj": self._energy(total("ann_macs"), 0),
            "pj_per_mac": self.pj_per_mac,
            "pj_per_ac": self.pj_per_ac,
            "layers": layers,
            "neuron_layers": neurons,
        }

    def _energy(self, macs: float, acs: float) -> float:
        return (macs * self.pj_per_mac + acs * self.pj_per_ac) / 1e6


class _LayerCount:
    """How often each input of one layer was not zero, and whether all were spikes."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.num_outputs = 0
        self.num_inputs = 0
        self.num_samples = 0  # images times steps
        self.has_steps = isinstance(module, OverTime)
        # by shape of one input, since a layer may see several sizes: [1, *shape], or [T, *shape] with a weight a step
        self.nonzero: defaultdict[torch.Size, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.sees_spikes_only = True

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (x,) = inputs
        num_feature_dims = 1 if isinstance(module, nn.Linear) else 1 + len(self.module.kernel_size)
        shape = x.shape[x.ndim - num_feature_dims :]
        samples = x.detach().reshape(len(x) if self.has_steps else 1, -1, *shape)
        if torch.equal(samples * samples, samples):  # all 0 or 1: their sum is the quicker count
            nonzero = samples.sum(1, dtype=torch.float32)
        else:
            nonzero = (samples != 0).float().sum(1)
            self.sees_spikes_only = False
        self.nonzero[shape] = self.nonzero[shape].to(x.device) + nonzero.double()
        self.num_inputs += x.numel()
        self.num_outputs += output.numel()
        self.num_samples += samples.shape[0] * samples.shape[1]

    def report(self, num_images: int) -> dict[str, Any]:
        weights = self.module.weight.detach()
        if not self.has_steps:
            weights = weights.unsqueeze(0)
        num_nonzero, operations, on_nonzero = 0.0, 0.0, 0.0
        for shape, nonzero in self.nonzero.items():
            num_nonzero += float(nonzero.sum())
            operations += float((nonzero * self._fan_out(shape, torch.ones_like(weights[0]))).sum())
            for count, weight in zip(nonzero, weights, strict=True):
                on_nonzero += float((count * self._fan_out(shape, (weight != 0).to(weight.dtype))).sum())
        fan_in = weights[0].numel() // len(weights[0])
        acs, macs = (operations, 0.0) if self.sees_spikes_only else (0.0, operations)
        return {
            "input": "spikes" if self.sees_spikes_only else "numbers",
            "input_rate": num_nonzero / self.num_inputs if self.num_inputs else 0.0,
            "dense_macs": self.num_outputs * fan_in / num_images,
            "ann_macs": self.num_outputs * fan_in / self.num_samples if self.num_samples else 0.0,
            "synaptic_operations": acs / num_images,
            "on_nonzero_weights": (on_nonzero if self.sees_spikes_only else 0.0) / num_images,
            "macs": macs / num_images,
        }

    def _fan_out(self, shape: torch.Size, synapses: Tensor) -> Tensor:
        """Number of synapses that each number of an input feeds, where ``synapses`` is 1 where there is one.

        It is the gradient of the sum of the layer's outputs, in float64: exact, borders, stride and groups included.
        """
        with torch.inference_mode(False), torch.enable_grad():
            synapses = synapses.double().clone()
            x = torch.zeros(1, *shape, dtype=torch.float64, device=synapses.device, requires_grad=True)
            if isinstance(self.module, nn.Linear):
                output = nn.functional.linear(x, synapses)
            else:
                output = self.module._conv_forward(x, synapses, None)
            return torch.autograd.grad(output.sum(), x)[0][0]


class _NeuronCount:
    """Spikes of one layer of neurons, ``[T, B, ...]``."""

    def __init__(self) -> None:
        self.spikes: Tensor | int = 0
        self.chances = 0
        self.neurons = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.spikes = self.spikes + (output.detach() != 0).sum()
        self.chances += output.numel()
        self.neurons = output[0, 0].numel()

    def report(self, num_images: int) -> dict[str, Any]:
        return {
            "neurons": self.neurons,
            "firing_rate": int(self.spikes) / self.chances if self.chances else 0.0,
            "spikes": int(self.spikes) / num_images,
            "chances": self.chances / num_images,
        }
