"""Quantised weights inside a network: parametrisations that leave modules, names and optimizer as they are.

``torch.nn.utils.parametrize`` keeps the full-precision weight at ``<layer>.parametrizations.weight.original``; what the
layer computes with is the quantised one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tna_lightning.models.blocks import PerStep
from tna_lightning.models.over_time import OVER_TIME, OverTime, weigh_alike, weigh_over_time
from tna_lightning.quantization.quantizers import Quantizer
from tna_lightning.quantization.weights import (
    WEIGHTED,
    aliases_of,
    computed_tensors,
    modules_of,
    other_weights,
    own_tensors,
    plain_name,
)

OURS = "parametrizations.weight."  # where a quantised layer keeps its weight and quantiser
QUANTIZERS = "tna_lightning.quantizers"  # of the networks, in a checkpoint


class QuantizedWeight(nn.Module):
    """The parametrisation of one weight. In eval mode the whole weight is quantised, always.

    In training mode, weights of magnitude at least ``cutoff`` are: infinity leaves all at full precision, 0 none. Where
    codes differ by time step, a weight that is not quantised is the same at every step.

    Args:
        quantizer: the prototype; this weight gets its own copy.
        weight: the full-precision weight; where it is frozen, its learned scales are too.
    """

    cutoff: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer.for_weight(weight).requires_grad_(weight.requires_grad)
        self.register_buffer("cutoff", weight.new_zeros(()))
        self._is_whole = True  # a cutoff of 0, known without asking the device
        self.has_trained = False  # whether a training has seen the weight quantised, and a learned scale with it
        self.register_load_state_dict_post_hook(QuantizedWeight._read_loaded)

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        quantized = self.quantizer(weight)
        if self._is_whole or not self.training:
            return quantized
        return torch.where(weight.detach().abs() >= self.cutoff, quantized, weight)

    def _read_cutoff(self) -> None:
        self._is_whole = self.cutoff.item() == 0

    def _read_loaded(self, _: object) -> None:
        self._read_cutoff()
        self.has_trained = self.cutoff.item() < math.inf

    @torch.no_grad()
    def set_share(self, weight: Tensor, share: float) -> None:
        """From now on quantise this share of the weights in training, the largest first (INQ, arXiv 1702.03044)."""
        count = math.ceil(share * weight.numel())
        if count == 0:
            self.cutoff.fill_(torch.inf)
        elif count == weight.numel():
            self.cutoff.zero_()
        else:
            self.cutoff.copy_(weight.abs().flatten().kthvalue(weight.numel() - count + 1).values)
        self._read_cutoff()


def weighted_layers(network: nn.Module) -> Iterator[tuple[str, Tensor, QuantizedWeight | None]]:
    """Name, full-precision weight and quantisation of each convolution and linear layer, in order.

    A weight that others compute, such as a pruned one or one with weight norm, is what they compute, and not quantised.

    Raises:
        ValueError: a quantised weight has been parametrised once more.
    """
    for name, module in modules_of(network).items():
        if isinstance(module, WEIGHTED):
            quantized = quantization_of(module)
            if quantized is not None:
                if len(cast(Any, module).parametrizations["weight"]) > 1:
                    raise ValueError(
                        f"network: the weight of {name or 'the network'} was parametrized after it was quantised; what "
                        "is kept would be another: parametrize first, or not at all"
                    )
                yield name, cast(Any, module).parametrizations["weight"].original, quantized
            elif "weight" in (computed := computed_tensors(module)):
                yield name, computed["weight"].value(), None
            else:
                yield name, module.weight, None


def quantization_of(layer: nn.Module) -> QuantizedWeight | None:
    """How the weight of a layer is quantised, if it is."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    first = cast(Any, layer).parametrizations["weight"][0]
    return first if isinstance(first, QuantizedWeight) else None


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, Tensor, QuantizedWeight]]:
    """As :func:`weighted_layers`, only those that are quantised."""
    for name, weight, quantized in weighted_layers(network):
        if quantized is not None:
            yield name, weight, quantized


