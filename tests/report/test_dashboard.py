"""W&B dashboards as code: what would be sent, and what a server on loopback is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tna_lightning.report import dashboard
from wandb_server import WandbServer

STUDY = Path(__file__).parents[2] / "experiments" / "results" / "first_look" / "records.jsonl.gz"

pytest.importorskip("wandb_workspaces", reason="the extra [dashboards]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces", "ignore:.*:UserWarning:pydantic")


def spec(workspace):
    return json.loads(workspace._to_model().model_dump_json(by_alias=True))


def find(node, key):
    """All values under a key, at any depth."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from find(value, key)


def test_workspace_shows_one_study_grouped_by_baseline_and_precision():
    content = spec(dashboard.workspace("someone", "twins", "paper_cifar10"))
    (filters,) = [value for value in find(content, "filters") if isinstance(value, list) and value]
    assert [(entry["key"]["name"], entry["op"], entry["value"]) for entry in filters] == [
        ("group", "=", "paper_cifar10")
    ]
    grouping = [entry["name"] for value in find(content, "grouping") for entry in value]
    assert grouping == ["choices.value.baseline", "choices.value.quant"]
    shown = {metric for metrics in find(content, "metrics") if metrics for metric in metrics}
    assert {"val/acc", "val/companion_acc", "train/match", "test/acc"} <= shown
    assert {"^firing_rate/.*", "^zeros/.*"} <= set(find(content, "metricRegex"))


def test_report_carries_our_tables():
    page = dashboard.report("someone", "twins", "paper_cifar10", "| data |")
    assert page.blocks[0].text == "| data |"
    assert page.title == "Study paper_cifar10"
    assert len(page.blocks) == 7  # text, two of curves, two of layers, final figures, pictures and tables


@pytest.mark.parametrize("target", ["project", "/project", "a/b/c"])
def test_a_target_must_name_entity_and_project(target):
    with pytest.raises(ValueError, match=rf"wandb='{target}': must be ENTITY/PROJECT"):
        dashboard.publish(target, [], "")


def test_without_a_key_nothing_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="wandb='me/twins': needs a key"):
        dashboard.publish("me/twins", ["study"], "")


@pytest.fixture
def server():
    server = WandbServer()
    yield server
    server.close()


def command(server, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= server.environment() | {"HOME": str(folder)}
    arguments = [str(STUDY), "--output", str(folder / "report"), "--wandb", "someone/twins"]
    return subprocess.run(
        [sys.executable, "-m", "tna_lightning.report", *arguments],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_report_command_saves_a_workspace_and_a_report(server, tmp_path):
    result = command(server, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    views = [variables for name, variables in server.asked if name.lower().startswith("upsertview")]
    assert [(view["entityName"], view["projectName"], view["displayName"], view["type"]) for view in views] == [
        ("someone", "twins", "Study first_look", "project-view"),
        ("someone", "twins", "Study first_look", "runs"),
    ]
    grouping = [entry["name"] for value in find(json.loads(views[0]["spec"]), "grouping") for entry in value]
    assert grouping == ["choices.value.baseline", "choices.value.quant"]
    assert "mutual" in views[1]["spec"]  # our table
    addresses = result.stdout.splitlines()[1:]
    assert len(addresses) == 2
    assert all(address.startswith(f"{server.url}/someone/twins") for address in addresses), result.stdout


def test_a_server_that_refuses_is_told_in_one_line(server, tmp_path):
    server.knows_the_key = False
    result = command(server, tmp_path)
    assert result.returncode == 2
    assert "error: wandb='someone/twins': Failed to verify credentials" in result.stderr
    assert "Traceback" not in result.stderr
