"""The simulated camera against what its model says, worked out by hand or another way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tna_lightning.data.camera import EventCamera, bicubic_matrix, crossings, drop_refractory

QUIET = {"threshold_spread": 0.0, "shot_noise_hz": 0.0, "refractory_us": 0}


def picture(seed=0, side=8):
    return np.random.default_rng(seed).random((side, side))


def test_a_ramp_sends_an_event_at_every_threshold():
    light = np.linspace(0, 1, 5)[:, None]  # +1 in 4 steps of 1000 us
    t, pixel, p = crossings(light, np.array([0.3]), np.array([0.3]), 1000.0)
    assert t.tolist() == [1200, 2400, 3600]
    assert pixel.tolist() == [0, 0, 0]
    assert p.all()
    t, _, p = crossings(-light, np.array([0.3]), np.array([0.25]), 1000.0)
    assert t.tolist() == [1000, 2000, 3000, 4000]
    assert not p.any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(2, 20))
def test_what_a_pixel_remembers_stays_within_a_threshold_of_the_light(seed, samples):
    rng = np.random.default_rng(seed)
    light = rng.normal(size=(samples, 6)).cumsum(axis=0)
    on, off = rng.uniform(0.05, 0.5, (2, 6))
    t, pixel, p = crossings(light, on, off, 100.0)
    remembered = light[0] + np.bincount(pixel, np.where(p, on[pixel], -off[pixel]), minlength=6)
    gap = light[-1] - remembered
    assert (gap < on + 1e-6).all()
    assert (gap > -off - 1e-6).all()
    order = np.argsort(t, kind="stable")
    for where in range(6):  # within a pixel, events come in order of time already
        mine = t[pixel == where]
        assert (np.diff(mine) >= 0).all()
    assert ((t[order] >= 0) & (t[order] <= (samples - 1) * 100)).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), refractory=st.integers(0, 40))
def test_refractory_time_equals_a_plain_loop(seed, refractory):
    rng = np.random.default_rng(seed)
    pixel = np.sort(rng.integers(0, 4, 60))
    t = rng.integers(0, 300, 60)
    order = np.lexsort((t, pixel))
    t, p = t[order], rng.random(60) < 0.5
    last, expected = {}, []
    for index in range(60):
        if t[index] - last.get(pixel[index], -1000) >= refractory:
            last[pixel[index]] = t[index]
            expected.append(index)
    kept = drop_refractory(t, pixel, p, refractory)
    for got, all_of_them in zip(kept, (t, pixel, p), strict=True):
        np.testing.assert_array_equal(got, all_of_them[expected])


def test_the_path_is_a_closed_loop_of_four_diagonal_legs():
    camera = EventCamera(leg=3)
    path = camera.path()
    assert path.tolist() == [
        [-3, 0], [-2, -1], [-1, -2], [0, -3], [1, -2], [2, -1], [3, 0], [2, 1], [1, 2], [0, 3], [-1, 2], [-2, 1],
    ]  # fmt: skip
    assert EventCamera().duration_us == 1.2e6


def test_enlarging_equals_pillow_bicubic():
    from PIL import Image

    small = picture(side=32)
    matrix = bicubic_matrix(32, 512)
    expected = Image.fromarray(small.astype(np.float32)).resize((512, 512), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(matrix @ small @ matrix.T, np.asarray(expected), atol=1e-5)


def test_the_light_on_the_sensor_is_that_of_the_screen_pixels_in_view():
    camera = EventCamera(sensor=16, display=64, leg=5)
    matrix = bicubic_matrix(8, 64)
    screen = camera.black_level + (1 - camera.black_level) * (matrix @ picture() @ matrix.T).clip(0, 1) ** 2.2
    light = camera.light(picture())
    for step in (0, 1, 7, 13):
        right, down = camera.path()[step]
        moved = np.empty((64, 64))
        for row in range(64):
            for column in range(64):
                moved[row, column] = screen[np.clip(row - down, 0, 63), np.clip(column - right, 0, 63)]
        expected = np.log(moved.reshape(16, 4, 16, 4).mean(axis=(1, 3)))
        np.testing.assert_allclose(light[step], expected, atol=1e-9)


def test_a_uniform_picture_is_silent_but_for_shot_noise():
    grey = np.full((8, 8), 0.5)
    assert len(EventCamera(sensor=16, display=64, shot_noise_hz=0).record(grey, 0)) == 0
    camera = EventCamera(sensor=32, display=128, shot_noise_hz=20, refractory_us=0)
    light = camera.black_level + (1 - camera.black_level) * 0.5**2.2
    expected = 20 * (1 - 0.75 * light) * 1.2 * 32 * 32
    recording = camera.record(grey, 0)
    assert len(recording) == pytest.approx(expected, abs=5 * expected**0.5)
    assert recording.p.mean() == pytest.approx(0.5, abs=0.03)


def test_an_edge_that_moves_right_and_up_darkens_and_brightens_where_it_should():
    half = np.zeros((8, 8))
    half[:, 4:] = 1.0  # white on the right: as the picture moves right, black comes to where white was
    camera = EventCamera(sensor=16, display=64, leg=8, loops=1, **QUIET)
    recording = camera.record(half, 0)
    first_half = recording.t < camera.duration_us / 2
    assert first_half.any()
    assert not recording.p[first_half].any()
    assert recording.p[~first_half].all()
    assert (abs(recording.x.astype(int) - 7.5) <= 4).all()
    rows, counts = np.unique(recording.y, return_counts=True)
    assert rows.tolist() == list(range(16))
    assert len(set(counts.tolist())) == 1


def test_recordings_depend_on_camera_picture_and_index_alone():
    camera = EventCamera(sensor=16, display=64, loops=1)
    first = camera.record(picture(), 3)
    np.random.default_rng().random()
    again = EventCamera(sensor=16, display=64, loops=1).record(picture(), 3)
    for column in ("t", "x", "y", "p"):
        np.testing.assert_array_equal(getattr(first, column), getattr(again, column))
    others = [
        camera.record(picture(), 4),
        camera.record(picture(1), 3),
        EventCamera(sensor=16, display=64, loops=1, seed=1).record(picture(), 3),
    ]
    assert all(not np.array_equal(first.t, other.t) for other in others)


def test_events_are_in_order_on_the_sensor_and_outside_the_refractory_time():
    camera = EventCamera(sensor=16, display=64, shot_noise_hz=200, refractory_us=3000)
    recording = camera.record(picture(), 0)
    assert (np.diff(recording.t) >= 0).all()
    assert recording.x.max() < 16
    assert recording.y.max() < 16
    pixel = recording.y.astype(int) * 16 + recording.x
    gaps = [np.diff(recording.t[pixel == where]) for where in range(256)]
    assert np.concatenate(gaps).min() >= 3000
    assert len(recording) < len(
        EventCamera(sensor=16, display=64, shot_noise_hz=200, refractory_us=0).record(picture(), 0)
    )


def test_thresholds_spread_as_asked_and_belong_to_the_sensor():
    camera = EventCamera(threshold=0.3, threshold_spread=0.05)
    for thresholds in camera.thresholds():
        assert thresholds.mean() == pytest.approx(0.3, abs=0.002)
        assert thresholds.std() == pytest.approx(0.05, abs=0.002)
    np.testing.assert_array_equal(
        camera.thresholds()[0], EventCamera(threshold=0.3, threshold_spread=0.05).thresholds()[0]
    )
    assert min(EventCamera(threshold_spread=0.2).thresholds()[0]) == 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensor": 0}, "sensor=0: must be at least 1"),
        ({"display": 100}, "display=100: must be a multiple of sensor=128"),
        ({"threshold": 0.0}, r"threshold=0\.0: must be at least 0\.01"),
        ({"threshold_spread": -0.1}, r"threshold_spread=-0\.1: must not be negative"),
        ({"black_level": 0.0}, r"black_level=0\.0: must lie between 0 and 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        EventCamera(**settings)
