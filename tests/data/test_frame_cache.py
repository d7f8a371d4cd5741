"""The cache of frames: built once, by whoever comes first, and built again when it is damaged."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from cache_processes import open_a_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tna_lightning.data import array_cache
from tna_lightning.data.array_cache import BadSample
from tna_lightning.data.frame_cache import cache_key, open_cache
from tna_lightning.data.frames import FrameSpec, to_frames
from tna_lightning.data.recordings import BadRecording, Recording

SPEC = FrameSpec(3, "count", (8, 8))


class Source:
    """Random recordings on a 16x16 sensor; each load leaves a line in ``log``, if there is one."""

    sensor = (16, 16)

    def __init__(self, count=12, events=300, bad=(), log=None, seconds=0.0):
        self.events, self.bad, self.log, self.seconds = events, bad, log, seconds
        self.names = [f"class/{index}" for index in range(count)]
        self.labels = [0] * count

    def load(self, index):
        time.sleep(self.seconds)
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{index}\n")
        if index in self.bad:
            raise BadRecording(f"class/{index}.aedat: holds no events")
        rng = np.random.default_rng(index)
        x, y = rng.integers(0, 16, (2, self.events)).astype(np.uint16)
        return Recording(np.arange(self.events), x, y, rng.random(self.events) < 0.25)

    def fingerprint(self):
        return {"count": len(self.names), "events": self.events}


def expected_frames(source):
    return np.stack([to_frames(source.load(index), source.sensor, SPEC) for index in range(len(source.names))])


def the_folder(root):
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def test_frames_and_statistics_are_those_of_the_recordings(tmp_path):
    cache = open_cache(tmp_path, "random", Source(), SPEC)
    assert cache.arrays.dtype == np.uint8
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source()))
    on = [int(Source().load(index).p.sum()) for index in range(12)]
    assert [stats.on_events for stats in cache.stats] == on
    assert {(stats.events, stats.duration_us) for stats in cache.stats} == {(300, 299)}


def test_a_second_opening_reads_no_recording(tmp_path):
    open_cache(tmp_path, "random", Source(), SPEC)
    log = tmp_path / "log"
    cache = open_cache(tmp_path, "random", Source(log=log), SPEC)
    assert not log.exists()
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source()))


def test_changing_the_frames_in_memory_leaves_the_file_alone(tmp_path):
    open_cache(tmp_path, "random", Source(), SPEC).arrays[:] = 9
    np.testing.assert_array_equal(open_cache(tmp_path, "random", Source(), SPEC).arrays, expected_frames(Source()))


def test_the_key_holds_all_that_shapes_a_frame():
    keys = {
        cache_key(Source(), SPEC),
        cache_key(Source(events=301), SPEC),
        cache_key(Source(count=11), SPEC),
        cache_key(Source(), FrameSpec(4, "count", (8, 8))),
        cache_key(Source(), FrameSpec(3, "time", (8, 8))),
        cache_key(Source(), FrameSpec(3, "count", (8, 16))),
    }
    other = Source()
    other.sensor = (16, 17)
    keys.add(cache_key(other, SPEC))
    assert len(keys) == 7
    assert cache_key(Source(), SPEC) == cache_key(Source(bad=(3,), log="elsewhere"), SPEC)


def test_worker_processes_build_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "SECONDS_WORTH_A_POOL", 0.0)
    source = Source(count=40, seconds=0.06)  # more than a second in all: this process begins, two workers go on
    cache = open_cache(tmp_path, "random", source, SPEC, workers=2)
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source(count=40)))
    assert [stats.events for stats in cache.stats] == [300] * 40


class DiesInWorkers(Source):
    """A source longer than a pipe's buffer, on whose first bytes a process that was started dies."""

    def __getstate__(self):
        return {"first": OnlyHere(), "long": b" " * 1_000_000, **vars(self)}


class OnlyHere:
    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_dies_while_it_starts_ends_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "SECONDS_WORTH_A_POOL", 0.0)
    source = DiesInWorkers(count=5, seconds=0.4)
    with pytest.raises(ChildProcessError, match="a process that builds frames died: memory may be short"):
        open_cache(tmp_path, "random", source, SPEC, workers=2)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@settings(max_examples=30, deadline=None)
@given(
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    file=st.sampled_from(["frames.npy", "header.json"]),
)
def test_any_changed_byte_is_noticed(tmp_path_factory, where, flip, file):
    root = tmp_path_factory.mktemp("cache")
    open_cache(root, "random", Source(count=2), SPEC)
    path = the_folder(root) / file
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= flip
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged cache of frames, built again"):
        cache = open_cache(root, "random", Source(count=2), SPEC)
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source(count=2)))


