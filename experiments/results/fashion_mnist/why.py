"""Inside runs, by their kept networks and checkpoints: `why.py FOLDER... -o FILE` measures all runs of these studies.

Without a folder it prints the tables of what was measured: why.json, and on other seeds why_again.json. Flatness is the
rise of the cross-entropy on the run's own training images when every weight w of a layer becomes w + r rms(w) n, with n
standard normal; the mean of three draws. Pairs of plain networks are of the same images (a run whose `data.seed` is
the other's seed), and where there is none, of neighbouring seeds. Calibrated: logits over the one temperature that
fits the run's validation images best (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tna_lightning.evaluation import changes, figures
from tna_lightning.evaluation.answers import answers_of
from tna_lightning.report.statistics import mean_and_deviation, paired_difference
from tna_lightning.running.record import find_runs, finished_record
from tna_lightning.running.trust import rebuilt

HERE = Path(__file__).parent
NOISE = (0.05, 0.1, 0.2)
DRAWS = 3
IMAGES = 2000  # of the training set, in the runs that are looked into
ROWS = {
    "train": "training images, %",
    "acc": "test images, %",
    "train_loss": "loss, training images",
    "nll": "loss, test images",
    "ece": "calibration error, points",
    "temperature": "temperature that calibrates",
    "calibrated nll": "loss, test images, calibrated",
    "calibrated ece": "calibration error, calibrated",
    **{f"noise {r}": f"rise of the training loss, noise {r}" for r in NOISE},
    "agreement": "agreement with the twin (plain: with a second network), %",
    "other": "the twin alone (plain: the second network), %",
    "together": "both together, %",
}


@torch.no_grad()
def logits_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """Means over time, in batches of 500: ``[N, K]`` of inputs ``[N, C, H, W]``."""
    return torch.cat([network(part).mean(0) for part in inputs.split(500)])


def mean_loss(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    logits = logits_of(network, inputs)
    return cross_entropy(logits, labels).item(), figures.accuracy(logits, labels)


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least cross-entropy (arXiv 1706.04599) for logits ``[N, K]`` and labels ``[N]``."""
    found = minimize_scalar(
        lambda temperature: cross_entropy(logits / temperature, labels).item(), bounds=(0.1, 10), method="bounded"
    )
    return float(found.x)


@torch.no_grad()
def under_noise(network: nn.Module, inputs: Tensor, labels: Tensor, r: float) -> float:
    """Cross-entropy with noise on every weight, the mean of `DRAWS` draws."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    kept = [weight.clone() for weight in weights]
    losses = []
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        for weight, before in zip(weights, kept, strict=True):
            noise = torch.randn(before.shape, generator=generator)
            weight.copy_(before + r * before.square().mean().sqrt() * noise)
        losses.append(mean_loss(network, inputs, labels)[0])
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    return sum(losses) / DRAWS


def measure(folder: Path, data_root: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What one run shows, its test logits and their labels."""
    record = finished_record(folder)
    config, baseline = record["config"], record["choices"]["baseline"]
    datamodule, spec = rebuilt(folder, data_root)
    network = changes.network_of(folder, spec, config, {})
    answers = answers_of(network, datamodule, folder, config)
    datamodule.setup("fit")
    chosen = datamodule.train_set
    inputs, labels = datamodule.prepare(chosen.inputs[chosen.subset]), chosen.targets[chosen.subset]
    train_loss, train = mean_loss(network, inputs, labels)
    calibration = figures.calibration(answers.logits, answers.labels)
    held_out = datamodule.val_set
    held_out_logits = logits_of(network, datamodule.prepare(held_out.inputs[held_out.subset]))
    temperature = fitted_temperature(held_out_logits, held_out.targets[held_out.subset])
    calibrated = figures.calibration(answers.logits / temperature, answers.labels)
    shown = {
        "name": record["name"],
        "epochs": config["epochs"],
        "baseline": baseline,
        "seed": record["seed"],
        "images": config["data"]["seed"],
        "train": 100 * train,
        "train_loss": train_loss,
        "acc": 100 * figures.accuracy(answers.logits, answers.labels),
        "nll": calibration["nll"],
        "ece": 100 * calibration["ece"],
        "temperature": temperature,
        "calibrated nll": calibrated["nll"],
        "calibrated ece": 100 * calibrated["ece"],
        **{f"noise {r}": under_noise(network, inputs, labels, r) - train_loss for r in NOISE},
    }
    if baseline == "tna":
        twin = changes.networks_of_checkpoint(folder, datamodule, config, trust=False)["companion"]
        shown |= pair(answers.logits, answers_of(twin, datamodule, folder, config).logits, answers.labels)
    return shown, answers.logits, answers.labels


