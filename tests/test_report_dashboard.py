"""W&B dashboards as code: what would be sent, without sending it."""

import json

import pytest

from tna_lightning.report import dashboard

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
    content = spec(dashboard.workspace("someone", "twins", "ternary_table"))
    (filters,) = [value for value in find(content, "filters") if isinstance(value, list) and value]
    assert [(entry["key"]["name"], entry["op"], entry["value"]) for entry in filters] == [
        ("group", "=", "ternary_table")
    ]
    grouping = [entry["name"] for value in find(content, "grouping") for entry in value]
    assert grouping == ["choices.value.baseline", "choices.value.quant"]
    shown = {metric for metrics in find(content, "metrics") if metrics for metric in metrics}
    assert {"val/acc", "val/companion_acc", "train/match", "test/acc"} <= shown


def test_report_carries_our_tables():
    page = dashboard.report("someone", "twins", "ternary_table", "| data |")
    assert page.blocks[0].text == "| data |"
    assert page.title == "Study ternary_table"
    assert len(page.blocks) == 5


@pytest.mark.parametrize("target", ["project", "/project", "a/b/c"])
def test_a_target_must_name_entity_and_project(target):
    with pytest.raises(ValueError, match=rf"wandb='{target}': must be ENTITY/PROJECT"):
        dashboard.publish(target, [], "")


def test_without_a_key_nothing_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="wandb='me/twins': needs a key"):
        dashboard.publish("me/twins", ["study"], "")
