"""How long a large folder of pictures takes: first opening, later ones, its hash, and the memory of an epoch.

    python benchmarks/picture_folder.py --pictures 100000 > benchmarks/results/picture_folder.json

JPEG files of 64x64 pixels in colour, drawn at random, in 200 classes, as Tiny ImageNet has them; drawing them is not
timed, and nothing is on the disk that is not in the page cache. `build` reads all of them into the memory-mapped file,
by so many processes; `open` is what each later run waits for (a checksum over the file); `identity` hashes the
pictures, once a command; an epoch gathers all training images in shuffled order, batches of 128. Memory is that of this
process: `own` is its own, `mapped` pages of files, which the system takes back when it needs them. Wall times mean
something on a quiet machine alone: the load average before them is in the file.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tna_lightning.data import ImageFolderDataModule
from tna_lightning.running.own import digest_of

CLASSES = 200


def draw(root: Path, number: int, size: int) -> None:
    """So many pictures: eight by eight colours, smoothly enlarged, which JPEG packs as it packs photographs."""
    rng = np.random.default_rng(0)
    for name in range(CLASSES):
        (root / f"class_{name:03}").mkdir(parents=True)
    for index in range(number):
        colours = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
        picture = colours.resize((size, size), Image.Resampling.BICUBIC)
        picture.save(root / f"class_{index % CLASSES:03}" / f"{index}.jpg", quality=85)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came back."""
    start = time.perf_counter()
    result = function()
    return round(time.perf_counter() - start, 2), result


def memory() -> dict[str, int]:
    """Resident megabytes of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) // 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def opened(root: Path, size: int, workers: int) -> ImageFolderDataModule:
    """The data module, ready to train."""
    data = ImageFolderDataModule(root, size=size, build_workers=workers)
    data.setup("fit")
    return data


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--workers", type=int, default=0, help="processes that build; 0 for one per core")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        draw(root, arguments.pictures, arguments.size)
        result = {
            "pictures": arguments.pictures,
            "size": arguments.size,
            "workers": arguments.workers or len(os.sched_getaffinity(0)),
            "megabytes_of_pictures": sum(path.stat().st_size for path in root.rglob("*.jpg")) // 2**20,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {name: version(name) for name in ("torch", "pillow", "numpy")},
            "load_average": round(os.getloadavg()[0], 2),
            "memory_before_mb": memory(),
        }
        result["build_s"], _ = timed(lambda: opened(root, arguments.size, arguments.workers))
        result["open_s"], data = timed(lambda: opened(root, arguments.size, arguments.workers))
        result["identity_s"], _ = timed(lambda: digest_of(root))
        result["memory_opened_mb"] = memory()
        result["epoch_s"], _ = timed(lambda: sum(len(batch) for batch in data.train_dataloader()))
        result["memory_after_epoch_mb"] = memory()
        (cache,) = (root / ".pictures").rglob("pictures.npy")
        result["megabytes_of_cache"] = cache.stat().st_size // 2**20
        result["load_average_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
