"""Every setting by kind: taken away or made nonsense it is refused in one line, and set to another value it counts."""

import copy
import functools
import inspect
import itertools
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tna_lightning.data import Inputs
from tna_lightning.running import callbacks, loggers
from tna_lightning.running.callbacks import build_callbacks
from tna_lightning.running.checkpoints import savers
from tna_lightning.running.config import BY_THE_PROGRAM, SETTINGS, check, compose, explain
from tna_lightning.running.factory import build, build_data, build_network, check_time_steps, network_spec
from tna_lightning.running.home import options
from tna_lightning.running.identity import folder_name
from tna_lightning.running.record import Run
from tna_lightning.running.train import build_learner, build_quantization
from tna_lightning.running.trainer import build_trainer

TINY = ["model.width=0.125", "model.time_steps=1", "trainer.accelerator=cpu", "epochs=3"]
GONE = object()
NONSENSE = (GONE, None, [[]], -1, "nonsense")

# What has no effect that a test without a training could see, each with its reason
NOT_SEEN = {
    "trainer.accelerator": "another is not on every machine",
    "trainer.strategy": "starts processes, see test_ddp.py",
    "trainer.devices": "starts processes, see test_ddp.py",
    "trainer.num_nodes": "refused without torchrun or srun, see test_ddp.py",
    "trainer.sync_batchnorm": "concerns several processes, see test_ddp.py",
    "trainer.deterministic": "true would change torch for all tests",
    "augment.policy.operations": "of randaugment alone, see test_policies.py",
    "augment.chosen.strong.policy.operations": "of randaugment alone, see test_policies.py",
    "data.encode_steps": "wants encode=rate or latency, see test_encodings.py",
    "objective.features": "wants feature_weight, see test_learner.py",
    "objective.feature_weight": "wants features, see test_learner.py",
    "epochs": "trainer.max_epochs follows it, see test_config.py",
    "resume": "what is done with an earlier run, see test_train.py",
    "ckpt_path": "needs a checkpoint, see test_train.py",
    "init_from": "needs a run, see test_train.py",
    "extend": "needs a run, see test_extension.py",
    "companion.weights": "needs a run, see test_companions.py",
    "companion.seed": "refused unless the companion is pretrained, see test_companions.py",
}
# other values of settings that are names, or of null; the first that is legal is taken
WORDS = (
    *(
        "subtract",
        "sigmoid",
        "layer",
        "channel",
        "kl",
        "squared_error",
        "avg",
        "max",
        "learned",
        "cifar100",
        "kmnist",
        "min",
    ),
    *("randaugment", "train/loss", "bf16-mixed", "base", "time", "count", "last", "best", "network", "none", "a_name"),
    *("tebn", "Lapicque", "IFNode", "ms"),
    *("and", "iand", "max_loss", "rate", "steps"),
)
OF_NOTHING = (
    *(1, 2, 0.5, True, "00:00:01:00", "norm", "simple", "step", "a_name", "cpu", "first"),
    *({"stem": {"_target_": "tna_lightning.quantization.Binary"}}, {"_target_": "tna_lightning.cost.MemoryModel"}),
    [0.5] * 10,  # one a class
)


def at(config, path):
    return functools.reduce(lambda node, name: node[name], path, config)


def changed(config, path, value):
    config = copy.deepcopy(config)
    node = at(config, path[:-1])
    if value is GONE:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return config


def paths(node, prefix=()):
    for name, value in node.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, name))


