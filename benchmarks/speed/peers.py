"""Other libraries' neurons in our networks: the same equations, threshold, hard reset and surrogate (ATan, alpha 2).

Each import stands where it is needed: the libraries live in an environment of their own (`make bench-setup`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tna_lightning.models import LIF, Network, NeuronFactory, SpikingNeuron

BETA, THRESHOLD, ALPHA = 0.5, 1.0, 2.0


def our_neuron() -> LIF:
    """The neuron that the others are set up to equal."""
    return LIF(beta=BETA, threshold=THRESHOLD, reset="zero", surrogate="atan")


class SnntorchLoop(SpikingNeuron):
    """`snntorch.Leaky` in a loop over T: `[T, B, ...] -> [T, B, ...]`."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky = _leaky()

    def forward(self, current: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(current[0]), []
        for step in current:
            fired, membrane = self.leaky(step, membrane)
            spikes.append(fired)
        self.leaky.mem = membrane.new_zeros(0)  # it would hold on to the graph until the next forward
        return torch.stack(spikes)


class SnntorchStep(SpikingNeuron):
    """`snntorch.Leaky` that keeps its state from step to step, for a loop outside of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky = _leaky(init_hidden=True)

    def forward(self, current: Tensor) -> Tensor:
        return self.leaky(current)


class OverTime(nn.Module):
    """The loop over T outside of the network, as snntorch's tutorials have it; the stem still runs once for an image.

    Batch norm then sees one time step at a time, so in training its statistics are others than ours.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        neurons = [module.leaky for module in self.modules() if isinstance(module, SnntorchStep)]
        for leaky in neurons:
            leaky.mem = leaky.mem.new_zeros(0)
        network = self.network
        current = network.stem(x.unsqueeze(0))
        logits = []
        for _ in range(network.time_steps):
            features = network.head(network.pool(network.body(current)))
            logits.append(network.classifier(features.flatten(2)))
        for leaky in neurons:
            leaky.mem = leaky.mem.new_zeros(0)
        return torch.cat(logits)


def _leaky(**settings: bool) -> nn.Module:
    import snntorch

    spike_grad = snntorch.surrogate.atan(alpha=ALPHA)
    return snntorch.Leaky(beta=BETA, threshold=THRESHOLD, spike_grad=spike_grad, reset_mechanism="zero", **settings)


class SpikingjellyMultiStep(SpikingNeuron):
    """`spikingjelly`'s LIF over all steps at once; version 2 itself chooses the implementation for the device."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(
            tau=1 / (1 - BETA),
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=0.0,
            surrogate_function=surrogate.ATan(alpha=ALPHA),
            detach_reset=True,
            step_mode="m",
        )

    def forward(self, current: Tensor) -> Tensor:
        spikes = self.node(current)
        self.node.reset()
        return spikes


PEERS: dict[str, NeuronFactory] = {"snntorch": SnntorchLoop, "spikingjelly": SpikingjellyMultiStep}


def spikingjelly_implementation(device: torch.device) -> str:
    """Which of its implementations spikingjelly runs on this device."""
    if device.type == "cpu":
        return "torch, its only one for a CPU"
    from spikingjelly._ops.lif import _selection

    return _selection.diagnostics(device)["implementation"]
