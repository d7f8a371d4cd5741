"""What one choice adds, averaged over all others, by `python experiments/results/neighbours/effects.py`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import paired_difference
from tna_lightning.running.archive import RECORDS

STEPS = [
    ("baseline", "plain", "tna"),
    ("quant", "ternary_hidden", "tawq"),
    ("neuron", "lif", "sliding_psn"),
    ("neuron", "lif", "psu"),
]


def main() -> None:
    """Points of test accuracy by data set: the mean over seeds of a seed's mean, with its 95 % interval."""
    records = collect([Path(__file__).parent / RECORDS]).done
    for data in ("digits", "digits_dvs"):
        for choice, before, after in STEPS:
            found = []
            for seed in sorted({record["seed"] for record in records}):
                of_seed = [each for each in records if each["seed"] == seed and each["choices"]["data"] == data]
                means = [
                    mean(100 * each["results"]["test/acc"] for each in of_seed if each["choices"][choice] == value)
                    for value in (before, after)
                ]
                found.append(means[1] - means[0])
            total = paired_difference(found)
            print(f"{data} {choice}={after} minus {before}: {total.mean:+.2f} ± {total.half_width:.2f}")


if __name__ == "__main__":
    main()
