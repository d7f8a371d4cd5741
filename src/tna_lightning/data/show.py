"""Moved: ``python -m tna_lightning.show``."""

raise SystemExit("error: python -m tna_lightning.data.show: is python -m tna_lightning.show now, arguments as before")
