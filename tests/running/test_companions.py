"""Companions from elsewhere, and weights from earlier runs; in this process, through `train`."""

import subprocess
import sys
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from tna_lightning.data import Inputs
from tna_lightning.models import LIF
from tna_lightning.quantization import quantized_share
from tna_lightning.quantization.packing import load_packed, save_network
from tna_lightning.running.companions import companion_networks, pretrained_weights, pretraining_config
from tna_lightning.running.config import compose
from tna_lightning.running.console import summary_rows
from tna_lightning.running.factory import build, build_network, network_spec
from tna_lightning.running.identity import folder_name, identity
from tna_lightning.running.record import LAST_CHECKPOINT, NETWORK, Run, find_runs, finished_record, now
from tna_lightning.running.train import build_learner, build_quantization, train
from tna_lightning.running.weights import load_weights

SMALL = [
    "data.train_subset=100",
    "data.eval_batch_size=200",
    "model.width=0.125",
    "model.time_steps=2",
    "epochs=1",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
]


def run(folder, *overrides):
    config = compose([*SMALL, f"output_dir={folder.parent}", *overrides])
    return train(config, folder)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run with ternary weights."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    run(folder)
    return folder


def network_of(folder):
    config = finished_record(folder)["config"]
    return build_network({"model": config["model"], "neuron": config["neuron"], "in_channels": 1, "num_classes": 10})


def test_a_companion_is_pretrained_alone_at_full_precision():
    config = compose(["baseline=kd", "quant=ternary", "neuron@companion.neuron=relu", "seed=4", "study=s"])
    alone = pretraining_config(config)
    assert alone["objective"]["_target_"].endswith(".Plain")
    assert alone["companion"] is None
    assert alone["quant"] == {}
    assert alone["neuron"]["_target_"] == "torch.nn.ReLU"
    assert alone["model"] == config["model"]
    assert alone["seed"] == alone["data"]["seed"] == 4
    assert alone["choices"] | {"neuron": "relu", "baseline": "plain", "quant": "none"} == alone["choices"]


