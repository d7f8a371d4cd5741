"""What neurons do in a forward is told by name, in order, and nothing is left behind."""

import pytest
import torch
from torch import nn

from tna_lightning.models import LIF
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
