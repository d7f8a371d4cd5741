"""Time and memory of a choice of `augment=chosen`: facility location over the samples of one class.

    python benchmarks/choose_copies.py > benchmarks/results/choose_copies.json

Proxies of gradients as a network in training gives them: softmax of random logits of deviation 3 with the class
favoured, minus its one-hot, ten classes; 5,000 samples a class are CIFAR-10's. Of each size the median of three choices
of 30 %, each in a process of its own, one thread; memory is what the process peaks at above what it held before. The
naive greedy choice beside it computes every gain anew. CIFAR-10 is ten such classes, one after another, and a forward
pass. Times are of the process on its core, not of the clock on the wall; what else the machine did (its load average is
in the file) still slows memory down.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from tna_lightning.data.augment.coresets import facility_location, gradient_proxies, similarities

SIZES, SHARE, RUNS = (500, 1000, 2000, 5000), 0.3, 3


def proxies(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    logits = 3 * torch.randn(count, 10)
    logits[:, 0] += 3
    return gradient_proxies(logits, torch.zeros(count, dtype=torch.int64))


def naive(similarity: torch.Tensor, count: int) -> torch.Tensor:
    best, chosen = similarity.new_zeros(len(similarity)), []
    for _ in range(count):
        gains = torch.zeros(len(similarity))
        for rows in torch.arange(len(similarity)).split(500):
            gains[rows] = (similarity[rows] - best).relu_().sum(1)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        best = torch.maximum(best, similarity[:, chosen[-1]])
    return torch.tensor(chosen)


def measure(way: str, count: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    given = proxies(count)
    similarities(given[:20])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    similarity = similarities(given)
    between = time.process_time()
    chosen = {"lazy": facility_location, "naive": naive}[way](similarity, round(SHARE * count))
    ended = time.process_time()
    covered = float(similarity[:, chosen].max(1).values.sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    print(json.dumps([between - began, ended - between, peak / 1024, covered]))


def main() -> None:
    """All sizes; the naive choice of the smaller ones alone."""
    load, rows = os.getloadavg()[0], []
    for way, count in [*(("lazy", size) for size in SIZES), *(("naive", size) for size in SIZES[:2])]:
        command = [sys.executable, __file__, way, str(count)]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(RUNS)
        ]
        distances, greedy, peak, covered = (statistics.median(column) for column in zip(*runs, strict=True))
        rows.append(
            {
                "way": way,
                "samples": count,
                "chosen": round(SHARE * count),
                "distances_s": round(distances, 3),
                "greedy_s": round(greedy, 3),
                "peak_mib": round(peak, 1),
                "covered": round(covered, 2),
            }
        )
    head = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "load": round(load, 2)}
    print(json.dumps({**head, "share": SHARE, "rows": rows}, indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
