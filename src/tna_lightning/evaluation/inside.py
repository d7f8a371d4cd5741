"""What goes on in a kept network while it sees one sample: the picture of ``python -m tna_lightning.show RUN``.

Letters: T time steps, B batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.models.recording import LayerRecord, record

MOST_LAYERS = 6  # that get a panel; of more those are drawn that lie evenly between the first and the last
MOST_NEURONS = 120  # of a raster
MOST_CLASSES = 5  # whose probability is drawn
MOST_MAPS = 6
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's, which the colour-blind tell apart
ATTENTION = ("query", "key", "value", "project")  # the parts of a layer of attention


@dataclass(frozen=True)
class Inside:
    """What a network did with one sample.

    Attributes:
        probabilities: float32 ``[T, K]``: after each step, from the mean of the logits so far.
        layers: its layers of neurons, in the order of their calls, ``[T, 1, ...]``.
        maps: of each layer of attention by name, ``[H, W]``: how often what it gives on fires at each place, a mean
            over time and channels.
    """

    probabilities: Tensor
    layers: list[LayerRecord]
    maps: dict[str, Tensor]


def look_inside(network: nn.Module, x: Tensor) -> Inside:
    """Record what a network does with one sample.

    Args:
        network: in eval mode.
        x: as the network takes it, with B = 1.

    Raises:
        ValueError: it has no spiking neurons.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            maps[name] = arguments[0].float().mean((0, 1, 2))

        return hook

    handles = [module.project.register_forward_pre_hook(keep(name)) for name, module in _attention(network)]
    try:
        logits, layers = record(network, x)
    finally:
        for handle in handles:
            handle.remove()
    if not layers:
        raise ValueError("its network has no spiking neurons, whose spikes could be drawn")
    steps_TK = (logits if logits.ndim == 3 else logits[None])[:, 0].float()
    so_far = steps_TK.cumsum(0) / torch.arange(1, len(steps_TK) + 1)[:, None]
    return Inside(so_far.softmax(1), layers, maps)


