"""W&B: what is recorded on disk without a key, read back from wandb's own record, and what a server is sent."""

import json
import os
import struct
import subprocess
import sys

import pytest

from tna_lightning.running import loggers
from tna_lightning.running import train as composition
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build
from tna_lightning.running.record import Run, read_record
from wandb_server import WandbServer

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


def environment(folder):
    """A user's who has no key and never used W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return kept | {"OMP_NUM_THREADS": "1", "HOME": str(folder), "NETRC": str(folder / "none")}


def trained(folder, **variables):
    """The folder of one tiny run, as a user starts it."""
    command = ["logger=wandb", "study=a_study", "epochs=2", "data.train_subset=100", "model.width=0.25"]
    result = subprocess.run(
        [sys.executable, "-m", "tna_lightning", *command, "trainer.enable_progress_bar=false"],
        cwd=folder, env=environment(folder) | variables, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="module")
def recorded(offline_run):
    """Run record and W&B record of one tiny run of a user without a key."""
    (path,) = offline_run.glob("wandb/offline-run-*/run-*.wandb")
    return json.loads((offline_run / "run.json").read_text()), list(records(path))


@pytest.fixture
def server():
    server = WandbServer()
    yield server
    server.close()


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


def test_curves_of_each_layer(recorded):
    record, _ = recorded
    history = [items(step.item) for step in of_kind(recorded, "history")]
    for layer in record["weights"]["layers"]:
        shares = [row[f"zeros/{layer['name']}"] for row in history if f"zeros/{layer['name']}" in row]
        assert len(shares) == 2  # one an epoch
        # those of the kept network, the last epoch's
        assert shares[-1] == pytest.approx(layer["zeros"] / layer["weights"])
    rates = {name: value for row in history for name, value in row.items() if name.startswith("firing_rate/")}
    assert rates.keys() == {f"firing_rate/{layer['name']}" for layer in record["cost"]["neuron_layers"]}
    for layer in record["cost"]["neuron_layers"]:  # of other images, so not the same to the last spike
        assert rates[f"firing_rate/{layer['name']}"] == pytest.approx(layer["firing_rate"], abs=0.05)


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


def assert_has_all(server, folder):
    """Whether the server was sent what the run's folder says."""
    record = json.loads((folder / "run.json").read_text())
    run = server.run()
    assert (run["name"], run["groupName"], run["jobType"], run["displayName"], run["project"]) == (
        *(record["wandb_id"], "a_study", "tna"),
        *(record["name"], "tna_lightning"),
    )
    assert {"baseline:tna", "quant:ternary", "data:digits"} <= set(run["tags"])
    assert run["config"]["objective"] == record["config"]["objective"]
    history = server.lines("wandb-history.jsonl")
    for name in ("val/acc", "val/companion_acc", "train/loss", "train/match"):
        assert [row[name] for row in history if name in row] == pytest.approx(record["history"][name]), name
    summary = json.loads(server.streamed["wandb-summary.json"][-1])
    assert summary["test/acc"] == pytest.approx(record["results"]["test/acc"])
    assert summary["cost"]["firing_rate"] == pytest.approx(record["cost"]["firing_rate"])
    # versioned: of the same name in the next version, with an alias that moves
    (model,) = [
        artifact["input"]
        for artifact in server.variables("CreateArtifact")
        if artifact["input"]["artifactTypeName"] == "model"
    ]
    assert (model["artifactCollectionName"], model["aliases"][0]["alias"]) == (record["name"], "latest")
    assert server.files[f"{record['name']}/network.safetensors"] == (folder / "network.safetensors").read_bytes()
    assert {"artifactID": record["name"]} in server.variables("CommitArtifact")
    pictures = {content for name, content in server.files.items() if name.endswith(".png")}
    assert {(folder / name).read_bytes() for name in ("curves.png", "weights.png")} == pictures
    assert server.exit_code == 0


def test_sync_later_sends_the_offline_record(offline_run, server, tmp_path):
    (record,) = offline_run.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", str(record)]
    result = subprocess.run(
        command, env=environment(tmp_path) | server.environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert_has_all(server, offline_run)


def test_with_a_key_a_run_sends_the_same_at_once(server, tmp_path):
    assert_has_all(server, trained(tmp_path, **server.environment()))


WANDB = ["logger=wandb", "baseline=plain"]


def a_run(folder, *overrides):
    return Run(folder, compose([*WANDB, *overrides]))


def built_for(run):
    return build("logger", run.config["logger"])(run)


def test_a_run_that_goes_on_keeps_its_id_which_is_there_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = a_run(tmp_path)
    composition._begin(first, None)
    built_for(first)
    identifier = read_record(tmp_path)["wandb_id"]
    again = a_run(tmp_path)
    composition._begin(again, None)
    assert built_for(again)._wandb_init["id"] == identifier == read_record(tmp_path)["wandb_id"]
    anew = a_run(tmp_path, "resume=false")
    composition._begin(anew, None)
    assert built_for(anew)._wandb_init["id"] != identifier


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled", "online"])
def test_the_variable_of_wandb_is_heard(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr("wandb.login", lambda **settings: True)
    assert built_for(a_run(tmp_path))._wandb_init["mode"] == {"dryrun": "offline"}.get(mode, mode)


def test_a_misspelt_mode_is_one_line_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    message = r"^logger=wandb: the variable WANDB_MODE='ofline': allowed are online, offline, dryrun, disabled$"
    with pytest.raises(ValueError, match=message):
        composition.train(compose(WANDB), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_not_there_is_one_line_after_one_try(tmp_path, monkeypatch):
    import wandb

    tries = []

    def init(**settings):
        tries.append(settings["mode"])
        raise wandb.errors.CommError("Run initialization has timed out after 90.0 sec.\nPlease try again.")

    monkeypatch.setattr("wandb.init", init)
    run = a_run(tmp_path, "logger.offline=false")
    message = (
        r"^logger=wandb: W&B did not begin a run \(Run init.* 90.0 sec. Please .*\); logger.offline=true records it"
    )
    with pytest.raises(ConnectionError, match=message), loggers.opened(run, build("logger", run.config["logger"])):
        raise AssertionError("training has begun")
    assert tries == ["online"]


def test_a_logger_that_cannot_keep_the_end_fails_no_run(tmp_path, monkeypatch, caplog):
    class Experiment:
        def finish(self, exit_code):
            raise OSError("Unable to write staging files")

        def __getattr__(self, name):
            raise OSError(f"no {name}")

    monkeypatch.setattr("wandb.init", lambda **settings: Experiment())
    run = a_run(tmp_path, "logger.offline=true")
    with loggers.opened(run, build("logger", run.config["logger"])) as logger:
        loggers.log_summary(logger, {"weights": {}, "cost": {}}, [tmp_path / "curves.png"])
    assert [message.partition(" (")[2] for message in caplog.messages] == [
        "no summary)",
        "Unable to write staging files)",
    ]
    with (
        pytest.raises(FloatingPointError, match="diverged"),
        loggers.opened(run, build("logger", run.config["logger"])),
    ):
        raise FloatingPointError("diverged")  # not hidden by the logger's own
