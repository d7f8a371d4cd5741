"""The C code computes what the network does, to the bit where sums are exact; what it cannot say, it refuses by name.

Many networks are compiled into one library, and into one program with sanitizers.
"""

import ctypes
import itertools
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tna_lightning
from tna_lightning.data import Normalization
from tna_lightning.export import ExportMismatch, check, export_c
from tna_lightning.export.c import CNetwork, library, load_c
from tna_lightning.export.c.folder import spikes_of_c
from tna_lightning.export.c.library import KERNELS, STRICT
from tna_lightning.export.c.memory import plan_memory
from tna_lightning.export.c.program import Currents, Join, Map, Pool, _windows, to_program
from tna_lightning.export.c.source import write_source
from tna_lightning.export.c.tables import bit_table, lane_positions, unpack_spikes
from tna_lightning.models import LIF, BasicBlock, MSBlock, SEWBlock, build, convnet
from tna_lightning.models.blocks import ConvNorm
from tna_lightning.models.over_time import weigh_over_time
from tna_lightning.packages import MissingPackage
from tna_lightning.quantization import (
    Binary,
    TemporalTernary,
    Ternary,
    TernaryAbsmean,
    TernaryTTQ,
    Uniform,
    load_packed,
    quantize_network,
    save_network,
)
from tna_lightning.quantization.folding import ScaledConv2d, fold_batch_norm
from tna_lightning.running import factory
from tna_lightning.running.config import compose
from tna_lightning.running.home import options

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

# model, its settings, C H W, quantiser, neuron, and T of event frames; each value of each kind is there at least once
CASES = {
    "ternary": ("convnet", {"width": 0.5, "time_steps": 4}, (1, 8, 8), Ternary(), {"reset": "zero"}, None),
    "odd_max": (
        "convnet",
        {"width": 0.4, "time_steps": 1, "pool": "max"},
        (1, 7, 9),
        Ternary(per="layer"),
        {"reset": "subtract", "threshold": 0.7, "per": "channel"},
        None,
    ),
    "odd_average": (
        "convnet",
        {"width": 0.3, "time_steps": 16},
        (2, 5, 11),
        TernaryAbsmean(),
        {"reset": "none", "beta": 0.3},
        None,
    ),
    "residual": (
        "resnet8",
        {"width": 0.8, "time_steps": 3},
        (3, 9, 10),
        Ternary(),
        {"beta": 0.8, "per": "channel"},
        None,
    ),
    "residual_if": (
        "resnet20",
        {"width": 0.5, "time_steps": 2, "stem_stride": 2},
        (1, 13, 12),
        Binary(),
        {"beta": 1.0, "reset": "subtract"},
        None,
    ),
    "joined": (
        "sewresnet18",
        {"width": 0.05, "time_steps": 2},
        (1, 9, 8),
        Ternary(),
        {"threshold": 0.7, "reset": "subtract"},
        None,
    ),
    "joined_and": ("sewresnet18", {"width": 0.04, "connect": "and"}, (1, 6, 7), Binary(), {"threshold": 0.5}, None),
    "joined_iand": ("sewresnet18", {"width": 0.04, "connect": "iand"}, (2, 6, 6), Ternary(), {"threshold": 0.3}, 3),
    "membranes": ("msresnet18", {"width": 0.05, "time_steps": 2}, (1, 9, 8), Ternary(), {"reset": "subtract"}, None),
    "membranes_events": ("msresnet18", {"width": 0.04}, (2, 7, 9), Binary(), {"threshold": 0.7}, 3),
    "maxima": (
        "maxresnet18",
        {"width": 0.05, "time_steps": 3},
        (2, 10, 9),
        TernaryAbsmean(),
        {"reset": "zero", "per": "channel"},
        None,
    ),
    "maxima_full": ("maxresnet18", {"width": 0.04}, (1, 6, 6), None, {"reset": "none"}, 2),
    "resnet18": ("resnet18", {"width": 0.05, "time_steps": 1}, (1, 8, 8), TernaryAbsmean(), {}, None),
    "vgg16": ("vgg16", {"width": 0.04, "time_steps": 2}, (1, 16, 17), Ternary(), {"threshold": 0.5}, None),
    "wide": ("convnet", {"width": 4.9, "time_steps": 2}, (1, 4, 4), Ternary(), {}, None),
    "hidden": ("resnet19", {"width": 0.08, "time_steps": 2}, (1, 8, 8), Uniform(4), {"reset": "none"}, None),
    "binary": ("vgg11", {"width": 0.1, "time_steps": 3}, (1, 9, 7), Binary(per="layer"), {"learn_beta": True}, None),
    "two_bits": ("convnet", {"width": 0.2, "time_steps": 2}, (1, 6, 6), Uniform(2), {}, None),
    "three_bits": ("convnet", {"width": 0.3, "time_steps": 2}, (1, 7, 6), Uniform(3), {"reset": "subtract"}, None),
    "eight_bits": (
        "convnet",
        {"width": 0.3, "time_steps": 3},
        (1, 8, 7),
        Uniform(8, per="layer"),
        {"beta": 0.9},
        None,
    ),
    "two_scales": ("resnet8", {"width": 0.5, "time_steps": 4}, (1, 8, 8), TernaryTTQ(), {}, None),
    "two_scales_each": ("convnet", {"width": 0.3}, (1, 8, 8), TernaryTTQ(per="channel"), {"reset": "none"}, None),
    "full": ("resnet8", {"width": 0.5, "time_steps": 3}, (1, 8, 8), None, {"reset": "subtract"}, None),
    "full_ends": ("convnet", {"width": 0.3, "time_steps": 2}, (1, 9, 9), Ternary(), {}, None),
    "events": ("vggsnn", {"width": 0.05}, (2, 20, 17), Ternary(), {"per": "channel", "beta": 0.7}, 5),
    "events_small": ("convnet", {"width": 0.2}, (2, 9, 9), Ternary(), {"reset": "none"}, 3),
}
# sums of pixels by codes are whole numbers, and so exact in any order; sums of other weights are not, nor of currents
INEXACT = (
    "two_scales",
    "two_scales_each",
    "full",
    "full_ends",
    "eight_bits",
    "hidden",
    "membranes_events",
    "maxima_full",
)
EIGHTHS = ("membranes", "maxima")  # but where currents are whole eighths


