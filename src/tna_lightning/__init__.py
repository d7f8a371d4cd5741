"""Twin Network Augmentation for spiking networks: train twins, keep a ternary SNN."""

__version__ = "0.1.0"
