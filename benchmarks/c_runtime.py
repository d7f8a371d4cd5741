"""Milliseconds an image of the kept network as C, beside torch and onnxruntime, float32 and int8: batch 1, one thread.

    python -m benchmarks.c_runtime --rounds 12 --output benchmarks/results/c_runtime.json
    python -m benchmarks.c_runtime --render     # measure nothing, write the tables of docs/c_runtime.md from that file

Networks: the demo's convnet (1 x 8 x 8 pixels, 10 classes), vgg11 and resnet19 for CIFAR-100 at full width, T = 4,
all weights ternary (TWN per channel). Weights are as drawn. Batch norm has the statistics of random images, and one
bias for all its layers is set so that the asked share of the neurons fires (the mean over all layers; the record has
each layer's). Times depend on that share alone, and the others' times not even on that.

Runs are interleaved in one process, each contender once a round, in changing order; warm, since each has run before.
`ms` is processor time of the process, with its quartiles, which another process on the machine disturbs little;
`wall_ms` the time on the clock. Memory is the peak of a process of its own that answers images (C: of the
one that times its layers).

The rivals, all with one thread: torch on the kept network, eager and through torch.compile; onnxruntime on the exported
ONNX file; and onnxruntime's static quantisation of that file to int8 (QDQ, per channel, Conv and Gemm).

The C code: `native` for this processor, `avx2` for x86-64-v3, `plain` for x86-64 without vectors. `layers` says where
the native one's time goes; there the clock is read between layers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.speed.machine import KEEP_PAGES, environment
from tna_lightning.data import Normalization
from tna_lightning.export import export_c, export_onnx, spikes_of
from tna_lightning.export.c import CNetwork
from tna_lightning.export.c.library import KERNELS, compile_library
from tna_lightning.models import build
from tna_lightning.quantization import Ternary, quantize_network
from tna_lightning.quantization.folding import without_quantizers

NETWORKS = {
    "convnet": ("convnet", {"width": 1.0}, (1, 8, 8), 10),
    "vgg11": ("vgg11", {"width": 1.0}, (3, 32, 32), 100),
    "resnet19": ("resnet19", {"width": 1.0}, (3, 32, 32), 100),
    "toy": ("convnet", {"width": 0.2}, (1, 6, 6), 3),
}
TARGETS = {
    "native": ["-march=native"],
    "avx2": ["-march=x86-64-v3"],
    "plain": ["-march=x86-64", "-DTNA_PLAIN", "-fno-tree-vectorize"],
}
RIVALS = ("torch", "torch_compile", "onnxruntime", "onnxruntime_int8")


def make_network(name: str, rate: float) -> tuple[nn.Module, torch.Tensor, list[float]]:
    """The network, images as uint8, and the share of neurons of each layer that fires a step."""
    model, settings, (channels, height, width), classes = NETWORKS[name]
    torch.manual_seed(0)
    spec = {
        "model": {"_target_": f"tna_lightning.models.{model}", "time_steps": 4, **settings},
        "neuron": {"_target_": "tna_lightning.models.LIF"},
        "in_channels": channels,
        "num_classes": classes,
    }
    network = build(spec)
    quantize_network(network, Ternary())
    images = torch.randint(0, 256, (8, channels, height, width)).to(torch.uint8)
    x = normalization(channels)(images)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    @torch.no_grad()
    def rates(bias: float) -> list[float]:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.weight.fill_(1.0)
            norm.bias.fill_(bias)
        network.train()
        network(x[:4])
        network.eval()
        return [float(spikes.mean()) for spikes in spikes_of(network, x[:4])[1]]

    low, high = -3.0, 3.0
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if statistics.mean(rates(middle)) < rate else (low, middle)
    found = rates((low + high) / 2)
    return network, images, found


def normalization(channels: int) -> Normalization:
    return Normalization(torch.full((channels, 1, 1), 128.0), torch.full((channels, 1, 1), 1 / 64))


def compiled_c(folder: Path, target: str) -> CNetwork:
    library = folder / f"{target}.so"
    sources = [folder / "network.c", folder / "tna_kernels.c", KERNELS / "binding.c"]
    compile_library(library, sources, folder, *TARGETS[target])
    return CNetwork(ctypes.CDLL(str(library)))


def onnx_session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def quantized_onnx(path: Path, x: torch.Tensor) -> Path:
    """The file with activations and weights in int8, calibrated with these inputs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"x": each.numpy()} for each in x.split(2)])

        def get_next(self):
            return next(self.batches, None)

    prepared, quantized = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
    )
    return quantized