class Consumers:
    """What reads each node, built from a config; no data are loaded and nothing is trained."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, config):
        check(config)
        return getattr(self, name, self.of_learner)(config)

    def of_learner(self, config):
        torch.manual_seed(config["seed"])
        return build_learner(config, self.datamodule(config)), folder_name(config)

    def datamodule(self, config):
        return SimpleNamespace(inputs=Inputs(2, 8, 8, config["data"].get("time_steps"), 10), num_classes=10)

    def model(self, config):
        check_time_steps("model", config["model"], self.datamodule(config).inputs)
        network = build_network(network_spec(config, self.datamodule(config)))
        return network, [module.extra_repr() for module in network.modules()]

    neuron = model

    def objective(self, config):
        return build("objective", config["objective"])

    def optimizer(self, config):
        optimizer = build("optimizer", config["optimizer"])([nn.Parameter(torch.zeros(1))])
        scheduler = build("schedule", config["schedule"])(optimizer, 30, 10)
        rates = []
        for _ in range(30):
            rates.append(scheduler.get_last_lr())
            optimizer.step()
            scheduler.step()
        return optimizer.defaults, rates

    schedule = optimizer

    def data(self, config):
        return build_data(config)

    augment = data

    def quant(self, config):
        quantization = build_quantization(config)
        return None if quantization is None else (vars(quantization), quantization)

    def trainer(self, config):
        before = torch.backends.cudnn.benchmark
        try:
            return build_trainer(config, self.folder, []), torch.backends.cudnn.benchmark
        finally:
            torch.backends.cudnn.benchmark = before

    def callbacks(self, config):
        return build_callbacks(config, [])

    def logger(self, config):
        logger = build("logger", config["logger"]) if config["logger"] else None
        loggers.check(logger)
        return logger

    def cost(self, config):
        return build("cost", config["cost"])

    def keep(self, config):
        return [vars(saver) for saver in savers(self.folder, config["keep"])[1]]

    def output_dir(self, config):
        return config["output_dir"]  # Hydra makes folders there, see test_config.py

    def study(self, config):
        return Run(self.folder, config).record


@pytest.fixture(scope="module")
def consumers(tmp_path_factory):
    return Consumers(tmp_path_factory.mktemp("run"))


def test_every_node_has_a_consumer():
    assert set(compose()) <= {*SETTINGS, *BY_THE_PROGRAM}


@pytest.fixture(scope="module")
def with_much():
    return compose([*TINY, "baseline=cohort", "augment=standard", "callbacks=[ema,early_stopping]", "logger=wandb"])


@pytest.mark.filterwarnings("ignore")  # of values that are odd, but legal
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_gone_or_nonsense_is_refused_in_one_line_or_right(name, with_much, consumers):
    for path in paths({name: with_much[name]}):
        for value in NONSENSE[:: 2 if name == "trainer" else 1]:  # a trainer takes 30 ms
            line = refusal(consumers, changed(with_much, path, value), name)
            assert line is None or (line and "\n" not in line), f"{'.'.join(path)}={value!r}: {line!r}"


def refusal(consumers, config, name):
    """What a person is told of a config that is refused; None if it is not, empty if it ends in a traceback."""
    try:
        consumers(name, config)
    except Exception as error:
        return explain(error) or ""
    return None


def seen(thing, depth=0, been=()):
    """What a built object is made of, as far as two can be compared."""
    if isinstance(thing, torch.Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.stride(), float(thing.detach().double().abs().sum())
    if isinstance(thing, int | float):
        return repr(thing)  # 1 is one batch, 1.0 all
    if thing is None or isinstance(thing, str | torch.dtype | torch.device | Path):
        return thing
    if id(thing) in been or depth > 8:
        return type(thing).__name__
    been = (*been, id(thing))
    if isinstance(thing, dict):
        return {str(key): seen(value, depth + 1, been) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [seen(value, depth + 1, been) for value in thing]
    if isinstance(thing, functools.partial):
        return seen((thing.func, thing.args, thing.keywords), depth + 1, been)
    if inspect.isroutine(thing) or isinstance(thing, type):
        return thing.__qualname__
    inner = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, nn.Module):
        inner["training"] = thing.training
    return type(thing).__name__, seen(inner, depth + 1, been)


def others(value):
    """Other values of the kind that a setting has, which may be legal."""
    return [other for other in _others(value) if type(other) is not type(value) or other != value]


def _others(value):
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value + 2, 2 * value, value - 1)
    if isinstance(value, float):
        return (value / 2 + 0.25, value / 2 + 0.01, 2 * value + 1)
    if isinstance(value, list):
        if value and isinstance(value[0], float):
            return ([each / 2 + 0.1 for each in value],)
        return (["stem"], value[::-1], value[:1])
    if value is None:
        return OF_NOTHING
    return WORDS if isinstance(value, str) else ()


EVENTS = (
    "flip_roll",
    "nda",
    "nda_cutmix",
    "nda_ncaltech101",
    "nda_policy",
    "event_drop",
    "chosen_events",
)  # choices of augment for these alone
GROUPS = {
    "model": [*options("model")],
    "neuron": [name for name in options("neuron") if name != "spikingjelly" or find_spec("spikingjelly")],
    "quant": [*options("quant")],
    "baseline": ["tna", "kd", "mutual", "plain", "cohort"],
    "optimizer": ["sgd", "adamw", "adamw_transformer"],
    "callbacks": [*options("callbacks")],
    "logger": ["wandb", "tensorboard"],
}
NODES = {"baseline": ("objective", "companion"), "optimizer": ("optimizer", "schedule")}


def rows():
    """Choices of all groups side by side, so that each is composed once."""
    mine = {name: ["data.root=mine"] for name in ("event_folder", "image_folder")}  # which say no default
    of_files = {"arrays": ["data.file=mine.npz"], **mine}
    yield from ([f"data={choice}", *of_files.get(choice, [])] for choice in options("data"))
    for choice in options("augment"):
        yield [f"augment={choice}", f"data={'digits_dvs' if choice in EVENTS else 'digits'}"]
    for row in itertools.zip_longest(*([f"{group}={choice}" for choice in GROUPS[group]] for group in GROUPS)):
        yield [*filter(None, row), *["logger=tensorboard"][: row[-1] is None]]


@pytest.mark.filterwarnings("ignore")  # of values that are odd, but legal
def test_every_setting_of_every_choice_counts(consumers, monkeypatch):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: True)  # psutil, which need not be there
    tried = set(NOT_SEEN)
    for row in rows():
        config = compose([*TINY[2:], *row])
        for word in row:
            group = word.partition("=")[0]
            for name in NODES.get(group, (group,)) if "." not in group else ():
                assert_each_counts(config, name, tried, consumers)
    assert len(tried) > 150


@pytest.mark.filterwarnings("ignore")
def test_every_other_setting_counts(consumers):
    config = compose([*TINY, "logger=tensorboard", "baseline=plain", "trainer.gradient_clip_val=1.0"])
    for name in ("trainer", "cost"):
        assert_each_counts(config, name, set(NOT_SEEN), consumers)
    for name in (key for key in SETTINGS if not isinstance(config[key], dict) and key not in (*NOT_SEEN, "companion")):
        assert_counts(config, (name,), consumers)


def assert_each_counts(config, name, tried, consumers):
    """The settings of a node, without those that were tried: choices share most of them."""
    for path in paths({name: config[name]}):
        value, key = at(config, path), ".".join(path)
        known_as = (name, str(at(config, path[:-1]).get("_target_")), path[-1]) if name != "model" else path
        is_tried = key in tried or known_as in tried
        if len(path) > 1 and not is_tried and path[-1] not in ("_target_", "_partial_") and not isinstance(value, dict):
            tried.add(known_as)
            assert_counts(config, path, consumers)


def assert_counts(config, path, consumers):
    key = ".".join(path)
    before = seen(consumers(path[0], config))
    refusals = []
    for value in others(at(config, path)):
        other = changed(config, path, value)
        refusals.append(refusal(consumers, other, path[0]))
        if refusals[-1] is None:
            assert seen(consumers(path[0], other)) != before, f"{key}={value!r} changes nothing"
            return
        assert refusals[-1], f"{key}={value!r} ends in a traceback"
    raise AssertionError(f"{key}: no other value is legal: {refusals}")
