"""From runs to rows: mean and deviation over seeds, and paired differences with their 95 % interval."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tna_lightning.report.names import named
from tna_lightning.running.identity import identity_config
from tna_lightning.running.record import part_of_test, precision_words
from tna_lightning.running.versions import as_before, with_neutral

# the order in which a reader looks for them; what is not here follows in alphabetical order
BASELINES = ("plain", "plain_twice", "kd", "kd_ann", "mutual", "tna", "cohort")
PRECISIONS = (
    *("full", "int8", "int4", "int3", "int2"),
    *("ternary_hidden", "ternary", "ternary_ttq", "ternary_absmean", "binary"),
)
DISTILLATIONS = ("kd", "kd_ann")
REFERENCES = ("plain", *DISTILLATIONS)
AGAINST = "against"  # the name of the differences to what the reader asks for
# what of a config a choice sets, and hence is no other difference between two runs that made another choice there
SETS = {
    "baseline": ("objective", "companion", "companions", "trainer.max_epochs"),
    **{group: (group,) for group in ("quant", "model", "neuron", "augment", "optimizer")},
}
QUESTION = ("data", "model", "neuron", "baseline", "quant", "augment")  # a study may have set another one of each
_SEEDS = re.compile(r"seed|data\.seed|companion\.seed|companions\.\w+\.seed")
_CODE, _OWN_DATA = "own.code.", "own.data."  # digests of the user's own modules and data
_DIGITS = 8  # of a digest, as those that end the name of a run's folder
# settings that say of which task a test accuracy is, beside the choice of the data: of which samples, and learned from
# which; not those of how to train (as 0.1.0 named them, augmentation among them)
_OF_TASK = re.compile(
    r"own\.data\..*|trainer\.(limit_(train|test)_batches|overfit_batches)|data\.(?!(seed|batch_size|eval_batch_size|"
    r"build_workers|device_resident|crop_padding|flip|auto_augment|cutout|augment|cutmix)$).*"
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)")
_ENTRIES = "callbacks."  # settings of what only some runs have
_TARGET = "._target_"  # the class or function that a node builds

Record = Mapping[str, Any]


class Unmet(ValueError):
    """What a reader asks for cannot be had of these runs."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of two kinds of runs over paired seeds, in percentage points.

    Attributes:
        mean: over the pairs.
        half_width: of the 95 % interval (Student t over the pairs); None below two pairs.
        pairs: their number.
    """

    mean: float
    half_width: float | None
    pairs: int

    def words(self, digits: int = 2) -> str:
        """With its interval, ``+1.49 [+0.28, +2.71]``, or ``+1.49 (1 pair)``."""
        mean = f"{self.mean:+z.{digits}f}"
        if self.half_width is None:
            return f"{mean} (1 pair)"
        return f"{mean} [{self.mean - self.half_width:+z.{digits}f}, {self.mean + self.half_width:+z.{digits}f}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        data, model, neuron, baseline, precision: the choices; ``data`` says where events are simulated, and which
            data of the user's own they are where there are several; ``quant=none`` is the precision ``full``.
        variant: other settings in which rows with these choices differ, ``match_weight=0.05``.
        records: the runs, by seed.
        mean: test accuracy of the base in percent, over seeds.
        deviation: its standard deviation over seeds (n - 1); None for one seed.
        differences: to the :data:`REFERENCES`, where there are pairs, and under :data:`AGAINST` to the row asked for.
        distillation: the better of the :data:`DISTILLATIONS` in this row's setting, by validation accuracy.
    """

    data: str
    model: str
    neuron: str
    baseline: str
    precision: str
    variant: str
    records: tuple[Record, ...]
    mean: float
    deviation: float | None
    differences: Mapping[str, Difference]
    distillation: str | None

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [record["seed"] for record in self.records]

    @property
    def task(self) -> str:
        """The same for rows that learned from as much of the same data, and are tested on the same samples."""
        settings = as_before(identity_config(self.records[0]["config"]), {})
        return json.dumps([self.data, {key: settings[key] for key in sorted(settings) if _OF_TASK.fullmatch(key)}])

    @property
    def label(self) -> str:
        """Baseline by its name, and variant, for legends."""
        return f"{named('baseline', self.baseline)} {self.variant}".strip()

    def average(self, *path: str) -> float | None:
        """Mean over seeds of a number in the record, ``average("weights", "bytes")``; None where a run has none."""
        values = self.values(*path)
        return None if values is None else math.fsum(values) / len(values)

    def values(self, *path: str) -> list[float] | None:
        """The number in each record, by seed; None where a run has none."""
        values: list[float] = []
        for record in self.records:
            value: Any = record
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if not isinstance(value, int | float):
                return None
            values.append(value)
        return values

    @property
    def quantized(self) -> str:
        """Which layers are, see :func:`tna_lightning.precision_words`; empty where the records name no layers."""
        weights = self.records[0]["weights"]
        return "" if weights.get("layers") is None else precision_words(weights)

    @property
    def bits(self) -> float | None:
        """Bits a weight as kept: scales and unquantised layers included."""
        size, weights = self.average("weights", "bytes"), self.average("weights", "weights")
        return None if size is None or not weights else 8 * size / weights


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation with n - 1; the latter None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_difference(differences: Sequence[float]) -> Difference:
    """Mean of paired differences with the half width of its 95 % interval, t(n - 1) * s / sqrt(n)."""
    from scipy.stats import t

    mean, deviation = mean_and_deviation(differences)
    pairs = len(differences)
    half_width = None if deviation is None else float(t.ppf(0.975, pairs - 1)) * deviation / math.sqrt(pairs)
    return Difference(mean, half_width, pairs)


