"""One neuron layer, forward and backward. Letters: T time steps, B batch, C channels, H W pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.speed.comparison import Comparison, Ratio, Settings
from benchmarks.speed.peers import PEERS, our_neuron, spikingjelly_implementation
from tna_lightning.models import compile_neurons

TOLERANCE = 1e-5
"""Largest difference of a gradient, over the largest gradient; spikes must be the same, one by one."""


def _shape(settings: Settings) -> tuple[int, ...]:
    return (4, 2, 4, 6, 6) if settings.toy else (4, 32, 64, 32, 32)


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one layer; the gradient with respect to the currents is returned, not accumulated."""

    layer: nn.Module
    current: Tensor
    grad_spikes: Tensor

    def __call__(self) -> tuple[Tensor, Tensor]:
        spikes = self.layer(self.current)
        (gradient,) = torch.autograd.grad(spikes, self.current, self.grad_spikes)
        return spikes, gradient


def _compiled() -> nn.Module:
    neuron = our_neuron()
    compile_neurons(neuron)
    return neuron


def _copy(settings: Settings) -> Callable[[], object]:
    run = _pass(nn.Identity(), settings)
    return lambda: (run.current.detach().clone(), run.grad_spikes.clone())


def _pass(layer: nn.Module, settings: Settings, channels_last: bool = False) -> Pass:
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for _ in range(2):
        tensor = torch.randn(_shape(settings), generator=generator).to(settings.device)
        if channels_last:
            tensor = tensor.movedim(2, -1).contiguous().movedim(-1, 2)
        tensors.append(tensor)
    return Pass(layer.to(settings.device), tensors[0].requires_grad_(), tensors[1])


def contestants(settings: Settings) -> dict[str, Callable[[], Callable[[], object]]]:
    """Ours compiled and eager, the other libraries, and the two limits: ReLU and a copy."""
    builders: dict[str, Callable[[], Callable[[], object]]] = {
        "ours, compiled": lambda: _pass(_compiled(), settings),
        "ours, eager": lambda: _pass(our_neuron(), settings),
        "ReLU": lambda: _pass(nn.ReLU(), settings),
        "copy": lambda: _copy(settings),
        "ours, compiled, channels last": lambda: _pass(_compiled(), settings, channels_last=True),
        "ReLU, channels last": lambda: _pass(nn.ReLU(), settings, channels_last=True),
    }
    if settings.peers:
        for name, neuron in PEERS.items():
            builders[name] = lambda neuron=neuron: _pass(neuron(), settings)
    return builders


def check(runs: Mapping[str, Callable[[], object]]) -> list[str]:
    """Every spike and gradient against ours, eager."""
    expected_spikes, expected_gradient = runs["ours, eager"]()
    found = [f"{expected_spikes.mean().item():.1%} of the neurons spike, on average over the steps"]
    for name, run in runs.items():
        if name == "copy" or "ReLU" in name or name == "ours, eager":
            continue
        spikes, gradient = run()
        differing = int((spikes != expected_spikes).sum())
        scale = expected_gradient.abs().max()
        difference = ((gradient - expected_gradient).abs().max() / scale).item()
        assert differing == 0, f"{name}: {differing} spikes differ from ours"
        assert difference <= TOLERANCE, f"{name}: gradients differ from ours by {difference:.1e} of the largest"
        found.append(f"{name}: no spike differs from ours, eager; gradients by at most {difference:.1e} of the largest")
    if "spikingjelly" in runs:
        found.append(f"spikingjelly runs its implementation {spikingjelly_implementation(expected_spikes.device)}")
    return found


COMPARISONS = {
    "neuron_layer": Comparison(
        title="One neuron layer, forward and backward",
        sizes=lambda settings: (
            f"Currents of shape {list(_shape(settings))} (T, B, C, H, W), float32, standard normal; decay 0.5, "
            "threshold 1, hard reset, arctangent surrogate. The copy is one of the currents and one of the gradients."
        ),
        contestants=contestants,
        check=check,
        ratios=(
            Ratio("ours over ReLU", ("ours, compiled",), ("ReLU",)),
            Ratio("ours over ReLU, channels last", ("ours, compiled, channels last",), ("ReLU, channels last",)),
            Ratio("ours over copy", ("ours, compiled",), ("copy",)),
            Ratio("ours, eager over compiled", ("ours, eager",), ("ours, compiled",)),
            Ratio("ours, eager over ReLU", ("ours, eager",), ("ReLU",)),
            Ratio("spikingjelly over ours, eager", ("spikingjelly",), ("ours, eager",)),
            Ratio("snntorch over ours, eager", ("snntorch",), ("ours, eager",)),
            Ratio("spikingjelly over ours", ("spikingjelly",), ("ours, compiled",)),
            Ratio("snntorch over ours", ("snntorch",), ("ours, compiled",)),
        ),
    )
}
