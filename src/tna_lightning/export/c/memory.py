"""Where maps lie in memory: two that are never needed at the same time share their place."""

from __future__ import annotations

from dataclasses import dataclass

from tna_lightning.export.c.program import (
    Convolution,
    Currents,
    Join,
    Layer,
    Map,
    Neurons,
    Pool,
    Program,
    convolutions_of,
    words_of,
)


@dataclass(frozen=True)
class Memory:
    """Elements of each array of a network's state.

    Attributes:
        steps: that a layer runs at once: all T of an image, one of event frames.
        places: the first word of each map, by name; of currents, the first number.
        map_words: uint64 words of all maps of one step.
        map_currents: float32 numbers of all maps of currents of one step.
        membranes: the first membrane of each layer of neurons, by name.
        num_membranes: float32 numbers of all membranes, which are kept between event frames.
        lists, counts, rows, values, channels, lanes, fired: elements of what layers need while they run.
    """

    steps: int
    places: dict[str, int]
    map_words: int
    map_currents: int
    membranes: dict[str, int]
    num_membranes: int
    lists: int
    counts: int
    rows: int
    values: int
    channels: int
    lanes: int
    fired: int


def plan_memory(program: Program, events: bool) -> Memory:
    """Place the maps, and size what layers need while they run.

    Event frames come one by one, so all membranes are kept. All steps of an image pass a layer pixel by pixel, which
    needs the spikes of every step, and membranes of one pixel.
    """
    steps = 1 if events else program.time_steps
    used_by = [_maps_of(layer) for layer in program.layers] + [[program.readout.source]]
    last_use = {seen.name: number for number, maps in enumerate(used_by) for seen in maps}
    places: dict[str, int] = {}
    alive: list[Map] = []
    ends = {False: 0, True: 0}  # of words, and of currents
    for number, layer in enumerate(program.layers):
        alive = [each for each in alive if last_use[each.name] >= number]
        out = layer.out
        if isinstance(layer, Currents) and isinstance(layer.shortcut, Map):
            place = places[layer.shortcut.name]  # which nothing needs later: the block's currents are added to it
        else:
            place = _first_gap(out.words, [(places[x.name], x.words) for x in alive if x.is_float == out.is_float])
        places[out.name] = place
        alive.append(out)
        ends[out.is_float] = max(ends[out.is_float], place + out.words)

    neurons = [layer for layer in program.layers if isinstance(layer, Neurons)]
    membranes, num_membranes = {}, 0
    for layer in neurons:
        membranes[layer.name] = num_membranes
        num_membranes += _size(layer.out)
    every = list(convolutions_of(program))
    of_spikes, of_floats = ([c for c in every if c.source.is_float == is_float] for is_float in (False, True))
    # those of a layer of neurons run side by side
    groups = [[c for c in layer.sources if not c.source.is_float] for layer in neurons] + [[c] for c in of_spikes]
    return Memory(
        steps,
        places,
        ends[False],
        ends[True],
        membranes,
        num_membranes,
        lists=steps * max(sum(_lists(c) * c.source.channels for c in group) for group in groups),
        counts=steps * max(sum(_lists(c) for c in group) for group in groups),
        rows=max([c.source.planes * (c.num_rows + 7) for c in of_spikes] + [c.num_rows for c in of_floats]),
        values=max(c.num_rows for c in of_floats),
        channels=max(c.out_channels for c in every),
        lanes=max([_lanes(c) for c in of_spikes if c.codes is not None], default=1),
        fired=max(64 * words_of(layer.out.channels) for layer in neurons),
    )


def _maps_of(layer: Layer) -> list[Map]:
    if isinstance(layer, Currents):
        sources = [layer.source] if layer.shortcut is None else [layer.source, layer.shortcut]
        return [each if isinstance(each, Map) else each.source for each in sources]
    if isinstance(layer, Pool):
        return [layer.source]
    if isinstance(layer, Join):
        return [layer.spikes, layer.other]
    return [c.source for c in layer.sources] + ([layer.identity] if layer.identity is not None else [])


def _first_gap(words: int, taken: list[tuple[int, int]]) -> int:
    place = 0
    for start, length in sorted(taken):
        if place + words <= start:
            break
        place = max(place, start + length)
    return place


def _size(out: Map) -> int:
    return out.channels * out.height * out.width


def _lists(convolution: Convolution) -> int:
    """Lists of channels of the input rows that one row of outputs can see."""
    span = (convolution.kernel[0] - 1) * convolution.dilation[0] + 1
    return span * convolution.source.width * convolution.source.planes


def _lanes(convolution: Convolution) -> int:
    """Bytes of the lanes of all numbers that the rows of a convolution can add up to."""
    most = -(-convolution.num_rows // 8) * 8 * (2**convolution.source.planes - 1)
    depth = max(3, most.bit_length())
    return -(-depth // 8) * 64 * words_of(convolution.out_channels * convolution.bits)
