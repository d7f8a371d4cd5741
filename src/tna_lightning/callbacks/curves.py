"""One picture of a run: learning curves of base and companion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

History = Mapping[str, Sequence[float | int | None]]

# base and companion in two colours that stay apart for the colour-blind (Okabe and Ito)
COLORS = {"base": "#0072B2", "companion": "#D55E00", "match": "#009E73"}


def plot_curves(history: History, path: Path | str, title: str = "") -> None:
    """Save accuracy and loss over epochs, training dashed and validation solid, as PNG.

    Args:
        history: columns by metric name, as :meth:`tna_lightning.callbacks.History.columns` gives them.
        path: the file to write.
        title: stands above the picture.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    epochs = history["epoch"]

    def curve(axes: Any, name: str, scale: float = 1.0, **style: Any) -> None:
        if name in history:
            values = [float("nan") if value is None else scale * value for value in history[name]]
            axes.plot(epochs, values, **style)

    for network, prefix in (("base", ""), ("companion", "companion_")):
        color = COLORS[network]
        for axes, quantity, scale in ((accuracy, "acc", 100), (loss, "cross_entropy", 1)):
            curve(axes, f"val/{prefix}{quantity}", scale, color=color, label=f"{network}, validation")
            curve(axes, f"train/{prefix}{quantity}", scale, color=color, linestyle="--", label=f"{network}, training")
    curve(loss, "train/match", color=COLORS["match"], linestyle=":", label="match term, training")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    loss.set(xlabel="epoch", ylabel="cross-entropy; match term")
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
