"""Weights of an earlier run into a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tna_lightning.models import SpikingNeuron
from tna_lightning.models.blocks import UNITS
from tna_lightning.quantization.packing import decoded_state
from tna_lightning.quantization.parametrized import plain_state_dict
from tna_lightning.running.checkpoints import open_checkpoint
from tna_lightning.running.record import NETWORK, finished_record

NEURON_CONSTANTS = ("beta", "threshold", "tau", "adaptation", "rho")


def weights_file(key: str, source: Path | str) -> Path:
    """The file that ``source`` stands for: itself, or the kept network of the run in that folder.

    Raises:
        ValueError: there is no such file, or the run is not done.
    """
    path = Path(source)
    if path.is_dir():
        try:
            finished_record(path)
        except ValueError as error:
            raise ValueError(_named(key, source, error)) from None
        path = path / NETWORK
    if not path.is_file():
        raise ValueError(f"{key}={str(source)!r}: neither a run's folder nor a .safetensors or .ckpt file")
    return path


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(key: str, network: nn.Module, source: Path | str, neurons: str = "own") -> None:
    """Copy the base network of an earlier run into ``network``, which must have the same shape.

    Args:
        key: the setting that named the source, for errors.
        network: is filled in place.
        source: a run's folder, a kept network (``.safetensors``) or a checkpoint (``.ckpt``). A kept network's weights
            are as they were deployed, a checkpoint's are the full-precision copies.
        neurons: what becomes of the neurons' fixed decay and threshold. ``"own"``: the network's own stay, so that a
            spiking network may start from an ANN's weights or from another decay. ``"same"``: the source's must be
            equal, since it is to be the very network that was trained. Learned ones are weights, and are copied.

    Raises:
        ValueError: there is no such file, or it holds a network of another shape, of other neurons, or with weights
            that differ by time step, which only a network that is loaded for good can have.
    """
    path = weights_file(key, source)
    try:
        state = checkpoint_weights(path) if path.suffix == ".ckpt" else _deployed_weights(path)
        network.load_state_dict(_with_neurons(network, state, neurons))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{key}={str(source)!r}: fits another network ({reason})") from None
    except ValueError as error:
        raise ValueError(_named(key, source, error)) from None


def _deployed_weights(path: Path) -> dict[str, Tensor]:
    """The state of a kept network, as deployed."""
    state, kept, _ = decoded_state(path)
    by_step = [name for name, codes in kept.items() if codes.time_steps is not None]
    if by_step:
        raise ValueError(
            f"path={str(path)!r}: {by_step[0]} differs by time step there; name the run's checkpoint "
            "(checkpoints/last.ckpt), which holds the full-precision weights"
        )
    return state


def _with_neurons(network: nn.Module, state: Mapping[str, Tensor], neurons: str) -> dict[str, Tensor]:
    """The state with what the network's own neurons have fixed, without what only neurons of another kind have.

    What they learn is copied; they start as they are made where the source has neurons of another kind, or none.
    """
    state = dict(state)
    own = network.state_dict()
    learned = {name for name, _ in network.named_parameters()}
    if neurons == "same":
        for name in own:
            is_constant = name.rpartition(".")[2] in NEURON_CONSTANTS and name not in learned
            if is_constant and name in state and not torch.equal(own[name], state[name].to(own[name])):
                there, here = _words(state[name]), _words(own[name])
                raise ValueError(f"neurons: {name} is {there} there and {here} here; they must be the same")
        return state
    places = tuple(f"{name}." for name, module in network.named_modules() if _is_neuron(module))
    for name in [*own, *state]:
        if name.startswith(places):
            if name not in own:
                state.pop(name, None)
            elif name not in learned or name not in state:
                state[name] = own[name]
    return state


def _is_neuron(module: nn.Module) -> bool:
    """Whether it stands in a neuron's place: a neuron or an activation."""
    return isinstance(module, SpikingNeuron) or (type(module) in UNITS and type(module) is not nn.Identity)


def _words(value: Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else f"of shape {list(value.shape)}"


def _named(key: str, source: Path | str, error: ValueError) -> str:
    """The error of what was read, under the setting that named it."""
    return f"{key}={str(source)!r}: {str(error).partition(': ')[2]}"


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """The base network's full-precision state in a checkpoint of :class:`tna_lightning.learner.TwinLearner`."""
    try:
        state = open_checkpoint(path)["state_dict"]
        state = {name: value.clone() for name, value in state.items() if name.startswith("base.")}
    except (ValueError, AttributeError):
        raise ValueError(f"path={str(path)!r}: cut short, changed, or no checkpoint of a TwinLearner") from None
    return plain_state_dict({name.removeprefix("base."): value for name, value in state.items()})
