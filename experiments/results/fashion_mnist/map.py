"""Where a twin pays: paired differences and the picture, by `python experiments/results/fashion_mnist/map.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import Difference, mean_and_deviation, paired_difference
from tna_lightning.running.archive import RECORDS

HERE = Path(__file__).parent
REFERENCES = {
    "plain": "plain training",
    "plain_twice": "plain training, twice the epochs",
    "kd": "distillation, spiking teacher",
}
DEFAULT_MATCH = "0.05"  # of baseline=tna
Accuracies = dict[str, dict[int, float]]


class Axis(NamedTuple):
    """A factor that changes alone: the folders of its records, which of them, a record's value, and all values.

    Where the factor concerns the twin alone (`of_the_twin`), plain training serves all of its values.
    """

    words: str
    folders: tuple[str, ...]
    belongs: Callable[[Mapping[str, Any]], bool]
    value: Callable[[Mapping[str, Any]], str]
    values: tuple[str, ...]
    of_the_twin: bool = False


def images(record: Mapping[str, Any]) -> int:
    """Of the training set."""
    return int(record["config"]["data"]["train_subset"])


def epochs(record: Mapping[str, Any]) -> str:
    """With seeds that were added after a look at the others apart."""
    return f"{record['config']['epochs']}" + (" again" if record["seed"] >= 5 else "")


def match(record: Mapping[str, Any]) -> str:
    """Weight of the match term, and the epoch that it starts with if it is not the first."""
    objective = record["config"]["objective"]
    start = objective["match_start_epoch"]
    return f"{objective['match_weight']}" + (f" from {start}" if start else "")


AXES = {
    "images": Axis(
        "training images, 40 epochs",
        ("images", "table"),
        lambda _: True,
        lambda record: f"{images(record):,}",
        ("600", "2,000", "6,000", "20,000"),
    ),
    "epochs": Axis(
        "epochs, 2,000 training images",
        ("images", "epochs"),
        lambda record: images(record) == 2000,
        epochs,
        ("20", "40", "160", "160 again"),
    ),
    "match": Axis(
        "match weight (from epoch), 6,000 images",
        ("images", "match"),
        lambda record: images(record) == 6000,
        match,
        ("0.005", DEFAULT_MATCH, "0.5", "0.005 from 20", "0.5 from 20"),
        of_the_twin=True,
    ),
}


def accuracies(axis: Axis, what: str = "test/acc") -> dict[str, Accuracies]:
    """Percent by value on the axis, baseline and seed: of the test, or of the last epoch for `train/acc`, `val/acc`."""
    found: dict[str, Accuracies] = {value: {} for value in axis.values}
    for record in collect([HERE / folder / RECORDS for folder in axis.folders]).done:
        if axis.belongs(record):
            accuracy = 100 * (record["results"][what] if what == "test/acc" else record["history"][what][-1])
            baseline = record["choices"]["baseline"]
            for value in axis.values if axis.of_the_twin and baseline in REFERENCES else (axis.value(record),):
                found[value].setdefault(baseline, {})[record["seed"]] = accuracy
    return found


def gain(rows: Accuracies, reference: str) -> Difference:
    """TNA minus the reference, over the seeds of both."""
    pairs = sorted(rows["tna"].keys() & rows[reference].keys())
    return paired_difference([rows["tna"][seed] - rows[reference][seed] for seed in pairs])


def verdict(difference: Difference) -> str:
    """As PLAN.md has it."""
    assert difference.half_width is not None
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return "yes" if low > 0 else "no" if high < 0.3 else "open"


def main() -> None:
    """Print every axis and draw it."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(4.8 * len(AXES), 3.6), layout="constrained")
    for (name_of_axis, axis), panel in zip(AXES.items(), panels, strict=True):
        test, train, validation = (accuracies(axis, what) for what in ("test/acc", "train/acc", "val/acc"))
        references = {name: words for name, words in REFERENCES.items() if all(name in rows for rows in test.values())}
        for value, rows in test.items():
            print(f"{name_of_axis} {value}")
            for name, of_seeds in rows.items():
                mean, deviation = mean_and_deviation(list(of_seeds.values()))
                fitted, chosen_by = (mean_and_deviation([*of[value][name].values()])[0] for of in (train, validation))
                others = f"training images {fitted:.1f}, validation images {chosen_by:.2f}"
                print(f"  {name}: {mean:.2f} ± {deviation or 0:.2f}, {others}, n {len(of_seeds)}")
            for reference in (name for name in REFERENCES if name in rows):
                difference = gain(rows, reference)
                held_out = gain(validation[value], reference).words()
                print(f"  TNA minus {reference}: {difference.words()}: {verdict(difference)}; validation {held_out}")
        for shift, (reference, words) in enumerate(references.items()):
            gains = [gain(rows, reference) for rows in test.values()]
            places = [place + 0.12 * (shift - 0.5) for place in range(len(test))]
            means, halves = [each.mean for each in gains], [each.half_width for each in gains]
            panel.errorbar(places, means, halves, fmt="os"[shift], capsize=4, label=f"over {words}")
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(test)), [value.replace(" ", "\n", 1) for value in test])
        panel.set_xlabel(axis.words)
        panel.set_ylabel("gain of TNA, points (95 %)")
        panel.legend(frameon=False)
    of_validation = {value: rows["tna"] for value, rows in accuracies(AXES["match"], "val/acc").items()}
    for value in (value for value in of_validation if value != DEFAULT_MATCH):
        pairs = [of_validation[value][seed] - of_default for seed, of_default in of_validation[DEFAULT_MATCH].items()]
        print(f"match {value} minus {DEFAULT_MATCH}, validation images: {paired_difference(pairs).words()}")
    figure.savefig(HERE / "map.png", dpi=150)


if __name__ == "__main__":
    main()
