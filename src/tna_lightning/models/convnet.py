"""A small network for demonstrations and tests."""

from __future__ import annotations

from typing import Any

from tna_lightning.models.blocks import Network, NeuronFactory
from tna_lightning.models.settings import settings_of
from tna_lightning.models.vgg import POOL, plain_network


@settings_of(plain_network, "pool_size")
def convnet(
    in_channels: int,
    num_classes: int,
    neuron: NeuronFactory,
    pool: str = "avg",
    **settings: Any,
) -> Network:
    """Three convolutions of 32-64-64 channels, pooled after the second and third; settings as for `plain_network`."""
    return plain_network([32, 64, POOL, 64, POOL], in_channels, num_classes, neuron, pool=pool, **settings)