def rows(records: Sequence[Record], against: str = "") -> list[Row]:
    """One row for each kind of run, sorted by data, model, neuron, precision, baseline and variant.

    Args:
        records: of finished runs.
        against: ``quant=ternary`` or ``objective.match_weight=0.05``, or several with commas between them: each run
            that has others there is compared with the one that has these, the same seed, and no other difference.

    Raises:
        Unmet: no run has what ``against`` says, or none has a partner there.
    """
    better = _better_distillations(records)
    to_those = _differences_to(records, against) if against else {}
    partners: dict[tuple[str, str], list[Record]] = defaultdict(list)
    by_choices: dict[tuple[str, str, str, str, str], list[Record]] = defaultdict(list)
    for record, data in zip(records, data_names(records), strict=True):
        partners[record["choices"].get("baseline") or "custom", _partner_key(record)].append(record)
        by_choices[_choices(record, data)].append(record)

    table = []
    for choices, alike in by_choices.items():
        by_variant: dict[str, list[Record]] = defaultdict(list)
        for record, variant in zip(alike, _variants(alike), strict=True):
            by_variant[variant].append(record)
        for variant, members in by_variant.items():
            members = sorted(members, key=lambda record: record["seed"])
            mean, deviation = mean_and_deviation([_accuracy(record) for record in members])
            differences = {}
            for reference in REFERENCES:
                pairs = [
                    _accuracy(record) - _accuracy(others[0])
                    for record in members
                    if choices[3] != reference and len(others := partners[reference, _partner_key(record)]) == 1
                ]
                if pairs:
                    differences[reference] = paired_difference(pairs)
            if pairs := [to_those[record["identity"]] for record in members if record["identity"] in to_those]:
                differences[AGAINST] = paired_difference(pairs)
            distillation = better.get(_partner_key(members[0], any_seed=True))
            table.append(Row(*choices, variant, tuple(members), mean, deviation, differences, distillation))
    return sorted(table, key=_order)


def missing(table: Sequence[Row], unfinished: Sequence[str] = ()) -> list[str]:
    """What the table lacks to be a full grid of baseline, precision and seed for each data set, model and neuron.

    Args:
        table: from :func:`rows`.
        unfinished: folder names of runs that exist without a result; those are not missing.
    """
    lacking = []
    grids: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in table:
        grids[row.data, row.model, row.neuron].append(row)
    for (data, model, neuron), members in grids.items():
        seeds = sorted({seed for row in members for seed in row.seeds})
        baselines = sorted({row.baseline for row in members}, key=_rank(BASELINES))
        precisions = sorted({row.precision for row in members}, key=_rank(PRECISIONS))
        for baseline in baselines:
            for precision in precisions:
                cells = [row for row in members if (row.baseline, row.precision) == (baseline, precision)]
                for variant, there in [(row.variant, row.seeds) for row in cells] or [("", [])]:
                    quant = "none" if precision == "full" else precision
                    start = "-".join([data.partition(" (")[0], model, neuron, baseline, quant])
                    absent = [
                        str(seed)
                        for seed in seeds
                        if seed not in there and not any(name.startswith(f"{start}-s{seed}-") for name in unfinished)
                    ]
                    if absent:
                        words = " ".join(word for word in (data, model, neuron, baseline, precision, variant) if word)
                        lacking.append(f"{words}: seed {', '.join(absent)}")
    return lacking


