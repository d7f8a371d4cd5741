"""Lightning callbacks, one a file: history, exact resume, a stop on NaN, cost of inference, pictures, layers."""

from tna_lightning.callbacks.exact_resume import ExactResume
from tna_lightning.callbacks.history import History
from tna_lightning.callbacks.layer_curves import LayerCurves
from tna_lightning.callbacks.nonfinite import NonFiniteLoss, StopOnNonFiniteLoss

__all__ = ["ExactResume", "History", "LayerCurves", "NonFiniteLoss", "StopOnNonFiniteLoss"]
