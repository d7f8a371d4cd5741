"""Records become a page: the table of limits, then each comparison with its times, ratios, memory and checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import machine, training_step
from benchmarks.speed.comparison import Ratio
from benchmarks.speed.registry import COMPARISONS
from benchmarks.speed.timing import Spread, fastest, ratio, spread

NOT_MEASURED = "not measured"
MALLOC = {
    "keep": "glibc is told to keep freed memory ("
    + ", ".join(f"{name}={value}" for name, value in machine.KEEP_PAGES.items())
    + "), for all contestants alike, save commands: otherwise each large tensor costs the faults of fresh pages, which "
    "on some virtual machines take longer than the work on them.",
    "system": "glibc's own memory settings (--system-malloc).",
}
PEAK = {
    "cpu": "the rise of the resident set, with memory handed back to the system as soon as it is free",
    "cuda": "torch.cuda.max_memory_allocated",
}


@dataclass(frozen=True)
class Limit:
    """A row of the table of limits: a ratio of a comparison, and what it shall be on each kind of device."""

    text: str
    comparison: str
    label: str
    sense: str
    cpu: float | None
    cuda: float | None
    of: str = "ratio"
    """"ratio" of times, "memory" of peaks, or "seconds" of a contestant."""


HELP_COMMAND = "python -m tna_lightning --help"
LIMITS = (
    Limit("neuron layer over ReLU layer", "neuron_layer", "ours over ReLU", "<=", 1.2, 1.3),
    Limit("neuron layer over ReLU layer, eager", "neuron_layer", "ours, eager over ReLU", "<=", 4, None),
    Limit("snntorch over ours, neuron layer, eager", "neuron_layer", "snntorch over ours, eager", ">=", 3, None),
    Limit("spikingjelly over ours, the same", "neuron_layer", "spikingjelly over ours, eager", ">=", 3, None),
    Limit(
        "training step over the ReLU network, both with the network compiled",
        "training_step", "ours over ReLU, both with the network compiled", "<=", 1.12, 1.12,
    ),
    Limit(
        "training step, neurons compiled, over the ReLU network uncompiled",
        "training_step", "ours over ReLU, neurons compiled", "<=", 1.12, 1.12,
    ),
    Limit(
        "training step over the ReLU network, fastest over fastest",
        "training_step", "ours over ReLU, fastest over fastest", "<=", None, None,
    ),
    Limit(
        "spikingjelly over ours, training step, neurons compiled",
        "training_step", "spikingjelly over ours", ">=", 1.35, 1.1,
    ),
    Limit(
        "the same, our network compiled",
        "training_step", "spikingjelly over ours, ours with the network compiled", ">=", None, None,
    ),
    Limit(
        "the same, fastest over fastest, torch.compile around spikingjelly's too",
        "training_step", "spikingjelly over ours, fastest over fastest", ">=", None, None,
    ),
    Limit("snntorch over ours, training step", "training_step", "snntorch over ours", ">=", 1.3, 2.0),
    Limit("TNA step over plain step", "objectives", "TNA over plain", "<=", 2.0, 2.0),
    Limit("ternary step over full precision", "objectives", "ternary over full precision", "<=", 1.03, 1.05),
    Limit("peak memory over spikingjelly's", "training_step", "spikingjelly over ours", "<=", 1.0, 0.9, of="memory"),
    Limit(
        "a run over a loop by hand, ResNet-8, batch 32",
        "stack", "a run over by hand, ResNet-8, batch 32", "<=", 1.06, 1.06,
    ),
    Limit("the same, batch 128", "stack", "a run over by hand, ResNet-8, batch 128", "<=", 1.03, 1.03),
    Limit("loader over training, images a second", "loading", "loader over training, images a second", ">=", 5, 5),
    Limit("from command to first step, seconds", "first_step", "compile=none", "<=", 5, None, of="seconds"),
    Limit("the same, compiled neurons, warm", "first_step", "compile=neurons, warm", "<=", 7, None, of="seconds"),
    Limit("`--help`, seconds, warm", "help", HELP_COMMAND, "<=", 3, None, of="seconds"),
)  # fmt: skip


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The records in a device's folder, by comparison."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def seconds_per_image(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds of each contestant, of an image where the record counts images."""
    return {
        name: [seconds / entry.get("images", 1) for seconds in entry["seconds"]]
        for name, entry in record["contestants"].items()
    }


