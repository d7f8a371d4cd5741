"""W&B without a key: what is recorded on disk, read back from wandb's own record."""

import json
import os
import struct
import subprocess
import sys

import pytest

BLOCK, HEADER = 32768, 7


def records(path):
    """The messages of a ``run-*.wandb`` file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), HEADER, b""
    assert content.startswith(b":W&B")
    while position + HEADER <= len(content):
        if (left := BLOCK - position % BLOCK) < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(parts)
            yield record.WhichOneof("record_type"), record
            parts = b""


def items(changes):
    """Key and value of each change; keys of nested ones joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changes}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Run record and W&B record of one tiny run, as a user without a key starts it."""
    folder = tmp_path_factory.mktemp("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "NETRC": str(folder / "none")}
    command = ["logger=wandb", "study=a_study", "epochs=2", "data.train_subset=100", "model.width=0.25"]
    result = subprocess.run(
        [sys.executable, "-m", "tna_lightning", *command, "trainer.enable_progress_bar=false"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (folder / "runs").iterdir()
    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return json.loads((run / "run.json").read_text()), list(records(path))


def of_kind(recorded, kind):
    return [getattr(record, kind) for name, record in recorded[1] if name == kind]


def test_config_group_and_tags(recorded):
    record, _ = recorded
    (run,) = of_kind(recorded, "run")
    assert (run.run_group, run.job_type, run.display_name, run.project) == (
        "a_study",
        "tna",
        record["name"],
        "tna_lightning",
    )
    assert {"baseline:tna", "quant:ternary", "data:digits"} <= set(run.tags)
    config = items(run.config.update)
    assert config["objective"] == record["config"]["objective"]  # plain and whole, no string of a DictConfig
    assert config["epochs"] == 2


def test_curves_of_base_and_companion(recorded):
    record, _ = recorded
    history = [items(step.item) for step in of_kind(recorded, "history")]
    for name in ("val/acc", "val/companion_acc", "train/loss", "train/match"):
        assert [row[name] for row in history if name in row] == pytest.approx(record["history"][name]), name
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps))  # none dropped for being out of order


def test_summary_holds_the_final_figures(recorded):
    record, _ = recorded
    summary = {}
    for change in of_kind(recorded, "summary"):
        summary |= items(change.update)
    assert summary["test/acc"] == pytest.approx(record["results"]["test/acc"])
    cost = (
        summary["cost"]
        if "cost" in summary
        else {key[5:]: value for key, value in summary.items() if key.startswith("cost.")}
    )
    assert cost["firing_rate"] == pytest.approx(record["cost"]["firing_rate"])


def test_network_and_table_are_artifacts(recorded):
    record, _ = recorded
    artifacts = {artifact.type: artifact for artifact in of_kind(recorded, "artifact")}
    assert artifacts["model"].name == record["name"]
    (entry,) = artifacts["model"].manifest.contents
    assert (entry.path, entry.size) == ("network.safetensors", record["weights"]["bytes_file"])
    assert "run_table" in artifacts


def test_the_run_is_finished(recorded):
    (end,) = of_kind(recorded, "exit")
    assert end.exit_code == 0
