"""Objects from config nodes, with errors that name the key."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pydoc import ErrorDuringImport, locate
from typing import Any, get_args, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import nn

from tna_lightning.data.batch import Inputs
from tna_lightning.data.events import EventDataModule
from tna_lightning.data.images import ImageDataModule
from tna_lightning.data.module import BatchedDataModule
from tna_lightning.models import Network, Stepwise, compile_neurons, is_spiking
from tna_lightning.models.blocks import check_unit, with_hints
from tna_lightning.models.compiled import has_compiler
from tna_lightning.models.settings import parameters_of, takers
from tna_lightning.models.spec import sizes_for
from tna_lightning.packages import MissingPackage
from tna_lightning.quantization.packing import INPUTS
from tna_lightning.running.config import refuse_unknown
from tna_lightning.running.own import with_data_at
from tna_lightning.running.signatures import meanings_in

log = logging.getLogger(__name__)

_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_OF_CODE = ("is_instance_of", "is_subclass_of", "callable_type")  # pydantic's names of errors
_TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "needs_python_object": "a node with a _target_",
}
_WIDEST_BLOCK = 16  # channels in a vector of oneDNN's: 8 with AVX2, 16 with AVX-512


def build(key: str, node: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a config node with a ``_target_``.

    Args:
        key: where the node stands in the config.
        node: the node; ``arguments`` are passed on beside what it holds.

    Raises:
        ValueError: there is no such target, it does not take a setting, or refuses its value; the message begins with
            the key, ``neuron.beta=1.5: must ...``.
    """
    _check_settings(key, node)
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | FileNotFoundError):
            inner = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
            raise type(cause)(f"{key}.{inner[1] + '.' if inner else ''}{cause}") from error
        if isinstance(cause, TypeError | ImportError | InstantiationException | MisconfigurationException):
            # a target that does not exist, a setting that it needs, or what Lightning refuses
            raise ValueError(f"{key}={node.get('_target_')}: {' '.join(str(cause).split())}") from error
        raise cause from None


def _check_settings(key: str, node: Mapping[str, Any]) -> None:
    """Refuse settings that the target does not take, and values from YAML that its annotations do not allow.

    A constructor compares its arguments before it knows their types, and its TypeError would not name the setting.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{key}={node!r}: must have a _target_, which says what is built")
    try:
        target = locate(str(node["_target_"]))
    except ErrorDuringImport as error:
        reason = str(error.value).partition("\n")[0]
        raise ValueError(f"{key}._target_={node['_target_']!r}: {error.filename} fails ({reason})") from error
    if not callable(target):
        raise ValueError(f"{key}._target_={node['_target_']!r}: there is no such class or function")
    if not isinstance(node.get("_partial_", False), bool):
        raise ValueError(f"{key}._partial_={node['_partial_']!r}: must be true or false")
    try:
        functions = [function for _, function in takers(target)]
        known, takes_any = parameters_of(target)
        documented = [getattr(target, "builder", target), *reversed(functions)]
        hints = {name: hint for function in documented for name, hint in get_type_hints(function).items()}
    except Exception:  # what has no signature, or annotations that cannot be read
        return
    for name, value in node.items():
        if name in _HYDRA_KEYS:
            continue
        if not takes_any:
            refuse_unknown(key, name, known)
        if value == "???":  # OmegaConf's mark of what a config leaves open
            meaning = meanings_in(target).get(name)
            raise ValueError(f"{key}.{name}: must be given{f': {meaning}' if meaning else ''}")
        if isinstance(value, Mapping) and "_target_" in value:
            _check_settings(f"{key}.{name}", value)
        elif name in hints and "_target_" not in str(value):
            _check_type(f"{key}.{name}", value, hints[name])


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value from YAML that is not of the annotated type; what only code can make is not judged."""
    try:
        # JSON, because that is what YAML can say: a list may stand for a tuple, a whole number for a float
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] not in _OF_CODE]
        if problems:
            allowed = [_TYPES.get(each["type"], each["msg"].removeprefix("Input should be ")) for each in problems]
            allowed += ["null"] if type(None) in get_args(hint) else []
            entry = problems[0]["loc"][0] if problems[0]["loc"] and isinstance(value, list) else None
            if isinstance(entry, int) and entry < len(value):  # else the list is too short
                key, value = f"{key}[{entry}]", value[entry]
            raise ValueError(f"{key}={value!r}: must be {' or '.join(dict.fromkeys(allowed))}") from None
    except (PydanticUserError, TypeError):  # an annotation, or a value, that JSON does not know
        return