@pytest.mark.parametrize("file", ["frames.npy", "header.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_half_a_cache_is_built_again(tmp_path, file, damage):
    open_cache(tmp_path, "random", Source(), SPEC)
    path = the_folder(tmp_path) / file
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="damaged cache of frames, built again"):
        cache = open_cache(tmp_path, "random", Source(), SPEC)
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source()))


def seal(folder, header):
    """Write a header, of frames as they are, as if it had been built."""
    header["frames_sha256"] = hashlib.sha256((folder / "frames.npy").read_bytes()).hexdigest()
    sealed = {"sha256": array_cache.key_of(header), "header": header}
    (folder / "header.json").write_text(json.dumps(sealed))


@pytest.mark.parametrize(
    "change",
    [
        lambda frames, stats: (frames[:-1], stats),
        lambda frames, stats: (frames[:, :2], stats),
        lambda frames, stats: (frames.astype(np.int16), stats),
        lambda frames, stats: (np.array([{}], dtype=object), stats),
        lambda frames, stats: (frames, stats[:-1]),
        lambda frames, stats: (frames, [[1] * 9] * len(stats)),
        lambda frames, stats: (frames, [[*row[:5], 3] for row in stats]),
        lambda frames, stats: (frames, [["many", *row[1:]] for row in stats]),
        lambda frames, stats: (frames, None),
    ],
)
def test_a_cache_that_was_sealed_anew_is_looked_into(tmp_path, change):
    open_cache(tmp_path, "random", Source(), SPEC)
    folder = the_folder(tmp_path)
    header = json.loads((folder / "header.json").read_text())["header"]
    frames, header["stats"] = change(np.load(folder / "frames.npy"), header["stats"])
    np.save(folder / "frames.npy", frames, allow_pickle=True)
    seal(folder, header)
    with pytest.warns(UserWarning, match="damaged cache of frames, built again"):
        cache = open_cache(tmp_path, "random", Source(), SPEC)
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source()))


def test_a_file_where_a_folder_belongs_is_named(tmp_path):
    (tmp_path / "frames").write_text("mine")
    with pytest.raises(ValueError, match=r"frames: is a file, where the folder of frames belongs; move it"):
        open_cache(tmp_path / "frames", "random", Source(), SPEC)
    place = tmp_path / f"random-{cache_key(Source(), SPEC)[:16]}"
    place.write_text("mine")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=rf"{place.name}: is a file, where the folder of frames belongs; move it"),
    ):
        open_cache(tmp_path, "random", Source(), SPEC)
    assert place.read_text() == "mine"


