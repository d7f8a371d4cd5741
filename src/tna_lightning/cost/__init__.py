"""What an inference costs: weights, spikes, operations and energy, counted while a network sees data. Plain torch."""

from tna_lightning.cost.counter import PJ_PER_AC, PJ_PER_MAC, CostCounter, check_energies, inference_cost
from tna_lightning.cost.memory import MemoryModel

__all__ = ["PJ_PER_AC", "PJ_PER_MAC", "CostCounter", "MemoryModel", "check_energies", "inference_cost"]
