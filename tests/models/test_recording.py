"""What neurons do in a forward is told by name, in order, and nothing is left behind."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tna_lightning import load_packed, record, save_network
from tna_lightning.models import LIF, SpikingNeuron, build
from tna_lightning.models.recording import spikes_of, watched


class Twice(nn.Module):
    """Calls one layer of neurons twice, as a recurrent block does; time first."""

    def __init__(self):
        super().__init__()
        self.first, self.again = LIF(beta=0.0), LIF(beta=0.0, threshold=0.25)

    def forward(self, x):
        return self.again(self.again(self.first(x)) * 0.2)


def test_neurons_are_told_by_name_and_call_and_the_hooks_go():
    x = torch.tensor([0.5, 1.5]).expand(3, 1, 2)  # [T, B, C]
    told = []
    network = Twice()
    with watched(network, lambda *call: told.append(call)):
        network(x)
    assert [name for name, _, _ in told] == ["first", "again", "again"]
    assert torch.equal(told[0][1], x)
    assert [spikes[0, 0].tolist() for _, _, spikes in told] == [[0, 1], [0, 1], [0, 0]]
    assert torch.equal(told[2][1], told[1][2] * 0.2)

    with pytest.raises(ZeroDivisionError), watched(network, lambda *call: 1 / 0):
        network(x)
    logits, spikes = spikes_of(network, x)
    assert len(spikes) == 3
    assert torch.equal(spikes[-1], logits)
    assert not any(module._forward_hooks for module in network.modules())


def test_membranes_are_those_of_the_equations():
    network = nn.Sequential(LIF(beta=0.5), LIF(beta=1.0, reset="subtract", threshold=0.5))
    currents = torch.tensor([0.75, 0.75, 0.25]).view(3, 1, 1)
    spikes, (first, second) = record(network, currents)
    assert (first.name, second.name) == ("0", "1")
    # 0.75; 0.375 + 0.75 = 1.125 > 1; reset to 0, then 0.25
    assert first.membranes.flatten().tolist() == [0.75, 1.125, 0.25]
    assert first.spikes.flatten().tolist() == [0, 1, 0]
    # 0; 1 > 0.5; 1 - 0.5 = 0.5, which is not above 0.5
    assert second.membranes.flatten().tolist() == [0, 1, 0.5]
    assert torch.equal(second.spikes, spikes)
    assert torch.equal(second.currents, first.spikes)
    assert not spikes.requires_grad


def test_what_is_written_into_spikes_later_and_the_networks_own_statistics_are_left_alone():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.neuron = nn.BatchNorm1d(3), LIF()

        def forward(self, x):
            current = self.norm(5 * x).expand(4, *x.shape).contiguous()
            spikes = self.neuron(current)
            spikes += 7
            current.zero_()
            return spikes

    network = Added().train()
    logits, (layer,) = record(network, torch.randn(6, 3))
    assert layer.spikes.unique().tolist() == [0, 1]
    assert torch.equal(logits, layer.spikes + 7)
    assert torch.equal(layer.spikes, (layer.membranes > 1).float())
    assert (network.norm.running_mean.tolist(), int(network.norm.num_batches_tracked)) == ([0, 0, 0], 0)


def test_currents_are_those_that_came_though_a_layer_writes_into_them():
    class Halving(SpikingNeuron):
        def forward(self, current):
            return (current.mul_(0.5) > 1).to(current.dtype)

    class Outer(SpikingNeuron):
        """A layer within a layer: its call ends after the inner one's."""

        def __init__(self):
            super().__init__()
            self.inner = Halving()

        def forward(self, current):
            return self.inner(current.sub_(1))

    _, (inner, outer) = record(nn.Sequential(Outer()), torch.full((2, 1, 3), 4.0))
    assert [layer.name for layer in (inner, outer)] == ["0.inner", "0"]
    assert (inner.currents.unique().tolist(), outer.currents.unique().tolist()) == ([3], [4])


def test_the_example_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = {
        "model": {"_target_": "tna_lightning.models.convnet", "width": 0.25},
        "neuron": {"_target_": "tna_lightning.models.LIF"},
        "inputs": {"channels": 1, "height": 8, "width": 8, "time_steps": None, "num_classes": 10},
    }
    save_network("network.safetensors", build(spec), spec)
    page = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["body.0", "body.2", "body.5"]
    assert len(record(load_packed("network.safetensors"), torch.randn(2, 1, 8, 8))[1]) == 3