def make_network(name):
    """A network with the statistics, thresholds and signs that a trained one may have."""
    model, settings, (channels, height, width), quantizer, neuron, steps = CASES[name]
    torch.manual_seed(list(CASES).index(name))
    spec = {
        "model": {"_target_": f"tna_lightning.models.{model}", **settings},
        "neuron": {"_target_": "tna_lightning.models.LIF", **neuron},
        "in_channels": channels,
        "num_classes": 10,
    }
    network = build(spec)
    if name == "membranes_events":  # blocks begin anew with a convolution of spikes
        network.body.extend([ConvNorm(20, 9), MSBlock(9, 20, 1, LIF), LIF()])
    if quantizer is not None:
        quantize_network(network, quantizer, skip=["stem", "classifier"] if name == "full_ends" else [])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.weight[::3] *= -1
                module.bias.normal_(0.3, 0.3)
            if isinstance(module, LIF) and module.per == "channel":
                module.threshold.uniform_(0.5, 1.5)
                module.beta.uniform_(0.2, 0.9)
            if isinstance(module, TernaryTTQ):
                module.scale.uniform_(0.3, 1.5)
        sizes = (channels, height, width) if steps is None else (steps, channels, height, width)
        for _ in range(3):
            network(torch.randint(0, 16, (16, *sizes)).float())
    return in_eighths(network) if name in EIGHTHS else network.eval()


@torch.no_grad()
def in_eighths(network):
    """A folded network, of whose layers those that are added up have an eighth, or minus that, as scale."""
    network = fold_batch_norm(network)
    for name, layer in network.named_modules():
        if isinstance(layer, ScaledConv2d) and "conv1" not in name:
            layer.scale.copy_(layer.scale.sign() / 8)
            layer.bias.copy_((8 * layer.bias).round() / 8)
    return network


def make_inputs(name, count=6):
    *_, (channels, height, width), _, _, steps = CASES[name]
    sizes = (channels, height, width) if steps is None else (steps, channels, height, width)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 16, (count, *sizes), generator=generator).to(torch.uint8)


def plain(channels):
    return Normalization(torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1))


NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def networks():
    return {name: make_network(name) for name in CASES}


@pytest.fixture(scope="module")
def programs(networks):
    return {name: to_program(network, tuple(make_inputs(name).shape[-3:])) for name, network in networks.items()}


@pytest.fixture(scope="module")
def sources(programs, tmp_path_factory):
    """A folder with the code of all networks, and of each a file that adds its binding."""
    folder = tmp_path_factory.mktemp("c")
    for name, program in programs.items():
        source = write_source(program, plain(program.inputs[0]), NAMES, CASES[name][-1] is not None, ["A test."], name)
        (folder / f"{name}.h").write_text(source.header)
        (folder / f"{name}.c").write_text(source.code)
        defines = f'#define NAME {name}\n#define UPPER {name.upper()}\n#define HEADER "{name}.h"\n'
        (folder / f"bound_{name}.c").write_text(f'{defines}#include "{name}.c"\n#include "{KERNELS / "binding.c"}"\n')
    shutil.copyfile(KERNELS / "tna_kernels.h", folder / "tna_kernels.h")
    return folder