def value_of(asked: Ratio, record: Mapping[str, Any]) -> tuple[Spread, str, str] | None:
    """The ratio, and who was the fastest above and below; None where one side was not measured."""
    seconds = seconds_per_image(record)
    above, below = fastest(seconds, asked.numerator), fastest(seconds, asked.denominator)
    return None if above is None or below is None else (ratio(seconds[above], seconds[below]), above, below)


def figure(limit: Limit, records: Mapping[str, Mapping[str, Any]]) -> tuple[float, str] | None:
    """A limit's figure and how to print it; None where it was not measured."""
    record = records.get(limit.comparison)
    if record is None:
        return None
    if limit.of == "seconds":
        if limit.label not in record["contestants"]:
            return None
        seconds = spread(record["contestants"][limit.label]["seconds"])
        return seconds.median, f"{seconds.median:.2f} ({seconds.lower:.2f} to {seconds.upper:.2f})"
    asked = next(ratio for ratio in COMPARISONS[limit.comparison].ratios if ratio.label == limit.label)
    found = value_of(asked, record)
    if found is None:
        return None
    value, above, below = found
    if limit.of == "memory":  # the peer stands above in the ratio of times, and below in that of memory
        ours, theirs = (record["contestants"][name].get("peak_bytes") for name in (below, above))
        return None if not ours or not theirs else (ours / theirs, f"{ours / theirs:.2f}")
    return value.median, _spread(value)


def limits_table(kind: str, records: Mapping[str, Any], other_cuda: Mapping[str, Any]) -> list[str]:
    """Figure, limit and whether it is reached, for this device and, on a CPU's page, for CUDA beside it."""
    columns = [(kind, records)] if kind == "cuda" else [("cpu", records), ("cuda", other_cuda)]
    header, rule = "| |", "|---|"
    for name, _ in columns:
        header += f" {name.upper()} | limit | reached |"
        rule += "---|---|---|"
    lines = [header, rule]
    for limit in LIMITS:
        line = f"| {limit.text} |"
        for name, measured in columns:
            bound = getattr(limit, name)
            found = figure(limit, measured)
            asked = "" if bound is None else f"{'at most' if limit.sense == '<=' else 'at least'} {bound:g}"
            reached = ""
            if found is not None and bound is not None:
                reached = "yes" if (found[0] <= bound if limit.sense == "<=" else found[0] >= bound) else "**no**"
            line += f" {NOT_MEASURED if found is None else found[1]} | {asked} | {reached} |"
        lines.append(line)
    return lines


