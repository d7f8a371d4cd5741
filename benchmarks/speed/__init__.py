"""How fast training is, beside the ReLU network of the same shape and other libraries: `python -m benchmarks.speed`.

Read `timing.py` (interleaved rounds), `comparison.py` (what a comparison is), `neuron_layer.py`, `training_step.py` and
so on (one comparison or family a file), `measure.py` (one comparison in this process), `__main__.py` (all, a process
each) and `page.py` (the records become one page).
"""