def layers_to_quantize(network: nn.Module, skip: Sequence[str] = (), own: Iterable[str] = ()) -> list[str]:
    """Names of the layers that :func:`quantize_network` quantises: all but those that are, and those to skip.

    Raises:
        ValueError: a name in ``skip`` or in ``own`` (the keys of ``layer_quantizers``) matches no layer, or is in both.
    """
    modules = modules_of(network)
    return [name for name in _asked(network, skip, own) if quantization_of(modules[name]) is None]


def _asked(network: nn.Module, skip: Sequence[str], own: Iterable[str]) -> dict[str, list[str]]:
    """All names of each layer that is to be quantised, by its first; errors as of :func:`layers_to_quantize`.

    ``skip`` may also name what is never quantised, such as a transposed convolution.
    """
    modules, aliases = modules_of(network), aliases_of(network)
    layers = {name: aliases[id(module)] for name, module in modules.items() if isinstance(module, WEIGHTED)}
    others = [name for name, _ in other_weights(network)]
    for argument, asked in {"skip": list(skip), "layer_quantizers": list(own)}.items():
        unknown = [name for name in asked if not any(_matches(names, [name]) for names in layers.values())]
        left = [name for name in unknown if any(_is_within(other, name) for other in others)]
        if left and argument != "skip":
            raise ValueError(
                f"{argument}={asked!r}: {', '.join(left)} holds no layer that can be quantised, which are "
                f"{', '.join(kind.__name__ for kind in WEIGHTED)}; its weights stay as they are"
            )
        unknown = [name for name in unknown if name not in left]
        if unknown:
            raise ValueError(
                f"{argument}={asked!r}: no layer matches {', '.join(unknown)}; there are {', '.join(layers)}"
            )
    both = [name for name in own if any(_is_within(name, skipped) for skipped in skip)]
    if both:
        raise ValueError(f"layer_quantizers={both!r}: must be quantised, yet skip={list(skip)!r} leaves it out")
    return {name: names for name, names in layers.items() if not _matches(names, skip)}


def schemes_by_layer(
    network: nn.Module, quantizer: Quantizer, skip: Sequence[str] = (), own: Mapping[str, Quantizer] | None = None
) -> dict[str, Quantizer]:
    """The quantiser of each layer that :func:`quantize_network` quantises, by name; arguments as there.

    Raises:
        ValueError: as there.
    """
    own = own or {}
    modules = modules_of(network)
    schemes = {}
    for name, names in _asked(network, skip, own).items():
        around = [module for module in own if _matches(names, [module])]
        schemes[name] = own[max(around, key=len)] if around else quantizer
    check_exists({name: modules[name] for name in schemes})
    _check_quantized(network, schemes)
    _check_tied(network, schemes)
    schemes = {name: scheme for name, scheme in schemes.items() if quantization_of(modules[name]) is None}
    given = [name for name in schemes if isinstance(modules[name], OverTime)]
    if given:
        raise ValueError(
            f"network: the weights of {', '.join(given)} differ by time step already, as in a packed file; quantise "
            "the full-precision ones of its checkpoint"
        )
    computed = {name: tensors["weight"] for name in schemes if "weight" in (tensors := computed_tensors(modules[name]))}
    if computed:
        alike = next(iter(computed.values()))
        names = [name for name, tensor in computed.items() if tensor.words == alike.words]
        raise ValueError(
            f"network: the weights of {', '.join(names)} are {alike.words}; remove that ({alike.removal}) or leave "
            f"them out, skip=[{','.join([*skip, *computed])}]"
        )
    refused = [
        name for name, scheme in schemes.items() if scheme.time_steps is not None and not _meets_time(network, name)
    ]
    if refused:
        raise ValueError(
            f"quantizer={schemes[refused[0]].name}: its codes differ by time step, so each layer must be a Conv2d or "
            f"Linear right in a PerStep; leave out what is not, skip=[{','.join([*skip, *refused])}]"
        )
    known = getattr(network, "time_steps", None)
    for scheme in schemes.values():
        if scheme.time_steps is not None and isinstance(known, int) and scheme.time_steps != known:
            raise ValueError(
                f"quantizer.time_steps={scheme.time_steps!r}: the network is built for time_steps={known}; must be "
                "the same"
            )
    return schemes


