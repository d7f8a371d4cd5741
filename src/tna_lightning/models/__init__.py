"""Spiking neurons and the networks made of them: plain torch, time first, no state between forward passes.

Read `neurons.py` (the time loop), `parallel.py` (neurons without one), `surrogates.py`, `blocks.py` (what networks share), then one file per family.
"""

from tna_lightning.models import surrogates
from tna_lightning.models.blocks import BasicBlock, Network, NeuronFactory, PerStep, is_spiking, new_neuron
from tna_lightning.models.convnet import convnet
from tna_lightning.models.neurons import LIF, SpikingNeuron, compile_neurons
from tna_lightning.models.parallel import IPSU, PSN, PSU, RPSU, MaskedPSN, SlidingPSN
from tna_lightning.models.resnet import resnet8, resnet18, resnet19, resnet20
from tna_lightning.models.spec import build
from tna_lightning.models.surrogates import Surrogate
from tna_lightning.models.vgg import vgg11, vgg16, vggsnn

__all__ = [
    "IPSU",
    "LIF",
    "PSN",
    "PSU",
    "RPSU",
    "BasicBlock",
    "MaskedPSN",
    "Network",
    "NeuronFactory",
    "PerStep",
    "SlidingPSN",
    "SpikingNeuron",
    "Surrogate",
    "build",
    "compile_neurons",
    "convnet",
    "is_spiking",
    "new_neuron",
    "resnet8",
    "resnet18",
    "resnet19",
    "resnet20",
    "surrogates",
    "vgg11",
    "vgg16",
    "vggsnn",
]
