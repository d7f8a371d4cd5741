"""The trained networks that lie in the repository: they can be used, and their card is true."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tna_lightning import predict
from tna_lightning.running.config import compose
from tna_lightning.running.identity import identity

NETWORKS = Path(__file__).parents[1] / "experiments" / "results" / "networks"
CARD = (NETWORKS / "README.md").read_text()
FOLDERS = [NETWORKS / name for name in ("fashion_mnist", "fashion_mnist_small")]


def cell(row, folder):
    """What stands in this row of the card's table for this network."""
    table = [[cell.strip() for cell in line.split("|")] for line in CARD.splitlines() if line.startswith("|")]
    column = table[0].index(f"[{folder.name}]({folder.name})")
    (line,) = [line for line in table if line[1] == row]
    return line[column]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_network_answers_as_its_card_says(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict", str(folder), str(NETWORKS / "pictures"), "--json"])
    with pytest.raises(SystemExit) as ended:
        predict.main()
    assert ended.value.code == 0
    answers = {
        Path(each["input"]).stem.replace("_", " "): each["class"] for each in json.loads(capsys.readouterr().out)
    }
    right = sum(answer.lower().startswith(name) for name, answer in answers.items())
    assert cell("of the ten pictures", folder) == f"{right} right"
    assert len(answers) == 10


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_card_has_the_figures_of_the_record(folder):
    record = json.loads((folder / "run.json").read_text())
    weights, cost, git = record["weights"], record["cost"], record["environment"]["git"]
    assert (weights["quantized_share"], git["dirty"]) == (1, False)
    assert cell("test accuracy", folder) == f"**{record['results']['test/acc']:.2%}**"
    assert cell("that of its twin, thrown away", folder) == f"{record['results']['test/companion_acc']:.2%}"
    assert cell("weights, all ternary", folder) == f"{weights['weights']:,}, {weights['bytes'] / 1000:.1f} kB"
    ac, mac = cost["synaptic_operations"], cost["macs"]
    assert cell("operations an image", folder) == f"{ac:,.0f} AC, {mac:,.0f} MAC"
    assert cell("their energy", folder) == f"{cost['energy_uj']:.2f} uJ"
    assert cell("ANN of the same shape", folder) == f"{cost['ann_macs']:,.0f} MAC, {cost['energy_ann_uj']:.2f} uJ"
    few = cost["quantized_ann"]
    assert (
        cell(f"ANN, {few['activation_bits']}-bit activations", folder)
        == f"{few['acs']:,.0f} AC, {few['macs']:,.0f} MAC, {few['energy_uj']:.2f} uJ"
    )
    assert cell("with norms and biases", folder) == f"{cost['bytes_kept'] / 1000:.1f} kB"
    assert cell("commit", folder) == f"`{git['commit'][:7]}`"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_of_the_card_is_that_of_the_network(folder):
    record = json.loads((folder / "run.json").read_text())
    commands = re.findall(r"^python -m tna_lightning (experiments=.+?)(?: #.*)?$", CARD, re.MULTILINE)
    assert record["identity"] in {identity(compose(shlex.split(command))) for command in commands}
