"""TNA minus the others, seed by seed, on test and on validation images.

By `python experiments/results/first_look/differences.py`.
"""

from __future__ import annotations

from pathlib import Path

from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import mean_and_deviation, paired_difference
from tna_lightning.running.archive import RECORDS

HERE = Path(__file__).parent


def main() -> None:
    """Print accuracies in percent and differences in points with their 95 % interval."""
    for folder, words, what in ((HERE, "seeds 0 to 7", "test"), (HERE / "choice", "seeds 100 to 107", "val")):
        print(f"{words}, {what}")
        found: dict[str, dict[int, float]] = {}
        for record in collect([folder / RECORDS]).done:
            name = record["choices"]["baseline"]
            if name == "tna":
                name += f" {record['config']['objective']['match_weight']}"
            found.setdefault(name, {})[record["seed"]] = 100 * record["results"][f"{what}/acc"]
        default = found["tna 0.05"]
        for name, of_seeds in found.items():
            difference = paired_difference([default[seed] - value for seed, value in of_seeds.items()])
            mean, deviation = mean_and_deviation(list(of_seeds.values()))
            print(f"  {name}: {mean:.2f} ± {deviation:.2f}; tna 0.05 minus this {difference.words()}")


if __name__ == "__main__":
    main()
