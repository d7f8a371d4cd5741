"""The C text of a program: ``NAME.h`` with its sizes and its interface, ``NAME.c`` with its tables and its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tna_lightning.data.batch import Normalization
from tna_lightning.export.c.memory import Memory, plan_memory
from tna_lightning.export.c.program import PIXELS, Convolution, Currents, Join, Layer, Map, Pool, Program, words_of
from tna_lightning.export.c.tables import bit_table

_RESETS = {"zero": "TNA_RESET_ZERO", "subtract": "TNA_RESET_SUBTRACT", "none": "TNA_RESET_NONE"}
_WIDTH = 118


@dataclass(frozen=True)
class Source:
    """The text of the two files, and what the network weighs.

    Attributes:
        table_bytes: of constant tables, which may lie in flash.
        ram_bytes: of the network's state, with what its layers need while they run.
    """

    header: str
    code: str
    table_bytes: int
    ram_bytes: int


def write_source(
    program: Program,
    normalization: Normalization,
    class_names: Sequence[str],
    events: bool,
    notes: Sequence[str],
    name: str = "network",
) -> Source:
    """The C text of a program.

    Args:
        program: see :func:`~tna_lightning.export.c.program.to_program`.
        normalization: what becomes of uint8 pixels.
        class_names: K names.
        events: inputs are event frames, which bring their own number of steps.
        notes: lines on how it was checked and measured.
        name: of the files, and in front of every public name.
    """
    memory = plan_memory(program, events)
    writer = _Writer(program, memory, name, events)
    inputs = [
        "NULL" if values is None else writer.table("float", f"input_{what}", values)
        for what, values in _input_tables(program, normalization).items()
    ]
    for number, layer in enumerate(program.layers):
        writer.add_layer(number, layer)
    writer.add_convolution("readout", program.readout)
    state, ram_bytes = _state(program, memory, events)
    header = _header(program, state, events, notes, name, writer.table_bytes, ram_bytes)
    return Source(header, writer.code(class_names, inputs), writer.table_bytes, ram_bytes)


def _input_tables(program: Program, normalization: Normalization) -> dict[str, np.ndarray | None]:
    channels, height, width = program.inputs
    mean, scale, gain = normalization.mean, normalization.scale, normalization.gain
    return {
        "mean": mean.float().expand(channels, 1, 1).flatten().numpy(),
        "scale": scale.float().expand(channels, 1, 1).flatten().numpy(),
        "gain": None if gain is None else gain.float().expand(height, width).flatten().numpy(),
    }


_SIZES = {"uint64_t": 8, "float": 4, "int32_t": 4, "uint32_t": 4, "uint16_t": 2, "uint8_t": 1}


def _state(program: Program, memory: Memory, events: bool) -> tuple[list[str], int]:
    """The declarations in the struct of a network's state, the widest types first, and its bytes."""
    currents = memory.steps * memory.map_currents
    kept = [("float", "membranes", memory.num_membranes, ""), ("uint32_t", "steps", 1, "since the reset")]
    fields = [
        ("uint64_t", "maps", memory.steps * memory.map_words, "spikes of the layers, which share their places"),
        *([("float", "block_currents", currents, "that residual blocks add to")] if currents else []),
        *(kept if events else []),
        ("float", "logits", program.num_classes, "summed over the steps"),
        ("uint32_t", "rows", memory.rows, "from here on: only while a layer runs"),
        ("float", "values", memory.values, ""),
        ("float", "currents", memory.channels, ""),
        ("float", "more_currents", memory.channels, ""),
        ("float", "membrane", memory.channels, ""),
        ("int32_t", "sums", memory.channels, ""),
        ("uint16_t", "lists", memory.lists, ""),
        ("uint16_t", "counts", memory.counts, ""),
        ("uint8_t", "lanes", memory.lanes, ""),
        ("uint8_t", "fired", memory.fired, ""),
    ]
    lines = [
        f"{kind} {name}[{count}];{f' /* {comment} */' if comment else ''}" for kind, name, count, comment in fields
    ]
    used = sum(_SIZES[kind] * count for kind, _, count, _ in fields)
    return lines, -(-used // _SIZES["uint64_t"]) * _SIZES["uint64_t"]


def _header(
    program: Program,
    state: list[str],
    events: bool,
    notes: Sequence[str],
    name: str,
    table_bytes: int,
    ram_bytes: int,
) -> str:
    channels, height, width = program.inputs
    upper = name.upper()
    lines = [
        "/* A spiking network, written by tna_lightning.export.",
        "",
        *(f"   {note.replace('*/', '* /')}" for note in notes),
        f"   Constant tables: {table_bytes:,} bytes. State: {ram_bytes:,} bytes, in a struct of the caller's;",
        "   two structs may run at the same time. */",
        "",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        '#include "tna_kernels.h"',
        "",
        f"#define {upper}_CHANNELS {channels}",
        f"#define {upper}_HEIGHT {height}",
        f"#define {upper}_WIDTH {width}",
        f"#define {upper}_CLASSES {program.num_classes}",
        f"#define {upper}_EVENTS {int(events)} /* whether inputs are event frames, of any number */",
    ]
    if not events:
        lines.append(f"#define {upper}_STEPS {program.time_steps} /* time steps of an image */")
    lines += [
        "",
        f"struct {name} {{",
        *(f"    {declaration}" for declaration in state),
        "#ifdef TNA_TRACE",
        "    uint64_t *trace; /* where it is not NULL, the spikes of every layer of neurons go there */",
        "#endif",
        "};",
        "",
        f"/* Names of the classes; what becomes of pixels, uint8 [{channels}][{height}][{width}]. */",
        f"extern const char *const {name}_class_names[{upper}_CLASSES];",
        f"extern const struct tna_input {name}_input;",
    ]
    if events:
        lines += [
            "",
            "/* Forget what came before. */",
            f"void {name}_reset(struct {name} *network);",
            "",
            "/* One time step. */",
            f"void {name}_step(struct {name} *network, const uint8_t *frame);",
            "",
            "/* Logits, their mean over the steps since the reset; gives the class. */",
            f"unsigned {name}_read(const struct {name} *network, float *logits);",
        ]
    else:
        lines += [
            "",
            f"/* The logits of an image, their mean over {upper}_STEPS steps; gives the class. */",
            f"unsigned {name}_run(struct {name} *network, const uint8_t *image, float *logits);",
        ]
    return "\n".join([*lines, "", "#endif", ""])


@dataclass
class _Writer:
    """Tables and calls so far."""

    program: Program
    memory: Memory
    name: str
    events: bool
    tables: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    table_bytes: int = 0
    shared: dict[bytes, str] = field(default_factory=dict)

    def table(self, kind: str, name: str, values: np.ndarray) -> str:
        """A constant table, and its name; one that is there already, as thresholds often are, is not written again."""
        key = kind.encode() + values.dtype.str.encode() + values.tobytes()
        if key in self.shared:
            return self.shared[key]
        self.shared[key] = name
        self.table_bytes += values.size * values.itemsize
        numbers = {"float": _float, "uint64_t": _word}.get(kind, str)
        body = _lines(numbers(value) for value in values.flatten().tolist())
        self.tables.append(f"static const {kind} {name}[{values.size}] = {{\n{body}\n}};\n")
        return name

    def add_convolution(self, name: str, convolution: Convolution) -> None:
        """Write a convolution's tables and its ``struct tna_convolution``."""
        c, source = convolution, convolution.source
        bits, row_words, digits, digit_values, per_row, weights = "NULL", 0, 0, "NULL", 0, "NULL"
        if c.codes is not None:
            table = bit_table(c.codes, c.bits)
            bits = self.table("uint64_t", f"{name}_bits", table.words)
            row_words, digits, per_row = table.words.shape[1], len(table.digit_values), table.per_row
            digit_values = self.table("int32_t", f"{name}_digits", np.array(table.digit_values, dtype=np.int32))
        else:
            assert c.weights is not None
            weights = self.table("float", f"{name}_weights", c.weights)
        scale = self.table("float", f"{name}_scale", c.scale)
        bias = self.table("float", f"{name}_bias", c.bias)
        negative = "NULL"
        if c.negative_scale is not None:
            # the lanes of the second digit count -1
            negative = self.table("float", f"{name}_negative_scale", c.negative_scale)
        planes = 0 if source.is_float else source.planes
        numbers = [
            [source.channels, planes, source.height, source.width],
            [c.out_channels, c.out_height, c.out_width],
            [*c.kernel, *c.stride],
            [*c.padding, *c.dilation],
        ]
        fields = [*(", ".join(map(str, row)) for row in numbers)]
        fields += [
            f"{bits}, {row_words}, {digits}, {digit_values}, {per_row}",
            f"{weights}, {scale}, {bias}, {negative}",
        ]
        self.structure("tna_convolution", name, fields, c.name)

    def add_layer(self, number: int, layer: Layer) -> None:
        """Write a layer's tables, and the call that runs it."""
        name = f"layer{number}"
        out = self.place(layer.out)
        if isinstance(layer, Pool):
            edges = [[edge[side] for edge in edges] for edges in (layer.rows, layer.columns) for side in (0, 1)]
            names = ("row_begin", "row_end", "column_begin", "column_end")
            tables = [
                self.table("uint16_t", f"{name}_{what}", np.array(values, dtype=np.uint16))
                for what, values in zip(names, edges, strict=True)
            ]
            source, multiple = layer.source, layer.out.largest // layer.source.largest
            sizes = [words_of(source.channels), source.width, source.planes, layer.out.planes]
            sizes += [layer.out.height, layer.out.width, multiple]
            self.structure("tna_pool", name, [", ".join(map(str, sizes)), ", ".join(tables)], layer.name)
            if source.is_float:
                maps = f"{source.channels}, {self.place(source)}, {out}"
                self.calls.append(f"tna_max_pool_currents(&{name}, {maps}, scratch);")
            else:
                self.calls.append(f"tna_{layer.kind}_pool(&{name}, {self.place(source)}, {out}, scratch);")
            return
        if isinstance(layer, Join):
            other = layer.other
            sizes = [other.height * other.width, words_of(other.channels), other.planes, layer.out.planes]
            self.structure("tna_join", name, [f"TNA_{layer.kind.upper()}, {', '.join(map(str, sizes))}"], layer.name)
            joined = f"{self.place(layer.spikes)}, {self.place(other)}"
            self.calls.append(f"tna_join(&{name}, {joined}, {out}, scratch);")
            return
        if isinstance(layer, Currents):
            self.add_currents(name, layer, out)
            return
        beta = self.table("float", f"{name}_beta", layer.beta)
        threshold = self.table("float", f"{name}_threshold", layer.threshold)
        fields = [f"{layer.out.channels}, {_RESETS[layer.reset]}, {beta}, {threshold}"]
        self.structure("tna_neurons", f"{name}_neurons", fields, layer.name)
        membranes = f"network->membranes + {self.memory.membranes[layer.name]}" if self.events else "NULL"
        for place, convolution in enumerate(layer.sources):
            self.add_convolution(f"{name}_{'shortcut' if place else 'convolution'}", convolution)
        if not layer.sources:
            assert layer.identity is not None
            pixels = layer.out.height * layer.out.width
            self.calls.append(
                f"tna_current_layer({self.place(layer.identity)}, {pixels}, &{name}_neurons, {membranes}, {out},\n"
                "                      scratch);"
            )
        elif layer.sources[0].source.name == PIXELS:
            self.calls.append(
                f"tna_pixel_layer(&{name}_convolution, &{self.name}_input, pixels, &{name}_neurons, {membranes},\n"
                f"                    {out}, scratch);"
            )
        else:
            sources = [f"{{&{name}_convolution, {self.place(layer.sources[0].source)}}}"]
            if len(layer.sources) > 1:
                sources.append(f"{{&{name}_shortcut, {self.place(layer.sources[1].source)}}}")
            identity = "NULL" if layer.identity is None else self.place(layer.identity)
            self.calls.append(
                f"const struct tna_source {name}_sources[] = {{{', '.join(sources)}}};\n"
                f"    tna_spiking_layer({name}_sources, {len(sources)}, {identity}, &{name}_neurons, {membranes},\n"
                f"                      {out}, scratch);"
            )
        place, words = self.memory.places[layer.out.name], layer.out.words
        self.calls.append(f"TRACE({place}, {words});")

    def add_currents(self, name: str, layer: Currents, out: str) -> None:
        """Write the tables of a layer whose currents are kept, and the call that runs it."""
        self.add_convolution(f"{name}_convolution", layer.source)
        if layer.source.source.name == PIXELS:
            arguments = f"&{name}_convolution, &{self.name}_input, pixels"
            self.calls.append(f"tna_pixel_currents({arguments}, {out}, scratch);")
            return
        shortcut, seen = "NULL", "NULL"
        if isinstance(layer.shortcut, Convolution):
            self.add_convolution(f"{name}_shortcut", layer.shortcut)
            shortcut, seen = f"&{name}_shortcut", self.place(layer.shortcut.source)
        elif layer.shortcut is not None:
            seen = self.place(layer.shortcut)
        self.calls.append(
            f"const struct tna_source {name}_source = {{&{name}_convolution, {self.place(layer.source.source)}}};\n"
            f"    tna_spiking_currents(&{name}_source, {shortcut}, {seen}, {out}, scratch);"
        )

    def place(self, seen: Map) -> str:
        """Where a map lies."""
        return f"network->{'block_currents' if seen.is_float else 'maps'} + {self.memory.places[seen.name]}"

    def structure(self, kind: str, name: str, fields: list[str], comment: str) -> None:
        """A constant struct."""
        body = ",\n".join(f"    {each}" for each in fields)
        self.tables.append(f"static const struct {kind} {name} = {{ /* {comment} */\n{body},\n}};\n")

    def code(self, class_names: Sequence[str], inputs: list[str]) -> str:
        """The text of ``NAME.c``."""
        name, upper = self.name, self.name.upper()
        channels, height, width = self.program.inputs
        classes = _lines(map(_string, class_names))
        memory = self.memory
        fields = (
            "lists",
            "counts",
            "rows",
            "values",
            "currents",
            "more_currents",
            "membrane",
            "sums",
            "lanes",
            "fired",
        )
        return "\n".join(
            [
                f"/* See {name}.h. */",
                "",
                f'#include "{name}.h"',
                "",
                "#include <string.h>",
                "",
                "#ifdef TNA_TRACE",
                "#define TRACE(place, words) \\",
                "    for (size_t t = 0; network->trace && t < scratch->steps; t++, network->trace += words) \\",
                "        memcpy(network->trace, network->maps + t * scratch->step_words + place, 8 * words)",
                "#else",
                "#define TRACE(place, words) ((void)0)",
                "#endif",
                "",
                *self.tables,
                f"const struct tna_input {name}_input = {{{channels}, {height}, {width}, {', '.join(inputs)}}};",
                "",
                f"const char *const {name}_class_names[{upper}_CLASSES] = {{\n{classes}\n}};",
                "",
                f"static void run_layers(struct {name} *network, const uint8_t *pixels)",
                "{",
                "    const struct tna_scratch all = {",
                f"        {memory.steps},",
                f"        {memory.map_words},",
                f"        {memory.map_currents},",
                *(f"        network->{each}," for each in fields),
                "    };",
                "    const struct tna_scratch *scratch = &all;",
                *(f"    {call}" for call in self.calls),
                f"    const struct tna_source source = {{&readout, {self.place(self.program.readout.source)}}};",
                "    tna_readout(&source, network->logits, scratch);",
                "}",
                "",
                *(self.event_calls() if self.events else self.image_calls()),
                "",
            ]
        )

    def event_calls(self) -> list[str]:
        """The calls of a network whose inputs are event frames."""
        name = self.name
        return [
            f"void {name}_reset(struct {name} *network)",
            "{",
            "    memset(network->membranes, 0, sizeof network->membranes);",
            "    memset(network->logits, 0, sizeof network->logits);",
            "    network->steps[0] = 0;",
            "}",
            "",
            f"void {name}_step(struct {name} *network, const uint8_t *frame)",
            "{",
            "    run_layers(network, frame);",
            "    network->steps[0]++;",
            "}",
            "",
            f"unsigned {name}_read(const struct {name} *network, float *logits)",
            "{",
            *_mean_and_class(self.name, "network->steps[0] ? network->logits[k] / (float)network->steps[0] : 0.0f"),
        ]

    def image_calls(self) -> list[str]:
        """The call of a network whose inputs are images."""
        name, upper = self.name, self.name.upper()
        return [
            f"unsigned {name}_run(struct {name} *network, const uint8_t *image, float *logits)",
            "{",
            "    memset(network->logits, 0, sizeof network->logits);",
            "    run_layers(network, image);",
            *_mean_and_class(self.name, f"network->logits[k] / {upper}_STEPS"),
        ]


def _mean_and_class(name: str, mean: str) -> list[str]:
    return [
        "    unsigned best = 0;",
        f"    for (unsigned k = 0; k < {name.upper()}_CLASSES; k++) {{",
        f"        logits[k] = {mean};",
        "        if (logits[k] > logits[best])",
        "            best = k;",
        "    }",
        "    return best;",
        "}",
    ]


def _lines(values: Iterable[str]) -> str:
    """Initialisers, several in a line."""
    lines, line = [], "   "
    for value in values:
        if len(line) + len(value) + 2 > _WIDTH:
            lines.append(line)
            line = "   "
        line += f" {value},"
    return "\n".join([*lines, line])


def _float(value: float) -> str:
    """The shortest text of nine digits that a C compiler reads as the same float32."""
    text = f"{value:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _word(value: int) -> str:
    return f"{value:#x}u"


def _string(text: str) -> str:
    """A string literal of its UTF-8 bytes."""
    plain = set(range(32, 127)) - set(b'"\\?')  # of question marks, two would begin a trigraph
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