def apart(records: Sequence[Record]) -> list[str]:
    """Of each record, finished or not, what not all share, as a command has it: ``baseline=tna optimizer.lr=1 seed=1``.

    All choices of a record that stands alone; the seed in any case. What a choice sets is compared among those of it.
    """
    chosen = [record["config"].get("choices") or {} for record in records]
    groups = [group for group in QUESTION if len({choices.get(group) for choices in chosen}) > 1 or len(records) == 1]
    nodes = [node for group in groups for node in SETS.get(group, (group,))]
    flat = [_with_names(record["config"]) for record in records]
    every = sorted(
        {key for config in flat for key in config if not _SEEDS.fullmatch(key) and not key.startswith("own.")}
    )
    flat = [with_neutral(config, every) for config in flat]

    def differing(configs: Sequence[Mapping[str, Any]], is_set: bool) -> set[str]:
        """The keys, set by a choice that differs or not, of which these configs have several values."""
        return {
            key
            for key in every
            if any(key == node or key.startswith(f"{node}.") for node in nodes) == is_set
            and len({repr(config.get(key)) for config in configs if key in config or not key.startswith(_ENTRIES)}) > 1
        }

    among_all = differing(flat, False)
    members: dict[str, list[int]] = defaultdict(list)
    for number, choices in enumerate(chosen):
        members[json.dumps([choices.get(group) for group in groups])].append(number)
    found = [""] * len(records)
    for numbers in members.values():
        keys = sorted(among_all | differing([flat[number] for number in numbers], True))
        for number in numbers:
            words = [f"{group}={chosen[number][group]}" for group in groups if chosen[number].get(group)]
            words += [f"{key}={_word(key, flat[number][key])}" for key in keys if key in flat[number]]
            found[number] = " ".join([*words, f"seed={flat[number].get('seed')}"])
    return found


def _accuracy(record: Record) -> float:
    return 100 * record["results"]["test/acc"]


def highest(alike: Sequence[Row]) -> list[Row]:
    """The rows of the highest mean among those of the same task; none where all of them are equal.

    Means are equal that a table shows so.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in alike:
        groups[row.task].append(row)
    found = []
    for members in groups.values():
        means = [f"{row.mean:.2f}" for row in members]
        if len(set(means)) > 1:
            most = max(means, key=float)
            found += [row for row, mean in zip(members, means, strict=True) if mean == most]
    return found


def data_names(records: Sequence[Record]) -> list[str]:
    """The choice of data of each record, and in brackets what tells it from others of that choice.

    ``image_folder (flowers)`` where there are several data of the user's own, by the name of the folder or file;
    ``image_folder (flowers 1a2b3c4d)`` where two of that name hold other things, with the beginning of their digests.
    """
    choices, own = [record["choices"].get("data") or "custom" for record in records], [*map(_own_data, records)]
    digests: dict[str, set[str]] = defaultdict(set)  # of a choice, and of a place of it
    for choice, (place, digest) in zip(choices, own, strict=True):
        digests[choice].add(digest)
        digests[f"{choice} {place}"].add(digest)
    names = []
    for choice, (place, digest) in zip(choices, own, strict=True):
        words = [place] if len(digests[choice]) > 1 else []
        words += [digest] if len(digests[f"{choice} {place}"]) > 1 else []
        words = [word for word in words if word]
        names.append(choice + (f" ({' '.join(words)})" if words else ""))
    return names


def _own_data(record: Record) -> tuple[str, str]:
    """Names of the folders and files of the user's own that a record's data are of, and the begin of their digests."""
    settings = {
        key: str(value) for key, value in identity_config(record["config"]).items() if key.startswith(_OWN_DATA)
    }
    places = [str(record["config"]["data"].get(key.removeprefix(_OWN_DATA))) for key in settings]
    names = [place.rstrip("/").rpartition("/")[2] for place in places]
    return " ".join(names), " ".join(digest[:_DIGITS] for digest in settings.values())


def _choices(record: Record, data: str) -> tuple[str, str, str, str, str]:
    choices = record["choices"]
    data += " (simulated)" if record["data"].get("simulated") else ""
    data += f" ({part})" if (part := part_of_test(record)) else ""
    model, neuron, baseline, quant = (
        choices.get(group) or "custom" for group in ("model", "neuron", "baseline", "quant")
    )
    return data, model, neuron, baseline, "full" if quant == "none" else quant


def _better_distillations(records: Sequence[Record]) -> dict[str, str]:
    """For each setting the distillation with the higher mean validation accuracy: the test set chooses nothing."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if (baseline := record["choices"].get("baseline")) in DISTILLATIONS:
            accuracy = record["results"].get("val/acc")
            found[_partner_key(record, any_seed=True)][baseline].append(math.nan if accuracy is None else accuracy)
    better = {}
    for setting, accuracies in found.items():
        means = {name: math.fsum(accuracies[name]) / len(accuracies[name]) for name in sorted(accuracies)}
        if len(means) == 1 or not any(map(math.isnan, means.values())):
            better[setting] = max(means, key=means.__getitem__)
    return better


