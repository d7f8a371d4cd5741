"""Augmentation: operations on whole batches on their device, named and in the order written.

``operation.py`` says what an operation is; the other files hold the pure functions and the operations that apply them.
"""

from tna_lightning.data.augment.chosen import Chosen
from tna_lightning.data.augment.combinators import On, Sometimes
from tna_lightning.data.augment.erasing import Cutout, RandomErasing
from tna_lightning.data.augment.event_drop import EventDrop
from tna_lightning.data.augment.events import NDA, Roll
from tna_lightning.data.augment.geometry import Crop, Flip
from tna_lightning.data.augment.mixing import CutMix, MixUp
from tna_lightning.data.augment.operation import Operation, Samples, set_up
from tna_lightning.data.augment.policies import AutoAugment

__all__ = [
    "NDA",
    "AutoAugment",
    "Chosen",
    "Crop",
    "CutMix",
    "Cutout",
    "EventDrop",
    "Flip",
    "MixUp",
    "On",
    "Operation",
    "RandomErasing",
    "Roll",
    "Samples",
    "Sometimes",
    "set_up",
]
