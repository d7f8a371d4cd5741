"""A look at data, ``python -m tna_lightning.show data=cifar10dvs``, or into a run's kept network, ``... show RUN``.

Both save one picture and print figures.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tna_lightning.data.batch import Batch
from tna_lightning.packages import require
from tna_lightning.running.doors import Parser, door

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tna_lightning.data.module import BatchedDataModule

ON, OFF = (0.835, 0.369, 0.0), (0.0, 0.447, 0.698)  # orange and blue that the colour-blind tell apart (Okabe and Ito)
MOST_ROWS = 20  # with more classes, one sample of each
MOST_COLUMNS = 10


def event_colors(frames: Tensor) -> np.ndarray:
    """Counts ``[..., 2, H, W]`` (OFF, ON) as colours ``[..., H, W, 3]``: white for none, orange for ON, blue for OFF.

    Full colour stands for the 99th percentile of all counts above zero, so that frames can be compared.
    """
    counts = frames.float()
    seen = counts[counts > 0]
    full = float(np.quantile(seen.numpy(), 0.99)) if len(seen) else 1.0
    off, on = (counts / full).clamp(0, 1).unbind(-3)
    absorbed = on[..., None] * (1 - torch.tensor(ON)) + off[..., None] * (1 - torch.tensor(OFF))
    return (1 - absorbed).clamp(0, 1).numpy()


def image_colors(images: Tensor) -> np.ndarray:
    """uint8 images ``[..., C, H, W]`` as colours ``[..., H, W, 3]``; one channel becomes grey."""
    return images.float().div(255).movedim(-3, -1).expand(*images.shape[:-3], *images.shape[-2:], 3).numpy()


def picture(data: BatchedDataModule, title: str) -> Figure:
    """Training samples by class, as they are before augmentation; needs ``setup``.

    A row each: several images, or the frames of one recording.

    With more than 20 classes, one image of each.
    """
    x = data.train_set.inputs
    by_class = _by_class(data)
    names = [data.class_names[label] for label in by_class]
    members = list(by_class.values())
    first = torch.stack([indices[0] for indices in members])
    if x.ndim == 5:
        steps = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], MOST_COLUMNS)).round().long()
        panels = event_colors(data.prepare(x[first])[:, steps])
        shown = "a recording of each class over time; orange ON, blue OFF"
        figure, axes = _grid(panels.shape[0], panels.shape[1], names)
        for axis, step in zip(axes[0], steps.tolist(), strict=True):
            axis.set_title(f"frame {step + 1}", fontsize=8)
    elif len(members) <= MOST_ROWS:
        columns = min(MOST_COLUMNS, *(len(indices) for indices in members))
        panels = image_colors(torch.stack([x[indices[:columns]] for indices in members]))
        shown = "training images by class"
        figure, axes = _grid(panels.shape[0], panels.shape[1], names)
    else:
        panels = image_colors(x[first])
        shown = "one training image of each class"
        side = int(np.ceil(len(members) ** 0.5))
        figure, axes = _grid(int(np.ceil(len(members) / side)), side)
        for axis, name in zip(axes.flat, names, strict=False):
            axis.set_title(name, fontsize=7)
    flat = panels.reshape(-1, *panels.shape[-3:])
    for axis, panel in zip(axes.flat, flat, strict=False):
        axis.imshow(panel, interpolation="nearest")
    for axis in axes.flat[len(flat) :]:
        axis.set_axis_off()
    separator = ": " if figure.get_figwidth() > 8 else "\n"
    figure.suptitle(f"{title}{separator}{shown}", fontsize=9)
    return figure


def _grid(rows: int, columns: int, row_names: Sequence[str] = ()) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    figure = Figure(figsize=(columns + 1.2, 1.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.8")
    for axis, name in zip(axes[:, 0], row_names, strict=False):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure, axes


def figures(data: BatchedDataModule) -> Iterator[tuple[str, str]]:
    """Names and values of what is worth knowing of a data set; needs ``setup``."""
    described = data.describe()
    x = data.train_set.inputs
    yield "samples", ", ".join(f"{described[f'{split}_samples']:,} {split}" for split in ("train", "val", "test"))
    counts = torch.bincount(data.train_set.targets[data.train_set.subset], minlength=data.num_classes)
    yield "training samples of a class", f"{counts.min():,} to {counts.max():,} in {data.num_classes} classes"
    yield "split hash", described["split_hash"][:16]
    yield "shape of a sample", " x ".join(map(str, x.shape[1:]))
    if x.ndim == 4:
        channels = x[data.train_set.subset].double().div(255).movedim(1, -1).flatten(0, 2)
        yield "mean of each channel", ", ".join(f"{value:.4f}" for value in channels.mean(0).tolist())
        yield "deviation of each channel", ", ".join(f"{value:.4f}" for value in channels.std(0).tolist())
        return
    stats = [stats for stats in data.cache.stats if not stats.error]  # type: ignore[attr-defined]
    events = np.array([recording.events for recording in stats])
    seconds = np.array([recording.duration_us for recording in stats]) / 1e6
    on = sum(recording.on_events for recording in stats) / max(1, events.sum())
    height, width = data.sensor  # type: ignore[attr-defined]
    rate = events.sum() / max(seconds.sum(), 1e-9) / height / width
    yield "events of a recording", f"mean {events.mean():,.0f}, from {events.min():,} to {events.max():,}; {on:.1%} ON"
    yield "duration of a recording", f"mean {seconds.mean():.3f} s, from {seconds.min():.3f} to {seconds.max():.3f} s"
    yield "firing rate of a pixel", f"{rate:.1f} events a second ({width} x {height} pixels)"
    subset = data.train_set.subset[:500]
    frames = x[subset]
    active = (frames > 0).float()
    yield "active cells of a frame", f"{active.mean():.1%} ({frames.float().mean():.2f} events a cell and polarity)"
    over_time = ", ".join(f"{share:.0%}" for share in active.mean(dim=(0, 2, 3, 4)).tolist())
    yield "active cells over time", over_time
    yield "saturated cells", f"{described['saturated_cells']:,} of {x.numel():,}"
    yield "bad recordings", str(len(described["bad_recordings"]))


def _by_class(data: BatchedDataModule) -> dict[int, Tensor]:
    """Indices of the training samples by class, without the classes of which a small subset has none."""
    subset = data.train_set.subset
    labels = data.train_set.targets[subset]
    return {label: subset[labels == label] for label in range(data.num_classes) if (labels == label).any()}


def show(data: BatchedDataModule, title: str, path: Path) -> None:
    """Save the picture of a data set and print its figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    require("matplotlib")
    data.prepare_data()
    data.setup("fit")
    picture(data, title).savefig(path, dpi=150)
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures(data):
        table.add_row(name, Text(value))
    Console(soft_wrap=True).print(table)
    print(f"picture: {path}")