@contextmanager
def under(key: str) -> Iterator[None]:
    """Put the key before the message of an error: ``quant.skip=...`` where the callback says ``skip=...``."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        names_setting = re.match(r"[\w.]+(\[\w+\])?=|\w+: ", str(error))
        raise type(error)(f"{key}{'.' if names_setting else ': '}{error}") from error
    except (TypeError, MissingPackage) as error:
        raise ValueError(f"{key}: {error}") from error


def build_data(config: Mapping[str, Any]) -> Any:
    """The data module, with the operations of the node ``augment``.

    Raises:
        ValueError: a setting is refused, or an operation does not fit the data.
    """
    operations = {name: build(f"augment.{name}", node) for name, node in config["augment"].items()}
    # not handed to `build`: OmegaConf, by whose hands arguments pass there, takes a dataclass for a config
    factory = build("data", {**config["data"], "_partial_": True})
    with under("data"):  # a data module of one's own need not know of augmentation
        datamodule = factory(augment=operations) if operations else factory()
    if isinstance(datamodule, BatchedDataModule):
        datamodule.set_up_augmentation()
    return datamodule


def data_to_test(config: Mapping[str, Any], data_root: str | None = None) -> Any:
    """The data module of a finished run, at another place than in training if ``data_root`` says so; not augmented.

    Raises:
        ValueError: these data come from no folder and no file.
    """
    return build("data", with_data_at(config, data_root)["data"])


def inputs_of(datamodule: Any) -> Inputs:
    """What a data module says of its inputs.

    Raises:
        ValueError: it says nothing.
    """
    try:
        inputs: Inputs = datamodule.inputs
    except (AttributeError, NotImplementedError) as error:
        name = type(datamodule).__name__
        raise ValueError(
            f"data={name}: must say what it yields, in a property inputs (tna_lightning.data.Inputs)"
        ) from error
    return inputs


def network_spec(config: Mapping[str, Any], datamodule: Any) -> dict[str, Any]:
    """The JSON-able description from which a network is rebuilt: model, neuron and inputs.

    Event frames bring their own T, and a model that has ``time_steps`` among its settings is told it.
    """
    inputs = inputs_of(datamodule)
    model = dict(config["model"])
    if inputs.time_steps is not None:
        model.pop("time_steps", None)
        names, takes_all = parameters_of(_target(model))
        if takes_all or "time_steps" in names:
            model["time_steps"] = inputs.time_steps
    return {"model": model, "neuron": config["neuron"], "inputs": asdict(inputs)}


def expected_inputs(network: nn.Module, datamodule: Any) -> dict[str, Any]:
    """What a network expects, for the header of its file (:data:`~tna_lightning.quantization.packing.INPUTS`).

    Mean, deviation and names of classes are those of the package's data modules and of what derives from them.
    """
    inputs = inputs_of(datamodule)
    is_code = getattr(datamodule, "encode", "direct") != "direct"  # spikes of an image, which the file has no word for
    expected: dict[str, Any] = dict.fromkeys(INPUTS) | {
        "kind": None if is_code else "images" if inputs.time_steps is None else "events",
        "shape": [inputs.channels, inputs.height, inputs.width],
        "time_steps": inputs.time_steps or (getattr(network, "time_steps", None) if is_spiking(network) else 1),
    }
    if isinstance(datamodule, ImageDataModule) and not is_code:
        expected |= {name: [float(value) for value in getattr(datamodule, name)] for name in ("mean", "std")}
    if isinstance(datamodule, BatchedDataModule):
        expected["class_names"] = [str(name) for name in datamodule.class_names]
    if isinstance(datamodule, EventDataModule):
        unit = getattr(datamodule, "time_unit", "us")
        expected["framing"] = {
            **{"sensor": list(datamodule.sensor), "slicing": datamodule.spec.slicing},
            **({"time_unit": unit} if unit != "us" else {}),
        }
    return expected


def check_time_steps(key: str, model: Mapping[str, Any], inputs: Inputs) -> None:
    """Refuse a T that does not count.

    Raises:
        ValueError: a model's ``time_steps`` differ from those of the event frames.
    """
    asked = model.get("time_steps", inputs.time_steps)
    if inputs.time_steps is not None and asked != inputs.time_steps:
        raise ValueError(
            f"{key}.time_steps={asked!r}: event frames bring their own T; set data.time_steps ({inputs.time_steps})"
            ", for encoded images both data.encode_steps and this"
        )


def _target(node: Mapping[str, Any]) -> Any:
    """What a node's ``_target_`` names; a stand-in where that cannot be imported, which :func:`build` reports."""
    try:
        target = locate(str(node.get("_target_")))
        return target if callable(target) else dict
    except ErrorDuringImport:
        return dict


