"""Size of the packed spiking ResNet-19, and the time from a file to its first answer, against the checkpoint.

    python benchmarks/packed_size.py > benchmarks/results/packed_size.json

Network: resnet19 for CIFAR-100, T = 4, TWN per channel, weights as drawn (bytes do not depend on them). The checkpoint
holds what Lightning's holds for TNA with SGD: base, twin, and a momentum for each parameter. Each time is the median of
five fresh processes, one thread, files in the page cache, imports left out, one image. Wall times mean something on a
quiet machine alone: the load average before them is in the file.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tna_lightning.models import build
from tna_lightning.quantization import (
    Ternary,
    load_packed,
    network_bytes,
    quantize_network,
    save_network,
    weight_report,
)
from tna_lightning.quantization.folding import fold_batch_norm

SPEC = {
    "model": {"_target_": "tna_lightning.models.resnet19", "time_steps": 4, "width": 1.0},
    "neuron": {"_target_": "tna_lightning.models.LIF"},
    "in_channels": 3,
    "num_classes": 100,
}


def ternary_network(skip=()):
    torch.manual_seed(0)
    network = build(SPEC)
    quantize_network(network, Ternary(), skip)
    return network.eval()


def measure_load(kind: str, path: str) -> None:
    """In a process of its own: load, and answer one image."""
    torch.set_num_threads(1)
    x = torch.zeros(1, 3, 32, 32)
    wall, cpu = time.perf_counter(), time.process_time()
    if kind == "packed":
        network = load_packed(path)
    else:
        network = ternary_network()
        state = torch.load(path, weights_only=True)["state_dict"]
        network.load_state_dict({k.removeprefix("base."): v for k, v in state.items() if k.startswith("base.")})
    loaded_wall, loaded_cpu = time.perf_counter() - wall, time.process_time() - cpu
    with torch.inference_mode():
        network(x)
    print(json.dumps([loaded_wall, loaded_cpu, time.perf_counter() - wall, time.process_time() - cpu]))


def median_times(kind: str, path: Path) -> dict:
    command = [sys.executable, __file__, kind, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = []
    for _ in range(5):
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        runs.append(json.loads(output))
    names = ("load_s", "load_cpu_s", "load_and_first_image_s", "load_and_first_image_cpu_s")
    return {
        name: round(statistics.median(values), 3) for name, values in zip(names, zip(*runs, strict=True), strict=True)
    }


def main() -> None:
    result = {"network": SPEC, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        full = build(SPEC)
        weights = weight_report(full)["bytes_float32"]
        result |= {"float32_weights_bytes": weights, "float32_network_bytes": network_bytes(full)["float32"]}
        for name, skip, fold in (
            ("all ternary", (), False),
            ("all ternary, batch norm folded", (), True),
            ("stem and classifier float32", ("stem", "classifier"), False),
        ):
            network = ternary_network(skip)
            save_network(path, fold_batch_norm(network) if fold else network, SPEC)
            size = path.stat().st_size
            report = weight_report(network)
            result[name] = {
                "quantized_share": report["quantized_share"],
                "weights_bytes": report["bytes"],
                "file_bytes": size,
                "file_is_float32_weights_over": round(weights / size, 2),
            }
        save_network(path, ternary_network(), SPEC)
        base, twin = ternary_network().state_dict(), build(SPEC).state_dict()
        states = {f"base.{k}": v for k, v in base.items()} | {f"companion.{k}": v for k, v in twin.items()}
        momenta = {name: torch.zeros_like(value) for name, value in states.items()}
        checkpoint = Path(folder) / "last.ckpt"
        torch.save({"state_dict": states, "optimizer_states": [momenta]}, checkpoint)
        result["checkpoint_bytes"] = checkpoint.stat().st_size
        result["threads"], result["load_average"] = 1, round(os.getloadavg()[0], 2)
        result["time, packed"] = median_times("packed", path)
        result["time, checkpoint"] = median_times("checkpoint", checkpoint)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure_load(sys.argv[1], sys.argv[2])
    else:
        main()