def make_rivals(names: list[str], network: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    kept = without_quantizers(network)
    runs: dict[str, Callable[[], object]] = {}
    one = x[:1]
    if "torch" in names:
        runs["torch"] = lambda: kept(one)
    if "torch_compile" in names:
        torch.compiler.reset()  # else the sizes of the network before make it write code for any size
        compiled = torch.compile(kept, dynamic=False)
        runs["torch_compile"] = lambda: compiled(one)
    if {"onnxruntime", "onnxruntime_int8"} & set(names):
        path = folder / "network.onnx"
        export_onnx(kept, path, [x[:2]])
        if "onnxruntime" in names:
            float_session = onnx_session(path)
            runs["onnxruntime"] = lambda: float_session.run(None, {"x": one.numpy()})
        if "onnxruntime_int8" in names:
            int8_session = onnx_session(quantized_onnx(path, x))
            runs["onnxruntime_int8"] = lambda: int8_session.run(None, {"x": one.numpy()})
    return runs


def interleave(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each run in each round, of the processor and of the clock; a fast one is repeated in a round."""
    order = random.Random(0)
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, min(200, int(0.02 / (time.perf_counter() - start))))
    times: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in runs}
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeats[name]):
                runs[name]()
            times[name]["wall"].append((time.perf_counter() - wall) / repeats[name])
            times[name]["cpu"].append((time.process_time() - cpu) / repeats[name])
    return times


def summary(times: dict[str, list[float]]) -> dict[str, object]:
    def quartiles(seconds: list[float]) -> list[float]:
        return [round(1000 * value, 4) for value in np.percentile(seconds, [50, 25, 75])]

    cpu, wall = quartiles(times["cpu"]), quartiles(times["wall"])
    return {"ms": cpu[0], "quartiles_ms": cpu[1:], "wall_ms": wall[0], "wall_quartiles_ms": wall[1:]}


LAYERS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static double spent[64];
static struct timespec last;
static void mark(int place)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    if (place >= 0)
        spent[place] += (double)(now.tv_sec - last.tv_sec) * 1e3 + (double)(now.tv_nsec - last.tv_nsec) / 1e6;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &last);
}
"""
MAIN = """
int main(int argc, char **argv)
{
    struct network *network = malloc(sizeof *network);
    uint8_t image[NETWORK_CHANNELS * NETWORK_HEIGHT * NETWORK_WIDTH];
    float logits[NETWORK_CLASSES];
    FILE *file = fopen(argv[1], "rb");
    const int rounds = atoi(argv[2]);
    if (!network || !file || fread(image, 1, sizeof image, file) != sizeof image)
        return argc;
    network_run(network, image, logits);
    memset(spent, 0, sizeof spent);
    for (int i = 0; i < rounds; i++) {
        mark(-1);
        network_run(network, image, logits);
    }
    for (int i = 0; i < 64; i++)
        printf("%g\\n", spent[i] / rounds);
    char line[256];
    file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "VmHWM:", 6) == 0)
            fputs(line, stdout);
    return 0;
}
"""


def time_of_layers(folder: Path, image: np.ndarray, rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds an image of each call in `network.c`, by name; and the program's peak memory in MiB."""
    names: list[str] = []

    def marked(match: re.Match) -> str:
        call = match.group(0)
        name = re.search(r"layer\d+|readout|input", call)
        kind = re.search(r"tna_(\w+?)(?:_layer|_pool|_currents)?\(", call)
        assert kind
        names.append(f"{name.group(0) if name else ''} {kind.group(1)}".strip())
        return f"{call}\n    mark({len(names) - 1});"

    text = (folder / "network.c").read_text()
    text = re.sub(r"^ +tna_\w+\([^;]*;", marked, text, flags=re.MULTILINE)
    (folder / "layers.c").write_text(f"#define _POSIX_C_SOURCE 199309L\n{LAYERS}{text}{MAIN}")
    (folder / "image.bin").write_bytes(image.tobytes())
    flags = ["-std=c99", "-O3", "-march=native", "-ffp-contract=off"]
    program = folder / "layers"
    sources = [folder / "layers.c", folder / "tna_kernels.c"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([program, folder / "image.bin", str(rounds)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    times = {name: round(float(value), 4) for name, value in zip(names, lines, strict=False) if float(value) > 0}
    return times, mib(done.stdout)


def by_kind(layers: dict[str, float]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for name, value in layers.items():
        kind = name.split()[-1]
        kinds[kind] = round(kinds.get(kind, 0) + value, 4)
    return kinds


PEAKS = {
    "torch": "import sys, torch; torch.set_num_threads(1); n = torch.load(sys.argv[1], weights_only=False)\n"
    "with torch.inference_mode(): n(torch.zeros(1, *map(int, sys.argv[2].split(','))))",
    "onnxruntime": "import sys, numpy as np, onnxruntime as o; s = o.SessionOptions(); s.intra_op_num_threads = 1\n"
    "o.InferenceSession(sys.argv[1], s).run(None, {'x': np.zeros((1, *map(int, sys.argv[2].split(','))), np.float32)})",
}


def mib(status: str) -> float:
    """The peak of resident memory, of a text with the line VmHWM of /proc/self/status."""
    return round(int(re.findall(r"VmHWM:\s*(\d+) kB", status)[-1]) / 1024, 1)


def peaks(network: nn.Module, names: list[str], folder: Path, shape: tuple[int, ...]) -> dict[str, float]:
    files = {"torch": "network.pt", "onnxruntime": "network.onnx", "onnxruntime_int8": "network.int8.onnx"}
    torch.save(without_quantizers(network), folder / "network.pt")
    found = {}
    for name, file in files.items():
        if name in names:
            code = f"{PEAKS[name.removesuffix('_int8')]}\nprint(open('/proc/self/status').read())"
            command = [sys.executable, "-c", code, str(folder / file), ",".join(map(str, shape))]
            found[name] = mib(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measure(name: str, rate: float, rivals: list[str], rounds: int, folder: Path, memory: bool) -> dict[str, object]:
    channels, height, width = NETWORKS[name][2]
    network, images, rates = make_network(name, rate)
    x = normalization(channels)(images)
    classes = [str(k) for k in range(NETWORKS[name][3])]
    written = export_c(network, folder, [images[:2]], normalization(channels), classes)
    one = images[:1].numpy()
    runs: dict[str, Callable[[], object]] = {}
    for target in TARGETS:
        loaded = compiled_c(folder, target)
        runs[f"c_{target}"] = lambda loaded=loaded: loaded(one, 1)
    runs |= make_rivals(rivals, network, x, folder)
    with torch.inference_mode():
        times = interleave(runs, rounds)
    layers, peak = time_of_layers(folder, one, max(3, rounds // 2))
    result = {
        "rate": rate,
        "rates": [round(each, 3) for each in rates],
        "checked": written.counts,
        "table_bytes": written.table_bytes,
        "ram_bytes": written.ram_bytes,
        "times": {each: summary(seconds) for each, seconds in times.items()},
        "layers_ms": layers,
        "kinds_ms": by_kind(layers),
    }
    if memory:
        result["peak_mib"] = {"c": peak} | peaks(network, rivals, folder, (channels, height, width))
    return result


RESULTS = Path(__file__).parent / "results" / "c_runtime.json"
PAGE = Path(__file__).parents[1] / "docs" / "c_runtime.md"
BEGIN, END = "<!-- from here on by `python -m benchmarks.c_runtime --render` -->", "<!-- to here -->"
TITLES = {
    "convnet": "convnet, 8 x 8",
    "vgg11": "vgg11, CIFAR-100",
    "resnet19": "resnet19, CIFAR-100",
    "toy": "toy",
}
CONTENDERS = {
    "c_native": "C, native",
    "c_avx2": "C, x86-64-v3 (AVX2)",
    "c_plain": "C, any x86-64, without vectors",
    "onnxruntime_int8": "onnxruntime int8",
    "onnxruntime": "onnxruntime float32",
    "torch_compile": "torch.compile",
    "torch": "torch eager",
}
KINDS = {
    "spiking": "convolutions of spikes with their neurons",
    "pixel": "the layer of pixels with its neurons",
    "average": "average pooling",
    "max": "maximum pooling",
    "join": "joins of spikes",
    "readout": "classifier",
}


def render(record: dict) -> str:
    """The tables of the page. On a quiet machine times are of the clock, in a preliminary record of the processor."""
    networks, rates = record["networks"], record["rates"]
    prefix = "" if "preliminary" in record else "wall_"

    def ms(measured: dict, name: str) -> str:
        found = measured["times"][name]
        low, high = found[f"{prefix}quartiles_ms"]
        return f"{found[f'{prefix}ms']:.3g} ({low:.3g} to {high:.3g})"

    def faster(measured: dict, name: str) -> str:
        others = [each[f"{prefix}ms"] for rival, each in measured["times"].items() if not rival.startswith("c_")]
        return f"{min(others) / measured['times'][name][f'{prefix}ms']:.1f}"

    def smaller(measured: dict) -> str:
        peak = measured["peak_mib"]
        return f"{min(value for name, value in peak.items() if name != 'c') / peak['c']:.0f}"

    capability = record["capability"].replace("AVX512", "AVX-512")
    first = next(iter(networks.values()))
    shown = {name: title for name, title in CONTENDERS.items() if name in first["times"]}
    if capability == "AVX2":
        del shown["c_avx2"]
    shown["c_native"] += f" (here {capability})"
    preliminary = f"**Preliminary**: {record['preliminary']}.\n\n" if "preliminary" in record else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"{preliminary}Milliseconds an image, batch 1, one thread, medians with quartiles over {record['rounds']} "
        "rounds, interleaved in one process;",
        f"{'processor time' if prefix == '' else 'by the clock'}. T = 4, all weights ternary as drawn, "
        f"{first['rate']:.0%} of the neurons fire a step (calibrated by batch norm's bias, random",
        f"images). {record['cpu']} ({capability}), {record['compiler']}, {versions}; "
        "`python -m benchmarks.c_runtime`, which",
        "says how; [record](../benchmarks/results/c_runtime.json).",
        "",
        *_table(
            [""] + [TITLES[name] for name in networks],
            *([title] + [ms(each, name) for each in networks.values()] for name, title in shown.items()),
            *(
                [f"{shown[name]}: times faster than the fastest of the others"]
                + [faster(each, name) for each in networks.values()]
                for name in shown
                if name.startswith("c_") and name != "c_plain"
            ),
            ["tables; state, bytes"]
            + [f"{each['table_bytes']:,}; {each['ram_bytes']:,}" for each in networks.values()],
            *(
                [f"peak of a process, MiB: {'C' if name == 'c' else CONTENDERS[name]}"]
                + [f"{each['peak_mib'][name]}" for each in networks.values()]
                for name in ("c", "onnxruntime_int8", "onnxruntime", "torch")
                if name in first["peak_mib"]
            ),
            ["C: times less than the least of the others"] + [smaller(each) for each in networks.values()],
        ),
        "",
        "onnxruntime's int8 is its static quantisation (QDQ, per channel); this processor has "
        f"{'VNNI' if record['vnni'] else 'no VNNI'}.",
        "",
        "Where the time goes (native):",
        "",
        *_table(
            ["share of the time"] + [TITLES[name] for name in networks],
            *(
                [title]
                + [
                    f"{each['kinds_ms'].get(kind, 0) / sum(each['kinds_ms'].values()):.1%}"
                    for each in networks.values()
                ]
                for kind, title in KINDS.items()
                if any(kind in each["kinds_ms"] for each in networks.values())
            ),
        ),
        "",
        f"Firing rate, {next(iter(rates.values()))['network']}:",
        "",
        *_table(
            ["neurons that fire a step"] + [f"{float(rate):.0%}" for rate in rates],
            ["native, ms"] + [f"{each['times']['c_native'][f'{prefix}ms']:.3g}" for each in rates.values()],
            ["without vectors, ms"] + [f"{each['times']['c_plain'][f'{prefix}ms']:.3g}" for each in rates.values()],
        ),
    ]
    return "\n".join(lines)


def _table(*rows: list[str]) -> list[str]:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=["convnet", "vgg11", "resnet19"], choices=NETWORKS)
    parser.add_argument("--rate", type=float, default=0.15, help="share of neurons that fire a step")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.05, 0.1, 0.2, 0.4], help="of --rates-network too")
    parser.add_argument("--rates-network", default="vgg11", choices=NETWORKS)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="the JSON file to write; else it is printed")
    parser.add_argument("--render", action="store_true", help=f"measure nothing, write the tables of {PAGE.name} anew")
    arguments = parser.parse_args()
    if arguments.render:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        tables = render(json.loads(RESULTS.read_text()))
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    result = {
        "command": "python -m benchmarks.c_runtime " + " ".join(sys.argv[1:]),
        "rounds": arguments.rounds,
        "machine": platform.processor() or platform.machine(),
        "cpu": next(iter(re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())), ""),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "vnni": re.search(r"\b(avx512_|avx_)vnni\b", Path("/proc/cpuinfo").read_text()) is not None,
        "versions": {"torch": torch.__version__, "onnxruntime": _version("onnxruntime")},
        "compiler": subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
            0
        ],
        "load": os.getloadavg(),
        "networks": {},
        "rates": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.networks:
            folder = Path(temporary) / name
            measured = measure(name, arguments.rate, arguments.rivals, arguments.rounds, folder, memory=True)
            result["networks"][name] = measured
            print(name, json.dumps(measured["times"]), file=sys.stderr)
        for rate in arguments.rates:
            folder = Path(temporary) / f"rate_{rate}"
            name = arguments.rates_network
            measured = measure(name, rate, [], arguments.rounds, folder, memory=False)
            result["rates"][str(rate)] = {"network": name, **measured}
            print(name, rate, json.dumps(measured["times"]), file=sys.stderr)
    text = json.dumps(result, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    else:
        print(text)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    if os.environ.get("MALLOC_TOP_PAD_") != KEEP_PAGES["MALLOC_TOP_PAD_"]:  # glibc reads it at the start
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.c_runtime", *sys.argv[1:]], environment(KEEP_PAGES)
        )
    main()
