"""What ``--help`` prints: every group with its choices, and examples. Imports nothing heavy."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from tna_lightning.running.home import GROUPS, default_choices, options

EXAMPLES = """\
python -m tna_lightning
    the demo: a twin on scikit-learn's digits, every weight of the base ternary
python -m tna_lightning model=resnet19 data=cifar100 quant=ternary
    the paper's setting; data.root=DIR says where the images are or shall be
python -m tna_lightning data=cifar10 baseline=kd model@companion.model=resnet19 neuron@companion.neuron=relu
    distillation from a larger ANN, which is trained first and cached
python -m tna_lightning -m baseline=plain,kd,mutual,tna quant=none,ternary seed=0,1,2
    a sweep: one folder a run; the same command again does only what is missing
python -m tna_lightning callbacks=[ema,early_stopping] callbacks.ema.decay=0.99
    callbacks, several at once; the average of the weights is what is validated, tested and kept
python -m tna_lightning data=cifar10 objective.match_weight=0.05 epochs=100 logger=wandb
    other settings, with curves on Weights & Biases"""

GOES_ON = " \\"  # a command in the next line
LEAST_ROOM = 30  # letters for a text, however narrow the terminal


def help_text(own: Path | None = None) -> str:
    """The whole text; with the choices in the user's own folder, if there is one."""
    width = shutil.get_terminal_size(fallback=(160, 24)).columns  # without a terminal a line each, for grep
    choices = {group: options(group, own) for group in GROUPS}
    column = max(len(choice) for each in choices.values() for choice in each)
    lines = [
        "Train spiking networks with Twin Network Augmentation, keep a ternary SNN.",
        "",
        "usage: python -m tna_lightning [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]",
        "",
        "Groups and their choices (* is the default):",
    ]
    defaults = default_choices()
    for group in GROUPS:
        lines.append(f"\n  {group}")
        for choice, description in choices[group].items():
            mark = "*" if defaults.get(group) == choice else " "
            lines += _wrapped(f"   {mark} {choice:<{column}} ", description, width)
    lines += ["", "Examples:", ""]
    for line in EXAMPLES.splitlines():
        command = line.startswith("python")
        indent = "  " if command else "      "
        parts = _wrapped(indent, line.strip(), width - (len(GOES_ON) if command else 0), indent + "    ")
        lines += [*(part + (GOES_ON if command else "") for part in parts[:-1]), parts[-1]]
    notes = [
        "",
        "A companion is built like the base unless model@companion.model or neuron@companion.neuron names another.",
        "--config-dir DIR adds choices of your own: DIR/model/NAME.yaml and so on; here they are listed with it.",
        "--cfg job prints every setting of the command as it stands. HYDRA_FULL_ERROR=1 shows tracebacks.",
    ]
    lines += [part for note in notes for part in _wrapped("", note, width)]
    return "\n".join(lines)


def _wrapped(first: str, text: str, width: int, others: str | None = None) -> list[str]:
    """The text in lines as wide as the terminal; words, which may be typed, are not broken."""
    room = max(width, len(first) + LEAST_ROOM)
    others = " " * len(first) if others is None else others
    lines = textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return lines or [first.rstrip()]
