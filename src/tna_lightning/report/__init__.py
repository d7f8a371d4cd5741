"""A study as tables, plots and one page: ``python -m tna_lightning.report STUDY...``.

Reads records and nothing else: a ``run.json`` a run, or a study's in one compressed file.
"""
