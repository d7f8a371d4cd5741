"""What a run is made of: its config, folder and record, its objects, and the sweep around it.

Read `train.py`, the composition root, then `config.py`, `factory.py` and `record.py`.
"""
