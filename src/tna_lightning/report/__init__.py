"""A study as tables, plots and one page: ``python -m tna_lightning.report STUDY...``.

Reads ``run.json`` and nothing else.
"""