def test_a_root_that_cannot_be_written_to_names_the_setting(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    built = open_cache(tmp_path, "random", Source(), SPEC)
    monkeypatch.setattr(array_cache.FileLock, "acquire", read_only)
    np.testing.assert_array_equal(open_cache(tmp_path, "random", Source(), SPEC).arrays, built.arrays)
    with pytest.raises(ValueError, match=r"cannot be written there .Read-only file system.; .* frames_root=FOLDER"):
        open_cache(tmp_path, "random", Source(events=5), SPEC)


class Timed(Source):
    """Recordings with these time stamps each."""

    def __init__(self, *times):
        super().__init__(count=len(times))
        self.times = times

    def load(self, index):
        t = np.array(self.times[index], np.int64)
        zeros = np.zeros(len(t), np.uint16)
        return Recording(t, zeros, zeros, np.ones(len(t), dtype=bool))


def test_recordings_without_anything_in_their_frames_are_bad_and_lopsided_ones_are_named(tmp_path):
    by_time = FrameSpec(4, "time", (8, 8))
    whole = list(range(0, 1000, 10))
    for slicing in ("time", "count"):
        with pytest.raises(BadSample, match=r"^class/1: too short, its 3 event.s. in 2 us give 4 frames without any"):
            open_cache(tmp_path, "timed", Timed(whole, [5, 6, 7]), FrameSpec(4, slicing, (8, 8)))
    with pytest.warns(UserWarning, match=r"^1 recording.s. have all their events in one of 4 frames.*: class/1$"):
        cache = open_cache(tmp_path, "lopsided", Timed(whole, [*whole, 4_000_000_000]), by_time)
    assert [stats.empty for stats in cache.stats] == [0, 3]


def test_a_build_that_was_killed_leaves_nothing_that_is_taken_for_a_cache(tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_frame_cache import SPEC, Source, open_cache

class Dies(Source):
    def load(self, index):
        if index == 7:
            os._exit(9)
        return super().load(index)

open_cache(Path({str(tmp_path)!r}), "random", Dies(), SPEC)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 9
    assert the_folder(tmp_path).name.endswith(".building")
    cache = open_cache(tmp_path, "random", Source(), SPEC)
    np.testing.assert_array_equal(cache.arrays, expected_frames(Source()))
    assert not the_folder(tmp_path).name.endswith(".building")


@pytest.mark.parametrize("kind", ["recordings", "pictures"])
def test_of_four_processes_that_build_at_once_one_is_killed_and_the_others_have_it_right(tmp_path, kind):
    root = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for name in ("cat/{}", "dog/{}"):
        for number in range(6):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "pictures":
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path.with_suffix(".png"))
            else:
                x, y, p = rng.integers(0, 16, (3, 300))
                np.savez(path.with_suffix(".npz"), t=np.arange(300), x=x, y=y, p=p % 2)

    context = get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["tna_lightning.data.event_folder", "tna_lightning.data.folder"])

    def start(stays=False):
        here, there = context.Pipe()
        process = context.Process(target=open_a_folder, args=(kind, root, there, stays))
        process.start()
        there.close()
        return process, here

    def said(pipe):
        """Until the process ends or is killed."""
        with suppress(EOFError):
            while True:
                yield pipe.recv()

    first, first_says = start(stays=True)
    built = [first_says.recv() for _ in range(6)]
    others = [start() for _ in range(3)]
    assert [says.recv() for _, says in others] == ["waits"] * 3
    first.kill()
    first.join()
    told = [[*said(says)] for _, says in others]
    for process, _ in others:
        process.join()
    assert (first.exitcode, [process.exitcode for process, _ in others]) == (-9, [0] * 3)
    names = [f"{name}/{number}" for name in ("cat", "dog") for number in range(6)]
    names = [f"{name}.png" for name in names] if kind == "pictures" else names
    assert built == [*names[:5], "builds"]
    # one of them began again, and the others read what it made
    assert sorted(len(each) for each in told) == [1, 1, 1 + len(names)]
    assert max(told, key=len)[:-1] == names
    again, says = start()
    (alone,) = said(says)
    again.join()
    assert {each[-1] for each in told} == {alone}
    cache = root / (".frames" if kind == "recordings" else ".pictures")
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [""]
    for _, pipe in ((first, first_says), *others, (again, says)):
        pipe.close()


def test_a_bad_recording_stops_the_build_and_is_named(tmp_path):
    with pytest.raises(BadSample, match=r"class/4\.aedat: holds no events; data.skip_bad=true leaves bad"):
        open_cache(tmp_path, "random", Source(bad=(4, 9)), SPEC)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_bad_recordings_can_be_left_out_and_are_counted_and_named(tmp_path):
    source = Source(bad=(4, 9))
    for _ in ("built", "opened again"):
        with pytest.warns(UserWarning, match=r"2 bad recording\(s\) left out: class/4.aedat: .*; class/9.aedat: "):
            cache = open_cache(tmp_path, "random", source, SPEC, skip_bad=True)
        assert cache.usable.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
        np.testing.assert_array_equal(cache.arrays[cache.usable], expected_frames(Source())[cache.usable])
    with pytest.raises(BadSample, match=r"class/4.*leaves 2 bad recording\(s\) out"):
        open_cache(tmp_path, "random", source, SPEC)
    with pytest.raises(BadSample, match="none of 2 recordings can be used"):
        open_cache(tmp_path, "random", Source(count=2, bad=(0, 1)), SPEC, skip_bad=True)


def test_saturation_is_clipped_and_reported(tmp_path):
    class Bright(Source):
        def load(self, index):
            count = 258 * (index + 1) * 3
            zeros = np.zeros(count, np.uint16)
            return Recording(np.arange(count), zeros, zeros, np.ones(count, dtype=bool))

    with pytest.warns(UserWarning, match=r"6 of 768 cells counted more than 255 events .* lost 792 events"):
        cache = open_cache(tmp_path, "bright", Bright(count=2), SPEC)
    assert cache.arrays[1, :, 1, 0, 0].tolist() == [255] * 3
    assert [(stats.saturated, stats.clipped) for stats in cache.stats] == [(3, 3 * 3), (3, 3 * 261)]


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_cache.os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="No space left"):
        open_cache(tmp_path, "random", Source(), SPEC)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_header_is_json_and_says_what_it_seals(tmp_path):
    open_cache(tmp_path, "random", Source(), SPEC)
    sealed = json.loads((the_folder(tmp_path) / "header.json").read_text())
    assert set(sealed) == {"sha256", "header"}
    assert sealed["header"]["key"] == cache_key(Source(), SPEC)
