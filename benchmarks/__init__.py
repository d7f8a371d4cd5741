"""Measurements: `speed/` is what `make bench` runs; each script beside it measures one thing, its head says how."""
