"""A run keeps its identity over the versions: the command of every committed record still names that record's run."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tna_lightning.running.archive import find_records
from tna_lightning.running.config import compose
from tna_lightning.running.identity import identity, identity_config
from tna_lightning.running.versions import ADDED_BEFORE, as_before, as_now

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
RECORDS = {place: read() for place, read in find_records(RESULTS)}

MODEL = re.compile(r"model\.[a-z]")

# Runs of the time when 0.1.0 was made, before ADDED_BEFORE were added: their folders carry the hash of then. By study.
OLDER = {
    "first_runs": 2,
    "cifar10_simdvs": 2,
    "digits_dvs": 1,
    "evidence/match_weight": 8,
    "evidence/distillation": 8,
    "evidence": 44,
    "evidence/ablation": 18,
    "evidence/attempts": 35,
}


def old_settings(config):
    return as_before(identity_config(config))


def differing(record, config):
    """The overrides that make a composed config the record's, by the names that 0.1.0 gave the settings."""
    recorded, whole = identity_config(record["config"]), identity_config(config)
    today = old_settings(config) | {key: value for key, value in whole.items() if key in recorded}
    neutral = {key: value for key, value in ADDED_BEFORE.items() if key in today}
    wanted = {key: recorded.get(key, neutral.get(key)) for key in today if key in recorded or key in neutral}
    return {key: value for key, value in wanted.items() if json.dumps(value) != json.dumps(today[key])}


# how one sets today what were flags
MOVED_TO = {
    "data.crop_padding": {0: ["~augment.crop"]},
    "data.flip": {False: ["~augment.flip"]},
}


def words(overrides):
    """Overrides of today for settings of 0.1.0."""
    found = []
    for key, value in overrides.items():
        found += MOVED_TO[key][value] if key in MOVED_TO else [f"{key}={json.dumps(value)}"]
    return found


def composed(record):
    """The config of the command that makes this run today: its choices, and what else it set."""
    choices = record["choices"].items()
    command = [f"{group}={choice}" for group, choice in choices if group not in ("experiments", "logger")]
    recorded = identity_config(record["config"])
    # first what others are interpolated from
    command += words({key: value for key, value in recorded.items() if key in ("seed", "epochs") or MODEL.match(key)})
    config = compose(command)
    further = words(differing(record, config))
    return compose([*command, *further]) if further else config


def without_seed(record):
    return json.dumps(
        {
            key: value
            for key, value in identity_config(record["config"]).items()
            if not key.endswith("seed") or value != record["seed"]
        }
    )


def with_seed(config, seed):
    """The config with another seed, in all the places that take theirs from it."""
    config = json.loads(json.dumps(config))
    before = config["seed"]
    for node in (config, config["data"], config["companion"] or {}):
        if node.get("seed") == before:
            node["seed"] = seed
    return config


def some_of_each_choice():
    """Records that have all choices of all records between them."""
    found, seen = {}, set()
    for folder, record in RECORDS.items():
        choices = {choice for choice in record["choices"].items() if choice[0] != "experiments"}
        if not choices <= seen:
            seen |= choices
            found[folder] = record
    return found


def study_of(folder):
    return str(folder.relative_to(RESULTS)).partition("/records")[0]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])  # a second a command
def test_the_command_of_every_committed_record_names_its_run(every):
    older, first = Counter(), {}
    for folder, record in (RECORDS if every else some_of_each_choice()).items():
        kind = without_seed(record)
        if kind not in first:
            first[kind] = composed(record)
        today = with_seed(first[kind], record["seed"])
        assert identity(today, record["config"]) == record["identity"], folder
        older[study_of(folder)] += identity(today) != record["identity"]
    if every:
        assert len(RECORDS) == 464
        assert +older == OLDER


def test_a_record_of_an_earlier_version_is_read_with_todays_settings():
    names = {"data": "augment", "trainer": "twin_stream", "quant": "network"}
    for record in RECORDS.values():
        now = as_now(record["config"])
        assert not any(old in (now[node] or {}) for node, old in names.items())
        assert identity(now, record["config"]) == record["identity"]
        assert as_now(now) == now


@pytest.mark.parametrize(
    ("added", "same"),
    [
        (["callbacks=none"], True),
        (["augment=none"], True),
        (["companion.device=cpu"], False),
        (["companion.precision=base", "quant=none"], True),
        (["callbacks=ema"], False),
        (["augment=standard"], False),
        (["neuron.per=channel"], False),
        (["trainer.limit_train_batches=2"], False),
        (["data=digits_dvs", "data.frames_root=elsewhere"], True),
        (["data=digits_dvs", "data.split=random"], True),
        (["data=digits_dvs", "data.train_subset=9"], False),
        (["data.test_subset=9"], False),
        (["data=cifar10", "compile=neurons"], True),  # auto, which it brings, computes the same without waiting
        (["data=cifar10", "compile=network"], False),
    ],
)
def test_a_setting_added_since_leaves_the_identity_at_its_neutral_value_alone(added, same):
    before = compose([word for word in added if word in ("quant=none", "data=digits_dvs", "data=cifar10")])
    assert (identity(compose(added)) == identity(before)) is same


@pytest.mark.parametrize("group", ["callbacks=[early_stopping,ema]", "augment=[cutmix,nda]"])
def test_the_order_of_callbacks_and_operations_is_part_of_the_identity(group):
    name, _, choices = group.partition("=")
    other = f"{name}=[{','.join(reversed(choices.strip('[]').split(',')))}]"
    assert identity(compose([group])) != identity(compose([other]))


def test_augmentation_as_0_1_0_said_it():
    def before(*words):
        return {key: value for key, value in old_settings(compose(words)).items() if "augment" in key or key in FLAGS}

    images = {"data.crop_padding": 4, "data.flip": True, "data.auto_augment": None, "data.cutout": 0}
    assert before("data=cifar10") == images
    assert before("data=cifar10", "augment=none") == images | {"data.crop_padding": 0, "data.flip": False}
    strong = {"data.auto_augment": "autoaugment", "data.cutout": 8}
    assert before("data=cifar10", "augment=strong", "augment.cutout.size=8") == images | strong
    events = {"data.augment": "flip_roll", "data.flip": False, "data.cutout": 0, "data.cutmix": 0.0}
    assert before("data=cifar10dvs") == events
    assert before("data=cifar10dvs", "augment=nda_cutmix") == events | {"data.augment": "nda", "data.cutmix": 0.5}
    new = before("data=digits", "augment=standard")  # which 0.1.0 could not say
    assert new["augment"] == ["crop", "flip"]
    assert new["augment.crop.padding"] == 4


FLAGS = ("data.crop_padding", "data.flip", "data.auto_augment", "data.cutout", "data.augment", "data.cutmix")
