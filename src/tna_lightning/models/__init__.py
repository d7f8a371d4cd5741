"""Spiking neurons and the networks made of them: plain torch, time first, no state between forward passes.

Read `neurons.py` (its time loop in `fused.py` and `eager.py`), `surrogates.py`, `blocks.py` (what networks share), then
one file per family (for `transformer.py` also `attention.py`). Further neurons: `parallel.py` (no loop),
`lif_variants.py`, `stepwise.py` (other libraries), `quant_relu.py` (no spikes).
"""

from tna_lightning.models import surrogates
from tna_lightning.models.blocks import BasicBlock, Network, NeuronFactory, PerStep, is_spiking, new_neuron
from tna_lightning.models.convnet import convnet
from tna_lightning.models.lif_variants import ALIF, IntegerLIF, TernaryLIF
from tna_lightning.models.neurons import LIF, SpikingNeuron, compile_neurons
from tna_lightning.models.parallel import IPSU, PSN, PSU, RPSU, MaskedPSN, SlidingPSN
from tna_lightning.models.quant_relu import QuantReLU
from tna_lightning.models.residual import MaxBlock, MSBlock, SEWBlock, maxresnet18, msresnet18, sewresnet18
from tna_lightning.models.resnet import resnet8, resnet18, resnet19, resnet20
from tna_lightning.models.spec import build
from tna_lightning.models.stepwise import Stepwise, snntorch_neuron, spikingjelly_neuron
from tna_lightning.models.surrogates import Surrogate
from tna_lightning.models.transformer import sdt, spikingformer
from tna_lightning.models.vgg import vgg11, vgg16, vggsnn

__all__ = [
    "ALIF",
    "IPSU",
    "LIF",
    "PSN",
    "PSU",
    "RPSU",
    "BasicBlock",
    "IntegerLIF",
    "MSBlock",
    "MaskedPSN",
    "MaxBlock",
    "Network",
    "NeuronFactory",
    "PerStep",
    "QuantReLU",
    "SEWBlock",
    "SlidingPSN",
    "SpikingNeuron",
    "Stepwise",
    "Surrogate",
    "TernaryLIF",
    "build",
    "compile_neurons",
    "convnet",
    "is_spiking",
    "maxresnet18",
    "msresnet18",
    "new_neuron",
    "resnet8",
    "resnet18",
    "resnet19",
    "resnet20",
    "sdt",
    "sewresnet18",
    "snntorch_neuron",
    "spikingformer",
    "spikingjelly_neuron",
    "surrogates",
    "vgg11",
    "vgg16",
    "vggsnn",
]
