"""A network as a graph of the Neuromorphic Intermediate Representation (NIR, neuroir.org), and such a graph run again.

One step of a neuron is Euler's step of NIR's differential equation over ``DT``, as spikingjelly, nirtorch and, for LIF,
snntorch read it: a decay of ``beta`` is ``tau = DT / (1 - beta)`` with ``r = 1 / (1 - beta)``, no decay an ``IF`` with
``r = 1 / DT``. (With ``r = 1`` and weights larger by that factor more readers would agree on LIF, but where spikes are
added to a residual there is no weight to enlarge.) A static image is the input of every step. The graph gives logits
for each step; their mean over time is the readout. Its metadata hold ``dt``, ``reset``, ``time_steps`` and ``inputs``:
what the network expects, as in a packed file's header, in JSON.

What NIR cannot say is refused: max pooling, pooling with a rest of pixels, ``reset="none"``, and ``reset="subtract"``
with ``beta < 1`` (what NIR subtracts then decays, what snntorch and we subtract does not), and weights that differ by
time step. So are grouped convolutions, which the package nir does not read. NIR's neurons reset to a value since
version 1.0.5; until 1.0.4 they subtracted the threshold, so a network with ``reset="subtract"`` is written as a 1.0.4
file, for readers of that version (sinabs 3.1.3); others take it for a hard reset, which ``note`` in its metadata says.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.export.parts import parts_of, refuse_what_no_layer_says
from tna_lightning.models import LIF, BasicBlock, MaxBlock, MSBlock, Network, SEWBlock, SpikingNeuron
from tna_lightning.quantization.folding import ScaledConv2d, ScaledLinear
from tna_lightning.quantization.packing import inputs_entry

DT = 1e-4  # seconds; the step that NIR's readers assume
SUBTRACTING_VERSION = "1.0.4"
SUBTRACTS = (
    "Its neurons reset by subtraction, as all did until NIR 1.0.4. Readers of NIR 1.0.5 and later take this for a hard "
    "reset, and compute something else."
)

BRANCHES: dict[type[nn.Module], tuple[str, ...]] = {  # of residual blocks: what stands beside the shortcut, in order
    BasicBlock: ("conv1", "neuron1", "conv2"),
    MSBlock: ("neuron1", "conv1", "neuron2", "conv2"),
    MaxBlock: ("pool",),  # which is refused
    SEWBlock: ("conv1", "neuron1", "conv2", "neuron2"),
}
NODES = LIF, ScaledConv2d, ScaledLinear, nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten


class _Builder:
    """Nodes and edges so far; the next module sees the sum of the nodes in ``sources``, of ``shape`` for one sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import nir

        self.nir = nir
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.sources = ["input"]
        self.shape = shape
        self.resets: set[str] = set()

    def add(self, name: str, node: Any, shape: tuple[int, ...]) -> None:
        name = name.replace(".", "_") or "network"
        self.nodes[name] = node
        self.edges += [(source, name) for source in self.sources]
        self.sources, self.shape = [name], shape

    def walk(self, name: str, module: nn.Module) -> None:
        """Append a module."""
        if isinstance(module, NODES) and type(module).forward not in {node.forward for node in NODES}:
            raise ValueError(f"network.{name}: NIR has no node for {type(module).__name__}, whose forward is its own")
        if isinstance(module, Network | nn.Sequential):
            for part, child in parts_of(module):
                self.walk(f"{name}.{part}".lstrip("."), child)
        elif type(module) in BRANCHES:
            if isinstance(module, SEWBlock) and module.connect != "add":
                raise ValueError(f"network.{name}: NIR has no node for a product of spikes, connect={module.connect}")
            sources, shape = self.sources, self.shape
            for part in BRANCHES[type(module)]:
                self.walk(f"{name}.{part}", getattr(module, part))
            residual = self.sources
            self.sources, self.shape = sources, shape
            self.walk(f"{name}.shortcut", module.get_submodule("shortcut"))
            self.sources = residual + self.sources  # edges into one node add up
            if isinstance(module, BasicBlock):
                self.walk(f"{name}.neuron2", module.neuron2)
        elif isinstance(module, LIF):
            self.add_neuron(name, module)
        elif isinstance(module, nn.Conv2d):
            self.add_convolution(name, module)
        elif isinstance(module, nn.Linear):
            if self.shape != (module.in_features,):
                raise ValueError(
                    f"network.{name}: NIR's Affine takes {module.in_features} numbers of a sample, not {self.shape}; "
                    "flatten it before"
                )
            bias = torch.zeros(module.out_features) if module.bias is None else module.bias
            weight = module.weight * module.scale[:, None] if isinstance(module, ScaledLinear) else module.weight
            self.add(name, self.nir.Affine(_array(weight), _array(bias)), (module.out_features,))
        elif isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            self.add_average(name, module)
        elif isinstance(module, nn.Flatten):
            node = self.nir.Flatten({"input": np.array(self.shape)}, start_dim=0, end_dim=-1)
            self.add(name, node, (math.prod(self.shape),))
        elif not isinstance(module, nn.Identity):
            why = f"NIR has no node for {type(module).__name__}"
            if not isinstance(module, SpikingNeuron) and next(module.children(), None) is not None:
                why += (
                    "; a network of one's own must derive from nn.Sequential, its modules in the order of its forward"
                )
            raise ValueError(f"network{'.' * bool(name)}{name}: {why}")

    def add_neuron(self, name: str, neuron: LIF) -> None:
        constants = neuron.of_one_step(torch.Size([1, *self.shape]))
        beta, threshold = (value.detach().double().expand(self.shape).numpy() for value in constants)
        if neuron.reset == "none":
            raise ValueError(f"network.{name}: NIR's neurons reset; reset='none' cannot be said")
        if neuron.reset == "subtract" and (beta < 1).any():
            raise ValueError(
                f"network.{name}: reset='subtract' with beta < 1 cannot be said in NIR, which decays what is "
                "subtracted; train with reset=zero, or neuron=if"
            )
        self.resets.add(neuron.reset)
        zeros = np.zeros(self.shape)
        if (beta == 1).all():
            node = self.nir.IF(r=np.full(self.shape, 1 / DT), v_threshold=threshold.copy(), v_reset=zeros)
        elif (beta < 1).all():
            tau, r = DT / (1 - beta), 1 / (1 - beta)
            node = self.nir.LIF(tau=tau, r=r, v_leak=zeros, v_threshold=threshold.copy(), v_reset=zeros)
        else:
            raise ValueError(f"network.{name}: some neurons leak and some do not; one NIR node cannot say that")
        self.add(name, node, self.shape)

    def add_convolution(self, name: str, conv: nn.Conv2d) -> None:
        if conv.groups > 1:
            raise ValueError(f"network.{name}: the package nir does not read convolutions in {conv.groups} groups")
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"network.{name}: NIR pads with zeros, by numbers of pixels")
        weight, bias = conv.weight, torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        if isinstance(conv, ScaledConv2d):
            weight = weight * conv.scale.view(-1, 1, 1, 1)
        node = self.nir.Conv2d(
            input_shape=self.shape[1:],
            weight=_array(weight),
            stride=tuple(conv.stride),
            padding=tuple(conv.padding),
            dilation=tuple(conv.dilation),
            groups=1,
            bias=_array(bias),
        )
        self.add(name, node, tuple(int(size) for size in node.output_type["output"]))

    def add_average(self, name: str, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> None:
        sizes = self.shape[1:]
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            wanted: Any = pool.output_size
            outputs = [wanted] * 2 if isinstance(wanted, int) else list(wanted)
            kernel = stride = tuple(size // (output or size) for size, output in zip(sizes, outputs, strict=True))
            rest = any(size % (output or size) for size, output in zip(sizes, outputs, strict=True))
            padding = (0, 0)
        else:
            if pool.divisor_override is not None or (not pool.count_include_pad and any(_pair(pool.padding))):
                raise ValueError(f"network.{name}: NIR divides by the size of the window, the padding included")
            kernel, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
            sizes_and_pools = zip(sizes, kernel, stride, padding, strict=True)
            rest = any((size + 2 * pad - window) % step for size, window, step, pad in sizes_and_pools)
            rest = rest and pool.ceil_mode
        if rest:
            raise ValueError(f"network.{name}: {sizes[0]} x {sizes[1]} pixels leave a rest, which NIR cannot pool")
        node = self.nir.AvgPool2d(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))
        pooled = [
            (size + 2 * pad - window) // step + 1
            for size, window, step, pad in zip(sizes, kernel, stride, padding, strict=True)
        ]
        self.add(name, node, (self.shape[0], *pooled))


def check_modules(network: nn.Module) -> None:
    """Refuse what NIR cannot say, before folding refuses it or loses it.

    Raises:
        ValueError: a weight differs by time step, or there is a hook; the message names the module.
    """
    refuse_what_no_layer_says(network, "NIR has no node")


def to_nir(network: nn.Module, input_shape: tuple[int, ...], inputs: Mapping[str, Any] | None = None) -> Any:
    """The ``nir.NIRGraph`` of a network whose batch norm is folded.

    Args:
        network: a :class:`~tna_lightning.models.Network`, or an ``nn.Sequential`` of convolutions, linear layers, LIF
            neurons, average pools and flattening (of one sample), from
            :func:`~tna_lightning.quantization.folding.fold_batch_norm`.
        input_shape: of one sample at one step, ``(C, H, W)``.
        inputs: what the network expects, as for :func:`~tna_lightning.quantization.save_network`.

    Raises:
        ValueError: NIR cannot say what the network does; the message names the module.
    """
    import nir

    check_modules(network)
    builder = _Builder(input_shape)
    with torch.no_grad():
        builder.walk("", network)
    if len(builder.resets) > 1:
        raise ValueError("network: some neurons reset to zero and some by subtraction; one NIR file cannot say that")
    builder.add("output", nir.Output({"output": np.array(builder.shape)}), builder.shape)
    metadata = {"dt": DT, "reset": next(iter(builder.resets), "zero"), "inputs": inputs_entry(network, inputs)}
    if inputs is not None and inputs.get("time_steps") is not None:
        metadata["time_steps"] = inputs["time_steps"]
    if metadata["reset"] == "subtract":
        metadata["note"] = SUBTRACTS
    return nir.NIRGraph(builder.nodes, builder.edges, metadata=metadata, type_check=False)


def write_nir(path: Path | str, graph: Any) -> None:
    """Write a graph; one whose neurons reset by subtraction in the layout of NIR 1.0.4, where all of them do."""
    import h5py  # type: ignore[import-untyped]
    import nir

    content = io.BytesIO()  # HDF5 locks the files that it opens, and a temporary file is locked by us
    nir.write(content, graph)
    if graph.metadata["reset"] == "subtract":
        with h5py.File(content, "r+") as file:
            for node in file["node/nodes"].values():
                if "v_reset" in node:
                    del node["v_reset"]
            del file["version"]
            file["version"] = SUBTRACTING_VERSION
    Path(path).write_bytes(content.getvalue())


class NIRRunner:
    """A NIR file, run by the equations in NIR's documentation: inputs ``[T, B, ...]`` to outputs ``[T, B, ...]``.

    Used to check what was written. After a call ``spikes`` holds those of each neuron node by name, in order.
    """

    def __init__(self, path: Path | str) -> None:
        import h5py
        import nir

        content = io.BytesIO(Path(path).read_bytes())
        graph = nir.read(content)
        with h5py.File(content) as file:
            self.subtracts = file["version"][()].decode() == SUBTRACTING_VERSION
        self.nodes, self.edges = graph.nodes, graph.edges
        self.spikes: dict[str, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of the graph for every step."""
        import nir

        self.spikes = {}
        values: dict[str, Tensor] = {}
        pending = list(self.nodes)
        while pending:
            for name in list(pending):
                sources = [source for source, target in self.edges if target == name]
                if all(source in values for source in sources):
                    node, inputs = self.nodes[name], [values[source] for source in sources] or [x]
                    values[name] = self._run_node(node, sum(inputs[1:], inputs[0]))
                    if isinstance(node, nir.LIF | nir.IF):
                        self.spikes[name] = values[name]
                    pending.remove(name)
        return values["output"]

    def _run_node(self, node: Any, x: Tensor) -> Tensor:
        import nir

        if isinstance(node, nir.LIF | nir.IF):
            return self._integrate(node, x)
        if isinstance(node, nir.Flatten):
            return x.flatten(2)
        if isinstance(node, nir.Input | nir.Output):
            return x
        steps, batch = x.shape[:2]
        flat = x.flatten(0, 1)
        if isinstance(node, nir.Affine):
            flat = nn.functional.linear(flat, _tensor(node.weight), _tensor(node.bias))
        elif isinstance(node, nir.Conv2d):
            stride, padding, dilation = (_pair(value) for value in (node.stride, node.padding, node.dilation))
            weight, bias = _tensor(node.weight), _tensor(node.bias)
            flat = nn.functional.conv2d(flat, weight, bias, stride, padding, dilation, int(node.groups))
        else:
            assert isinstance(node, nir.AvgPool2d)
            flat = nn.functional.avg_pool2d(flat, _pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
        return flat.unflatten(0, (steps, batch))

    def _integrate(self, node: Any, current: Tensor) -> Tensor:
        """Euler's method with a step of ``DT``, then the spike and the reset."""
        import nir

        threshold, r = torch.from_numpy(node.v_threshold), torch.from_numpy(node.r)
        membrane = torch.zeros(current.shape[1:], dtype=torch.float64)
        spikes = []
        for step in current.double():
            if isinstance(node, nir.LIF):
                rate = DT / torch.from_numpy(node.tau)
                membrane = membrane + rate * (torch.from_numpy(node.v_leak) - membrane + r * step)
            else:
                membrane = membrane + DT * r * step
            spike = membrane > threshold
            spikes.append(spike)
            reset = membrane - threshold if self.subtracts else torch.from_numpy(node.v_reset).expand_as(membrane)
            membrane = torch.where(spike, reset, membrane)
        return torch.stack(spikes).to(current.dtype)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def _pair(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(value), 2)
    return int(first), int(second)