def check_exists(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules, by name, whose weights do not exist yet.

    Raises:
        ValueError: those of a lazy module that has seen no input.
    """
    lazy = [name for name, module in modules.items() if any(map(is_lazy, module.parameters(recurse=False)))]
    if lazy:
        raise ValueError(
            f"network: the weights of {', '.join(lazy)} do not exist yet, being lazy; call the network on an input once"
        )


def _check_quantized(network: nn.Module, schemes: Mapping[str, Quantizer]) -> None:
    """Refuse layers that are quantised already in another way, or should not be."""
    for name, _, quantized in quantized_layers(network):
        asked = schemes.get(name)
        if asked is None or not asked.is_alike(quantized.quantizer):
            wanted = "full precision" if asked is None else f"{asked.name} ({asked.extra_repr()})"
            there = f"{quantized.quantizer.name} ({quantized.quantizer.extra_repr()})"
            raise ValueError(
                f"network: {name or 'it'} is quantised already, {there}, and {wanted} is asked for; take the "
                "quantisers off first, tna_lightning.quantization.dequantize_network(network)"
            )


def _check_tied(network: nn.Module, schemes: Mapping[str, Quantizer]) -> None:
    """Refuse a parameter that some of its modules quantise and others do not, or in another way."""
    holders: dict[int, list[str]] = {}
    for name, module in modules_of(network).items():
        if isinstance(module, parametrize.ParametrizationList):  # part of its layer
            continue
        quantized = quantization_of(module)
        own = own_tensors(module, False).values()
        for parameter in [*own, *([] if quantized is None else [_original(module)])]:
            holders.setdefault(id(parameter), []).append(name)
    for names in holders.values():
        found = [schemes.get(name) for name in names]
        first = next((scheme for scheme in found if scheme is not None), None)
        if first is not None and not all(scheme is not None and first.is_alike(scheme) for scheme in found):
            raise ValueError(
                f"network: {', '.join(names)} have one weight in common, so all must be quantised alike or none, "
                f"skip=[{','.join(names)}]"
            )


def _original(layer: Any) -> nn.Parameter:
    return layer.parametrizations["weight"].original


def give_steps(network: nn.Module, name: str, time_steps: int) -> None:
    """Give a layer a weight ``[T, ...]``, not yet filled; one that has such a weight gets one of this T.

    Raises:
        ValueError: it does not stand where weights meet time.
    """
    if not _meets_time(network, name):
        raise ValueError(f"{name}: its weight differs by time step, and it is no Conv2d or Linear right in a PerStep")
    layer: Any = modules_of(network)[name]
    shape = layer.weight.shape
    if isinstance(layer, OverTime):
        shape = shape[1:]
    else:
        weigh_over_time(layer)
    layer.weight = nn.Parameter(layer.weight.new_empty(time_steps, *shape))


def _meets_time(network: nn.Module, name: str) -> bool:
    modules = modules_of(network)
    parent, layer = modules.get(name.rpartition(".")[0]), modules.get(name)
    return name != "" and isinstance(parent, PerStep) and type(layer) in {*OVER_TIME, *OVER_TIME.values()}


def check_quantizer(name: str, scheme: object) -> None:
    """Refuse what is no quantizer.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(scheme, Quantizer):
        raise ValueError(f"{name}={scheme!r}: must be a quantizer (in YAML {{_target_: ..., ...}}), not a name")


def check_names(skip: object, layer_quantizers: object) -> None:
    """Refuse a ``skip`` that is no list of names, and ``layer_quantizers`` that are no mapping.

    Raises:
        ValueError: they are not.
    """
    names = skip if isinstance(skip, Sequence) and not isinstance(skip, str) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ValueError(f"skip={skip!r}: must be a list of names of modules, such as [stem, classifier]")
    if layer_quantizers is not None and not isinstance(layer_quantizers, Mapping):
        raise ValueError(f"layer_quantizers={layer_quantizers!r}: must map names of modules to quantizers")


def quantize_network(
    network: nn.Module,
    quantizer: Quantizer,
    skip: Sequence[str] = (),
    layer_quantizers: Mapping[str, Quantizer] | None = None,
) -> None:
    """Quantise the weights of a network's convolutions and linear layers; layers that already are stay as they are.

    All other weights stay at full precision, and reports name them: those of transposed convolutions, recurrent layers,
    embeddings, and the projections inside ``nn.MultiheadAttention``. Layers that share a weight share its quantiser.

    Args:
        network: changed in place.
        quantizer: prototype; each weight gets its own copy.
        skip: names of modules to leave at full precision, with all they contain.
        layer_quantizers: names of modules with a scheme of their own for all they contain; the innermost counts.

    Raises:
        ValueError: a name in ``skip`` or ``layer_quantizers`` matches no layer, or is in both; no quantizer; one whose
            codes differ by time step, for a layer that does not stand in a ``PerStep`` or a network of another
            ``time_steps``; a weight that others compute (weight norm, spectral norm, pruning), that does not exist yet
            (lazy), that is quantised in another way, or that another module uses in another way.
    """
    check_names(skip, layer_quantizers)
    own = layer_quantizers or {}
    for argument, scheme in {"quantizer": quantizer, **{f"layer_quantizers.{key}": own[key] for key in own}}.items():
        check_quantizer(argument, scheme)
    modules = modules_of(network)
    shared: dict[int, QuantizedWeight] = {}
    for name, scheme in schemes_by_layer(network, quantizer, skip, own).items():
        layer: Any = modules[name]
        if scheme.time_steps is not None:
            weigh_over_time(layer)
        weight = layer.weight
        if id(weight) not in shared:
            shared[id(weight)] = QuantizedWeight(scheme, weight)
        # unsafe: skips a trial run
        parametrize.register_parametrization(layer, "weight", shared[id(weight)], unsafe=True)


def dequantize_network(network: nn.Module) -> None:
    """Take the quantisers of :func:`quantize_network` off: weights are the full-precision ones, as trained so far.

    The parameters stay the same objects, so an optimizer goes on with them; learned scales are gone. Weights as they
    are deployed come from :func:`~.packing.save_network` and :func:`~.packing.load_packed` instead.

    Args:
        network: changed in place; one without quantisers stays as it is.
    """
    modules = modules_of(network)
    for name, _, quantized in list(quantized_layers(network)):
        layer: Any = modules[name]
        put_back(layer, _original(layer))
        if quantized.quantizer.time_steps is not None:
            weigh_alike(layer)


def put_back(layer: Any, weight: nn.Parameter) -> None:
    """Make a parameter of a quantised layer's weight, in the place of its quantiser.

    Not by torch's ``remove_parametrizations``, which changes the class that a copied layer shares with its original.
    """
    parametrized = type(layer)
    plain = parametrized.__bases__[0]
    del layer.parametrizations["weight"]
    if layer.parametrizations:  # of other tensors
        body = {name: value for name, value in vars(parametrized).items() if name != "weight"}
        layer.__class__ = type(parametrized.__name__, (plain,), body)
    else:
        del layer.parametrizations
        layer.__class__ = plain
    layer._parameters = {"weight": weight, **layer._parameters}  # first, as it was


def _is_within(layer: str, name: str) -> bool:
    return name in ("", layer) or layer.startswith(name + ".")


def _matches(layer: Iterable[str], names: Iterable[str]) -> bool:
    """Whether one of a layer's names lies within one of these modules."""
    return any(_is_within(alias, plain_name(name)) for alias in layer for name in names)


def plain_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a quantised network under the names of the plain one: its full-precision weights, no quantisers.

    For starting a training, quantised or not, from the weights of another (``network.load_state_dict``). Names are as
    before ``torch.compile``; what other parametrisations compute weights from stays as it is.
    """
    ours = {key.removesuffix("0.cutoff") for key in state if f".{key}".endswith(f".{OURS}0.cutoff")}
    plain = {}
    for key, value in state.items():
        module, found, rest = key.rpartition(OURS)
        if module + found not in ours:
            plain[plain_name(key)] = value
        elif rest == "original":
            plain[plain_name(f"{module}weight")] = value
    return plain


def quantizers_of(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What quantises each quantised layer of a network, for a checkpoint: its tensors do not tell all schemes apart."""
    return {name: quantized.quantizer.described() for name, _, quantized in quantized_layers(network)}


def check_quantizers(name: str, network: nn.Module, there: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a checkpoint of a network whose layers others quantised, or with other settings.

    Args:
        name: of the network, for the message.
        network: that is to get the checkpoint's state.
        there: of the network of the checkpoint, from :func:`quantizers_of`; settings that one of both lacks, being of
            another version, do not count.

    Raises:
        ValueError: they are others.
    """
    for layer, ours in quantizers_of(network).items():
        theirs = there.get(layer, ours)
        if any(theirs.get(key, value) != value for key, value in ours.items()):
            raise ValueError(
                f"checkpoint: {name} is quantised there in another way than here ({layer or 'it'}: {_words(theirs)}, "
                f"here {_words(ours)}); quantise it as it was in training, or load the full-precision weights alone, "
                "plain_state_dict"
            )


def _words(described: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in described.items() if key != "quantizer")
    return f"{described.get('quantizer')}({settings})"


def check_state(name: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse the state of a network that is quantised where this one is not, or the other way round.

    Args:
        name: of the network, for the message.
        network: that is to get the state.
        state: by the network's own names.

    Raises:
        ValueError: it is; the message says what to do.
    """
    end = f".{OURS}0.cutoff"
    there = [plain_name(f".{key}".removesuffix(end).removeprefix(".")) for key in state if f".{key}".endswith(end)]
    modules, aliases = modules_of(network), aliases_of(network)
    here = [alias for layer, _, _ in quantized_layers(network) for alias in aliases[id(modules[layer])]]
    if more := [layer for layer in there if layer not in here]:
        raise ValueError(
            f"checkpoint: {name} is quantised there ({', '.join(more[:3])}{', ...' * (len(more) > 3)}), and not here; "
            f"quantise it first as it was in training, quantize_network({name}, ...), or give the trainer the same "
            "WeightQuantization"
        )
    if more := [layer for layer in here if layer not in there]:
        raise ValueError(
            f"checkpoint: {name} is not quantised there ({', '.join(more[:3])}{', ...' * (len(more) > 3)}), and it is "
            "here; load before it is quantised, or take the quantisers off, dequantize_network"
        )
    scales = f"{OURS}0.quantizer."
    shapes_there, shapes_here = (
        {plain_name(key): tuple(value.shape) for key, value in each.items() if scales in f".{key}"}
        for each in (state, network.state_dict())
    )
    other = [key for key in {**shapes_there, **shapes_here} if shapes_there.get(key) != shapes_here.get(key)]
    if other:
        layer = f".{other[0]}".partition(f".{OURS}")[0].removeprefix(".")
        raise ValueError(
            f"checkpoint: {name} is quantised there in another way than here ({layer} has other learned scales); "
            "quantise it as it was in training"
        )
