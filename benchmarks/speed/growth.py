"""How the training step grows with time steps, batch and width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.training_step import Size, step

POINTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "growth_time_steps": ("time_steps", (1, 2, 4, 8, 16)),
    "growth_batch": ("batch", (4, 8, 16, 32)),
    "growth_width": ("width", (0.125, 0.25, 0.5)),
}
CHECKPOINTED = ", checkpointed"
NAMES = {"time_steps": "T=", "batch": "batch ", "width": "width "}


def size_for(settings: Settings) -> Size:
    """The point that all three curves share."""
    if settings.toy:
        return Size("resnet18", 0.0625, 2, 2)
    return Size("resnet18", 0.25, 8) if settings.device == "cpu" else Size("resnet19", 1.0, 64)


def points(comparison: str, settings: Settings) -> tuple[float, ...]:
    """The values of what grows."""
    values = POINTS[comparison][1]
    if comparison == "growth_batch" and settings.device == "cuda":
        values = (16, 32, 64, 128, 256)
    if comparison == "growth_width" and settings.device == "cuda":
        values = (0.25, 0.5, 1.0)
    return values[:2] if settings.toy else values


def contestants(comparison: str, settings: Settings) -> Mapping[str, Callable[[], Run]]:
    """The training step at each point, neurons compiled; with T, each with its stages checkpointed too."""
    field = POINTS[comparison][0]
    return {
        f"{NAMES[field]}{value:g}{CHECKPOINTED if checkpointed else ''}": lambda value=value, way=checkpointed: step(
            replace(size_for(settings), **{field: value}), settings, compiled="neurons", checkpointed=way
        )
        for checkpointed in ((False, True) if field == "time_steps" else (False,))
        for value in points(comparison, settings)
    }


def _comparison(name: str) -> Comparison:
    field, values = POINTS[name]
    first, last = (f"{NAMES[field]}{value:g}" for value in (values[0], values[-1]))
    return Comparison(
        title={"time_steps": "Growth with T", "batch": "Growth with the batch", "width": "Growth with the width"}[
            field
        ],
        sizes=lambda settings: f"A training step, neurons compiled; but for what varies: {size_for(settings)}.",
        contestants=lambda settings: contestants(name, settings),
        ratios=(
            Ratio(f"{last} over {first}", (last,), (first,)),
            *([Ratio(f"{last}{CHECKPOINTED}", (last + CHECKPOINTED,), (last,))] if field == "time_steps" else []),
        ),
    )


COMPARISONS = {name: _comparison(name) for name in POINTS}