def pair(logits: Tensor, others: Tensor, labels: Tensor) -> dict[str, float]:
    """Two networks beside each other."""
    return {
        "agreement": 100 * (logits.argmax(1) == others.argmax(1)).float().mean().item(),
        "other": 100 * figures.accuracy(others, labels),
        "together": 100 * figures.accuracy(figures.ensemble([logits, others]), labels),
    }


def measure_all(studies: list[Path], data_root: str) -> list[dict[str, Any]]:
    """All finished runs of the studies' folders; what another run's images were given to is measured for its pair."""
    found: dict[tuple[int, str, int], tuple[dict[str, Any], Tensor, Tensor]] = {}
    second: dict[tuple[int, str, int], Tensor] = {}
    for folder in (folder for study in studies for folder in find_runs(study)):
        try:
            record = finished_record(folder)
        except ValueError as error:
            print(f"left out, {error}")
            continue
        if record["config"]["data"]["train_subset"] != IMAGES:
            print(f"left out, {folder}: not of {IMAGES:,} images")
            continue
        shown, logits, labels = measure(folder, data_root)
        key = shown["epochs"], shown["baseline"], shown["images"]
        if shown["images"] == shown["seed"]:
            found[key] = shown, logits, labels
        else:
            second[key] = logits
        print(shown["name"], flush=True)
    ordered = sorted(found)
    for one, other in pairwise(ordered):
        if one[:2] == other[:2]:
            second.setdefault(one, found[other][1])
    for key, (shown, logits, labels) in found.items():
        if shown["baseline"] != "tna" and key in second:
            shown |= pair(logits, second[key], labels)
    return [found[key][0] for key in ordered]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a column for each setting, mean and deviation over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(f"{run['baseline']}, {run['epochs']} epochs", []).append(run)
    lines = ["| | " + " | ".join(groups) + " |", "|---|" + "---|" * len(groups)]
    for key, words in ROWS.items():
        cells = []
        for group in groups.values():
            values = [run[key] for run in group if key in run]
            mean, deviation = mean_and_deviation(values) if values else (None, None)
            digits = 3 if "loss" in words else 2 if "temperature" in words else 1
            cells.append(
                "" if mean is None else f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")
            )
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(runs: list[dict[str, Any]]) -> str:
    """TNA minus plain training of as many epochs, and of twice as many: paired by seed, with the 95 % interval."""
    of = {(run["baseline"], run["epochs"], run["seed"]): run for run in runs}
    lines = []
    for reference, epochs in sorted({(baseline, epochs) for baseline, epochs, _ in of if baseline != "tna"}):
        seeds = sorted(seed for baseline, number, seed in of if (baseline, number) == ("tna", epochs))
        for key in ROWS:
            pairs = [(of["tna", epochs, seed], of[reference, epochs, seed]) for seed in seeds]
            if not all(key in run for both in pairs for run in both):
                continue
            found = paired_difference([one[key] - other[key] for one, other in pairs])
            lines.append(f"TNA minus {reference}, {epochs} epochs, {ROWS[key]}: {found.words(3)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="folders of finished runs with their checkpoints")
    parser.add_argument("--data-root", default=".data")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "why.json")
    arguments = parser.parse_args()
    if arguments.studies:
        runs = measure_all(arguments.studies, arguments.data_root)
        arguments.output.write_text(json.dumps(runs, indent=1) + "\n")
    for path in [arguments.output] if arguments.studies else [HERE / "why.json", HERE / "why_again.json"]:
        runs = json.loads(path.read_text())
        print(path.name, table(runs), differences(runs), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
