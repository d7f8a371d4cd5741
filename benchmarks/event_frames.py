"""Frames from recordings: ours against tonic.DiskCachedDataset's first pass over the same AEDAT 4 files.

    python benchmarks/event_frames.py

Writes 20 recordings of about 200,000 simulated events with dv-processing (pip install dv-processing), then builds T=10
frames of 48x48 from them, in turns: tonic reads, downsamples, frames and stores each sample (HDF5, its default
compression); ours reads, frames and writes into the mapped cache. One process, one thread; processor time, so that
other load on the machine counts less; median of 5 rounds with the spread. Figures: benchmarks/results/events_cpu.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import dv_processing as dv
import numpy as np
import tonic

from tna_lightning.data.arrays import FrameSpec
from tna_lightning.data.camera import EventCamera
from tna_lightning.data.cifar10dvs import CLASS_NAMES
from tna_lightning.data.frame_cache import open_cache
from tna_lightning.data.recordings import Recording, RecordingFiles, find_recordings

ROUNDS = 5
PER_CLASS = 2
AEDAT2_HEADER = b"#!AER-DAT2.0\r\n# Data format is int32 address, int32 timestamp (8 bytes total)\r\n"


def write_aedat4(path: Path, recording: Recording) -> None:
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.EventOnlyConfig("DVS128_0", (128, 128)))
    store = dv.EventStore()
    for t, x, y, p in zip(*(getattr(recording, column).tolist() for column in "txyp"), strict=True):
        store.push_back(1_600_000_000_000_000 + t, x, y, p)
    writer.writeEvents(store)
    del writer


def write_aedat2(path: Path, recording: Recording) -> None:
    address = (127 - recording.x.astype(int)) << 8 | (127 - recording.y.astype(int)) << 1 | ~recording.p
    events = np.stack([address, recording.t], axis=1).astype(">u4")
    path.write_bytes(AEDAT2_HEADER + events.tobytes())


def tonic_pass(folder: Path, cache: Path) -> int:
    transform = tonic.transforms.Compose(
        [tonic.transforms.Downsample(spatial_factor=48 / 128), tonic.transforms.ToFrame((48, 48, 2), n_time_bins=10)]
    )
    (
        folder / "CIFAR10DVS" / "CIFAR10DVS.zip"
    ).touch()  # tonic asks for it, and for 1,000 files: both are beside the point
    tonic.datasets.CIFAR10DVS._check_exists = lambda self: True
    dataset = tonic.datasets.CIFAR10DVS(str(folder), transform=transform)
    cached = tonic.DiskCachedDataset(dataset, cache_path=str(cache))
    return sum(int(cached[index][0].sum()) for index in range(len(cached)))


def our_pass(folder: Path, cache: Path) -> int:
    source = RecordingFiles(find_recordings(folder, CLASS_NAMES)[0], (128, 128))
    frames = open_cache(cache, "benchmark", source, FrameSpec(10, "time", (48, 48)), workers=1).arrays
    return int(frames.sum())


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        camera = EventCamera()
        rng = np.random.default_rng(0)
        events = 0
        for name in CLASS_NAMES:
            for release in ("aedat4", "aedat2"):
                (root / release / "CIFAR10DVS" / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                recording = camera.record(0.1 + 0.5 * rng.random((8, 8)), number)
                events += len(recording)
                write_aedat4(root / "aedat4" / "CIFAR10DVS" / name / f"r_{number}.aedat4", recording)
                write_aedat2(root / "aedat2" / "CIFAR10DVS" / name / f"r_{number}.aedat", recording)
        total = PER_CLASS * len(CLASS_NAMES)
        print(
            f"{total} recordings, {events / total:,.0f} events each, numpy {np.__version__}, tonic {tonic.__version__}"
        )

        passes = {
            "tonic, AEDAT 4": lambda cache: tonic_pass(root / "aedat4", cache),
            "ours, AEDAT 4": lambda cache: our_pass(root / "aedat4", cache),
            "ours, AEDAT 2.0": lambda cache: our_pass(root / "aedat2", cache),
        }
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        sums = set()
        for turn in range(ROUNDS + 1):
            for name, run in passes.items():
                cache = root / "cache"
                start = time.process_time()
                sums.add(run(cache))
                if turn:  # the first round warms up imports and the page cache
                    seconds[name].append(time.process_time() - start)
                shutil.rmtree(cache)
        assert len(sums) == 1, f"they do not agree: {sums}"
        for name, spent in seconds.items():
            rates = sorted(total / value for value in spent)
            print(f"{name:<16} {statistics.median(rates):6.1f} recordings a second ({rates[0]:.1f} to {rates[-1]:.1f})")


if __name__ == "__main__":
    main()