def show_run(
    folder: Path | str,
    path: Path,
    sample: int = 0,
    data_root: str | None = None,
    *,
    trust: bool = False,
) -> None:
    """Save what a run's kept network does with one sample of its test set, and print its firing rates.

    Args:
        folder: the run's.
        path: of the picture.
        sample: its number in the test set, from 0.
        data_root: where the data are, if not where they were in training.
        trust: also import and call what the run's record names that is no part of this package.

    Raises:
        ValueError: no finished run, no such sample, or a network without spiking neurons.
    """
    from tna_lightning.evaluation.inside import draw, look_inside, rates
    from tna_lightning.files import write_bytes
    from tna_lightning.running.console import title, warn_of_changes
    from tna_lightning.running.record import finished_record
    from tna_lightning.running.trust import kept_network, rebuilt, refuse_foreign

    require("matplotlib")
    record = finished_record(folder)
    if not trust:
        refuse_foreign(folder, record["config"])
    warn_of_changes(record["config"], data_root)
    datamodule, spec = rebuilt(folder, data_root, trust)
    network = kept_network(folder, spec)
    raw, x, label = _sample(datamodule, sample)
    try:
        inside = look_inside(network, x)
    except ValueError as error:
        raise ValueError(f"run={str(folder)!r}: {error}") from error
    names = [str(name) for name in getattr(datamodule, "class_names", range(datamodule.num_classes))]
    frames = event_colors(x[0]) if x.ndim == 5 else _as_colors(raw)[None]
    heading = f"{title(record)}: test sample {sample}"
    content = io.BytesIO()
    draw(inside, frames, names, label, heading).savefig(content, format=path.suffix[1:], dpi=130)
    write_bytes(path, content.getvalue())
    probability, answer = inside.probabilities[-1].max(0)
    print(f"{heading} of {names[label]}, answered {names[int(answer)]} with {float(probability):.1%}")
    for name, rate in rates(inside).items():
        print(f"{name}: {rate:.3f} spikes a neuron and step")
    print(f"picture: {path}")


