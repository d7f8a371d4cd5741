"""Operations and energy of an inference, counted while a network sees data.

An input of 0 costs nothing. Any other costs one operation at each of its synapses (a weight at an output position): an
accumulate (AC) in a layer that sees nothing but spikes, 0 and 1 or -1, 0 and 1; a multiply-accumulate (MAC) in a layer
that also sees other numbers, such as pixels or averages of spikes. Of two activations, as in attention, those meet that
are not 0: an AC where one of the two is spikes. Not counted: biases, normalisation (it folds into scale and bias),
pooling, activation functions, and the neurons' own arithmetic, but for products with a matrix, as those over time of a
parallel neuron: these are counted. What else multiplies, and is not understood, is named.

All counts are per image (or recording), over all of its time steps.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from tna_lightning.cost.counts import ActivationProduct, Data, NeuronCount, NeuronProduct, Passes, WeightProduct
from tna_lightning.cost.dispatch import Frame, Shapes, Watch, Weight, tensors_in
from tna_lightning.cost.memory import BITS, MemoryModel
from tna_lightning.cost.yardstick import quantized_ann, spike_bits
from tna_lightning.data.batch import Batch
from tna_lightning.models import LIF, SpikingNeuron
from tna_lightning.models.blocks import UNITS
from tna_lightning.quantization.kept import network_bytes, weight_report
from tna_lightning.quantization.weights import NORMS, WEIGHTED, modules_of, parameter_layers

# Horowitz, "Computing's energy problem", ISSCC 2014: 45 nm, 32-bit float, multiply and add 3.7 + 0.9, add 0.9
PJ_PER_MAC = 4.6
PJ_PER_AC = 0.9

POOLS = tuple(getattr(nn, name) for name in nn.modules.pooling.__all__)
ACTIVATIONS = tuple(unit for unit in (*UNITS, nn.PReLU, nn.Softmax, nn.LogSoftmax) if unit is not nn.Identity)
# modules on [B, C, D, H, W], which are no event frames
VOLUMES = tuple(getattr(nn, name) for name in dir(nn) if name.endswith("3d"))
OUTSIDE = "what passes by torch (numpy, lists)"  # a layer's input, or the output, that is not computed from the input
OPAQUE = (SpikingNeuron, *NORMS, *POOLS, *ACTIVATIONS)  # what they multiply is not counted
# torch computes these in one kernel where it can, which shows none of the products in it
FUSED = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def inference_cost(
    network: nn.Module,
    batches: Iterable[Any],
    pj_per_mac: float = PJ_PER_MAC,
    pj_per_ac: float = PJ_PER_AC,
    memory: MemoryModel | None = None,
) -> dict[str, Any]:
    """Run a network on batches (inputs, or what a data module yields) and count; see :meth:`CostCounter.report`."""
    were_training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with CostCounter(network, pj_per_mac, pj_per_ac, memory) as counter, torch.inference_mode():
            for batch in batches:
                network(batch if isinstance(batch, Tensor) else Batch.of(batch).x)
    finally:
        for module, was_training in were_training:
            module.training = was_training
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
    """Counts what a network computes while this context is open; the network itself stays as it is.

    Its outputs are the same to the bit. A module that torch computes in one kernel (recurrent layers, attention on its
    fast path) runs as it is, and once more without that kernel, to be counted.

    Args:
        network: takes inputs whose first dimension is the image; in eval mode, since its weights must stay as they are.
        pj_per_mac: energy of a multiply-accumulate in picojoule.
        pj_per_ac: energy of an accumulate in picojoule.
        memory: of which the energy of moving numbers is computed; :class:`MemoryModel` as it stands if not given.
    """

    def __init__(
        self,
        network: nn.Module,
        pj_per_mac: float = PJ_PER_MAC,
        pj_per_ac: float = PJ_PER_AC,
        memory: MemoryModel | None = None,
    ) -> None:
        check_energies(pj_per_mac, pj_per_ac)
        scripted = [name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            raise ValueError(
                f"network{'.' * bool(scripted[0])}{scripted[0]}: is scripted or traced (torch.jit), which shows no "
                "modules; count the one that it was made from"
            )
        self.network = network
        self.pj_per_mac, self.pj_per_ac = pj_per_mac, pj_per_ac
        self.memory = memory or MemoryModel()
        self.num_images = 0
        self.time_steps = 1  # the largest T seen
        modules = modules_of(network)
        self._names = {id(module): name for name, module in modules.items()}
        self._layers_of = parameter_layers(network)
        self._weighted = {name for name, module in modules.items() if isinstance(module, WEIGHTED)}
        self._are_opaque = {id(module) for module in modules.values() if isinstance(module, OPAQUE)}
        self._are_fused = {id(module) for module in modules.values() if isinstance(module, FUSED)}
        self._layers: defaultdict[str, WeightProduct] = defaultdict(WeightProduct)
        self._constants: defaultdict[tuple[str, str], WeightProduct] = defaultdict(WeightProduct)
        self._activations: dict[tuple[str, str], ActivationProduct] = {}
        self._of_neurons: defaultdict[tuple[str, str], NeuronProduct] = defaultdict(NeuronProduct)
        self._has_volumes = any(isinstance(module, VOLUMES) for module in modules.values())
        self._neurons = {name: NeuronCount() for name, module in modules.items() if isinstance(module, SpikingNeuron)}
        self._units: defaultdict[str, Passes] = defaultdict(Passes)
        self._not_counted: dict[tuple[str, str], None] = {}
        self._handles: list[Any] = []
        self._stance: Any = None
        self._warnings: Any = None
        self._watch = Watch(network, self)
        self._is_watching = self._is_replaying = False
        self._opaque: nn.Module | None = None  # the module that is not looked into at the moment
        self._forward: tuple[int, int | None] = 0, None  # images of this forward, and T as far as it is known

    def __enter__(self) -> CostCounter:
        self._stance = torch.compiler.set_stance("force_eager")  # compiled code does not call hooks
        self._stance.__enter__()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        # they are called for the wrapper too, which is no module of the network
        warnings.filterwarnings("ignore", "Using `torch.compile\\(module\\)` when there are global hooks")
        # for all modules, not by module: attention and its encoder leave their fast path where a module has hooks
        self._handles.append(register_module_forward_pre_hook(self._begin))
        if id(self.network) not in self._are_fused:  # only a module's own hook is told of keywords
            self._handles.append(self.network.register_forward_pre_hook(self._begin_by_keyword, with_kwargs=True))
        self._handles.append(register_module_forward_hook(self._end, with_kwargs=True, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
            _global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch 2.13 forgets to
        self._handles.clear()
        self._stop_watching()
        self._warnings.__exit__(None, None, None)
        self._stance.__exit__(None, None, None)

    # ---- modules ----------------------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module is self.network and not self._is_watching:
            if not inputs and id(module) not in self._are_fused:
                return  # by keyword
            self._start_watching(inputs)
        if not self._is_watching or id(module) not in self._names:
            return
        if self._opaque is not None:
            if self._watch.is_in_neuron and isinstance(module, WEIGHTED):
                self._watch.frames.append(self._frame(module, inputs))
            return
        self._watch.frames.append(self._frame(module, inputs))
        if id(module) in self._are_opaque or (id(module) in self._are_fused and not self._is_replaying):
            self._opaque = module
            # whose loop multiplies no matrices, and may be code that the watch does not see
            if isinstance(module, SpikingNeuron) and type(module) is not LIF:
                self._watch.is_in_neuron = True
                self._watch.note(inputs, Data(timed=True))
            else:
                self._watch.__exit__(None, None, None)

    def _look_again(self) -> None:
        """A module that was not looked into is done."""
        if self._watch.is_in_neuron:
            self._watch.is_in_neuron = False
        else:
            self._watch.__enter__()

    def _begin_by_keyword(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self._is_watching:
            self._start_watching(tuple(keywords.values()))
            self._begin(module, tuple(keywords.values()))

    def _frame(self, module: nn.Module, inputs: Any) -> Frame:
        first = next(iter(tensors_in(inputs)), None)
        return Frame(
            self._names[id(module)], module, None if first is None else first.shape, self._watch.common(inputs)
        )

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
        """``rest``: keyword arguments and output; the output alone, None, where the module has failed."""
        if not self._is_watching or id(module) not in self._names:
            return
        has_failed = len(rest) == 1
        keywords, output = ({}, None) if has_failed else rest
        if self._opaque is not None and self._opaque is not module:
            if self._watch.is_in_neuron and isinstance(module, WEIGHTED):
                self._watch.frames.pop()
            return
        if self._opaque is module:
            self._opaque = None
            if isinstance(module, SpikingNeuron) and not has_failed:
                self._neurons[self._names[id(module)]].count(output)
            self._look_again()
            if not has_failed:
                self._leave(module, inputs, keywords, output)
        if self._opaque is not None:  # within a module that is not looked into
            return
        self._watch.frames.pop()
        if self._watch.frames:
            if isinstance(module, WEIGHTED) and not has_failed and self._watch.common((inputs, keywords)) is None:
                self._not_counted[self._names[id(module)], OUTSIDE] = None
        elif has_failed:  # the network itself; what fails within may be caught there, and has been computed
            self._drop()
        else:
            if (tensors := tensors_in(output)) and not isinstance(self._watch.common(tensors), Data):
                self._not_counted[self._names[id(module)], OUTSIDE] = None
            self._stop_watching()
            self._finish()

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        """A module that was not looked into is done."""
        if id(module) in self._are_fused:
            self._watch.frames[-1] = self._frame(module, (inputs, keywords))
            self._is_replaying = True
            with _without_fused_kernels():
                module.forward(*inputs, **keywords)
            self._is_replaying = False
            self._watch.note(output, self._watch.common((inputs, keywords)))
            return
        origin = self._watch.common((inputs, keywords))
        name = self._names[id(module)]
        if isinstance(module, SpikingNeuron):
            origin = Data(timed=True)
            self._forward = self._forward[0], max(len(output), self._forward[1] or 1)
        elif isinstance(module, ACTIVATIONS) and isinstance(origin, Data):
            self._units[name].call(0, output.numel(), (output.shape[:-1],), origin)
        self._watch.note(output, origin)

    # ---- forward passes ---------------------------------------------------------------------------------------------

    def _start_watching(self, inputs: tuple[Any, ...]) -> None:
        x = next(iter(tensors_in(inputs)), None)
        if x is None:
            raise ValueError("network: must be called with a tensor, and attention or a recurrent layer by position")
        is_timed = x.ndim == 5 and (bool(self._neurons) or not self._has_volumes)  # event frames [B, T, C, H, W]
        self._forward = len(x), None
        self._frames_of_input = x.shape[1] if is_timed else 1
        self._watch.note(inputs, Data(is_timed))
        self._is_watching = True
        # a weight that was cast in an earlier pass has lost its name
        self._caches_casts = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        self._watch.__enter__()

    def _stop_watching(self) -> None:
        if self._is_watching:
            if self._opaque is None or self._watch.is_in_neuron:
                self._watch.__exit__(None, None, None)
            self._watch.is_in_neuron = False
            torch.set_autocast_cache_enabled(self._caches_casts)
            self._is_watching, self._is_replaying, self._opaque = False, False, None
            self._watch.forget()

    def _finish(self) -> None:
        images, steps = self._forward
        for neuron in self._neurons.values():
            neuron.end(steps)
        steps = steps or self._frames_of_input
        self.num_images += images
        self.time_steps = max(self.time_steps, steps)
        for passes in self._all_passes():
            passes.end(images, steps)

    def _drop(self) -> None:
        self._stop_watching()
        for neuron in self._neurons.values():
            neuron.end(None)
        for passes in self._all_passes():
            passes.drop()

    def _all_passes(self) -> Iterator[Passes]:
        for counts in (self._layers, self._constants, self._of_neurons, self._activations):
            for count in counts.values():
                yield count.passes
        yield from self._units.values()

    # ---- what the watch tells ---------------------------------------------------------------------------------------

    def weight_product(
        self, frame: Frame, operation: str, weight: Weight | None, shapes: Shapes, data: Data, product: Any
    ) -> None:
        """Count data times a weight or a constant."""
        layer = None if weight is None else self._layers_of[weight.name]
        count: WeightProduct
        if isinstance(frame.module, SpikingNeuron) and layer not in self._weighted:
            count = self._of_neurons[frame.name, operation]
        else:
            count = self._constants[frame.name, operation] if layer is None else self._layers[layer]
        count.count(product.key, product.x.detach(), product.weight.detach(), product.fan_out)
        count.passes.call(product.dense, product.x.numel(), shapes, data)

    def activation_product(
        self, frame: Frame, operation: str, shapes: Shapes, data: Data, a: Tensor, b: Tensor
    ) -> None:
        """Count data times data."""
        in_ann = not isinstance(frame.module, SpikingNeuron)
        count = self._activations.setdefault((frame.name, operation), ActivationProduct(in_ann))
        count.count(a.detach(), b.detach())
        count.passes.call(a.numel() * b.shape[-1], a.numel() + b.numel(), shapes, data)

    def not_counted(self, frame: Frame, operation: str) -> None:
        """Remember what multiplies and is not understood."""
        self._not_counted[frame.name, operation] = None

    def is_not_counted(self, frame: Frame, operation: str) -> bool:
        """Whether it is remembered."""
        return (frame.name, operation) in self._not_counted

    # ---- the record -------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The counts, JSON-able.

        - ``weights``, ``quantized_share``, ``zero_share``: of convolutions, linear layers and every other parameter of
          two dimensions and more that is neither norm's nor neuron's; ``bytes_kept`` and ``bytes_float32``: of all
          parameters and buffers;
        - ``neurons``, ``firing_rate`` (spikes a neuron and step; None without spiking neurons), ``spikes``: outputs
          that are not 0, which ``output`` of a layer of neurons calls spikes, ternary spikes, whole numbers or numbers;
        - ``dense_macs``: what the same network costs if zeros are not left out, over all time steps; ``ann_macs``: each
          layer once, as in an ANN of the same shape;
        - ``synaptic_operations``: ACs triggered by spikes, of which ``on_nonzero_weights`` meet a weight that is not 0;
        - ``macs``: MACs in layers whose inputs are no spikes, of which ``first_layer_macs`` in the first layer;
        - ``energy_uj``: of all ACs and MACs, in microjoule; ``energy_dense_uj`` and ``energy_ann_uj``: of
          ``dense_macs`` and ``ann_macs``;
        - ``energy_memory_uj``: of moving numbers, the sum of ``memory_weights_uj``, ``memory_membranes_uj`` and
          ``memory_activations_uj``, under ``memory_model`` (:class:`MemoryModel`);
        - ``quantized_ann``: see :func:`tna_lightning.cost.yardstick.quantized_ann`; None without spiking neurons;
        - ``not_counted``: what multiplies and is not understood, each with the ``name`` of its module and the
          ``operation``; empty where all is;
        - ``layers`` and ``neuron_layers``: the same by name, in order; ``products``: those of activations with
          activations or constants, and those of neurons with their own matrices.
        """
        if self.num_images == 0:
            raise ValueError("batches: the network has seen no image")
        weights = weight_report(self.network)
        layers, products = self._of_weights(weights["layers"])
        for layer in [*layers, *products]:
            layer["energy_uj"] = self._energy(layer["macs"], layer["synaptic_operations"])
        neurons = [{"name": name} | count.report(self.num_images) for name, count in self._neurons.items()]
        spikes, chances = sum(n["spikes"] for n in neurons), sum(n["chances"] for n in neurons)
        membranes, written = self._written(neurons)
        first = next((layer for layer in layers if layer["dense_macs"] > 0), None)
        yardstick = quantized_ann(
            [*layers, *products],
            neurons,
            first,
            time_steps=self.time_steps,
            pj_per_mac=self.pj_per_mac,
            pj_per_ac=self.pj_per_ac,
            memory=self.memory,
        )
        for entry in [*neurons, *layers, *products]:  # what only the sums above need
            for key in ("chances", "span", "inputs_once", "nonzero_share", "bits_read"):
                entry.pop(key, None)

        def total(key: str) -> float:
            return sum(layer[key] for layer in [*layers, *products])

        of_weights = total("memory_weights_uj")
        activations = total("memory_activations_uj") + written
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
            "energy_memory_uj": of_weights + membranes + activations,
            "memory_weights_uj": of_weights,
            "memory_membranes_uj": membranes,
            "memory_activations_uj": activations,
            "quantized_ann": yardstick,
            "not_counted": [{"name": name, "operation": operation} for name, operation in self._not_counted],
            "pj_per_mac": self.pj_per_mac,
            "pj_per_ac": self.pj_per_ac,
            "memory_model": asdict(self.memory)
            | {"sram": [list(level) for level in self.memory.sram]},  # as JSON has it
            "layers": layers,
            "products": products,
            "neuron_layers": neurons,
        }

    def _of_weights(self, known: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Entries of the layers that a weight report knows, and of all other products."""
        left, layers, products = dict(self._layers), [], []
        for entry in known:
            count = left.pop(entry["name"], None) or WeightProduct()
            # of a weight over time each step reads its own code, or the one that says all of them
            bits = entry["bits"] / (1 if "encoding" in entry else entry.get("time_steps", 1))
            layers.append(entry | self._moved(count, count.report(self.num_images), bits, entry["bytes"]))
        others = {(name, "weight"): count for name, count in left.items()} | self._constants | self._of_neurons
        for (name, operation), count in others.items():
            size = 4 * sum(total for _, total in count.density.values())
            counts = self._moved(count, count.report(self.num_images), 32, size)
            products.append({"name": name, "operation": operation} | counts)
        for (name, operation), product in self._activations.items():
            counts = self._moved(product, product.report(self.num_images), None, None)
            products.append({"name": name, "operation": operation} | counts)
        return layers, products

    def _moved(
        self, count: WeightProduct | ActivationProduct, counts: dict[str, Any], bits: float | None, size: float | None
    ) -> dict[str, Any]:
        """A product's counts, with the energy of reading what it multiplies.

        Each operation reads a weight, or where there is none a number of the wider operand; each input is read once.
        What a neuron multiplies by itself lies where membranes do, and is counted with them.
        """
        kinds = [BITS[kind] for kind in counts["input"].split(" x ")]
        inputs, once = count.passes.inputs / self.num_images, count.passes.inputs_once / self.num_images
        width = sum(kinds) / len(kinds)
        buffer = once * width / 8
        operations = counts["synaptic_operations"] + counts["macs"]
        read = operations * (max(kinds) if bits is None else bits)
        if not count.passes.in_ann:
            inputs = 0.0
        return counts | {
            "memory_weights_uj": 0.0 if bits is None else self.memory.energy_uj(read, size or 0.0),
            "memory_activations_uj": self.memory.energy_uj(inputs * width, buffer)
            + (self.memory.energy_uj(read, buffer) if bits is None else 0.0),
            "inputs_once": once,
            "bits_read": bits,
            "nonzero_share": count.nonzero_share if isinstance(count, WeightProduct) else 1.0,
        }

    def _written(self, neurons: list[dict[str, Any]]) -> tuple[float, float]:
        """Microjoule of membranes, each read and written once a step, and of what neurons and units write."""
        membranes = written = 0.0
        for layer in neurons:
            bits = self.memory.membrane_bits
            membranes += self.memory.energy_uj(2 * bits * layer["chances"], layer["neurons"] * bits / 8)
            bits = spike_bits(layer["span"])
            written += self.memory.energy_uj(layer["chances"] * bits, layer["neurons"] * bits / 8)
        for passes in self._units.values():
            once = passes.inputs_once / self.num_images
            written += self.memory.energy_uj(BITS["numbers"] * passes.inputs / self.num_images, once * 4)
        return membranes, written

    def _energy(self, macs: float, acs: float) -> float:
        return (macs * self.pj_per_mac + acs * self.pj_per_ac) / 1e6


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Recurrent layers and attention in torch's smaller operations."""
    backends: Any = torch.backends
    before = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    backends.mha.set_fastpath_enabled(False)
    backends.mkldnn.enabled = backends.cudnn.enabled = False
    try:
        yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        backends.mkldnn.enabled, backends.cudnn.enabled = before[1:]