def _partner_key(record: Record, *, any_seed: bool = False) -> str:
    """The same for runs that differ in nothing but what a baseline sets; the seed is part of it unless it may be any.

    A baseline sets the objective, the companions and (plain_twice) how many times its `epochs` the trainer runs.
    """
    return _settings_but(record, [*SETS["baseline"], *(("seed", "data.seed") if any_seed else ())])


def _settings_but(record: Record, gone: Sequence[str]) -> str:
    """All settings but these and what is below them, as version 0.1.0 had them, with the user's code that they name.

    Code that only one of two choices brings is part of that difference.
    """

    def is_gone(key: str) -> bool:
        return any(key == each or key.startswith(f"{each}.") for each in gone)

    settings = {key: value for key, value in identity_config(record["config"]).items() if not is_gone(key)}
    named_code = {str(value).rpartition(".")[0] for key, value in settings.items() if key.endswith("_target_")}
    kept = {
        key: value
        for key, value in settings.items()
        if not key.startswith(_CODE) or key.removeprefix(_CODE) in named_code
    }
    return json.dumps(as_before(kept | {"companions": kept.get("companions", {})}, {}), sort_keys=True)


def _differences_to(records: Sequence[Record], against: str) -> dict[str, float]:
    """By identity: the accuracy of a run minus that of its only partner with these choices and settings."""
    wanted = _wanted(records, against)
    partners: dict[str, list[float]] = defaultdict(list)
    others = []
    for record in records:
        has_them = all(_value(record, key) == value for key, value in wanted.items())
        key = _settings_but(record, [gone for key in wanted for gone in SETS.get(key, (key,))])
        if has_them:
            partners[key].append(_accuracy(record))
        else:
            others.append((record, key))
    found = {
        record["identity"]: _accuracy(record) - partners[key][0] for record, key in others if len(partners[key]) == 1
    }
    if not found:
        many = (
            "several runs are partners of one" if any(len(each) > 1 for each in partners.values()) else "none is there"
        )
        raise Unmet(
            f"against={against!r}: needs pairs of one seed that differ in nothing else, and {many}; "
            "name further settings, commas between them"
        )
    return found


def _wanted(records: Sequence[Record], against: str) -> dict[str, Any]:
    """What ``against`` names, each of which some record has."""
    wanted: dict[str, Any] = {}
    for word in against.split(","):
        key, equals, text = word.strip().partition("=")
        key = "quant" if key == "precision" else key
        found = {repr(value): value for record in records if (value := _value(record, key)) is not None}
        values = {text: found[text] for text in sorted(found)}
        meant = [value for value in values.values() if equals and str(value) == ("none" if text == "full" else text)]
        if not meant or key in ("data", "seed"):
            known = ", ".join(f"{key}={value}" for value in values.values()) if key not in ("data", "seed") else ""
            allowed = (
                known or f"CHOICE=VALUE with one of {', '.join(SETS)}, or a setting such as objective.match_weight=0.05"
            )
            raise Unmet(f"against={word.strip()!r}: must be {allowed}")
        wanted[key] = meant[0]
    return wanted


def _value(record: Record, key: str) -> Any:
    """A choice, or the setting of that dotted name; None where the record has neither."""
    return record["choices"].get(key) if key in SETS else identity_config(record["config"]).get(key)


def _variants(alike: Sequence[Record]) -> list[str]:
    """For runs with equal choices: the settings, other than seeds, in which some of them differ, as words.

    They are compared as version 0.1.0 had them, since a setting that was added or moved makes no other run, and are
    named as they are today.
    """
    kinds = [_kind(record) for record in alike]
    named = {id(record): name for record, name in zip(alike, _augments(alike), strict=True)}
    newest: dict[str, Record] = {}  # of each kind: the one whose version had the most settings
    for kind, record in zip(kinds, alike, strict=True):
        if kind not in newest or len(identity_config(newest[kind]["config"])) < len(identity_config(record["config"])):
            newest[kind] = record
    words = _words(list(newest.values()), [named[id(record)] for record in newest.values()])
    of_kind = dict(zip(newest, words, strict=True))
    return [of_kind[kind] for kind in kinds]