def build_network(spec: Mapping[str, Any], prefix: str = "", channels_last: bool = False) -> nn.Module:
    """The network of a spec (:func:`network_spec`); ``prefix`` is put before the key in errors.

    With ``channels_last`` its convolutions work on ``[N, H, W, C]`` in memory: they sum in another order, so logits
    differ in the last bits, and now and then a spike. A network with a layer that is unsafe so keeps the usual layout,
    and one line in the log says which (:func:`unsafe_channels_last`).
    """
    if "_target_" in spec["neuron"] and not spec["neuron"].get("_partial_"):
        raise ValueError(f"{prefix}neuron={spec['neuron']['_target_']}: its YAML must say `_partial_: true`")
    neuron = build(f"{prefix}neuron", spec["neuron"])
    time_steps = spec["model"].get("time_steps", spec.get("inputs", {}).get("time_steps"))
    asked = spec["neuron"].get("time_steps", time_steps)
    if asked != time_steps:  # the backbone's word would be taken
        raise ValueError(f"{prefix}neuron.time_steps={asked!r}: follows T, which is {time_steps}; leave it out")
    if time_steps is not None:  # for backbones that call `neuron()` and know nothing of hints
        neuron = with_hints(neuron, time_steps=time_steps)
    with under(f"{prefix}neuron"):
        tried = with_hints(neuron, channels=1)()  # a refused value is reported under its own key, not as the model's
    try:
        check_unit(tried)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
    sizes = sizes_for(_target(spec["model"]), spec)
    backbone = build(f"{prefix}model", {**spec["model"], "_partial_": True}, neuron=neuron)
    with under(f"{prefix}model"):
        network: nn.Module = backbone(**sizes)  # not by Hydra, which would make a dict of the inputs
    unsafe = unsafe_channels_last(network) if channels_last else None
    if unsafe is not None:
        log.warning("%schannels_last=true: left out, since %s has too few channels for it", prefix, unsafe)
    elif channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    return network


def checkpoint_network(network: nn.Module, prefix: str = "") -> None:
    """Let a network keep the inputs of its stages alone for the backward pass (``checkpoint_stages=true``).

    Raises:
        ValueError: it has no stages.
    """
    if not isinstance(network, Network):
        raise ValueError(
            f"checkpoint_stages=true: {prefix}model must be a tna_lightning.models.Network, which has stages, "
            f"and is a {type(network).__name__}"
        )
    network.checkpoint_stages = True


def compile_network(network: nn.Module, how: str) -> None:
    """Compile nothing ("none"), the time loops ("neurons", or "auto" without waiting) or all of a network ("network").

    The whole network is left to its neurons where there is no compiler, which they then say, and where a layer is
    unsafe in the layout that the compiler would choose on a CPU (:func:`unsafe_channels_last`), or a neuron of another
    library is stepped, which one line says.
    """
    if how == "network" and any(isinstance(module, Stepwise) for module in network.modules()):
        log.warning("compile=network: left out, since the neurons of another library keep their state in themselves")
        return
    unsafe = unsafe_channels_last(network) if how == "network" else None
    if unsafe is not None:
        log.warning("compile=network: the neurons alone are compiled, since %s has too few channels for it", unsafe)
    if how == "network" and unsafe is None and has_compiler("cuda" if torch.cuda.is_available() else "cpu"):
        network.compile()
    elif how != "none":
        compile_neurons(network, "auto" if how == "auto" else True)


def unsafe_channels_last(network: nn.Module) -> str | None:
    """Name of a convolution that must not be trained in channels-last layout on a CPU, or None.

    The weight gradient of a strided 1 x 1 convolution with fewer input channels than a vector holds is written past its
    end by oneDNN (uxlfoundation/oneDNN#6035, seen with torch 2.13.0): the process crashes, hangs or computes wrongly.
    """
    for name, module in network.named_modules():
        is_strided_point = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if is_strided_point and module.in_channels // module.groups < _WIDEST_BLOCK:
            return name
    return None