def _sample(datamodule: Any, number: int) -> tuple[Tensor, Tensor, int]:
    """A test sample as it was loaded, as the network takes it (with B = 1), and its label."""
    seen = 0
    for batch in map(Batch.of, datamodule.test_dataloader()):
        if 0 <= number - seen < len(batch):
            raw = batch.x[number - seen : number - seen + 1].cpu()
            target = batch.target[number - seen]
            return raw[0], datamodule.prepare(raw).cpu(), int(target.argmax() if target.ndim else target)
        seen += len(batch)
    raise ValueError(f"sample={number!r}: must lie in 0 to {seen - 1}, the test set has {seen:,}")


def _as_colors(image: Tensor) -> np.ndarray:
    """An image as it was loaded, ``[C, H, W]``; of other channels than 1 and 3 the mean."""
    levels = image if len(image) in (1, 3) else image.float().mean(0, keepdim=True)
    if levels.is_floating_point():  # of a data module of one's own
        levels = (levels - levels.min()) / (levels.max() - levels.min()).clamp(min=1e-9) * 255
    return image_colors(levels)


@door
def main() -> None:
    """The command line."""
    from tna_lightning.running.console import leave

    parser = Parser("show", __doc__)
    parser.add_argument(
        "words",
        metavar="RUN | KEY=VALUE",
        nargs="*",
        help="a finished run's folder; or settings as for training: data=cifar10dvs data.root=DIR data.time_steps=5",
    )
    parser.add_argument("--config-dir", type=Path, help="a folder with choices of your own, DIR/data/NAME.yaml")
    parser.add_argument("--out", type=Path, help="the picture; by default <data>.png or <run>.png in this folder")
    parser.add_argument("--sample", type=int, help="of a run: the number of the test sample, from 0")
    parser.add_argument(
        "--data-root", help="of a run: where the data are, if not where they were in training; of arrays the file"
    )
    parser.add_argument("--trust", action="store_true", help="of a run: call what its record names beside our own")
    arguments = parser.parse_args()
    runs = [word for word in arguments.words if "=" not in word]
    try:
        if not runs:
            for name in ("sample", "data_root", "trust"):
                if getattr(arguments, name) not in (None, False):
                    raise ValueError(f"--{name.replace('_', '-')}: is for a run's folder")
            _show_data(arguments.words, arguments.config_dir, arguments.out)
            return
        if len(arguments.words) > 1 or arguments.config_dir is not None:
            raise ValueError(f"run={runs[0]!r}: a run's folder stands alone, without settings")
        path = _as_png(arguments.out or Path(f"{Path(runs[0]).resolve().name}.png"))
        show_run(runs[0], path, arguments.sample or 0, arguments.data_root, trust=arguments.trust)
    except Exception as error:
        leave(error)


def _show_data(overrides: Sequence[str], config_dir: Path | None, out: Path | None) -> None:
    from tna_lightning.running.config import compose
    from tna_lightning.running.factory import build

    config: dict[str, Any] = compose(overrides, config_dir)
    name = config["choices"]["data"]
    data = build("data", config["data"])
    title = f"{name} (SIMULATED events)" if getattr(data, "simulated", False) else name
    show(data, title, _as_png(out or Path(name)))


def _as_png(path: Path) -> Path:
    return path if path.suffix else path.with_name(f"{path.name}.png")  # as matplotlib would name it


if __name__ == "__main__":
    main()