def _kind(record: Record) -> str:
    """The same for runs that differ in nothing but seeds, whatever version made them."""
    settings = as_before(identity_config(record["config"]), {})
    kept = {key: value for key, value in settings.items() if not _SEEDS.fullmatch(key)}
    companions = {group: choice for group, choice in record["choices"].items() if "@companion" in group}
    return json.dumps([kept, companions], sort_keys=True)


def _augments(alike: Sequence[Record]) -> list[str]:
    """The names of the augmentations; where the version had no such choice, that of the same operations, or theirs."""
    operations = [record["config"].get("augment") or {} for record in alike]
    keys = [json.dumps([list(each), each], sort_keys=True) for each in operations]
    chosen = [record["choices"].get("augment") for record in alike]
    names = {key: name for key, name in zip(keys, chosen, strict=True) if name}
    return [
        name or names.get(key) or ",".join(each or ["none"])
        for name, key, each in zip(chosen, keys, operations, strict=True)
    ]


def _words(alike: Sequence[Record], augments: Sequence[str]) -> list[str]:
    """The settings in which runs of different kinds differ, as words."""
    companions = [
        {group: choice for group, choice in record["choices"].items() if "@companion" in group} for record in alike
    ]
    chosen = sorted({group for choices in companions for group in choices})
    flat = [_with_names(record["config"]) for record in alike]
    every = {key for config in flat for key in config}
    flat = [with_neutral(config, every) for config in flat]

    nodes = {key.removesuffix(_TARGET) for key in every if key.endswith(_TARGET)}

    def built(key: str, config: Mapping[str, Any]) -> str:
        """What the node of this setting builds: settings of another optimizer are no others of this one."""
        node = max((node for node in nodes if key.startswith(f"{node}.")), key=len, default="")
        return "" if key.endswith(_TARGET) else str(config.get(node + _TARGET))

    def differs(key: str) -> bool:
        values = defaultdict(set)
        for augment, config in zip(augments, flat, strict=True):  # an augmentation's name stands for its settings
            if key in config or not key.startswith(_ENTRIES):
                about = (augment if key.startswith("augment") else None, built(key, config))
                values[about].add(repr(config.get(key)))
        return any(len(seen) > 1 for seen in values.values())

    # as many times the epochs in all of them, as their baseline has it: no setting beside the epochs
    times = {(config.get("trainer.max_epochs") or 0) / (config.get("epochs") or math.inf) for config in flat}
    follows = {"trainer.max_epochs"} if len(times) == 1 and times != {0} else set()
    keys = sorted(
        key
        for key in every - follows
        if not _SEEDS.fullmatch(key)
        and not key.startswith(tuple(group.partition("@")[2] for group in chosen) or "\0")
        and differs(key)
    )
    short = [key.removesuffix(_TARGET).rpartition(".")[2] for key in keys]
    names = [
        name if short.count(name) == 1 else key.removesuffix(_TARGET) for name, key in zip(short, keys, strict=True)
    ]
    variants = []
    for choices, augment, config in zip(companions, augments, flat, strict=True):
        words = [f"augment={augment}"] if len(set(augments)) > 1 else []
        words += [f"{group.partition('@')[2]}={choices[group]}" for group in chosen if group in choices]
        for name, key in zip(names, keys, strict=True):
            if key in config:
                word = _word(key, config[key])
                words.append(f"{name}={word.rpartition('.')[2] if key.endswith(_TARGET) else word}")
        variants.append(" ".join(words))
    return variants


def _with_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config, where ``callbacks`` names them: one that only some have differs by that, not by its settings."""
    return identity_config(config) | {"callbacks": ",".join(config.get("callbacks") or ["none"])}


def _word(key: str, value: Any) -> str:
    if key.startswith(_CODE):
        return str(value)[:_DIGITS]
    return (
        str(value).rpartition("/")[2]
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _rank(order: Sequence[str]) -> Any:
    return lambda name: (order.index(name) if name in order else len(order), name)


def _order(row: Row) -> tuple[Any, ...]:
    baseline, precision = _rank(BASELINES)(row.baseline), _rank(PRECISIONS)(row.precision)
    return row.data, row.model, row.neuron, precision, baseline, _by_numbers(row.variant)


def _by_numbers(text: str) -> list[tuple[bool, float, str]]:
    """A key that puts ``train_subset=600`` before ``train_subset=2000``."""
    parts = _NUMBER.split(text)  # every second one a number
    return [(place % 2 == 1, float(part) if place % 2 else 0.0, part) for place, part in enumerate(parts)]
