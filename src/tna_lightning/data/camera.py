"""A simulated event camera that watches a still picture move along a closed loop. No recording of a real sensor.

The sensor after v2e (Hu, Liu, Delbruck 2021, arXiv 2006.07722) and ESIM (Rebecq, Gehrig, Scaramuzza 2018): a pixel
remembers a log intensity and sends an event whenever the present one differs from it by the pixel's threshold. The
motion after the recording protocol of CIFAR10-DVS (Li et al. 2017, doi 10.3389/fnins.2017.00309): a picture on a screen
moves around a closed loop of four diagonal legs, several times, in front of a camera at rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tna_lightning.data.recordings import Recording

NOISE_IN_BRIGHT_LIGHT = 0.25  # of the rate in the dark (v2e)
LEAST_THRESHOLD = 0.01  # v2e's lower bound of a pixel's threshold
DISPLAY_GAMMA = 2.2


@dataclass(frozen=True)
class EventCamera:
    """A square event sensor and the screen before it.

    The picture fills the sensor's view; beyond its border its outermost pixels go on.

    Args:
        sensor: pixels along a side.
        display: screen pixels along a side, a multiple of ``sensor``.
        threshold: log-intensity change (natural log) that makes an event; v2e's default.
        threshold_spread: standard deviation of the threshold over pixels, ON and OFF drawn apart; v2e's default.
        refractory_us: microseconds after an event in which its pixel sends no other; v2e's default.
        shot_noise_hz: rate of noise events of a pixel in the dark, half of them ON; at full brightness a quarter.
        black_level: light of a black screen, as a share of a white one: leakage and ambient light.
        leg: screen pixels that the picture moves along each axis in one of the loop's four legs.
        speed: screen pixels a second along each axis.
        loops: how often the picture goes around. With 10 pixels, 200 a second and 6 loops a recording takes 1.2 s, as
            those of CIFAR10-DVS do.
        seed: of the sensor's thresholds, which all recordings share, and of each recording's noise.
    """

    sensor: int = 128
    display: int = 512
    threshold: float = 0.2
    threshold_spread: float = 0.03
    refractory_us: int = 500
    shot_noise_hz: float = 1.0
    black_level: float = 0.02
    leg: int = 10
    speed: int = 200
    loops: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("sensor", 1), ("leg", 1), ("speed", 1), ("loops", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least {least}")
        if self.display < self.sensor or self.display % self.sensor:
            raise ValueError(f"display={self.display!r}: must be a multiple of sensor={self.sensor}")
        for name in ("threshold_spread", "refractory_us", "shot_noise_hz", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must not be negative")
        if not self.threshold >= LEAST_THRESHOLD:
            raise ValueError(f"threshold={self.threshold!r}: must be at least {LEAST_THRESHOLD}")
        if not 0 < self.black_level < 1:
            raise ValueError(f"black_level={self.black_level!r}: must lie between 0 and 1")

    @property
    def step_us(self) -> float:
        """Microseconds in which the picture moves by one screen pixel along each axis."""
        return 1e6 / self.speed

    @property
    def duration_us(self) -> float:
        """Length of a recording."""
        return 4 * self.leg * self.loops * self.step_us

    def path(self) -> np.ndarray:
        """Where the picture is, in screen pixels ``(right, down)``, at every step of one loop; int64 ``[4 leg, 2]``.

        Four legs of 45 degrees around the middle of the view: from its left up and right, down and right, down and
        left, up and left.
        """
        legs = np.repeat([(1, -1), (1, 1), (-1, 1), (-1, -1)], self.leg, axis=0)
        return np.concatenate([[(-self.leg, 0)], legs[:-1]]).cumsum(axis=0)

    def light(self, picture: np.ndarray) -> np.ndarray:
        """Log intensity at each pixel of the sensor, at every step of one loop.

        The picture is scaled to the screen by bicubic interpolation, shown with gamma 2.2, and each sensor pixel
        gathers the light of the screen pixels in its view.

        Args:
            picture: grey values in [0, 1], ``[h, w]``.

        Returns:
            Natural log, ``[4 leg, sensor, sensor]``.
        """
        rows, columns = (bicubic_matrix(length, self.display) for length in picture.shape)
        shown = (rows @ picture @ columns.T).clip(0, 1) ** DISPLAY_GAMMA
        cell = self.display // self.sensor
        margin = self.leg
        screen = np.pad(self.black_level + (1 - self.black_level) * shown, margin, mode="edge")
        sums = np.pad(screen, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
        boxes = sums[cell:, cell:] - sums[:-cell, cell:] - sums[cell:, :-cell] + sums[:-cell, :-cell]
        frames = []
        for right, down in self.path():
            top, left = margin - down, margin - right
            view = boxes[top : top + self.display : cell, left : left + self.display : cell]
            frames.append(view / cell**2)
        return np.log(np.stack(frames))

    def record(self, picture: np.ndarray, index: int) -> Recording:
        """The events of one picture; the same for the same camera, picture and index, on any process.

        Log intensity goes linearly from step to step. An event inside its pixel's refractory time is lost.

        Args:
            picture: grey values in [0, 1], ``[h, w]``.
            index: of the recording: its noise differs from that of other indices.
        """
        light = self.light(picture).reshape(4 * self.leg, -1)
        moving = np.concatenate([np.tile(light, (self.loops, 1)), light[:1]])
        signal = crossings(moving, *self.thresholds(), self.step_us)
        noise = self._noise(light[0], np.random.default_rng([self.seed, 1, index]))
        t, pixel, p = (np.concatenate(parts) for parts in zip(signal, noise, strict=True))
        order = np.lexsort((p, t, pixel))
        t, pixel, p = drop_refractory(t[order], pixel[order], p[order], self.refractory_us)
        order = np.argsort(t, kind="stable")
        y, x = np.divmod(pixel[order], self.sensor)
        return Recording(t[order], x.astype(np.uint16), y.astype(np.uint16), p[order])

    def thresholds(self) -> tuple[np.ndarray, np.ndarray]:
        """The ON and the OFF threshold of each pixel; two float64 ``[sensor * sensor]``."""
        draw = np.random.default_rng([self.seed, 0]).normal(size=(2, self.sensor**2))
        on, off = np.maximum(self.threshold + self.threshold_spread * draw, LEAST_THRESHOLD)
        return on, off

    def _noise(self, light: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rate_hz = self.shot_noise_hz * (1 - (1 - NOISE_IN_BRIGHT_LIGHT) * np.exp(light))
        counts = rng.poisson(rate_hz * self.duration_us / 1e6)
        pixel = np.repeat(np.arange(len(light)), counts)
        return rng.integers(0, int(self.duration_us), len(pixel)), pixel, rng.random(len(pixel)) < 0.5

    def fingerprint(self) -> dict[str, Any]:
        """All settings, as JSON."""
        return asdict(self)


def crossings(
    light: np.ndarray, on: np.ndarray, off: np.ndarray, step_us: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When each pixel's log intensity, linear between samples, crosses its thresholds.

    A pixel starts from the first sample; each event moves what it remembers by one threshold towards the present.

    Args:
        light: log intensity, ``[S, P]``, a sample every ``step_us`` microseconds.
        on: thresholds ``[P]`` for brightening.
        off: thresholds ``[P]`` for darkening.
        step_us: microseconds between samples.

    Returns:
        Times (int64, microseconds), pixels (int64) and polarities (bool) of all events, each ``[N]``.
    """
    remembered = light[0].copy()
    times: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    polarities: list[np.ndarray] = []
    for step in range(1, len(light)):
        change = light[step] - remembered
        brighter = change > 0
        size = np.where(brighter, on, off)
        events = (np.abs(change) / size + 1e-9).astype(np.int64)  # the margin keeps a closed loop closed
        active = np.flatnonzero(events)
        counts = events[active]
        pixel = np.repeat(active, counts)
        nth = np.arange(len(pixel)) - np.repeat(counts.cumsum() - counts, counts) + 1
        signed = np.where(brighter, size, -size)
        level = remembered[pixel] + nth * signed[pixel]
        before = light[step - 1, pixel]
        share = (level - before) / (light[step, pixel] - before)
        times.append(np.rint((step - 1 + share) * step_us).astype(np.int64))
        pixels.append(pixel)
        polarities.append(brighter[pixel])
        remembered += events * signed
    return np.concatenate(times), np.concatenate(pixels), np.concatenate(polarities)


def drop_refractory(
    t: np.ndarray, pixel: np.ndarray, p: np.ndarray, refractory_us: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop, pixel by pixel in order of time, each event less than ``refractory_us`` after the last one kept.

    Args:
        t: int64 ``[N]``, sorted within each pixel.
        pixel: ``[N]``, sorted.
        p: ``[N]``.
        refractory_us: microseconds.
    """
    while True:
        close = np.zeros(len(t), dtype=bool)
        close[1:] = (pixel[1:] == pixel[:-1]) & (t[1:] - t[:-1] < refractory_us)
        if not close.any():
            return t, pixel, p
        kept = np.ones(len(t), dtype=bool)
        kept[1:] = ~close[1:] | close[:-1]  # the first of each run of close events is too early for certain
        t, pixel, p = t[kept], pixel[kept], p[kept]


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """The matrix ``[target, source]`` that enlarges a line of samples by Keys' cubic convolution with a = -0.5."""
    a = -0.5
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    distance = np.abs(centre[:, None] - np.arange(source))
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