def _attention(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        if all(isinstance(getattr(module, part, None), nn.Module) for part in ATTENTION):
            yield name, module


def draw(inside: Inside, frames: np.ndarray, class_names: Sequence[str], label: int, title: str) -> Any:
    """The picture: the sample, the answer over time, firing rates; rasters and membranes of layers; attention.

    Args:
        inside: what was recorded.
        frames: of the sample, as colours ``[F, H, W, 3]``; one for an image.
        class_names: K names.
        label: of the sample.
        title: stands above.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen and no global state is left

    chosen = _evenly(inside.layers, MOST_LAYERS)
    heights = [2.6, 4.6, *([2.0] if inside.maps else [])]
    figure = Figure(figsize=(max(9.0, 1.9 * len(chosen)), sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    shown = frames[np.linspace(0, len(frames) - 1, min(len(frames), 5)).round().astype(int)]
    _draw_answer(parts[0], inside, shown, class_names, label)
    _draw_layers(parts[1], chosen, len(inside.layers))
    if inside.maps:
        _draw_maps(parts[2], inside.maps, frames.mean(0))
    return figure


def _draw_answer(part: Any, inside: Inside, shown: np.ndarray, class_names: Sequence[str], label: int) -> None:
    axes = part.subplots(1, len(shown) + 2, width_ratios=[1.0] * len(shown) + [2.2, 2.2])
    for number, frame in enumerate(shown):
        axes[number].imshow(frame, interpolation="nearest")
        axes[number].set(xticks=[], yticks=[])
    axes[0].set_title(f"sample: {class_names[label]}", fontsize=8)
    answer, rates = axes[-2:]
    steps = range(1, len(inside.probabilities) + 1)
    best = inside.probabilities[-1].argsort(descending=True)[:MOST_CLASSES].tolist()
    for color, number in zip(COLORS, best, strict=False):
        style = "o-" if number == label else ".--"
        answer.plot(steps, inside.probabilities[:, number], style, color=color, label=class_names[number], markersize=4)
    answer.set(xlabel="time steps so far", ylabel="probability", ylim=(0, 1))
    answer.set_title("answer", fontsize=8)
    answer.xaxis.get_major_locator().set_params(integer=True)
    answer.legend(fontsize=7)
    rates.bar(range(len(inside.layers)), [_rate(layer) for layer in inside.layers], color=COLORS[2])
    rates.set_xticks(range(len(inside.layers)), [layer.name for layer in inside.layers], rotation=90, fontsize=6)
    rates.set_ylabel("spikes a neuron and step")
    rates.set_title("firing rates", fontsize=8)


def _draw_layers(part: Any, layers: Sequence[LayerRecord], number_of_layers: int) -> None:
    """A column a layer: the raster of its neurons above, the membrane of one of them below."""
    rasters, membranes = part.subplots(2, len(layers), squeeze=False, height_ratios=[1.4, 1])
    for column, layer in enumerate(layers):
        spikes_TN = layer.spikes.float().flatten(1).numpy()
        time_steps, neurons = spikes_TN.shape
        rows = np.linspace(0, neurons - 1, min(neurons, MOST_NEURONS)).round().astype(int)
        steps, limit = np.arange(1, time_steps + 1), np.abs(spikes_TN).max() or 1.0
        raster, trace = rasters[column], membranes[column]
        extent = (0.5, time_steps + 0.5, len(rows), 0)
        colors = "binary" if spikes_TN.min() >= 0 else "RdBu_r"
        smallest = 0 if colors == "binary" else -limit
        raster.imshow(
            *(spikes_TN[:, rows].T,),
            aspect="auto",
            interpolation="nearest",
            extent=extent,
            cmap=colors,
            vmin=smallest,
            vmax=limit,
        )
        of_all = "" if len(rows) == neurons else f" of {neurons:,}"
        raster.set_title(f"{layer.name}\n{len(rows)}{of_all} neurons", fontsize=7)
        raster.set(yticks=[])
        raster.tick_params(labelsize=6)
        raster.xaxis.get_major_locator().set_params(integer=True)
        _draw_membrane(trace, layer, steps)
    rasters[0].set_ylabel("spikes", fontsize=8)
    membranes[0].set_ylabel("membrane", fontsize=8)
    if len(layers) < number_of_layers:
        part.suptitle(f"{len(layers)} of {number_of_layers} layers of neurons", fontsize=8)


def _draw_membrane(axes: Any, layer: LayerRecord, steps: np.ndarray) -> None:
    axes.tick_params(labelsize=6)
    axes.set_xlabel("time step", fontsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if layer.membranes is None:  # neurons other than LIF
        axes.text(0.5, 0.5, "no membrane\nis recorded", ha="center", va="center", fontsize=7, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    spikes_TN, membranes_TN = (each.float().flatten(1).numpy() for each in (layer.spikes, layer.membranes))
    # of those that fire in about half of the steps the one whose membrane moves most
    far = np.abs((spikes_TN != 0).sum(0) - len(spikes_TN) / 2)
    neuron = int(np.lexsort((-np.ptp(membranes_TN, axis=0), far))[0])
    fires = spikes_TN[:, neuron] != 0
    axes.plot(steps, membranes_TN[:, neuron], ".-", color=COLORS[0], linewidth=1)
    axes.plot(steps[fires], membranes_TN[fires, neuron], "o", color=COLORS[1], markersize=4)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(f"neuron {neuron}; a dot: it fires", fontsize=6)


def _draw_maps(part: Any, maps: dict[str, Tensor], picture: np.ndarray) -> None:
    names = _evenly(list(maps), MOST_MAPS)
    axes = part.subplots(1, len(names) + 1, squeeze=False)[0]
    axes[0].imshow(picture, interpolation="nearest")
    axes[0].set_title("sample", fontsize=7)
    for each, name in zip(axes[1:], names, strict=True):
        each.imshow(maps[name].numpy(), cmap="magma", vmin=0, interpolation="nearest")
        each.set_title(f"{name}\nup to {float(maps[name].max()):.2f}", fontsize=7)
    for each in axes:
        each.set(xticks=[], yticks=[])
    part.suptitle("attention: how often its output fires, by place", fontsize=8)


def _rate(layer: LayerRecord) -> float:
    return float(layer.spikes.float().abs().mean())


def rates(inside: Inside) -> dict[str, float]:
    """Spikes a neuron and step, by layer."""
    return {layer.name: _rate(layer) for layer in inside.layers}


def _evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the values, evenly from the first to the last."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[place] for place in places]
