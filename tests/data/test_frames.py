"""Frames against tonic's own, and against counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tna_lightning.data.frames import FrameSpec, frame_edges, pixels_per_cell, to_frames
from tna_lightning.data.recordings import Recording


def random_recording(rng, count, sensor, longest_gap):
    t = rng.integers(0, 2**40) + rng.integers(0, longest_gap + 1, count).cumsum()
    height, width = sensor
    return Recording(
        t.astype(np.int64),
        rng.integers(0, width, count).astype(np.uint16),
        rng.integers(0, height, count).astype(np.uint16),
        rng.integers(0, 2, count).astype(bool),
    )


def as_tonic(recording):
    events = np.zeros(len(recording), dtype=[("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")])
    for column in ("x", "y", "t", "p"):
        events[column] = getattr(recording, column)
    return events


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 400),
    longest_gap=st.sampled_from([0, 1, 3, 5000]),
    time_steps=st.integers(1, 12),
    slicing=st.sampled_from(["time", "count"]),
)
def test_frames_equal_tonic_to_frame(seed, count, longest_gap, time_steps, slicing):
    from tonic.transforms import ToFrame

    recording = random_recording(np.random.default_rng(seed), count, (11, 17), longest_gap)
    bins = {"n_time_bins" if slicing == "time" else "n_event_bins": time_steps}
    expected = ToFrame(sensor_size=(17, 11, 2), **bins)(as_tonic(recording))
    np.testing.assert_array_equal(to_frames(recording, (11, 17), FrameSpec(time_steps, slicing, (11, 17))), expected)


@pytest.mark.parametrize("size", [48, 64, 128])
def test_coarser_frames_equal_tonic_downsample_then_to_frame(size):
    from tonic.transforms import Downsample, ToFrame

    recording = random_recording(np.random.default_rng(size), 20_000, (128, 128), 60)
    coarse = Downsample(spatial_factor=size / 128)(as_tonic(recording))
    expected = ToFrame(sensor_size=(size, size, 2), n_time_bins=10)(coarse)
    frames = to_frames(recording, (128, 128), FrameSpec(10, "time", (size, size)))
    np.testing.assert_array_equal(frames, expected)
    used = np.ptp(frame_edges(recording.t, 10, "time"))
    assert frames.sum() == used


def test_the_remainder_is_left_out_as_tonic_does():
    t = np.array([0, 10, 19, 20, 29, 31], np.int64)
    assert frame_edges(t, 3, "time").tolist() == [0, 1, 3, 5]  # windows of 10 us: [0, 10), [10, 20), [20, 30)
    assert frame_edges(np.arange(7), 3, "count").tolist() == [0, 2, 4, 6]
    assert frame_edges(t[:2], 11, "time").tolist() == [0] * 12  # a window of 0 us
    assert frame_edges(t[:2], 3, "count").tolist() == [0] * 4


def test_rows_columns_polarity_and_time_go_where_they_belong():
    recording = Recording(
        t=np.array([0, 4, 5, 5, 10], np.int64),
        x=np.array([3, 0, 2, 2, 0], np.uint16),
        y=np.array([0, 1, 1, 1, 0], np.uint16),
        p=np.array([True, False, True, True, True]),
    )
    frames = to_frames(recording, (2, 4), FrameSpec(2, "time", (2, 4)))
    expected = np.zeros((2, 2, 2, 4), int)
    expected[0, 1, 0, 3] = 1
    expected[0, 0, 1, 0] = 1
    expected[1, 1, 1, 2] = 2
    np.testing.assert_array_equal(frames, expected)


def test_cells_cover_every_pixel_once():
    coverage = pixels_per_cell((128, 128), (48, 48))
    assert coverage.sum() == 128 * 128
    assert sorted(set(coverage.ravel().tolist())) == [4, 6, 9]
    np.testing.assert_array_equal(pixels_per_cell((128, 128), (64, 64)), 4)
    recording = Recording(
        t=np.arange(128 * 128),
        x=np.tile(np.arange(128), 128),
        y=np.repeat(np.arange(128), 128),
        p=np.ones(128**2, bool),
    )
    np.testing.assert_array_equal(to_frames(recording, (128, 128), FrameSpec(1, "count", (48, 48)))[0, 1], coverage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_steps": 0}, "time_steps=0: must be at least 1"),
        ({"slicing": "events"}, "slicing='events': must be one of time, count"),
        ({"size": (0, 4)}, r"size=\(0, 4\): must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FrameSpec(**{"time_steps": 4, "slicing": "time", "size": (4, 4), **settings})