def section(name: str, record: Mapping[str, Any]) -> list[str]:
    """One comparison."""
    comparison = COMPARISONS[name]
    lines = [f"## {comparison.title}", "", record["sizes"], ""]
    entries = record["contestants"]
    with_images = any("images" in entry for entry in entries.values())
    with_memory = any(entry.get("peak_bytes") is not None for entry in entries.values())
    columns = [
        "time (quartiles)",
        *(["images a second"] if with_images else []),
        *(["peak memory"] if with_memory else []),
    ]
    lines += [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for contestant, entry in entries.items():
        cells = [time(spread(entry["seconds"]))]
        if with_images:
            median = spread(entry["seconds"]).median
            cells.append(f"{entry['images'] / median:,.0f}" if "images" in entry else "")
        if with_memory:
            peak = entry.get("peak_bytes")
            cells.append(NOT_MEASURED if peak is None else f"{peak / 2**20:,.1f} MiB")
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    found = [(asked, value_of(asked, record)) for asked in comparison.ratios]
    if any(value for _, value in found):
        lines += ["", "| ratio | (quartiles of the rounds) | |", "|---|---|---|"]
        for asked, value in found:
            if value is not None:
                who = f"{value[1]} / {value[2]}" if len(asked.numerator) > 1 or len(asked.denominator) > 1 else ""
                lines.append(f"| {asked.label} | {_spread(value[0])} | {who} |")
    notes = [f"- {check}" for check in record["checks"]]
    notes += [f"- left out: {contestant} ({reason})" for contestant, reason in record["left_out"].items()]
    if notes:
        lines += ["", *notes]
    rounds, load = record["repetitions"], record["load"]
    lines += ["", f"{rounds} rounds, {record['machine']['date']}; load average {load:.2f} when the command began."]
    return [*lines, ""]


def render(folder: Path) -> str:
    """The page of the device whose records are in a folder; notes.md in it, written by hand, is taken in."""
    records = read(folder)
    profile = records.pop("profile", None)
    measured = {name: records[name] for name in COMPARISONS if name in records}
    if not measured:
        raise ValueError(f"{folder}: holds no record of a comparison")
    described = next(iter(measured.values()))["machine"]
    kind = described["kind"]
    cuda = next((read(other) for other in sorted(folder.parent.glob("cuda-*/"))), {}) if kind == "cpu" else {}
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    where = f"{described['cores']} cores of {described['device']}" if kind == "cpu" else described["device"]
    commits = ", ".join(sorted({record["machine"]["commit"] for record in measured.values()}))
    commands = ", ".join(sorted({f"`{record['command']}`" for record in measured.values()}))
    mallocs = {record["malloc"] for name, record in measured.items() if not COMPARISONS[name].system_malloc}
    lines = [f"# Speed: {where}", ""]
    if any(record["toy"] for record in measured.values()):
        lines += ["**Toy sizes: these figures say nothing.**", ""]
    lines += [
        f"{described['date']}; {versions}; commit {commits}. `make bench` writes this page; here: {commands}.",
        "",
        "Each comparison is one process; contestants are warm and take turns in an order drawn anew every round. Times "
        "are medians with quartiles, and so are the ratios, which are taken within each round. "
        "Peak memory is of one repetition, beyond what stays (weights, optimizer, inputs, compiled code), in a process "
        f"of its own: {PEAK[kind]}.",
        "",
        *([" ".join(MALLOC[malloc] for malloc in sorted(mallocs)), ""] if kind == "cpu" and mallocs else []),
        "## Limits",
        "",
        *limits_table(kind, measured, cuda),
        "",
    ]
    step = measured.get("training_step")
    if step is not None:
        fastest_ours = fastest(seconds_per_image(step), training_step.OURS)
        lines += [f"The fastest of ours here: {fastest_ours}.", ""]
    notes = folder / "notes.md"
    if notes.exists():
        lines += [notes.read_text().strip(), ""]
    for name, record in measured.items():
        lines += section(name, record)
    if profile is not None:
        lines += [f"Where the time of a training step goes: [{folder.name}_profile.md]({folder.name}_profile.md).", ""]
    return "\n".join(lines).rstrip() + "\n"


def render_profile(record: Mapping[str, Any]) -> str:
    """The page of a profile."""
    described = record["machine"]
    lines = [
        "# Where the time of a training step goes",
        "",
        f"{described['device']}, {described['date']}, torch {described['versions']['torch']}, commit "
        f"{described['commit']}; {record['sizes']}. Each operation without what it calls, by torch.profiler, which "
        "itself takes time.",
        "",
    ]
    for name, profile in record["profiles"].items():
        lines += [f"## {name}: {profile['total_ms']:.1f} ms", ""]
        lines += ["| operation | calls a step | ms | share |", "|---|---|---|---|"]
        for row in profile["rows"]:
            lines.append(f"| `{row['operation']}` | {row['calls']:g} | {row['ms']:.1f} | {row['share']:.1%} |")
        rest = 1 - sum(row["share"] for row in profile["rows"])
        lines += [f"| all others | | {rest * profile['total_ms']:.1f} | {rest:.1%} |", ""]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path) -> list[Path]:
    """Write the pages of a device's folder beside it."""
    records = read(folder)
    pages = {}
    if set(records) & set(COMPARISONS):
        pages[folder.with_name(f"{folder.name}.md")] = render(folder)
    if "profile" in records:
        pages[folder.with_name(f"{folder.name}_profile.md")] = render_profile(records["profile"])
    for path, text in pages.items():
        path.write_text(text)
    return list(pages)


def time(seconds: Spread) -> str:
    """Median and quartiles, in the unit that suits the median."""
    factor, unit = (1, "s") if seconds.median >= 1 else (1000, "ms")
    median, lower, upper = (_three_digits(value * factor) for value in (seconds.median, seconds.lower, seconds.upper))
    return f"{median} {unit} ({lower} to {upper})"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(value: Spread) -> str:
    return f"{value.median:.2f} ({value.lower:.2f} to {value.upper:.2f})"


def names(chosen: Sequence[str]) -> list[str]:
    """The comparisons to run, in the order of the page; none chosen means all, and the profile."""
    known = [*COMPARISONS, "profile"]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: comparisons are {', '.join(known)}")
    return [name for name in known if not chosen or name in chosen]
