"""Lightning callbacks, one a file: averages, history, exact resume, a stop on NaN, cost, layers, chosen copies."""

from tna_lightning.callbacks.choose_copies import ChooseCopies
from tna_lightning.callbacks.ema import EMA
from tna_lightning.callbacks.exact_resume import ExactResume
from tna_lightning.callbacks.history import History
from tna_lightning.callbacks.layer_curves import LayerCurves
from tna_lightning.callbacks.nonfinite import NonFiniteLoss, StopOnNonFiniteLoss
from tna_lightning.callbacks.swa import SWA

__all__ = [
    "EMA",
    "SWA",
    "ChooseCopies",
    "ExactResume",
    "History",
    "LayerCurves",
    "NonFiniteLoss",
    "StopOnNonFiniteLoss",
]
