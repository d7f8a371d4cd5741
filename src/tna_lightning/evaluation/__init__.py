"""What ``python -m tna_lightning.evaluate`` asks of a kept network: other time steps and data, corruptions, figures.

Read ``answers.py`` (logits of a test set), ``figures.py`` (what follows from them), ``changes.py`` (what may differ
from the run), then ``pictures.py``.
"""
