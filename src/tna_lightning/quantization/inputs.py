"""What a kept network expects, and how raw inputs become it: pictures, uint8 arrays and recordings. No Lightning.

Letters: T time steps, B batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.data.batch import Normalization
from tna_lightning.data.frames import FrameSpec, frames_of, gain_of_cells
from tna_lightning.data.pictures import levels_of
from tna_lightning.data.recordings import Recording

if TYPE_CHECKING:

    class KeptNetwork(nn.Module):
        """What ``load_packed`` returns: the network that was saved, and beside its own attributes these.

        Attributes:
            classes: the names of the classes in the order of the logits; None where the file does not know them.
            preprocess: :meth:`Questions.preprocess`.
            predict: :meth:`Questions.predict`.
        """

        classes: list[str] | None
        preprocess: Callable[[Any], Tensor]
        predict: Callable[[Any], list[Prediction]]


@dataclass(frozen=True)
class Prediction:
    """A network's answer to one input.

    Attributes:
        name: of the most probable class; its number where names are not known.
        probability: of that class, the softmax of the logits' mean over time. It says how sure the network is, not how
            often it is right (``evaluate`` measures by how much the two differ).
        probabilities: of all classes, float32 ``[K]``.
    """

    name: str
    probability: float
    probabilities: Tensor


class Questions:
    """Asks a kept network about raw inputs, as its file says that they become what it was trained on.

    Args:
        network: in eval mode.
        inputs: of its file's header (:data:`~.packing.INPUTS`), all entries.
        path: of the file, for errors.
    """

    def __init__(self, network: nn.Module, inputs: Mapping[str, Any], path: str) -> None:
        self.network = network
        self.inputs = dict(inputs)
        self.path = path

    @property
    def missing(self) -> list[str]:
        """Which entries that raw inputs cannot be prepared without the file does not have."""
        needed = {"images": ("shape", "mean", "std"), "events": ("shape", "time_steps", "framing")}
        names = needed.get(self.inputs["kind"], ("kind",))
        return [name for name in names if self.inputs[name] is None]

    def preprocess(self, x: Any) -> Tensor:
        """Raw inputs as the network takes them: float32 ``[B, C, H, W]``, or of events ``[B, T, 2, H, W]``.

        Args:
            x: one input, or a list of them. Images: Pillow's pictures of any size and mode, cut and scaled as
                ``data=image_folder`` does; or uint8, a tensor or an array, ``[C, H, W]`` or ``[H, W, C]`` (grey also
                ``[H, W]``), with or without B before it. Events: recordings
                (:class:`~tna_lightning.data.recordings.Recording`), which are checked and cut into frames as in
                training, or counts as uint8 ``[T, 2, H, W]``, with or without B.

        Raises:
            ValueError: the file does not say how; or another shape or type. A recording that is empty, off the sensor
                or too short raises its subclass ``BadSample``.
        """
        if self.missing:
            raise ValueError(f"path={self.path!r}: {self.does_not_know()}")
        if isinstance(x, list | tuple):
            if not x:
                raise ValueError("x=[]: must hold at least one input")
            return torch.cat([self.preprocess(each) for each in x])
        return self._normalization()(raw_levels(x, self.inputs).cpu())

    @torch.inference_mode()
    def predict(self, x: Any) -> list[Prediction]:
        """The network's answers, one an input.

        Args:
            x: raw inputs as for :meth:`preprocess`, or prepared ones, a float tensor with B first.
        """
        is_prepared = isinstance(x, Tensor) and x.is_floating_point()
        prepared = x if is_prepared else self.preprocess(x)
        device = next(self.network.parameters()).device
        return answers(self.network(prepared.to(device)), self.inputs["class_names"])

    def does_not_know(self) -> str:
        """Words on what is missing, and what to do about it."""
        return (
            f"does not know what its network expects ({', '.join(self.missing)}), as files of earlier versions and of "
            "data of one's own do not; prepare inputs as in training and pass them as float32, or write it with "
            "save_network(inputs=...)"
        )

    def _normalization(self) -> Normalization:
        """As the data modules of :mod:`tna_lightning.data` have it, operation for operation: the same bits."""
        if self.inputs["kind"] == "events":
            gain = gain_of_cells(tuple(self.inputs["framing"]["sensor"]), tuple(self.inputs["shape"][1:]))
            return Normalization(torch.zeros(2, 1, 1), torch.ones(2, 1, 1), gain)
        mean, std = (torch.tensor(self.inputs[name]).mul(255).view(-1, 1, 1) for name in ("mean", "std"))
        return Normalization(mean, std.reciprocal())


def raw_levels(x: Any, inputs: Mapping[str, Any], name: str = "recording") -> Tensor:
    """One raw input, or several in one array, as uint8 ``[B, C, H, W]``, or of events ``[B, T, 2, H, W]``.

    Args:
        x: as for :meth:`Questions.preprocess`, but no list.
        inputs: of a file's header: ``kind`` and ``shape`` must be known. Of events, where ``time_steps`` are not, any T
            will do, and where ``framing`` is not, recordings are refused.
        name: of a recording, for errors.

    Raises:
        ValueError: another shape or type, or a bad recording, then ``BadSample``.
    """
    shape = list(inputs["shape"])
    if inputs["kind"] == "events":
        if isinstance(x, Recording):
            if (framing := inputs["framing"]) is None:
                raise ValueError("framing: is not known here, so that recordings cannot be cut into frames")
            spec = FrameSpec(inputs["time_steps"], framing["slicing"], tuple(shape[1:]))
            return torch.from_numpy(frames_of(x, name, tuple(framing["sensor"]), spec))[None]
        counts = _as_uint8(x, "a Recording")
        steps = inputs["time_steps"] or counts.shape[-4:-3].numel()
        if list(counts.shape[-4:]) != [steps, *shape] or counts.ndim > 5:
            words = f"[T, 2, H, W] {[inputs['time_steps'] or 'T', *shape]}"
            raise ValueError(f"x={list(counts.shape)}: must be {words}, with or without B before it")
        return counts.view(-1, steps, *shape)
    channels, height, width = shape
    if hasattr(x, "convert"):  # Pillow's, which is not imported for this
        if channels not in (1, 3):
            raise ValueError(f"x={type(x).__name__}: the network takes {channels} channels, pictures have 1 or 3")
        return torch.from_numpy(np.array(levels_of(x, (height, width), grey=channels == 1), order="C"))[None]
    levels = _as_uint8(x, "a Pillow picture")
    size = list(levels.shape)
    if size[-3:] == shape and levels.ndim <= 4:
        return levels.reshape(-1, *shape)
    if size[-3:] == [height, width, channels] and levels.ndim <= 4:
        return levels.movedim(-1, -3).reshape(-1, *shape)
    if channels == 1 and size[-2:] == [height, width] and levels.ndim <= 3:
        return levels.reshape(-1, *shape)
    hint = "; pictures of another size are scaled if they come as Pillow's" if levels.ndim in (2, 3, 4) else ""
    raise ValueError(
        f"x={size}: must be [C, H, W] {shape} or [H, W, C] {[height, width, channels]}, with or without B before "
        f"it{hint}"
    )


def _as_uint8(x: Any, other: str) -> Tensor:
    is_array = isinstance(x, np.ndarray)
    if not is_array and not isinstance(x, Tensor):
        raise ValueError(f"x={type(x).__name__}: must be {other}, or a uint8 array or tensor")
    if x.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"x={x.dtype}: must be uint8, 0 to 255; floats that are prepared already go into network(x)")
    return torch.from_numpy(np.array(x, order="C")) if is_array else x  # a copy: x may be read only


def answers(logits: Tensor, class_names: Sequence[str] | None) -> list[Prediction]:
    """Predictions from logits, ``[T, B, K]`` or ``[B, K]``."""
    probabilities_BK = (logits.mean(0) if logits.ndim == 3 else logits).float().softmax(-1)
    names = class_names or [str(number) for number in range(probabilities_BK.shape[1])]
    best, classes = probabilities_BK.max(-1)
    return [
        Prediction(names[number], probability, each)
        for number, probability, each in zip(classes.tolist(), best.tolist(), probabilities_BK, strict=True)
    ]


class RefusesRaw:
    """A hook before a network's forward, which leaves its input as it is: whole numbers are none, and are refused.

    Args:
        questions: of the network.
    """

    def __init__(self, questions: Questions) -> None:
        self.questions = questions

    def __call__(self, module: nn.Module, arguments: Sequence[Any]) -> None:
        """Look at the input.

        Raises:
            ValueError: it holds whole numbers.
        """
        if arguments and isinstance(x := arguments[0], Tensor) and not (x.is_floating_point() or x.is_complex()):
            how = (
                f"this file {self.questions.does_not_know()}"
                if self.questions.missing
                else "network.preprocess(x) makes them so, network.predict(x) answers at once"
            )
            raise ValueError(f"x of {x.dtype}: must be floating-point numbers, normalised as in training; {how}")


def make_askable(network: nn.Module, inputs: Mapping[str, Any], path: str, *, refuses_raw: bool) -> None:
    """Give a network ``preprocess``, ``predict`` and ``classes``, but for those that its own class has.

    Args:
        network: in eval mode.
        inputs: of its file's header.
        path: of the file, for errors.
        refuses_raw: whether its forward refuses whole numbers: not that of a network of one's own, of which nothing is
            known.
    """
    questions = Questions(network, inputs, path)
    given = {"preprocess": questions.preprocess, "predict": questions.predict, "classes": inputs["class_names"]}
    for name, value in given.items():
        if not hasattr(type(network), name):
            setattr(network, name, value)
    if refuses_raw:
        network.register_forward_pre_hook(RefusesRaw(questions))
