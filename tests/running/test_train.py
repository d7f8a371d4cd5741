"""Runs through the real command line: the demo first, then killed, continued, starved of disk, evaluated, refused."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tna_lightning.quantization.packing import load_packed, read_packed
from tna_lightning.running.record import (
    LAST_CHECKPOINT,
    NETWORK,
    RECORD,
    find_runs,
    finished_record,
    is_active,
    read_record,
)

SMALL = [
    "data.train_subset=240",
    "data.batch_size=40",
    "data.eval_batch_size=200",
    "model.width=0.25",
    "model.time_steps=2",
    "trainer.enable_progress_bar=false",
]
RECIPE = ["epochs=6", "keep=best", "callbacks=ema"]  # of the run that is done, killed, repeated


def command(*arguments, module="tna_lightning"):
    return [sys.executable, "-W", "error::UserWarning:tna_lightning", "-m", module, *map(str, arguments)]


def call(*arguments, module="tna_lightning", **options):
    return subprocess.run(command(*arguments, module=module), capture_output=True, text=True, **options)


def small_run(folder, *overrides, **options):
    return call(*SMALL, f"hydra.run.dir={folder}", *overrides, **options)


def wait_for_epochs(process, folder, epochs):
    """Wait until the run has finished so many epochs."""
    metrics = Path(folder) / "metrics.csv"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > epochs:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {epochs} epochs: {process.communicate()}")


def untimed(history):
    return {name: values for name, values in history.items() if "time" not in name}


def test_the_demo_reaches_98_percent_with_every_weight_ternary(tmp_path):
    command = [sys.executable, "-m", "tna_lightning", "resume=false", "trainer.enable_progress_bar=false"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (folder,) = find_runs(tmp_path / "runs")
    record = finished_record(folder)
    assert record["results"]["test/acc"] >= 0.98
    assert record["data"]["test_samples"] == 360
    assert record["inputs"] == read_packed(folder / NETWORK)[1]["inputs"]
    assert (record["inputs"]["shape"], record["inputs"]["time_steps"]) == ([1, 8, 8], 4)
    assert record["weights"]["quantized_share"] == 1.0
    assert f"{record['results']['test/acc']:.2%}" in result.stdout
    assert (folder / "curves.png").stat().st_size > 10_000
    network = load_packed(folder / NETWORK)
    weights = [module.weight for module in network.modules() if getattr(module, "weight", None) is not None]
    for weight in (weight for weight in weights if weight.ndim > 1):
        for channel in weight:  # each channel of each layer: -s, 0, +s
            assert len(channel.abs().unique()) <= 2


@pytest.fixture(scope="module")
def done_run(tmp_path_factory):
    """A finished TNA run with every weight ternary, augmentation on and an average of the weights."""
    folder = tmp_path_factory.mktemp("done") / "run"
    result = small_run(folder, *RECIPE)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_leaves_a_record_a_table_and_a_picture(done_run):
    folder, result = done_run
    record = finished_record(folder)
    assert record["choices"] | {"logger": "csv"} == record["choices"]
    assert record["results"]["test/acc"] > 0.2  # ten classes: above chance after six short epochs
    assert record["weights"]["quantized_share"] == 1.0
    assert record["weights"]["bytes"] < record["weights"]["bytes_float32"] / 12
    assert 0 < record["cost"]["firing_rate"] < 1
    assert record["split_hash"]
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert len(record["history"]["epoch"]) == record["epochs"] == 6
    assert f"{record['results']['test/acc']:.2%}" in result.stdout
    told = dict(re.findall(r"^│ (.+?) +│ (.+?) +│$", result.stdout, re.MULTILINE))
    weights, cost, size = record["weights"], record["cost"], (folder / NETWORK).stat().st_size
    assert told["weights"] == f"{weights['weights']:,}, quantised: all"
    smaller = weights["bytes_float32"] / weights["bytes"]
    assert told["weights, as kept"] == f"{weights['bytes']:,} bytes ({smaller:.1f} times smaller than float32)"
    assert told["file, with all else"] == f"{size:,} bytes"
    operations = f"{cost['synaptic_operations']:,.0f} AC, {cost['macs']:,.0f} MAC, about "
    assert told["operations an image"].startswith(operations)
    assert told["dense, all time steps"].startswith(f"{cost['dense_macs']:,.0f} MAC, about ")
    assert told["memory an image"].startswith(f"about {cost['energy_memory_uj']:#.3g} uJ (weights ")
    ann = cost["quantized_ann"]
    assert ann["operations"] == cost["ann_macs"]
    said = told[f"ANN, {ann['activation_bits']}-bit activations"]
    assert said.startswith(f"{ann['acs']:,.0f} AC, {ann['macs']:,.0f} MAC, about ")
    assert cost["not_counted"] == []
    assert "not counted" not in told
    assert record["companion_weights"]["quantized_share"] == 0
    assert record["companion_weights"]["schemes"] == {"float32": [layer["name"] for layer in weights["layers"]]}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [float(row["val/acc"]) for row in rows] == record["history"]["val/acc"]


def test_killed_starved_and_continued_equals_uninterrupted(done_run, tmp_path):
    uninterrupted, _ = done_run
    folder = tmp_path / "run"
    arguments = command(*SMALL, f"hydra.run.dir={folder}", *RECIPE)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for_epochs(process, folder, 2)
        process.send_signal(signal.SIGKILL)
    assert read_record(folder)["status"] == "running"
    assert not is_active(folder)

    # a disk that is full while a checkpoint is written: the previous one survives
    before = (folder / LAST_CHECKPOINT).read_bytes()
    room = len(before) // 2
    starved = small_run(folder, *RECIPE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert starved.returncode == 1, starved.stderr
    assert "File too large" in starved.stderr.splitlines()[-1]
    assert read_record(folder)["status"] == "failed"
    assert (folder / LAST_CHECKPOINT).read_bytes() == before
    assert not list((folder / "checkpoints").glob(".*"))

    continued = small_run(folder, *RECIPE, "resume=true")
    assert continued.returncode == 0, continued.stderr
    one, other = finished_record(uninterrupted), finished_record(folder)
    assert other["results"] == one["results"]
    assert other["history"] == one["history"]
    for name, tensor in load_file(uninterrupted / NETWORK).items():
        assert torch.equal(tensor, load_file(folder / NETWORK)[name]), name
    states = [torch.load(path / LAST_CHECKPOINT, weights_only=True) for path in (uninterrupted, folder)]

    def differing(one, other):
        return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]

    for state in ("state_dict", "current_model_state"):  # base, companion, full-precision copies: averaged, in training
        assert not differing(states[0][state], states[1][state])
    assert differing(states[0]["state_dict"], states[0]["current_model_state"])


def test_evaluate_gives_the_same_accuracy_from_the_kept_network_alone(done_run, tmp_path):
    folder, _ = done_run
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in (RECORD, NETWORK):  # no checkpoint: the companion cannot be loaded
        (alone / name).write_bytes((folder / name).read_bytes())
    result = call(alone, module="tna_lightning.evaluate")
    assert result.returncode == 0, result.stderr
    recorded = finished_record(folder)["results"]
    printed = dict(line.split(" (recorded")[0].split(" ") for line in result.stdout.splitlines() if "test/" in line)
    assert printed == {name: f"{recorded[name]:.2%}" for name in ("test/acc", "test/acc_top5", "test/acc_macro")}
    by_class = finished_record(folder)["class_accuracy"]
    assert list(by_class) == [str(digit) for digit in range(10)]
    assert sum(by_class.values()) / 10 == pytest.approx(recorded["test/acc_macro"])


def test_a_run_that_is_done_is_not_repeated(done_run):
    folder, _ = done_run
    before = (folder / RECORD).stat().st_mtime_ns
    again = small_run(folder, *RECIPE)
    assert again.returncode == 0
    assert "done already" in again.stdout
    assert (folder / RECORD).stat().st_mtime_ns == before


def test_resuming_onto_another_config_names_what_differs_and_loses_nothing(done_run):
    folder, _ = done_run
    before = (folder / RECORD).read_bytes()
    result = small_run(folder, *RECIPE, "epochs=7", "objective.match_weight=0.5")
    assert result.returncode == 2
    assert "epochs: 6 -> 7" in result.stderr
    assert "objective.match_weight: 0.05 -> 0.5" in result.stderr
    assert (folder / RECORD).read_bytes() == before

    result = small_run(folder.parent / "other", *RECIPE, "epochs=7", f"ckpt_path={folder / LAST_CHECKPOINT}")
    assert result.returncode == 2
    assert "belongs to a run of another config" in result.stderr


def test_a_teacher_is_trained_once_for_runs_that_share_it(tmp_path):
    distill = ["baseline=kd", "neuron@companion.neuron=relu", f"output_dir={tmp_path}", "epochs=1"]
    first = call(*SMALL, *distill, "quant=none")
    second = call(*SMALL, *distill, "quant=ternary")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (teacher,) = find_runs(tmp_path / "pretrained")
    students = [path for path in find_runs(tmp_path) if path.parent == tmp_path]
    assert len(students) == 2
    assert "done already" not in first.stdout
    assert "done already" in second.stdout
    taught = finished_record(teacher)
    assert taught["config"]["neuron"]["_target_"] == "torch.nn.ReLU"
    for student in students:  # the companion's accuracy is the teacher's: it was loaded and did not change
        assert finished_record(student)["results"]["test/companion_acc"] == taught["results"]["test/acc"]


def test_a_teacher_of_another_shape_is_refused(done_run, tmp_path):
    folder, _ = done_run
    arguments = [*SMALL, "model.width=0.5", "baseline=kd", f"companion.weights={folder}", "epochs=1"]
    result = call(*arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: companion.weights=")
    assert "size mismatch" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet21"], "error: model=resnet21: allowed are convnet, maxresnet18, msresnet18, resnet18"),
        (["modle=convnet"], "error: modle: no such group or setting; did you mean model?"),
        (["optimizer.learning_rate=1"], "error: optimizer.learning_rate: no such setting here"),
        (["model.time_steps=0"], "error: model.time_steps=0: "),
        (["neuron.beta=1.5"], "error: neuron.beta=1.5: must lie in [0, 1]"),
        (["objective.match_weight=-1"], "error: objective.match_weight=-1: must be at least 0"),
        (["quant.skip=[steam]"], "error: quant.skip=['steam']: no layer matches steam"),
        (["epochs=0"], "error: epochs=0: must be an integer of at least 1"),
        (["companion.weights=nowhere"], "error: companion.weights='nowhere': neither a run's folder"),
        (["baseline=plain", "model@companion.model=resnet18"], "this baseline has no companion"),
        (["data=cifar10", "data.root=nowhere", "data.download=false"], "error: data.root='nowhere': holds no cifar-10"),
        (["data.batch_size=many"], "error: data.batch_size='many': must be a whole number"),
        (["data.batch_size=1.5"], "error: data.batch_size=1.5: must be a whole number"),
        (["model.width=null"], "error: model.width=None: must be a number"),
        (["quant.skip=classifier"], "error: quant.skip='classifier': must be a list"),
        (
            ["quant.layer_quantizers=int8"],
            "error: quant.layer_quantizers='int8': must be a mapping or null",
        ),
        (["quant.quantizer.threshold=low"], "error: quant.quantizer.threshold='low': must be a number"),
        (["objective.detach_companion=maybe"], "error: objective.detach_companion='maybe': must be true or false"),
        (["optimizer.lr=fast"], "error: optimizer"),
        (["optimizer.lr=-1"], "error: optimizer.lr=-1: must be at least 0"),
        (["schedule.warmup_epochs=99"], "error: schedule.warmup_epochs=99: must be at least 0 and shorter"),
        (["cost.pj_per_mac=much"], "error: cost.pj_per_mac='much': must be a number"),
        (["trainer.max_epochs=some"], "error: trainer.max_epochs='some': must be a whole number or null"),
        (["~cost"], "error: cost: is missing, and cannot be left out"),
        (["companion.weights=null"], "error: companion.weights=None: random, pretrained or a run's path"),
        (["ckpt_path=last"], "error: ckpt_path='last': there is no checkpoint"),
        (["channels_last=maybe"], "error: channels_last='maybe': allowed are true, false"),
        (["checkpoint_stages=1"], "error: checkpoint_stages=1: allowed are true, false"),
        (["checkpoint_stages=true", "compile=network"], "error: checkpoint_stages=true: not with compile=network"),
        (["companion.device=cuda:77"], "error: companion.device='cuda:77': here are cpu"),
        (["trainer=ddp", "companion.device=cpu"], "error: companion.device='cpu': needs trainer.devices=1"),
        (["companion.precision=low"], "error: companion.precision='low': allowed are full, base and a quantizer"),
        (["companion.precision={bits: 8}"], "error: companion.precision={'bits': 8}: allowed are full, base and"),
        (
            ["+companion.frezee=true"],
            "error: companion.frezee: nothing reads such a setting; did you mean companion.freeze?",
        ),
        (
            ["baseline=cohort", "+companions.third.prec=base"],
            "did you mean companions.third.precision?",
        ),
        (["baseline=cohort", "companions.third.freeze=true"], "+companions.third.freeze=VALUE says it"),
        (
            ["baseline=cohort", "+companions.third.freeze=1"],
            "error: companions.third.freeze=1: allowed are true, false",
        ),
        (["baseline=plain", "+companions.third={}"], "error: companions={'third': {}}: stand beside `companion`"),
        (["+companions.companion={}"], "error: companions={'companion': {}}: stand beside `companion`, by names of"),
        (["companions=3"], "error: companions=3: must be a node of settings"),
        (["+companions.third={}"], "error: companion=companion, third: TwinAugmentation compares the base with 1"),
        (["trainer=ddp", "trainer.num_nodes=2"], "error: trainer.num_nodes=2: start the command with torchrun or srun"),
        (["baseline=kd", "companion.precision=base"], "error: companion.precision='base': a frozen companion keeps"),
        (
            ["companion.precision={_target_: tna_lightning.quantization.Uniform, bits: 99}"],
            "error: companion.precision.bits=99: ",
        ),
        (["epochs=3", "objective.match_start_epoch=3"], "error: objective.match_start_epoch=3: must be at most 2, the"),
        (
            ["objective.class_weights=[1,2]"],
            "error: objective.class_weights=[1.0, 2.0]: must be 10 numbers, one a class",
        ),
        (["objective.class_weights=[1,-2]"], "error: objective.class_weights=[1.0, -2.0]: must be finite numbers of 0"),
        (["baseline=kd", "companion.freeze=false"], "error: freeze_companion=[]: the companion gets no gradient"),
        (["trainer=ddp", "trainer.strategy=ddp_spawn"], "error: trainer.strategy='ddp_spawn': must be ddp, whose"),
        (
            ["trainer=ddp", "trainer.strategy=ddp_notebook"],
            "error: trainer.strategy='ddp_notebook': must be ddp, whose",
        ),
        (["trainer=ddp", "trainer.strategy=ddp_fork"], "error: trainer.strategy='ddp_fork': must be ddp, whose"),
        (["epochs=3", "quant.start_epoch=3"], "error: quant.start_epoch=3: must be at most 2, the last of 3 epochs"),
        (["baseline=kd", "epochs=3", "quant.growth_epochs=3"], "error: quant.growth_epochs=3: must be at most 2"),
        (["logger=wandb", "logger.offline=perhaps"], "error: logger.offline='perhaps': must be true or false"),
        (["trainer.precision=third"], "error: trainer."),
        (["keep=best", "data.val_fraction=0"], "error: keep='best': needs validation images"),
        (["init_from=3"], "error: init_from=3: must be the path of a run"),
        (["quant=none", "+quant.skip=[stem]"], "error: quant={'skip': ['stem']}: quant=none has no settings"),
        (["quant.quantizer.threshold=inf"], "error: quant.quantizer.threshold=inf: must be finite"),
        (["quant.skip=[1]"], "error: quant.skip[0]=1: must be a string"),
        (["quant.layer_quantizers=[stem]"], "error: quant.layer_quantizers=['stem']: must be a mapping or null"),
        (["cost.pj_per_mac=-1"], "error: cost.pj_per_mac=-1: must be 0 or more"),
        (["study=../x"], "error: study='../x': must be a name"),
        (["baseline=plain,tna"], "error: baseline=plain,tna: several values make a sweep; put -m before the settings"),
        (["data.crop_padding=2"], "error: data.crop_padding: is augment.crop.padding now"),
        (["+data.flip=true"], "error: data.flip: is the operation augment.flip now"),
        (["+data.augment=nda"], "error: data.augment: is a choice of its own now: augment=none, flip_roll"),
        (["trainer.twin_device=cpu"], "error: trainer.twin_device: is companion.device now"),
        (["+trainer.twin_stream=true"], "error: trainer.twin_stream: is gone"),
        (["quant.network=both"], "error: quant.network: is said by the companion now: companion.precision=base"),
        (["trainer.max_epoch=3"], "error: trainer.max_epoch: no such setting here; did you mean trainer.max_epochs?"),
        (
            ["objective.weight=1"],
            "did you mean objective.rate_weight, objective.feature_weight or objective.match_weight?",
        ),
        (["optimizer=sgd", "optimizer.momentum=-1"], "error: optimizer.momentum=-1: must be at least 0"),
        (["optimizer.betas=[1,2]"], "error: optimizer.betas=[1, 2]: must be at least 0 and below 1"),
        (["data=image_folder"], "error: data.root: must be given: the folder, which holds a folder of pictures for"),
        (["augment=standard", "augment.crop=3"], "error: augment.crop=3: must be an operation"),
        (["neuron._partial_=false"], "error: neuron=tna_lightning.models.LIF: its YAML must say `_partial_: true`"),
        (["neuron._target_=my.nowhere"], "error: neuron._target_='my.nowhere': there is no such class or function"),
        (["+cat=1"], "error: cat: nothing reads such a setting; there are seed, epochs"),
        (["+epoch=3"], "error: epoch: nothing reads such a setting; did you mean epochs?"),
        (["+signatures=LIF"], "error: signatures: nothing reads such a setting"),
        (["+trainer.callbacks=[]"], "error: trainer.callbacks: is not for you to set; they are a choice of their own"),
        (["trainer.logger=false"], "error: trainer.logger: is not for you to set; choose one: logger=wandb"),
        (
            ["+trainer.fast_dev_run=true"],
            "error: trainer.fast_dev_run: is not for you to set; debug=smoke runs one epoch",
        ),
        (["+trainer.enable_checkpointing=false"], "error: trainer.enable_checkpointing: is not for you to set"),
        (
            ["+trainer.max_epoch=3"],
            "error: trainer.max_epoch: nothing reads such a setting; did you mean trainer.max_epochs?",
        ),
        (["+neuron.betta=0.9"], "error: neuron.betta: nothing reads such a setting; did you mean neuron.beta?"),
        (["+model.with=0.9"], "error: model.with: nothing reads such a setting; did you mean model.width?"),
        (
            ["+optimizer.learning_rate=0.9"],
            "error: optimizer.learning_rate: nothing reads such a setting; did you mean",
        ),
        (["+quant.quantizer.bits=2"], "error: quant.quantizer.bits: nothing reads such a setting; there are threshold"),
        (
            ["+companion.wieghts=x"],
            "error: companion.wieghts: nothing reads such a setting; did you mean companion.weights?",
        ),
        (["+logger.project=mine"], "error: logger={'project': 'mine'}: logger=csv has no settings; choose wandb"),
        (["cost.pj_per_mac=[1]"], "error: cost.pj_per_mac=[1]: must be a number"),
        (
            ["+cost.pj=1"],
            "error: cost.pj: nothing reads such a setting; did you mean cost.pj_per_mac or cost.pj_per_ac?",
        ),
        (["trainer.accelerator=tpu"], "error: trainer.accelerator='tpu': "),
        (["trainer.strategy=together"], "error: trainer.strategy='together': You selected an invalid strategy name"),
        (["trainer.val_check_interval=-1"], "error: trainer.val_check_interval=-1: You have passed invalid value -1"),
        (["logger=wandb", "+logger.nothing=1"], "error: logger.nothing: nothing reads such a setting"),
        (["quant=ternary_ttq", "quant.growth_epochs=1"], "quant.growth_epochs=1: not with quantizer ternary_ttq"),
    ],
)
def test_bad_input_gets_one_clear_line(overrides, message, tmp_path, monkeypatch, capsys):
    from tna_lightning.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tna_lightning", *SMALL[:-1], *overrides])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert not [path for path in tmp_path.iterdir() if path.name != ".data"]  # no run's folder, and no teacher's


def test_a_module_of_ones_own_that_fails_is_named_once(tmp_path, monkeypatch, capsys):
    from tna_lightning.__main__ import main

    (tmp_path / "my_broken_neuron.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tna_lightning", *SMALL[:-1], "neuron._target_=my_broken_neuron.LIF"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: neuron._target_='my_broken_neuron.LIF': my_broken_neuron fails (No module named 'nothing_of_this_name')"
    )


def test_bad_input_leaves_what_is_there_as_it_is(done_run, tmp_path):
    source, _ = done_run
    folder = tmp_path / "run"
    shutil.copytree(source, folder)

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    for bad in (["optimizer.lr=-1"], ["data._target_=nowhere.Data"], ["trainer.precision=third"]):
        result = small_run(folder, *RECIPE, "resume=false", *bad)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert contents() == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert small_run(other, "optimizer.lr=-1").returncode == 2
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_run_on_two_processes_refuses_bad_input_likewise(tmp_path):
    folder = tmp_path / "run"
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    result = small_run(folder, *two, "quant.start_epoch=30", env={**os.environ, "HYDRA_FULL_ERROR": "0"})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: quant.start_epoch=30: must be at most 29, the last of 30 epochs")
    assert not folder.exists()


def test_tracebacks_are_there_for_who_asks(tmp_path):
    result = small_run(tmp_path / "run", "optimizer.lr=-1", env={**os.environ, "HYDRA_FULL_ERROR": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_twin_device_of_the_same_kind_changes_nothing_and_channels_last_hardly_anything(tmp_path):
    options = ["epochs=2", "keep=last"]
    small_run(tmp_path / "plain", *options, check=True)
    small_run(tmp_path / "twin", *options, "companion.device=cpu", check=True)
    limited = ("data.eval_batch_size=50", "trainer.limit_test_batches=2")  # as evaluate has to repeat it
    told = small_run(tmp_path / "layout", *options, *limited, "channels_last=true", check=True).stdout
    plain, twin, layout = (finished_record(tmp_path / name) for name in ("plain", "twin", "layout"))
    assert untimed(twin["history"]) == untimed(plain["history"])
    assert twin["results"] == plain["results"]
    losses = [record["history"]["train/loss"][0] for record in (plain, layout)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # a spike here and there
    evaluated = call(tmp_path / "layout", module="tna_lightning.evaluate", check=True)
    assert f"test/acc {layout['results']['test/acc']:.2%} (recorded: " in evaluated.stdout
    assert re.search(r"not on all samples +\S data\.train_subset=\d+ ", told)
    assert "trainer.limit_test_batches=2 " in told


def test_a_rank_that_is_left_in_the_environment_makes_no_further_process_of_a_run(tmp_path):
    small_run(tmp_path / "run", "epochs=1", env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"}, check=True)
    assert finished_record(tmp_path / "run")["epochs"] == 1


def test_damaged_files_are_named_and_put_aside_on_request(done_run, tmp_path):
    source, _ = done_run
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    (folder / RECORD).write_text('{"status": "done"')
    arguments = RECIPE
    refused = small_run(folder, *arguments)
    assert refused.returncode == 2
    assert "run.json is damaged" in refused.stderr
    assert "resume=false" in refused.stderr

    (folder / RECORD).unlink()
    checkpoint = (folder / LAST_CHECKPOINT).read_bytes()
    (folder / LAST_CHECKPOINT).write_bytes(checkpoint[: len(checkpoint) // 2])
    refused = small_run(folder, *arguments)
    assert refused.returncode == 2
    assert "cut short or no checkpoint" in refused.stderr

    again = small_run(folder, *arguments, "resume=false")
    assert again.returncode == 0, again.stderr
    assert finished_record(folder)["results"] == finished_record(source)["results"]
    aside = tmp_path / ".replaced" / "run.1"
    assert (aside / LAST_CHECKPOINT).read_bytes() == checkpoint[: len(checkpoint) // 2]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    # the learning rate is sane in the first epoch and absurd in the second
    (tmp_path / "accidents.py").write_text(
        "from torch.optim.lr_scheduler import LambdaLR\n"
        "def sane_then_absurd(optimizer, total_steps, steps_per_epoch):\n"
        "    return LambdaLR(optimizer, lambda step: 1e-30 if step < steps_per_epoch else 1.0)\n"
    )
    overrides = ["epochs=2", "optimizer.lr=1e30", "schedule._target_=accidents.sane_then_absurd"]
    result = small_run(
        folder,
        *overrides,
        "~schedule.warmup_epochs",
        "~schedule.final_share",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: the loss is not finite at step ")
    assert "(epoch 1)" in last
    record = read_record(folder)
    assert record["status"] == "failed"
    assert "not finite" in record["error"]
    checkpoint = torch.load(folder / LAST_CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())


def test_help_lists_every_choice_and_no_other(capsys, monkeypatch):
    from tna_lightning.__main__ import main
    from tna_lightning.running.help import EXAMPLES
    from tna_lightning.running.home import GROUPS, home

    monkeypatch.setattr(sys, "argv", ["tna_lightning", "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    main()
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    commands = re.findall(r"^  python(?:.*\\\n)*.*", text, re.MULTILINE)
    assert [command.replace("\\\n", "").split() for command in commands] == [
        line.split() for line in EXAMPLES.splitlines() if line.startswith("python")
    ]
    monkeypatch.setenv("COLUMNS", "200")  # a line each
    main()
    text = capsys.readouterr().out
    starts = {re.match(r"   [* ] \S+ +", line)[0] for line in text.splitlines() if re.match(r"   [* ] \S", line)}
    assert len(set(map(len, starts))) == 1
    listed = {}
    for line in text.split("Examples:")[0].splitlines():
        if line.startswith("  ") and line[2] != " ":
            listed[(group := line.strip())] = set()
        elif line.startswith("   "):
            listed[group].add(line[5:].split()[0])
    for group in GROUPS:
        folder = home() / ("experiments" if group == "experiments" else f"conf/{group}")
        assert listed[group] == {path.stem for path in folder.glob("*.yaml")}
    assert set(listed) == set(GROUPS)
    assert text.count("python -m tna_lightning") - text.count("usage: python") >= 5


def test_the_record_is_json_that_others_can_read(done_run):
    folder, _ = done_run

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((folder / RECORD).read_text(), parse_constant=refuse)
