"""The tables of all settings, for the site: names as on a command line, read from `conf/` and from signatures."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from tna_lightning.models.settings import takers
from tna_lightning.models.surrogates import SURROGATES
from tna_lightning.running.home import home, options
from tna_lightning.running.signatures import SOURCES, locate, meanings_of

GROUPS = {  # what a heading adds to a group's name, which a search looks at first, and a line below it
    "model": (
        "backbone, width, time steps",
        "The backbone. `model@companion.model=...` gives the companion another one.",
    ),
    "neuron": (
        "decay, threshold, surrogate gradient",
        "What stands where an ANN has its activation; `neuron@companion.neuron=...` for the companion's. Surrogates, "
        "their names and widths, stand [below](#surrogate-gradients-names-and-width).",
    ),
    "data": (
        "data set, batch size, subsets, split",
        "The data set; it brings its own epochs, optimizer and augmentation. Your own [pictures](../data.md) and "
        "[recordings](../events.md) need no code.",
    ),
    "augment": (
        "augmentation",
        "Operations on training batches, by name, in their order; `~augment.flip` takes one out.",
    ),
    "baseline": (
        "loss, match weight, companion",
        "What is trained: the objective and its companions. A match weight that changes over time is "
        "`objective.match_start_epoch`, or an objective of a dozen lines.",
    ),
    "quant": ("precision of the weights", "The precision of the base's weights."),
    "optimizer": (
        "learning rate, weight decay, warm-up",
        "The optimizer and its schedule.",
    ),
    "callbacks": ("averages, early stopping, monitors", "Callbacks beside the program's own."),
    "trainer": ("devices, precision, clipping, limits", "Lightning's Trainer."),
    "logger": ("W&B, TensorBoard", "Where the curves go, beside `metrics.csv`."),
    "debug": ("a quick try", "A try of all that a command does."),
}
OWN = {  # where docs/extending.md has one of each
    "model": "a-backbone",
    "neuron": "a-neuron",
    "data": "a-data-set",
    "augment": "an-augmentation",
    "baseline": "an-objective-a-loss-or-a-term-of-it",
    "quant": "a-quantiser",
    "callbacks": "a-callback",
}
HEAD = "| setting and its default | meaning | of |\n|---|---|---|"


@dataclass(frozen=True)
class Setting:
    """What one name on a command line is.

    Attributes:
        default: as YAML writes it; None where a choice has yet to give it.
        allowed: its type, where a signature says it.
        meaning: one line.
    """

    default: str | None
    allowed: str = ""
    meaning: str = ""


def settings_page() -> str:
    """Every choice, and every setting: name, default, what is allowed, meaning, and the choices that have it."""
    top = top_settings()
    brought = {group: {choice: settings_of(group, choice) for choice in options(group)} for group in GROUPS}
    meanings = {name: setting.meaning for name, setting in top.items()}
    for settings in (settings for choices in brought.values() for settings in choices.values()):
        for name, setting in settings.items():
            meanings[name] = meanings.get(name) or setting.meaning
    parts = ["## At the top: seed, epochs, compile, folders", "\n".join(_top(top))]
    for group, choices in brought.items():
        words, meaning = GROUPS[group]
        own = f" [One of your own](../extending.md#{OWN[group]}) is one file and one YAML." if group in OWN else ""
        parts += [f"## `{group}=`: {words}", meaning + own, "| choice | |\n|---|---|\n" + "\n".join(_choices(group))]
        parts.append(f"{HEAD}\n" + "\n".join(_rows(choices, meanings)))
        if group == "neuron":
            parts += ["### Surrogate gradients: names and width", _surrogates()]
    return _told_apart("\n\n".join(parts) + "\n")


def top_settings() -> dict[str, Setting]:
    """The settings that belong to no choice, by their names on a command line."""
    return _given(_read(home() / "conf" / "config.yaml", ""))


def settings_of(group: str, choice: str) -> dict[str, Setting]:
    """The settings that a choice brings, likewise."""
    return _given(_read(home() / "conf" / group / f"{choice}.yaml", group))


def _given(found: dict[str, Setting]) -> dict[str, Setting]:
    return {name: setting for name, setting in found.items() if setting.default is not None}


def _read(path: Path, package: str) -> dict[str, Setting]:
    """What a YAML says and inherits; a later value keeps the meaning of an earlier one."""
    text = path.read_text()
    package = "" if "# @package _global_" in text else package
    found: dict[str, Setting] = {}
    for entry in (yaml.safe_load(text) or {}).get("defaults", ["_self_"]):
        name, _, place = entry.partition("@") if isinstance(entry, str) else ("", "", "")
        if name == "_self_":
            if (node := yaml.compose(text)) is not None:
                for key, setting in _entries(node, text.splitlines(), package):
                    before = found.get(key, setting)
                    meaning = setting.meaning or before.meaning
                    allowed = before.allowed or _types(node, key.removeprefix(package).strip("."))
                    found[key] = replace(setting, allowed=allowed, meaning=meaning)
        elif re.match("/?(signatures|nodes)/", name):
            below = package if place == "_here_" else f"{package}.{place}".strip(".")
            found |= _read_signature(home() / "conf" / f"{name.strip('/')}.yaml", below)
        elif name:
            found |= _read(path.with_name(f"{name}.yaml"), package)
    return found


def _read_signature(path: Path, package: str) -> dict[str, Setting]:
    """A file of `conf/signatures` with its types, and the arguments that have no default."""
    found = _read(path, package)
    source = SOURCES.get(path.stem)
    for _, function in takers(locate(source.path)) if source is not None else ():
        for name, parameter in inspect.signature(function).parameters.items():
            key = f"{package}.{name}"
            setting = found.setdefault(key, Setting(None, meaning=meanings_of(source).get(name, "")))
            if not setting.allowed and parameter.annotation is not parameter.empty:
                found[key] = replace(setting, allowed=" or ".join(dict.fromkeys(_allowed(parameter.annotation))))
    return found


def _types(node: yaml.Node, key: str) -> str:
    """The types that the signature of somebody else's class gives a setting below its ``_target_``."""
    entries = {name.value: value for name, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    name, _, rest = key.partition(".")
    if rest:
        return _types(entries[name], rest)
    path = entries["_target_"].value if "_target_" in entries else "tna_lightning."
    parameter = None if path.startswith("tna_lightning.") else inspect.signature(locate(path)).parameters.get(name)
    if parameter is None or parameter.annotation is parameter.empty:
        return ""
    allowed = " or ".join(dict.fromkeys(word for word in _allowed(parameter.annotation) if word != "Tensor"))
    return allowed.replace(" | Tensor", "")  # a number is what YAML can say


def _entries(node: yaml.Node, lines: list[str], prefix: str) -> Iterator[tuple[str, Setting]]:
    """The leaves of a mapping, each with the comment beside it."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}.{key.value}".strip(".")
        if key.value.startswith("_") or key.value in ("defaults", "hydra"):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _entries(value, lines, name)
            continue
        line, end = lines[value.start_mark.line], lines[value.end_mark.line][value.end_mark.column :]
        default = line[value.start_mark.column :].removesuffix(end).strip()
        yield name, Setting(default, meaning=end.partition("# ")[2])


def _allowed(annotation: object) -> list[str]:
    """The types or values that an annotation names, one by one."""
    if isinstance(annotation, str):
        values = re.sub(r"Literal\[([^\]]+)\]", lambda match: match[1].replace(",", " |").replace("'", ""), annotation)
        return [value.replace("None", "null") for value in values.split(" | ")]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [word for each in typing.get_args(annotation) for word in _allowed(each)]
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if annotation is types.NoneType:
        return ["null"]
    return [re.sub(r"\w+\.", "", inspect.formatannotation(annotation))]


def _rows(choices: dict[str, dict[str, Setting]], meanings: dict[str, str]) -> list[str]:
    """A row for each setting and default; the last column names the choices, where not all that have any have it."""
    having = [choice for choice, settings in choices.items() if settings]
    names = list(dict.fromkeys(name for settings in choices.values() for name in settings))
    rows = []
    for name in names:
        variants: dict[Setting, list[str]] = {}
        for choice in having:
            if (setting := choices[choice].get(name)) is not None:
                variants.setdefault(replace(setting, meaning=setting.meaning or meanings[name]), []).append(choice)
        for setting, of in variants.items():
            others = [choice for choice in having if choice not in of]
            shorter = ("all but ", others) if len(others) < len(of) else ("", of)
            rows.append(
                _row(name, setting, shorter[0] + ", ".join(f"`{one}`" for one in shorter[1]) if others else "all")
            )
    return rows


def _top(settings: dict[str, Setting]) -> list[str]:
    return ["| setting and its default | meaning |", "|---|---|", *(_row(*item) for item in settings.items())]


def _row(name: str, setting: Setting, *of: str) -> str:
    """Name and default as one types them, which may be broken at their dots; meaning and what is allowed."""
    typed = f"{name}={setting.default}".replace("&", "&amp;").replace("<", "&lt;")
    typed = re.sub(r"(?<==)|(?<=\.)(?=[a-z])", "<wbr>", typed)
    allowed = f" (`{setting.allowed}`)" if setting.allowed else ""
    linked = f'<a id="{name}" href="#{name}"><code>{typed}</code></a>'
    return f"| {' | '.join((linked, _cell(setting.meaning) + allowed, *of))} |"


def _told_apart(page: str) -> str:
    """Each row has an anchor of its own: the name, and a number where it stands in several."""
    seen: Counter[str] = Counter()

    def numbered(match: re.Match[str]) -> str:
        seen[match[1]] += 1
        name = match[1] if seen[match[1]] == 1 else f"{match[1]}-{seen[match[1]]}"
        return f'<a id="{name}" href="#{name}">'

    return re.sub(r'<a id="([^"]+)" href="[^"]+">', numbered, page)


def _choices(group: str) -> list[str]:
    """The choices with what they are, and which other choices they bring."""
    rows = []
    for choice, meaning in options(group).items():
        brought = _brought(home() / "conf" / group / f"{choice}.yaml")
        brings = ", ".join(f"`{other}={value}`" for other, value in brought.items())
        rows.append(f"| `{choice}` | {_cell(meaning)}{f'; brings {brings}' if brings else ''} |")
    return rows


def _brought(path: Path) -> dict[str, str]:
    """Which choices of other groups a choice overrides, itself or by what it inherits."""
    brought: dict[str, str] = {}
    for entry in (yaml.safe_load(path.read_text()) or {}).get("defaults", ()):
        if isinstance(entry, dict):
            overrides = {key.removeprefix("override /"): value for key, value in entry.items() if "override" in key}
            brought |= {key: value for key, value in overrides.items() if "@" not in key}
        elif (inherited := path.parent / f"{entry}.yaml").is_file():
            brought |= _brought(inherited)
    return brought


def _surrogates() -> str:
    """The names that `neuron.surrogate` knows, with the parameters and formulas of each."""
    names: dict[type, list[str]] = {}
    for name, surrogate in SURROGATES.items():
        names.setdefault(surrogate, []).append("its class's" if name == surrogate.__name__ else f"`{name}`")
    rows = []
    for surrogate, known in names.items():
        parameters = ", ".join(f"{field.name}={field.default}" for field in fields(surrogate))
        formula = (inspect.getdoc(surrogate) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| {', '.join(known)} | `{surrogate.__name__}({parameters})` | {_cell(formula)} |")
    return (
        "The derivative that stands in for that of the step, u = membrane - threshold. `neuron.surrogate=NAME` takes "
        "one with the parameters below. Others, such as its width or slope, are given with the class:\n"
        "`'neuron.surrogate={_target_: tna_lightning.models.surrogates.ATan, alpha: 4.0}'`.\n\n"
        "| `NAME` | class, parameters | derivative |\n|---|---|---|\n" + "\n".join(rows)
    )


def _cell(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", text).replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\bdocs/(\w+)\.md", lambda match: f"see [{match[1].capitalize()}](../{match[1]}.md)", text)
