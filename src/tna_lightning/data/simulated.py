"""Pictures seen by the simulated event camera: for trying the event path, and for those who cannot get recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.data.camera import EventCamera
from tna_lightning.data.cifar import CIFARDataModule
from tna_lightning.data.digits import load_digits
from tna_lightning.data.events import EventDataModule
from tna_lightning.data.recordings import Recording, check

BORDER = 2  # black pixels around the 8x8 digits, so that they do not leave the view
VERSION = 1  # raise it when the camera's events change for the same settings


class SimulatedRecordings:
    """A :class:`~tna_lightning.data.recordings.RecordingSource` that lets a camera watch pictures.

    Args:
        pictures: uint8 ``[N, h, w]``, grey.
        labels: class of each.
        names: name of each.
        camera: that watches them.
    """

    def __init__(self, pictures: np.ndarray, labels: Sequence[int], names: Sequence[str], camera: EventCamera) -> None:
        self.pictures = pictures
        self.labels = labels
        self.names = names
        self.camera = camera
        self.sensor = (camera.sensor, camera.sensor)

    def load(self, index: int) -> Recording:  # noqa: D102
        return check(self.camera.record(self.pictures[index] / 255, index), self.names[index], self.sensor)

    def fingerprint(self) -> dict[str, Any]:  # noqa: D102
        return {
            "simulated": VERSION,
            "camera": self.camera.fingerprint(),
            "pictures": hashlib.sha256(self.pictures.tobytes()).hexdigest(),
            "labels": list(self.labels),
        }


class SimulatedDataModule(EventDataModule):
    """Base of the simulated event data sets. A blank picture gives no recording, and is left out with a warning.

    Args:
        root: folder in whose folder ``frames`` the frames are cached.
        camera: that watches the pictures.
        **settings: see :class:`~tna_lightning.data.EventDataModule`; ``skip_bad`` is true.
    """

    simulated = True

    def __init__(self, root: str | Path = ".data", *, camera: EventCamera, **settings: Any) -> None:
        super().__init__(root, skip_bad=True, **settings)
        self.camera = camera

    def pictures(self) -> tuple[Tensor, Tensor]:
        """What the camera watches: uint8 ``[N, h, w]``, grey, and labels int64 ``[N]``."""
        raise NotImplementedError

    def source(self) -> SimulatedRecordings:  # noqa: D102
        pictures, labels = self.pictures()
        names = [f"{self.class_names[label]}/simulated_{index}" for index, label in enumerate(labels.tolist())]
        return SimulatedRecordings(pictures.numpy(), labels.tolist(), names, self.camera)

    def describe(self) -> dict[str, Any]:
        """What a run record says, with the camera's settings; needs :meth:`setup`."""
        return {**super().describe(), "camera": self.camera.fingerprint()}


class DigitsDVSDataModule(SimulatedDataModule):
    """SIMULATED events: scikit-learn's real scans of digits, in a black border, seen by a simulated event camera.

    The test set is that of :class:`~tna_lightning.data.digits.DigitsDataModule` for the default split.

    Args:
        root: folder in whose folder ``frames`` the frames are cached.
        camera: sensor and motion; by default 24x24 pixels and one loop of 0.2 s, a leg of which is a frame.
        **settings: see :class:`~tna_lightning.data.EventDataModule`.
    """

    name = "digits_dvs"

    def __init__(
        self,
        root: str | Path = ".data",
        *,
        camera: EventCamera | None = None,
        time_steps: int = 4,
        size: int = 12,
        batch_size: int = 16,
        eval_batch_size: int = 500,
        test_fraction: float = 0.2,
        **settings: Any,
    ) -> None:
        super().__init__(
            root,
            camera=camera or EventCamera(sensor=24, display=96, loops=1),
            time_steps=time_steps,
            size=size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            test_fraction=test_fraction,
            **settings,
        )

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return [str(digit) for digit in range(10)]

    def pictures(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        images, labels, _ = load_digits()
        return nn.functional.pad(images.squeeze(1), (BORDER,) * 4), labels


class CIFAR10SimDVSDataModule(SimulatedDataModule):
    """SIMULATED events: CIFAR-10 images seen by a simulated event camera. A stand-in, not CIFAR10-DVS.

    The motion follows the recording protocol of CIFAR10-DVS: images enlarged to 512x512, a 128x128 sensor, six loops of
    four diagonal legs in 1.2 s. The pictures are the first of each class among CIFAR-10's training images, in grey
    (Rec. 601), which are not those that were recorded.

    Args:
        root: folder of CIFAR-10, as `CIFARDataModule` reads it; frames are cached there.
        download: fetch CIFAR-10 if it is not there.
        per_class: recordings of each class.
        camera: sensor and motion.
        **settings: see :class:`~tna_lightning.data.EventDataModule`.
    """

    name = "cifar10_simdvs"

    def __init__(
        self,
        root: str | Path = ".data",
        *,
        download: bool = True,
        per_class: int = 1000,
        camera: EventCamera | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, camera=camera or EventCamera(), **settings)
        if per_class < 1:
            raise ValueError(f"per_class={per_class!r}: must be at least 1")
        self.per_class = per_class
        self.images = CIFARDataModule("cifar10", root, download=download)

    @property
    def class_names(self) -> list[str]:  # noqa: D102
        return self.images.class_names

    def prepare_data(self) -> None:  # noqa: D102
        self.images.prepare_data()

    def pictures(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        images, labels, test = self.images.load()
        labels[test] = -1
        per_class = [(labels == label).nonzero().squeeze(1)[: self.per_class] for label in range(self.num_classes)]
        fewest = min(len(members) for members in per_class)
        if fewest < self.per_class:
            raise ValueError(f"per_class={self.per_class!r}: must be at most {fewest}, the images of a class")
        chosen = torch.cat(per_class)
        red, green, blue = images[chosen].float().unbind(1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).round().to(torch.uint8), labels[chosen]
