"""What a person sees in the terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tna_lightning.packages import LEAF_SPEC, quiet
from tna_lightning.running.own import changed_since, with_data_at
from tna_lightning.running.processes import INTERRUPTED, Terminated, was_interrupted
from tna_lightning.running.record import (
    C_FOLDER,
    Busy,
    limits_words,
    measured_words,
    not_counted_words,
    operations_words,
    part_of_test,
    precision_words,
    reading,
)

FULL_ERROR, SET_BY_US = "HYDRA_FULL_ERROR", "TNA_LIGHTNING_SET_FULL_ERROR"


def quiet_lightning() -> AbstractContextManager[None]:
    """Without Lightning's notes on devices and tips, and without warnings that are none of the user's concern."""
    return quiet(
        "lightning.pytorch",
        logging.WARNING,
        LEAF_SPEC,
        # an epoch that is not validated is not the best
        ".*could not find the monitored key in the returned metrics.*",
        # a short epoch is nothing to warn of: metrics are logged by epoch
        ".*is smaller than the logging interval.*",
        # a teacher stays in eval mode
        ".*in eval mode at the start of training",
        # Lightning's own averages of weights, for a test: what is tested are those of the checkpoint
        ".*loading a checkpoint outside the 'fit' stage.*",
        "The checkpoint was not created with WeightAveraging",
        # Lightning takes no sampler but its own for one that does not shuffle
        "You requested to overfit but enabled .* dataloader shuffling",
        # a run that goes on finds its own checkpoints
        "Checkpoint directory .* exists and is not empty",
    )


BUSY = 75  # EX_TEMPFAIL of BSD's sysexits.h: try again later


def leave(error: BaseException) -> NoReturn:
    """End the process over an error: one clear line, and status 2 for bad input, 1 for what went wrong on the way.

    Ctrl-C and SIGTERM are no errors of anybody's: they leave with 130 and 143, a run that is another's now with 75.

    An error that is our own keeps its traceback, as does any if the user has set ``HYDRA_FULL_ERROR=1``.
    """
    from tna_lightning.running.config import BAD_INPUT, explain

    if was_interrupted(error):
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if isinstance(error, Terminated):
        print("\nterminated; the same command goes on from here", file=sys.stderr)
        raise error
    line = explain(error)
    if line is None or (os.environ.get(FULL_ERROR) == "1" and SET_BY_US not in os.environ):
        raise error
    print(f"error: {line}", file=sys.stderr)
    sys.exit(BUSY if isinstance(error, Busy) else 2 if isinstance(error, BAD_INPUT) else 1)


@contextmanager
def errors_from_hydra() -> Iterator[None]:
    """Make Hydra hand errors on to us, instead of printing many lines of its own and leaving."""
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    before = os.environ.pop(FULL_ERROR, None)
    os.environ |= {FULL_ERROR: "1", SET_BY_US: "1"}  # processes that are started meanwhile must know as well
    try:
        yield
    finally:
        del os.environ[FULL_ERROR], os.environ[SET_BY_US]
        if before is not None:
            os.environ[FULL_ERROR] = before


def print_record(record: Mapping[str, Any], folder: Path | str) -> None:
    """The table at the end of a run, and its folder in a line of its own, to be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a name may hold brackets, which rich would take for markup

    with reading(folder):
        name = title(record)
    table = Table(title=Text(name), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    with reading(folder):
        for name, value in summary_rows(record):
            table.add_row(name, Text(value))
        unmeasured = "not measured yet: python -m tna_lightning.export RUN --format c"
        table.add_row("as C", Text(measured_words(Path(folder) / C_FOLDER) or unmeasured))
    Console(soft_wrap=True).print(table)
    print(f"folder: {folder}")


def print_measured(words: str, record: Mapping[str, Any]) -> None:
    """How fast the kept network is as C, beside what was counted of it."""
    counted = f"; {operations_words(record['cost'])}" if "cost" in record else ""
    print(f"measured: {words}{counted}")


def warn_of_changes(config: Mapping[str, Any], data_root: str | None = None, *, of_data: bool = True) -> None:
    """Say on stderr what of the user's own code and data has changed since a run was trained.

    Args:
        config: of the run.
        data_root: where its data are, if not where they were.
        of_data: whether it is to be asked about its data.
    """
    for name in changed_since(with_data_at(config, data_root) if of_data else config):
        if name.startswith("data.") and not of_data:
            continue
        print(f"warning: {name.removeprefix('code.')} has changed since this run was trained", file=sys.stderr)


def title(record: Mapping[str, Any]) -> str:
    """One line that names what was trained: choices and seed."""
    choices = record.get("choices", {})
    groups = ("data", "model", "neuron", "baseline", "quant", "debug")
    words = [f"{group}={choices[group]}" for group in groups if group in choices]
    simulated = " (simulated events)" if record.get("data", {}).get("simulated") else ""
    part = f" ({part})" if (part := part_of_test(record)) else ""
    return f"{' '.join(words)} seed={record['seed']}{simulated}{part}"


def summary_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of each line of the final table."""
    results, weights, cost = record["results"], record["weights"], record["cost"]
    yield "base, test accuracy", _accuracies(results, "")
    companions = [key[len("test/") : -len("_acc")] for key in results if re.fullmatch(r"test/\w+_acc", key)]
    for name in companions:
        yield f"{name}, test accuracy", _accuracies(results, f"{name}_")
    if "val/acc" in results:
        yield (
            "base, validation accuracy",
            f"{results['val/acc']:.2%} (epoch {results['kept_epoch'] + 1} of {record['epochs']} is kept)",
        )
    if stopped := record.get("stopped"):  # older records have no such entry
        yield "stopped early", f"after epoch {stopped['epoch'] + 1}: {stopped['message']}"
    if limits := limits_words(record["config"]):
        yield "not on all samples", limits
    yield "weights", f"{weights['weights']:,}, quantised: {precision_words(weights)}"
    for name in companions:
        if (companion := record.get(f"{name}_weights")) is not None:  # older records have none
            yield f"{name}'s weights", f"{companion['weights']:,}, {', '.join(companion['schemes'])}"
    smaller = weights["bytes_float32"] / weights["bytes"]
    than_float32 = f" ({smaller:.1f} times smaller than float32)" if smaller > 1 else ""
    yield "weights, as kept", f"{weights['bytes']:,} bytes{than_float32}"
    yield "file, with all else", f"{weights['bytes_file']:,} bytes"
    yield "zero weights", f"{weights['zero_share']:.1%}"
    if cost["firing_rate"] is not None:  # neurons that spike
        yield "mean firing rate", f"{cost['firing_rate']:.3f} spikes a neuron and step"
    yield "operations an image", f"{operations_words(cost)}, about {cost['energy_uj']:#.3g} uJ"
    if "energy_memory_uj" in cost:  # older records have none
        moved = ", ".join(
            f"{part} {cost[f'memory_{part}_uj']:#.3g}" for part in ("weights", "membranes", "activations")
        )
        yield "memory an image", f"about {cost['energy_memory_uj']:#.3g} uJ ({moved})"
    if cost.get("not_counted"):
        yield "not counted", not_counted_words(cost)
    yield "dense, all time steps", f"{cost['dense_macs']:,.0f} MAC, about {cost['energy_dense_uj']:#.3g} uJ"
    if "ann_macs" in cost:  # older records have none
        yield "ANN of the same shape", f"{cost['ann_macs']:,.0f} MAC, about {cost['energy_ann_uj']:#.3g} uJ"
    if (ann := cost.get("quantized_ann")) is not None:
        counts = f"{ann['acs']:,.0f} AC, {ann['macs']:,.0f} MAC"
        energies = f"about {ann['energy_uj']:#.3g} uJ, memory {ann['energy_memory_uj']:#.3g} uJ"
        yield f"ANN, {ann['activation_bits']}-bit activations", f"{counts}, {energies}"
    yield "training speed", f"{record['train_images_per_s']:,.0f} images/s on {record['device']}"
    epochs = "1 epoch" if record["epochs"] == 1 else f"{record['epochs']} epochs"
    yield "wall time", f"{record['wall_time_s']:.0f} s for {epochs}"


def _accuracies(results: Mapping[str, float], prefix: str) -> str:
    top1, top5 = results[f"test/{prefix}acc"], results.get(f"test/{prefix}acc_top5")
    return f"{top1:.2%}" + (f" (top-5 {top5:.2%})" if top5 is not None else "")
