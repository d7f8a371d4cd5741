"""Weights of an earlier run into a network."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from tna_lightning import runs
from tna_lightning.quantization.packing import decoded_state
from tna_lightning.quantization.parametrized import plain_state_dict


def load_weights(key: str, network: nn.Module, source: Path | str) -> None:
    """Copy the base network of an earlier run into ``network``, which must have the same shape.

    Args:
        key: the setting that named the source, for errors.
        network: is filled in place.
        source: a run's folder, a kept network (``.safetensors``) or a checkpoint (``.ckpt``). A kept network's weights
            are as they were deployed, a checkpoint's are the full-precision copies.

    Raises:
        ValueError: there is no such file, or it holds a network of another shape.
    """
    path = Path(source)
    if path.is_dir():
        runs.finished_record(path)
        path = path / runs.NETWORK
    if not path.is_file():
        raise ValueError(f"{key}={str(source)!r}: neither a run's folder nor a .safetensors or .ckpt file")
    try:
        state = checkpoint_weights(path) if path.suffix == ".ckpt" else decoded_state(path)[0]
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{key}={str(source)!r}: fits another network ({reason})") from None
    except ValueError as error:
        raise ValueError(f"{key}={str(source)!r}: {str(error).partition(': ')[2]}") from None


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """The base network's full-precision state in a checkpoint of :class:`tna_lightning.learner.TwinLearner`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
        raise ValueError(f"path={str(path)!r}: cut short, or no checkpoint of a TwinLearner") from None
    return plain_state_dict(
        {name.removeprefix("base."): value for name, value in state.items() if name.startswith("base.")}
    )