def build_c(folder, output, *flags, compiler=None):
    command = [compiler or CC, *STRICT, "-ffp-contract=off", "-DTNA_TRACE", f"-I{folder}", *flags, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return output


@pytest.fixture(scope="module")
def compiled(sources):
    """Every network, with the kernels as this processor has them."""
    shared = [*map(str, sorted(sources.glob("bound_*.c"))), str(KERNELS / "tna_kernels.c")]
    built = build_c(sources, sources / "all.so", "-O2", "-march=native", "-shared", "-fPIC", *shared)
    loaded = ctypes.CDLL(str(built))
    return {name: CNetwork(loaded, name) for name in CASES}


# ---- what is computed ------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_spikes_and_logits_are_the_networks(name, networks, programs, compiled):
    x = make_inputs(name)
    folded = nn.Sequential(Float(), fold_batch_norm(networks[name]))
    run = partial(spikes_of_c, compiled[name], programs[name])
    counts = check(folded, run, [x])
    assert counts["spikes"] > 200
    if name not in INEXACT:
        assert counts["spikes_differing"] == 0
    logits, _ = run(x)
    torch.testing.assert_close(logits, folded(x).mean(0).detach(), rtol=1e-5, atol=1e-5)
    assert check(nn.Sequential(Float(), networks[name]), run, [x])["predictions_differing"] == 0  # not folded


class Float(nn.Module):
    def forward(self, x):
        return x.float()


@needs_compiler
def test_a_folded_network_gives_the_same_code(networks, programs):
    for name in ("ternary", "two_scales", "full"):
        shape = programs[name].inputs
        before, after = (
            write_source(to_program(network, shape), plain(1), NAMES, False, ["A test."])
            for network in (networks[name], fold_batch_norm(networks[name]))
        )
        assert before == after


@needs_compiler
def test_a_packed_network_gives_the_same_code(networks, programs, tmp_path):
    for name in ("residual", "eight_bits"):
        save_network(tmp_path / name, networks[name])
        loaded = load_packed(tmp_path / name, build_unquantized(name))
        shape = programs[name].inputs
        before, after = (
            write_source(to_program(network, shape), plain(shape[0]), NAMES, False, ["A test."])
            for network in (networks[name], loaded)
        )
        assert before == after


def build_unquantized(name):
    model, settings, (channels, *_), _, neuron, _ = CASES[name]
    return build(
        {
            "model": {"_target_": f"tna_lightning.models.{model}", **settings},
            "neuron": {"_target_": "tna_lightning.models.LIF", **neuron},
            "in_channels": channels,
            "num_classes": 10,
        }
    )


@needs_compiler
def test_batches_are_shared_by_threads(compiled):
    x = make_inputs("residual", 23).numpy()
    one = compiled["residual"](x, threads=1)
    assert one.shape == (23, 10)
    assert np.array_equal(compiled["residual"](x, threads=4), one)
    assert np.array_equal(np.concatenate([compiled["residual"](each[None]) for each in x]), one)
    assert compiled["residual"](x[:0]).shape == (0, 10)


@needs_compiler
def test_what_is_no_input_is_refused(compiled):
    for pixels, reason in [
        (np.zeros((2, 1, 8, 7), np.uint8), r"\[2, 1, 8, 7\]: must be \[B, 1, 8, 8\]$"),
        (np.zeros((1, 8, 8), np.uint8), r"must be \[B, 1, 8, 8\]"),
        (np.zeros((2, 3, 1, 8, 8), np.uint8), r"must be \[B, 1, 8, 8\]"),
        (np.zeros((2, 1, 8, 8), np.float32), "float32: must be uint8"),
    ]:
        with pytest.raises(ValueError, match=rf"^pixels=.*{reason}"):
            compiled["ternary"](pixels)
    for shape in ((2, 2, 9, 9), (2, 0, 2, 9, 9)):
        with pytest.raises(ValueError, match=r"must be \[B, T, 2, 9, 9\]$"):
            compiled["events_small"](np.zeros(shape, np.uint8))


# ---- the same on any processor ---------------------------------------------------------------------------------------

RUNNER = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#define NETWORK(name, count, steps, bytes)                                                                  \\
    int name##_bind_run(const uint8_t *, size_t, size_t, float *, uint64_t *);                              \\
    static int run_##name(const char *folder)                                                               \\
    {                                                                                                       \\
        static uint8_t in[bytes];                                                                           \\
        static float out[count * 10];                                                                       \\
        char path[4096];                                                                                    \\
        snprintf(path, sizeof path, "%s/" #name ".in", folder);                                             \\
        FILE *file = fopen(path, "rb");                                                                     \\
        if (!file || fread(in, 1, bytes, file) != bytes || !name##_bind_run(in, count, steps, out, NULL))   \\
            return 1;                                                                                       \\
        fclose(file);                                                                                       \\
        snprintf(path, sizeof path, "%s/" #name ".out", folder);                                            \\
        file = fopen(path, "wb");                                                                           \\
        if (!file)                                                                                          \\
            return 1;                                                                                       \\
        for (size_t i = 0; i < count * 10; i++)                                                             \\
            fprintf(file, "%a\\n", (double)out[i]);                                                         \\
        return fclose(file);                                                                                \\
    }
"""


def run_all(sources, compiled, tmp_path, *flags, compiler=None, emulator=()):
    """Run a program with all networks; its logits are those of the library, to the bit."""
    expected = {}
    text = RUNNER
    for name, network in compiled.items():
        x = make_inputs(name, 2).numpy()
        (tmp_path / f"{name}.in").write_bytes(x.tobytes())
        expected[name] = network(x, 1)
        text += f"NETWORK({name}, 2, {CASES[name][-1] or 0}, {x.size})\n"
    calls = " || ".join(f"run_{name}(argv[1])" for name in compiled)
    text += f"int main(int argc, char **argv)\n{{\n    return argc != 2 || {calls};\n}}\n"
    (tmp_path / "runner.c").write_text(text)
    files = [str(tmp_path / "runner.c"), *map(str, sorted(sources.glob("bound_*.c"))), str(KERNELS / "tna_kernels.c")]
    program = build_c(sources, tmp_path / "runner", *flags, *files, compiler=compiler)
    done = subprocess.run([*emulator, program, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name, logits in expected.items():
        lines = (tmp_path / f"{name}.out").read_text().split()
        assert np.array_equal(np.float32([float.fromhex(line) for line in lines]).reshape(2, 10), logits), name


@needs_compiler
def test_sanitizers_are_silent_and_plain_c_agrees_to_the_bit(sources, compiled, tmp_path):
    # without the name of the byte order, bytes are put together in a way that fits any
    run_all(sources, compiled, tmp_path, "-O1", "-DTNA_PLAIN", "-U__BYTE_ORDER__", *SANITIZERS)


@needs_compiler
def test_any_compiler_agrees_to_the_bit(sources, compiled, tmp_path):
    if shutil.which("clang") is None:
        pytest.skip("no clang")
    run_all(sources, compiled, tmp_path, "-O2", compiler="clang")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("width", [2, 4, 8])
def test_vectors_of_every_width_agree_to_the_bit(width, sources, compiled, tmp_path):
    run_all(sources, compiled, tmp_path, "-O1", f"-DTNA_WIDEST={width}", "-Wno-psabi", *SANITIZERS)


@pytest.mark.parametrize(
    ("compiler", "emulator"),
    [
        pytest.param("aarch64-linux-gnu-gcc", "qemu-aarch64", marks=pytest.mark.slow),
        pytest.param("riscv64-linux-gnu-gcc", "qemu-riscv64", marks=pytest.mark.slow),
        pytest.param("arm-linux-gnueabihf-gcc", "qemu-arm", marks=pytest.mark.slow),  # 32 bits, as in cortex_m
        ("s390x-linux-gnu-gcc", "qemu-s390x"),  # big-endian, and computes float in double if it may
    ],
)
def test_other_processors_agree_to_the_bit(compiler, emulator, sources, compiled, tmp_path):
    missing = [tool for tool in (compiler, emulator) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}")
    run_all(sources, compiled, tmp_path, "-O1", "-static", compiler=compiler, emulator=[emulator])


# ---- tables and memory -----------------------------------------------------------------------------------------------


def test_lanes_have_the_places_that_the_kernels_read():
    # one word: lane 8 j + i is bit 8 i + j
    assert lane_positions(1)[[0, 1, 7, 8, 63]].tolist() == [0, 8, 56, 1, 63]
    # a group of two: lanes 0 to 7 in the first word, 8 to 15 in the second, 16 to 23 again in the first
    assert lane_positions(2)[[0, 8, 16]].tolist() == [0, 64, 1]
    for words in range(1, 10):
        assert sorted(lane_positions(words)) == list(range(64 * words))


@pytest.mark.parametrize(("bits", "letters"), [(1, [-1, 1]), (2, [-1, 0, 1]), (3, range(-3, 4)), (8, range(-127, 128))])
def test_rows_of_bits_are_the_codes(bits, letters):
    generator = np.random.default_rng(0)
    codes = generator.choice(list(letters), (5, 37))
    table = bit_table(codes, bits)
    assert table.words.shape == (6, -(-37 * bits // 64))
    lanes = unpack_spikes(table.words, 64 * table.words.shape[1])[:, lane_positions(table.words.shape[1])]
    digits = lanes[:, : 37 * bits].reshape(6, bits, 37).astype(int)
    decoded = table.per_row + np.einsum("rdc,d->rc", digits, table.digit_values)
    assert np.array_equal(decoded[:5], codes)
    assert not table.words[5].any()
    assert not lanes[:, 37 * bits :].any()


def test_windows_of_pooling_are_those_of_torch():
    for size, window, step, padding, ceil in itertools.product(
        range(2, 9), (2, 3, 5), (1, 2, 3), (0, 1), (False, True)
    ):
        if size + 2 * padding < window:
            continue
        places = torch.arange(size).float()[None]
        pool = nn.MaxPool1d(window, step, padding, ceil_mode=ceil)
        firsts, lasts = -pool(-places)[0], pool(places)[0]
        expected = [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
        assert _windows(size, window, step, padding, ceil) == expected


def test_maps_that_are_needed_together_do_not_overlap(programs):
    for name, program in programs.items():
        memory = plan_memory(program, CASES[name][-1] is not None)
        layers = [*program.layers, None]
        for step, layer in enumerate(program.layers):
            later = [
                seen
                for each in layers[step + 1 :]
                for seen in ([program.readout.source] if each is None else sources_of(each))
            ]
            earlier = [each.out for each in program.layers[:step]]
            in_place = layer.shortcut if isinstance(layer, Currents) else None
            for other in [*sources_of(layer), *(each for each in earlier if each in later)]:
                if other is in_place:
                    assert memory.places[layer.out.name] == memory.places[other.name]
                    assert other not in later
                elif other.name in memory.places and other.is_float == layer.out.is_float:
                    assert not overlap(memory, layer.out, other)
        of_floats = [each.out for each in program.layers if each.out.is_float]
        assert memory.map_currents == max([memory.places[out.name] + out.words for out in of_floats], default=0)
    # by hand: those of a stage lie beside the sum that its first shortcut gives, with half the pixels a side
    assert plan_memory(programs["membranes"], False).map_currents == 9 * 8 * 3 + 5 * 4 * 6


def sources_of(layer):
    if isinstance(layer, Pool):
        return [layer.source]
    if isinstance(layer, Join):
        return [layer.spikes, layer.other]
    if isinstance(layer, Currents):
        return [layer.source.source, *([getattr(layer.shortcut, "source", layer.shortcut)] if layer.shortcut else [])]
    return [each.source for each in layer.sources] + ([layer.identity] if layer.identity else [])


def overlap(memory, one: Map, other: Map):
    start, end = memory.places[one.name], memory.places[one.name] + one.words
    return memory.places[other.name] < end and start < memory.places[other.name] + other.words


@needs_compiler
def test_the_ram_that_is_printed_is_the_states(programs, compiled):
    for name, program in programs.items():
        source = write_source(program, plain(program.inputs[0]), NAMES, CASES[name][-1] is not None, ["A test."], name)
        assert compiled[name].state_bytes == source.ram_bytes + 8  # with the pointer to a trace
    # by hand: 2 bits a weight of 9 x 16 x 32, 9 x 32 x 32 and 32 x 10 with a row of zeros each, in whole words
    source = write_source(programs["ternary"], plain(1), NAMES, False, ["A test."])
    bits = 8 * ((9 * 16 + 1) * 1 + (9 * 32 + 1) * 1 + (32 + 1) * 1)
    floats = 4 * (9 * 16 + 2 * (16 + 32 + 32 + 10))  # stem, scales and biases
    assert source.table_bytes - bits - floats < 4 * (2 * 32 + 2 * 16) + 200  # decays, thresholds, pools, inputs


# ---- what is refused -------------------------------------------------------------------------------------------------


def spoiled(name, change):
    network = build_unquantized(name).eval()
    change(network)
    return network


class OtherLIF(LIF):
    def forward(self, current):
        return current


def replace(part, place, module):
    return lambda network: getattr(network, part).__setitem__(place, module)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ternary", replace("body", 0, nn.ReLU()), r"network\.body\.0: there is no C kernel for ReLU"),
        ("ternary", replace("body", 2, OtherLIF()), r"network\.body\.2: there is no C kernel for OtherLIF"),
        (
            "ternary",
            lambda network: weigh_over_time(network.stem.conv),
            r"network\.stem\.conv: .* differs by time step",
        ),
        ("residual", lambda network: weigh_over_time(network.body[1].conv2.conv), r"network\.body\.1\.conv2\.conv: "),
        (
            "ternary",
            replace("body", 0, LIF(threshold=torch.linspace(0.5, 1, 64).view(8, 8))),
            r"network\.body\.0: .* threshold that differs by pixel",
        ),
        ("ternary", replace("body", 2, nn.Identity()), r"network\.body\.3\.0: .* pooling of what is no spikes"),
        ("ternary", replace("body", 3, nn.AvgPool2d(2, padding=1)), r"network\.body\.3: C averages have no padding"),
        ("ternary", replace("body", 3, nn.MaxPool2d(2, dilation=2)), r"network\.body\.3: C pooling has no dilation"),
        ("membranes", replace("body", 8, nn.Identity()), r"network\.pool\.0: .* pooling of what is no spikes"),
        ("membranes", replace("body", 1, BasicBlock(3, 3, 1, LIF)), r"network\.body\.1\.conv1\.conv: .* of currents"),
        ("membranes", replace("body", 1, SEWBlock(3, 3, 1, LIF)), r"network\.body\.1\.conv1\.conv: .* of currents"),
        ("joined", replace("body", 1, MSBlock(3, 3, 1, LIF)), r"network\.body\.1\.neuron1: neurons must follow"),
        ("ternary", replace("body", 3, nn.Identity()), None),
        ("odd_average", replace("body", 6, nn.MaxPool2d(2)), None),
        (
            "ternary",
            lambda network: setattr(network.body[1].conv, "groups", 2),
            r"network\.body\.1\.conv: C convolutions .* one group",
        ),
        (
            "ternary",
            lambda network: network.head.append(nn.MultiheadAttention(8, 1)),
            r"network\.head\.0: there is no C kernel for MultiheadAttention",
        ),
    ],
)
def test_what_c_cannot_say_is_refused_by_the_modules_name(name, change, message):
    network = spoiled(name, change)
    shape = CASES[name][2]
    if message is None:  # what is next to it can be said
        assert to_program(network, shape).num_classes == 10
    else:
        with pytest.raises(ValueError, match=f"^{message}"):
            to_program(network, shape)


@pytest.fixture(scope="module")
def choices():
    """Nodes of all choices of three groups, by group and name."""
    groups = {group: list(options(group)) for group in ("model", "neuron", "quant")}
    words = [f"+{group}@every.{group}_{name}={name}" for group, names in groups.items() for name in names]
    every = compose(words)["every"]
    return {group: {name: every[f"{group}_{name}"] for name in names} for group, names in groups.items()}


def of_choices(choices, channels, model="convnet", neuron="lif", quant="none"):
    """The network of three choices, small; its quantiser, too."""
    small = {"width": 0.05, "time_steps": 2, "halve": [False, False, True, True]}
    node = choices["model"][model]
    node = node | {key: value for key, value in small.items() if key in node}
    network = build({"model": node, "neuron": choices["neuron"][neuron], "in_channels": channels, "num_classes": 10})
    quantizer = None
    if quant != "none":
        node = choices["quant"][quant]
        over_time = {"time_steps": 2} if "time_steps" in node["quantizer"] else {}
        quantizer = factory.build("quant.quantizer", node["quantizer"] | over_time)
        quantize_network(network, quantizer, node["skip"])
    return network.eval(), quantizer


NO_KERNEL = {
    "sdt": "Position",
    "sdt_dvs": "Position",
    "spikingformer": "SpikingSelfAttention",
    "spikingformer_dvs": "SpikingSelfAttention",
}


@pytest.mark.parametrize("model", options("model"))
def test_every_backbone_is_among_the_cases_or_refused_by_name(model, choices):
    network, _ = of_choices(choices, 2, model=model)
    if model in NO_KERNEL:
        with pytest.raises(ValueError, match=rf"^network\.body\.\d+: there is no C kernel for {NO_KERNEL[model]}$"):
            to_program(network, (2, 32, 32))
    else:
        assert model in {case[0] for case in CASES.values()}
        assert to_program(network, (2, 32, 32)).num_classes == 10


@pytest.mark.parametrize("neuron", options("neuron"))
def test_every_neuron_is_among_the_cases_or_refused_by_name(neuron, choices):
    if neuron == "spikingjelly":
        pytest.importorskip("spikingjelly")
    network, _ = of_choices(choices, 1, neuron=neuron)
    kind = type(network.body[0]).__name__
    if neuron in ("lif", "plif", "if"):
        settings = {"plif": {"learn_beta": True}, "if": {"beta": 1.0}}.get(neuron, {})
        assert any(settings.items() <= case[4].items() for case in CASES.values())
        assert to_program(network, (1, 8, 8)).num_classes == 10
    else:
        with pytest.raises(ValueError, match=rf"^network\.body\.0: there is no C kernel for {kind}$"):
            to_program(network, (1, 8, 8))


@pytest.mark.parametrize("quant", options("quant"))
def test_every_quantiser_is_among_the_cases_or_refused_by_name(quant, choices):
    network, quantizer = of_choices(choices, 1, quant=quant)
    if quant == "tawq":
        with pytest.raises(ValueError, match=r"^network\.body\.1\.conv: .* for a weight that differs by time step"):
            to_program(network, (1, 8, 8))
    else:
        cases = {(type(case[3]), getattr(case[3], "bits", None)) for case in CASES.values()}
        assert (type(quantizer), getattr(quantizer, "bits", None)) in cases
        assert to_program(network, (1, 8, 8)).num_classes == 10


def test_weights_and_norms_over_time_are_refused_by_name():
    network = convnet(1, 10, LIF, width=0.1, time_steps=2)
    quantize_network(network, TemporalTernary(2), skip=["classifier"])
    with pytest.raises(ValueError, match=r"^network\.stem\.conv: there is no C kernel for a weight that differs by"):
        to_program(network.eval(), (1, 8, 8))
    network = convnet(1, 10, LIF, width=0.1, time_steps=2, norm="tebn").eval()
    with pytest.raises(ValueError, match=r"^network\.stem\.norm: there is no C kernel for a weight that differs by"):
        to_program(network, (1, 8, 8))


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"^network: there is no C code for Sequential"):
        to_program(nn.Sequential(nn.Flatten()), (1, 8, 8))
    network = build_unquantized("odd_max").eval()
    network.body[6] = nn.AvgPool2d(2)
    network.body.append(nn.MaxPool2d(2))
    with pytest.raises(ValueError, match=r"^network\.body\.7: .* maximum of what is no spikes"):
        to_program(network, (1, 8, 8))


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_compiler
def test_a_folder_is_checked_compiled_once_and_loaded(networks, own_cache, tmp_path, monkeypatch):
    x = make_inputs("events", 4)
    mean, scale = torch.tensor([2.5, 1.0]).view(2, 1, 1), torch.tensor([0.5, 0.75]).view(2, 1, 1)
    normalization = Normalization(mean, scale, gain=torch.linspace(0.5, 1.5, 20 * 17).view(20, 17))
    names = ['a "b"', "c\\d", "??=", "grün", *NAMES[4:]]
    written = export_c(networks["events"], tmp_path / "out", [x], normalization, names)
    assert written.counts["images"] == 4
    assert written.counts["spikes"] > 500
    folder = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert folder == ["Makefile", "example.c", "network.c", "network.h", "tna_kernels.c", "tna_kernels.h"]
    assert "Checked on 4 inputs: 0 predictions" in (tmp_path / "out" / "network.h").read_text()
    assert len(list(own_cache.rglob("*.so"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(library, "compile_library", None)  # it is there
        loaded = tna_lightning.load_c(tmp_path / "out")
    assert (loaded.class_names, loaded.time_steps, loaded.num_classes) == (names, None, 10)
    expected = networks["events"]((x.float() - mean) * scale * normalization.gain).mean(0).detach()
    torch.testing.assert_close(torch.from_numpy(loaded(x.numpy())), expected, rtol=1e-4, atol=1e-5)

    source = tmp_path / "out" / "network.c"  # another network is compiled again
    source.write_text(source.read_text().replace("network->logits[k] / (float)network->steps[0]", "7.0f"))
    assert (load_c(tmp_path / "out")(x.numpy()) == 7).all()
    assert len(list(own_cache.rglob("*.so"))) == 2
    source.write_text("this is no C")
    with pytest.raises(ValueError, match=r"^folder=.*: .* cannot compile it \(.*network.c:1"):
        load_c(tmp_path / "out")
    with pytest.raises(ValueError, match=r"^folder=.*: must hold network.c"):
        load_c(tmp_path)


@needs_compiler
def test_a_mismatch_leaves_what_was_there(networks, own_cache, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "network.c").write_text("what was there before")
    (tmp_path / "mine").mkdir()
    arguments = [make_inputs("ternary")], plain(1), NAMES
    with pytest.raises(ValueError, match=r"^output=.*: is there already, and holds no exported network"):
        export_c(networks["ternary"], tmp_path / "mine", *arguments)
    monkeypatch.setattr("tna_lightning.export.c.source._float", lambda value: f"{value * 1.5:.9f}f")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportMismatch, match=r"spikes differ"):
        export_c(networks["ternary"], tmp_path / "out", *arguments)
    assert sorted(set(tmp_path.rglob("*")) - set(own_cache.rglob("*")) - {own_cache}) == before
    assert (tmp_path / "out" / "network.c").read_text() == "what was there before"
    with pytest.raises(ValueError, match=r"^inputs of torch.float32: C code takes uint8"):
        export_c(networks["ternary"], tmp_path / "out", [torch.zeros(1, 1, 8, 8)], *arguments[1:])


def test_without_a_compiler_it_is_written_unchecked_if_asked(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    arguments = [make_inputs("ternary")], plain(1), NAMES
    with pytest.raises(MissingPackage, match=r"^needs a C compiler: install gcc or clang"):
        export_c(networks["ternary"], tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == []
    assert export_c(networks["ternary"], tmp_path / "out", *arguments, is_checked=False).counts is None
    assert "Not checked" in (tmp_path / "out" / "network.h").read_text()


# ---- the example's reader of files -----------------------------------------------------------------------------------

FUZZ = """
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define main example_main
#include "example.c"
#undef main

static uint64_t state = 88172645463325252u;

static size_t draw(size_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % below);
}

int main(int argc, char **argv)
{
    static unsigned char seed[65536], mutated[65536 + 64];
    unsigned refused = 0, runs = 0;
    for (int file = 2; file < argc; file++) {
        FILE *opened = fopen(argv[file], "rb");
        const size_t length = fread(seed, 1, sizeof seed, opened);
        fclose(opened);
        for (unsigned round = 0; round < 700; round++, runs++) {
            size_t size = length;
            memcpy(mutated, seed, length);
            for (size_t changes = 1 + draw(4); changes > 0; changes--) {
                const size_t place = draw(4) ? draw(size < 128 ? size : 128) : draw(size); /* the header, mostly */
                const size_t kind = draw(5);
                if (kind == 0)
                    mutated[place] ^= (unsigned char)(1u << draw(8));
                else if (kind == 1)
                    mutated[place] = (unsigned char)draw(256);
                else if (kind == 2)
                    mutated[place] = "0123456789(),'x"[draw(15)];
                else if (kind == 3)
                    size = place + 1; /* cut short */
                else
                    for (size_t more = 1 + draw(8); more > 0 && size < sizeof mutated; more--)
                        mutated[size++] = (unsigned char)draw(256);
            }
            opened = fopen(argv[1], "wb");
            fwrite(mutated, 1, size, opened);
            fclose(opened);
            char *arguments[] = {"example", argv[1], NULL};
            refused += example_main(2, arguments) != 0;
        }
    }
    fprintf(stderr, "refused %u of %u\\n", refused, runs);
    return 0;
}
"""


@needs_compiler
def test_the_example_reads_what_numpy_writes_and_survives_anything(networks, compiled, tmp_path):
    folder = tmp_path / "out"
    x = make_inputs("two_bits", 3).numpy()
    export_c(networks["two_bits"], folder, [torch.from_numpy(x)], plain(1), NAMES, is_checked=False)
    (folder / "fuzz.c").write_text(FUZZ)
    files = [str(folder / name) for name in ("fuzz.c", "network.c", "tna_kernels.c")]
    program = build_c(folder, tmp_path / "fuzz", "-O1", "-DTNA_PLAIN", *SANITIZERS, *files)
    for name, array in {"images": x, "wide": x.repeat(2, 3), "floats": x.astype(float)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    seeds = [str(tmp_path / f"{name}.npy") for name in ("images", "wide", "floats")]
    done = subprocess.run([program, tmp_path / "mutated", *seeds], capture_output=True, text=True, check=False)
    *messages, total = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert total == f"refused {len(messages)} of 2100"
    assert 1000 < len(messages) < 2100
    assert all(message.startswith(f"error: {tmp_path / 'mutated'} ") for message in messages)
    assert len({message.partition("mutated ")[2] for message in messages}) >= 7

    subprocess.run(["make", "-s", "-C", folder, "CFLAGS=-O1", f"CC={CC}"], check=True)
    command = [folder / "example", tmp_path / "images.npy"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 3
    logits = compiled["two_bits"](x)
    for number, line in enumerate(lines):
        best = int(logits[number].argmax())
        assert line.startswith(f"{number}: class {best} ({NAMES[best]}), logits ")
        np.testing.assert_allclose(
            [float(each) for each in line.split("logits ")[1].split()], logits[number], rtol=1e-5
        )
    refused = subprocess.run([folder / "example", tmp_path / "floats.npy"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (1, f"error: {tmp_path / 'floats.npy'} does not hold uint8\n")
