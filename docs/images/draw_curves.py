"""Writes the README's curves, light and dark: ``python docs/images/draw_curves.py RUN``, of the demo's folder."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from tna_lightning.running.console import title
from tna_lightning.running.pictures import plot_curves
from tna_lightning.running.record import finished_record

PAPER, INK, LINES = "#0d1117", "#e6edf3", "#8b949e"  # of GitHub's dark page
DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor", "grid.color", "legend.edgecolor"), LINES),
}


def main() -> None:
    """Draw the record's history twice."""
    record = finished_record(sys.argv[1])
    for scheme, colors in (("light", {}), ("dark", DARK)):
        with matplotlib.rc_context(colors):
            plot_curves(record["history"], Path(__file__).with_name(f"curves_{scheme}.png"), title=title(record))


if __name__ == "__main__":
    main()
