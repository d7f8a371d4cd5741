"""Where a twin pays: paired differences and the picture, by `python experiments/results/fashion_mnist/map.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import mean_and_deviation, paired_difference
from tna_lightning.running.archive import RECORDS

HERE = Path(__file__).parent
REFERENCES = {
    "plain": "plain training",
    "plain_twice": "plain training, twice the epochs",
    "kd": "distillation, spiking teacher",
}
Accuracies = dict[str, dict[int, float]]


class Axis(NamedTuple):
    """A factor that changes alone: the folders of its records, which of them, and its value in a record.

    A value of None is that of a reference which serves all values.
    """

    words: str
    folders: tuple[str, ...]
    belongs: Callable[[Mapping[str, Any]], bool]
    value: Callable[[Mapping[str, Any]], float | str | None]


def images(record: Mapping[str, Any]) -> int:
    """Of the training set."""
    return int(record["config"]["data"]["train_subset"])


AXES = {
    "images": Axis("training images, 40 epochs", ("images", "table"), lambda _: True, images),
    "epochs": Axis(
        "epochs, 2,000 training images",
        ("images", "epochs"),
        lambda record: images(record) == 2000,
        lambda record: int(record["config"]["epochs"]),
    ),
}


def accuracies(axis: Axis, what: str = "test/acc") -> dict[Any, Accuracies]:
    """Percent by value on the axis, baseline and seed: of the test, or of the last epoch's training for `train/acc`.

    What is no reference is TNA of some kind, and stands under `tna`.
    """
    records = [r for r in collect([HERE / folder / RECORDS for folder in axis.folders]).done if axis.belongs(r)]
    values = {axis.value(record) for record in records} - {None}
    found: dict[Any, Accuracies] = {value: {} for value in sorted(values)}
    for record in records:
        accuracy = 100 * (record["history"][what][-1] if what == "train/acc" else record["results"][what])
        baseline = record["choices"]["baseline"]
        name = baseline if baseline in REFERENCES else "tna"
        for value in values if axis.value(record) is None else {axis.value(record)}:
            found[value].setdefault(name, {})[record["seed"]] = accuracy
    return found


def gain(rows: Accuracies, reference: str) -> tuple[float, float]:
    """TNA minus the reference over the seeds of both: mean and half of the 95 % interval."""
    pairs = sorted(rows["tna"].keys() & rows[reference].keys())
    found = paired_difference([rows["tna"][seed] - rows[reference][seed] for seed in pairs])
    assert found.half_width is not None
    return found.mean, found.half_width


def verdict(mean: float, half_width: float) -> str:
    """As PLAN.md has it."""
    return "yes" if mean - half_width > 0 else "no" if mean + half_width < 0.3 else "open"


def main() -> None:
    """Print every axis and draw it."""
    columns = min(3, len(AXES))
    rows_of_panels = math.ceil(len(AXES) / columns)
    size = (4.6 * columns, 3.4 * rows_of_panels)
    figure, panels = plt.subplots(rows_of_panels, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(AXES) :]:
        panel.set_visible(False)
    for (name_of_axis, axis), panel in zip(AXES.items(), panels.flat, strict=False):
        test, train = accuracies(axis), accuracies(axis, "train/acc")
        references = {name: words for name, words in REFERENCES.items() if all(name in rows for rows in test.values())}
        labels = [f"{value:,}" if isinstance(value, int) else value for value in test]
        for label, (value, rows) in zip(labels, test.items(), strict=True):
            print(f"{name_of_axis} {label}")
            for name, of_seeds in rows.items():
                mean, deviation = mean_and_deviation(list(of_seeds.values()))
                fitted = mean_and_deviation(list(train[value][name].values()))[0]
                print(f"  {name}: {mean:.2f} ± {deviation or 0:.2f}, training images {fitted:.1f}, n {len(of_seeds)}")
            for reference in (name for name in REFERENCES if name in rows):
                mean, half_width = gain(rows, reference)
                interval = f"[{mean - half_width:+.2f}, {mean + half_width:+.2f}]"
                print(f"  TNA minus {reference}: {mean:+.2f} {interval}: {verdict(mean, half_width)}")
        for shift, (reference, words) in enumerate(references.items()):
            gains = [gain(rows, reference) for rows in test.values()]
            places = [place + 0.12 * (shift - 0.5) for place in range(len(test))]
            means, halves = zip(*gains, strict=True)
            panel.errorbar(places, means, halves, fmt="os"[shift], capsize=4, label=f"to {words}")
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(test)), labels)
        panel.set_xlabel(axis.words)
        panel.set_ylabel("gain of TNA, points (95 %)")
        panel.legend(frameon=False)
    figure.savefig(HERE / "map.png", dpi=150)


if __name__ == "__main__":
    main()
