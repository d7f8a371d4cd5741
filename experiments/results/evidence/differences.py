"""Paired differences of the evidence, in percentage points: `python experiments/results/evidence/differences.py`."""

from __future__ import annotations

from pathlib import Path

from tna_lightning.report.collect import collect
from tna_lightning.report.statistics import mean_and_deviation, paired_difference
from tna_lightning.running.archive import RECORDS

HERE = Path(__file__).parent
Accuracies = dict[int, float]


def accuracies(study: str, quant: str, what: str = "test/acc") -> dict[str, Accuracies]:
    """Percent by baseline and seed: of the test, or of the last epoch's training for `train/acc`."""
    found: dict[str, Accuracies] = {}
    for record in collect([HERE / study / RECORDS]).done:
        if record["choices"]["quant"] == quant:
            value = record["history"][what][-1] if what == "train/acc" else record["results"][what]
            found.setdefault(record["choices"]["baseline"], {})[record["seed"]] = 100 * value
    return found


def minus(first: Accuracies, second: Accuracies, since: int = 0) -> str:
    """Mean difference over the seeds that both have, from `since` on, with its 95 % interval."""
    pairs = sorted(seed for seed in first.keys() & second.keys() if seed >= since)
    found = paired_difference([first[seed] - second[seed] for seed in pairs])
    return f"{found.words()} ({found.pairs} pairs)"


def compare(title: str, rows: dict[str, Accuracies], references: tuple[str, ...], since: int = 0) -> None:
    """Print every row's mean, and its differences to the references."""
    print(f"\n{title}")
    for name, values in rows.items():
        mean, deviation = mean_and_deviation(list(values.values()))
        to = [f"to {other} {minus(values, rows[other], since)}" for other in references if other != name]
        print(f"  {name}: {mean:.2f} ± {deviation or 0:.2f}, n {len(values)}; {'; '.join(to)}")


def main() -> None:
    """All of them."""
    references = ("plain", "plain_twice", "kd", "kd_ann", "tna")
    for quant in ("none", "ternary_hidden", "ternary"):
        compare(f"crop and flip, quant={quant}", accuracies(".", quant), references)
        compare("the same, training accuracy", accuracies(".", quant, "train/acc"), ("plain",))
    apart = accuracies("attempts", "ternary")
    compare("no augmentation, quant=ternary", apart, references)
    compare("the same, seeds 3 and up", {name: apart[name] for name in apart if name != "kd_ann"}, ("tna",), since=3)
    compare("the same, training accuracy", accuracies("attempts", "ternary", "train/acc"), ("plain",))
    with_crop = accuracies(".", "ternary")
    compare("ablation", with_crop | accuracies("ablation", "ternary"), ("plain", "tna"))
    for other in ("plain", "plain_twice"):
        gains = [
            {seed: rows["tna"][seed] - rows[other][seed] for seed in rows["tna"].keys() & rows[other].keys()}
            for rows in (apart, with_crop)
        ]
        print(f"\ngain of TNA over {other}, without less with augmentation: {minus(*gains)}")


if __name__ == "__main__":
    main()