def test_runs_that_differ_only_in_what_the_teacher_never_sees_share_it():
    teacher = {
        overrides: identity(pretraining_config(compose(["baseline=kd", *overrides])))
        for overrides in (
            (),
            ("quant=none",),
            ("objective.temperature=2",),
            ("study=another",),
            ("baseline=tna", "companion.weights=pretrained"),
            ("seed=1", "companion.seed=0", "data.seed=0"),
            ("seed=1",),
            ("model.width=0.5",),
            ("neuron@companion.neuron=relu",),
        )
    }
    same = [teacher.pop(key) for key in list(teacher)[:6]]
    assert len(set(same)) == 1
    assert len({same[0], *teacher.values()}) == 4


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (4, 2)])
def test_a_run_on_several_devices_or_nodes_has_the_teacher_of_a_run_on_one(shape):
    devices, nodes = shape
    several = compose(["baseline=kd", "trainer=ddp", f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"])
    one = pretraining_config(compose(["baseline=kd"]))
    assert pretraining_config(several)["trainer"] == one["trainer"]
    assert folder_name(pretraining_config(several)) == folder_name(one)


def test_each_companion_is_pretrained_as_its_own_node_says():
    third = ["+companions.third.weights=pretrained", "+companions.third.seed=5", "neuron@companions.third.neuron=relu"]
    config = compose(["baseline=cohort", *third])
    alone = pretraining_config(config, "third")
    assert alone["seed"] == alone["data"]["seed"] == 5
    assert alone["choices"]["neuron"] == "relu"
    same = compose(["baseline=kd", "companion.seed=5", "neuron@companion.neuron=relu"])
    assert folder_name(alone) == folder_name(pretraining_config(same))


def test_a_companion_is_quantised_beside_a_base_at_full_precision():
    config = compose(["quant=none", "companion.precision={_target_: tna_lightning.quantization.Uniform, bits: 4}"])
    learner = build_learner(config, build("data", config["data"]))
    build_quantization(config).setup(SimpleNamespace(max_epochs=1, callbacks=[], fast_dev_run=False), learner, "fit")
    shares = [quantized_share(network) for network in learner.networks.values()]
    assert shares == [0, 1]
    assert build_quantization(compose(["quant=none", "companion.precision=base"])) is None
    assert build_quantization(compose(["companion.precision=base"])).network == ["base", "companion"]


def test_companion_networks_are_the_bases_where_nothing_else_is_said():
    config = compose(["model@companion.model=resnet20"])
    networks = companion_networks(config)
    assert networks["model"]["_target_"].endswith(".resnet20")
    assert networks["neuron"] == config["neuron"]
    assert config["model"]["_target_"].endswith(".convnet")


def test_a_frozen_pretrained_twin_stays_what_it_was(tmp_path):
    record = run(tmp_path / "run", "companion.weights=pretrained", "companion.freeze=true")
    (folder,) = find_runs(tmp_path / "pretrained")
    assert record["results"]["test/companion_acc"] == finished_record(folder)["results"]["test/acc"]
    state = torch.load(tmp_path / "run" / LAST_CHECKPOINT, weights_only=True)["state_dict"]
    for name, tensor in load_file(folder / NETWORK).items():
        assert torch.equal(state[f"companion.{name}"], tensor), name


def test_further_processes_leave_when_the_first_one_failed_to_train_the_teacher(tmp_path, monkeypatch):
    config = compose(["baseline=kd", f"output_dir={tmp_path}"])
    alone = pretraining_config(config)
    teacher = Run(tmp_path / "pretrained" / folder_name(alone), alone)
    teacher.folder.mkdir(parents=True)
    teacher.write(status="failed", finished="2001-01-01T00:00:00+00:00", error="an earlier attempt")
    steps = iter(["running", "failed"])

    def second(seconds):  # in which the first process goes on
        teacher.write(status=next(steps), error="NonFiniteLoss: at step 3")

    monkeypatch.setattr("time.sleep", second)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(
        ValueError, match=r"pretrained': the first process did not train .* \(NonFiniteLoss: at step 3\)"
    ):
        pretrained_weights(config, train)
    # one that comes later than the failure
    teacher.write(finished=now())
    with pytest.raises(ValueError, match="the first process did not train"):
        pretrained_weights(config, train)
    teacher.write(status="done")
    assert pretrained_weights(config, train) == teacher.folder


def test_a_twin_may_be_of_another_architecture_and_neuron(tmp_path):
    record = run(
        tmp_path / "run",
        "model@companion.model=resnet20",
        "companion.model.width=0.25",
        "neuron@companion.neuron=relu",
    )
    state = torch.load(tmp_path / "run" / LAST_CHECKPOINT, weights_only=True)["state_dict"]
    base = sum(value.numel() for name, value in state.items() if name.startswith("base."))
    companion = sum(value.numel() for name, value in state.items() if name.startswith("companion."))
    assert companion > 3 * base
    assert 0 <= record["results"]["test/companion_acc"] <= 1


def test_the_record_says_what_of_the_companion_is_quantised(tmp_path):
    record = run(
        tmp_path / "run",
        "quant.skip=[classifier]",
        "companion.precision={_target_: tna_lightning.quantization.Uniform, bits: 8}",
    )
    names = [layer["name"] for layer in record["weights"]["layers"]]
    companion = record["companion_weights"]
    assert companion["schemes"] == {"int8": names[:-1], "float32": ["classifier"]}
    assert companion["quantized_share"] == record["weights"]["quantized_share"] < 1
    assert dict(summary_rows(record))["companion's weights"] == f"{companion['weights']:,}, int8, float32"


USERS_FOLDER = {
    "my_data.py": """
import torch

from tna_lightning.data import Batch, DigitsDataModule


class EvenDigits(DigitsDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = Batch.of(super().on_after_batch_transfer(batch, dataloader_idx))
        if self.trainer.training:
            batch.weight = torch.where(batch.target % 2 == 0, 1.0, 0.0)
        return batch
""",
    "my_conf/data/even_digits.yaml": """
# digits of which the odd ones do not count in training
defaults:
  - digits
  - _self_
_target_: my_data.EvenDigits
""",
    "my_conf/baseline/trio.yaml": """
# @package _global_
# three networks, one of them an ANN and one in whole numbers
defaults:
  - /signatures/Cohort@objective
  - /nodes/companion@companion
  - _self_
objective:
  match_weight: 0.02
companions:
  ann:
    neuron: {_target_: torch.nn.ReLU, _partial_: true}
  int8:
    precision: {_target_: tna_lightning.quantization.Uniform, bits: 8}
""",
}


def test_a_users_folder_has_a_cohort_and_sample_weights_of_its_own(tmp_path):
    for name, text in USERS_FOLDER.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = ["--config-dir", "my_conf", "baseline=trio", "data=even_digits", *SMALL, "hydra.run.dir=run", "epochs=2"]
    trained = subprocess.run(
        [sys.executable, "-m", "tna_lightning", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    record = finished_record(tmp_path / "run")
    assert [name for name in record["results"] if name.startswith("test/") and name.endswith("_acc")] == [
        *("test/companion_acc", "test/ann_acc", "test/int8_acc")
    ]
    assert [list(record[f"{name}_weights"]["schemes"]) for name in ("companion", "ann", "int8")] == [
        *(["float32"], ["float32"], ["int8"])
    ]
    assert [name for name in dict(summary_rows(record)) if "'s weights" in name] == [
        *("companion's weights", "ann's weights", "int8's weights")
    ]
    # about half of the samples count, in the mean over all of them
    ratio = record["history"]["train/ann_cross_entropy"][0] / record["history"]["val/ann_cross_entropy"][0]
    assert 0.3 < ratio < 0.7
    state = torch.load(tmp_path / "run" / LAST_CHECKPOINT, weights_only=True)["state_dict"]
    assert list(dict.fromkeys(name.partition(".")[0] for name in state)) == ["base", "companion", "ann", "int8"]
    kept = load_packed(tmp_path / "run" / NETWORK)
    assert torch.equal(kept.classifier.bias, state["base.classifier.bias"])


def test_the_base_is_drawn_first_then_the_companions_in_the_order_of_the_config():
    config = compose([*SMALL, "baseline=cohort", "+companions.fourth={}"])
    datamodule = build("data", config["data"])
    torch.manual_seed(3)
    networks = build_learner(config, datamodule).networks
    torch.manual_seed(3)
    for name in ("base", "companion", "third", "fourth"):
        drawn = build_network(network_spec(config, datamodule))
        assert torch.equal(drawn.classifier.weight, networks[name].classifier.weight), name


def test_weights_come_from_a_run_or_its_kept_network_as_deployed(earlier):
    kept = load_packed(earlier / NETWORK)
    for source in (earlier, earlier / NETWORK):
        network = network_of(earlier)
        load_weights("init_from", network, source)
        assert network.training
        for name, value in kept.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def test_weights_come_from_a_checkpoint_at_full_precision(earlier):
    network = network_of(earlier)
    load_weights("init_from", network, earlier / LAST_CHECKPOINT)
    state = torch.load(earlier / LAST_CHECKPOINT, weights_only=True)["state_dict"]
    original = state["base.classifier.parametrizations.weight.original"]
    assert torch.equal(network.classifier.weight, original)
    assert len(original.unique()) > 2 * 10 + 1  # more values than ten ternary rows have


def test_a_run_starts_from_an_earlier_ones_weights(earlier, tmp_path):
    # a learning rate of 0 leaves all but the running statistics of batch norm where they start
    run(tmp_path / "run", f"init_from={earlier}", "optimizer.lr=0", "quant=none", "baseline=plain")
    state = torch.load(tmp_path / "run" / LAST_CHECKPOINT, weights_only=True)["state_dict"]
    for name, value in load_packed(earlier / NETWORK).named_parameters():
        assert torch.equal(state[f"base.{name}"], value), name


def spec_of(folder, neuron):
    config = finished_record(folder)["config"]
    return {"model": config["model"], "neuron": neuron, "in_channels": 1, "num_classes": 10}


def test_a_start_from_earlier_weights_keeps_its_own_neurons(earlier, tmp_path):
    faster = {"_target_": "tna_lightning.models.LIF", "_partial_": True, "beta": 0.9, "threshold": 2.0}
    network = build_network(spec_of(earlier, faster))
    load_weights("init_from", network, earlier)
    neurons = [module for module in network.modules() if isinstance(module, LIF)]
    assert neurons
    assert all((neuron.beta.item(), neuron.threshold.item()) == (pytest.approx(0.9), 2.0) for neuron in neurons)
    assert torch.equal(network.classifier.weight, load_packed(earlier / NETWORK).classifier.weight)
    # what the record says is what was trained
    record = run(tmp_path / "run", f"init_from={earlier}", "neuron.beta=0.9", "baseline=plain")
    kept = load_packed(tmp_path / "run" / NETWORK)
    assert record["config"]["neuron"]["beta"] == 0.9
    assert all(m.beta.item() == pytest.approx(0.9) for m in kept.modules() if isinstance(m, LIF))


def test_weights_go_from_an_ann_to_a_spiking_network_and_back(earlier):
    ann = build_network(spec_of(earlier, {"_target_": "torch.nn.ReLU", "_partial_": True}))
    load_weights("init_from", ann, earlier)
    spiking = network_of(earlier)
    save = {f"base.{name}": value for name, value in ann.state_dict().items()}
    path = earlier / "ann.ckpt"
    torch.save({"state_dict": save}, path)
    load_weights("init_from", spiking, path)
    for name, value in load_packed(earlier / NETWORK).state_dict().items():
        assert torch.equal(spiking.state_dict()[name], value), name


@pytest.mark.parametrize("neuron", ["psn", "snntorch", "quant_relu"])
def test_weights_go_to_a_network_with_neurons_of_another_kind_and_back(neuron, earlier):
    torch.manual_seed(0)
    network = build_network(spec_of(earlier, compose([f"neuron={neuron}"])["neuron"]))
    before = {name: value.clone() for name, value in network.body[0].state_dict().items()}
    load_weights("init_from", network, earlier)
    assert torch.equal(network.classifier.weight, load_packed(earlier / NETWORK).classifier.weight)
    assert all(torch.equal(value, before[name]) for name, value in network.body[0].state_dict().items())
    path = earlier / f"{neuron}.ckpt"
    torch.save({"state_dict": {f"base.{name}": value for name, value in network.state_dict().items()}}, path)
    back = network_of(earlier)
    load_weights("init_from", back, path)
    for name, value in load_packed(earlier / NETWORK).state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_a_companion_from_a_run_must_have_the_neurons_that_it_was_trained_with(earlier, tmp_path):
    with pytest.raises(ValueError, match=r"^companion.weights='.*': .*beta is 0.5 there and 0.9 here; they must be"):
        run(tmp_path / "run", "baseline=kd", f"companion.weights={earlier}", "neuron.beta=0.9")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_done_says_that_its_source_has_changed(earlier, tmp_path, caplog):
    source = tmp_path / "source.safetensors"
    source.write_bytes((earlier / NETWORK).read_bytes())
    overrides = (f"init_from={source}", "baseline=plain")
    record = run(tmp_path / "run", *overrides)
    assert record["sources"]["init_from"] == {"file": str(source), "sha256": sha256(source.read_bytes()).hexdigest()}
    run(tmp_path / "run", *overrides)
    assert "has changed since" not in caplog.text
    save_network(source, network_of(earlier))
    assert run(tmp_path / "run", *overrides) == record
    assert f"init_from: {source} has changed since" in caplog.text


def test_a_run_that_is_done_says_that_its_energies_are_not_counted_anew(earlier, caplog):
    assert run(earlier, "cost.pj_per_ac=0.1")["cost"]["pj_per_ac"] == 0.9
    assert "the energies above were counted with" in caplog.text
    with pytest.raises(ValueError, match=r"^cost.pj_per_mac=-1: must be 0 or more"):
        run(earlier, "cost.pj_per_mac=-1")


@pytest.mark.parametrize("content", [b"PK", [1], {"state_dict": [1]}])
def test_a_checkpoint_that_is_none_is_named(content, tmp_path, earlier):
    path = tmp_path / "bad.ckpt"
    if isinstance(content, bytes):
        path.write_bytes((earlier / LAST_CHECKPOINT).read_bytes()[:50_000])
    else:
        torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"^init_from='.*bad.ckpt': cut short, changed, or no checkpoint of a TwinLearner"
    ):
        load_weights("init_from", network_of(earlier), path)


@pytest.mark.parametrize("name", ["nowhere", "file.txt", ""])
def test_a_source_that_is_none_is_named(name, tmp_path, earlier):
    (tmp_path / "file.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"^init_from='.*': "):
        load_weights("init_from", network_of(earlier), tmp_path / name)


def test_a_checkpoint_of_another_shape_is_refused(earlier):
    other = build_network({**{key: compose()[key] for key in ("model", "neuron")}, "in_channels": 1, "num_classes": 10})
    with pytest.raises(ValueError, match=r"companion.weights='.*last.ckpt': fits another network \(size mismatch"):
        load_weights("companion.weights", other, earlier / LAST_CHECKPOINT)


def test_tensorboard_gets_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run(tmp_path / "run", "logger=tensorboard", "epochs=2")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [point.value for point in events.Scalars("val/acc")]
    assert logged == pytest.approx(record["history"]["val/acc"])


def test_a_narrow_twin_has_half_the_width_of_whatever_the_base_is():
    config = compose(["baseline=tna_narrow_twin", "model=vgg11", "model.width=0.5", "model.pool=avg"])
    assert companion_networks(config)["model"] == {**config["model"], "width": 0.25}


def test_layers_that_cannot_be_matched_are_refused_before_training():
    words = ["objective.features=[body.0]", "objective.feature_weight=1", "model.width=0.125", "model.time_steps=2"]
    data = SimpleNamespace(inputs=Inputs(1, 8, 8, None, 10), num_classes=10)
    learner = build_learner(compose(words), data)
    assert learner.training
    assert learner.feature_names == ["body.0"]
    narrow = [*words, "baseline=tna_narrow_twin"]
    with pytest.raises(ValueError, match=r"^objective\.features='body\.0': gives \[2, 2, 4, 8, 8\] in the base and"):
        build_learner(compose(narrow), data)
    with pytest.raises(ValueError, match=r"^objective\.features=\['body\.0'\]: needs compile=none, auto or neurons"):
        build_learner(compose([*words, "compile=network"]), data)
