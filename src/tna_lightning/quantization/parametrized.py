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
from torch.nn.utils import parametrize

from tna_lightning.models.blocks import PerStep
from tna_lightning.models.over_time import OVER_TIME, OverTime, weigh_over_time
from tna_lightning.quantization.quantizers import Quantizer

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class QuantizedWeight(nn.Module):
    """The parametrisation of one weight. In eval mode the whole weight is quantised, always.

    In training mode, weights of magnitude at least ``cutoff`` are: infinity leaves all at full precision, 0 none. Where
    codes differ by time step, a weight that is not quantised is the same at every step.

    Args:
        quantizer: the prototype; this weight gets its own copy.
        weight: the full-precision weight.
    """

    cutoff: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer.for_weight(weight)
        self.register_buffer("cutoff", weight.new_zeros(()))
        self._is_whole = True  # a cutoff of 0, known without asking the device
        self.register_load_state_dict_post_hook(QuantizedWeight._read_cutoff)

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        quantized = self.quantizer(weight)
        if self._is_whole or not self.training:
            return quantized
        return torch.where(weight.detach().abs() >= self.cutoff, quantized, weight)

    def _read_cutoff(self, _: object = None) -> None:
        self._is_whole = self.cutoff.item() == 0

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

    A weight that others have parametrised, such as weight norm, is the one that they compute, and not quantised.
    """
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            if parametrize.is_parametrized(module, "weight"):
                parametrizations: Any = cast(Any, module).parametrizations["weight"]
                if isinstance(parametrizations[0], QuantizedWeight):
                    yield name, parametrizations.original, parametrizations[0]
                else:
                    yield name, _computed(parametrizations), None
            else:
                yield name, module.weight, None


def _computed(parametrizations: nn.Module) -> Tensor:
    """The weight that they compute in eval mode, since in training mode some, as spectral norm, change by it."""
    were_training = [(module, module.training) for module in parametrizations.modules()]
    parametrizations.eval()
    weight: Tensor = parametrizations()
    for module, was_training in were_training:
        module.training = was_training
    return weight


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
    layers = list(weighted_layers(network))
    names = [name for name, _, _ in layers]
    for argument, asked in {"skip": list(skip), "layer_quantizers": list(own)}.items():
        unknown = [name for name in asked if not any(_is_within(layer, name) for layer in names)]
        if unknown:
            raise ValueError(
                f"{argument}={asked!r}: no layer matches {', '.join(unknown)}; there are {', '.join(names)}"
            )
    both = [name for name in own if any(_is_within(name, skipped) for skipped in skip)]
    if both:
        raise ValueError(f"layer_quantizers={both!r}: must be quantised, yet skip={list(skip)!r} leaves it out")
    return [
        name
        for name, _, quantized in layers
        if quantized is None and not any(_is_within(name, skipped) for skipped in skip)
    ]


def schemes_by_layer(
    network: nn.Module, quantizer: Quantizer, skip: Sequence[str] = (), own: Mapping[str, Quantizer] | None = None
) -> dict[str, Quantizer]:
    """The quantiser of each layer that :func:`quantize_network` quantises, by name; arguments as there.

    Raises:
        ValueError: as there.
    """
    own = own or {}
    schemes = {}
    for name in layers_to_quantize(network, skip, own):
        around = [module for module in own if _is_within(name, module)]
        schemes[name] = own[max(around, key=len)] if around else quantizer
    given = [name for name in schemes if isinstance(network.get_submodule(name), OverTime)]
    if given:
        raise ValueError(
            f"network: the weights of {', '.join(given)} differ by time step already, as in a packed file; quantise "
            "the full-precision ones of its checkpoint"
        )
    parametrized = [name for name in schemes if parametrize.is_parametrized(network.get_submodule(name), "weight")]
    if parametrized:
        raise ValueError(
            f"network: the weights of {', '.join(parametrized)} are parametrized already, as by weight norm; remove "
            f"that (torch.nn.utils.parametrize.remove_parametrizations) or leave them out, skip="
            f"[{','.join([*skip, *parametrized])}]"
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


def give_steps(network: nn.Module, name: str, time_steps: int) -> None:
    """Give a layer a weight ``[T, ...]``, not yet filled; one that has such a weight gets one of this T.

    Raises:
        ValueError: it does not stand where weights meet time.
    """
    if not _meets_time(network, name):
        raise ValueError(f"{name}: its weight differs by time step, and it is no Conv2d or Linear right in a PerStep")
    layer: Any = network.get_submodule(name)
    shape = layer.weight.shape
    if isinstance(layer, OverTime):
        shape = shape[1:]
    else:
        weigh_over_time(layer)
    layer.weight = nn.Parameter(layer.weight.new_empty(time_steps, *shape))


def _meets_time(network: nn.Module, name: str) -> bool:
    modules = dict(network.named_modules())
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

    Args:
        network: changed in place.
        quantizer: prototype; each weight gets its own copy.
        skip: names of modules to leave at full precision, with all they contain.
        layer_quantizers: names of modules with a scheme of their own for all they contain; the innermost counts.

    Raises:
        ValueError: a name in ``skip`` or ``layer_quantizers`` matches no layer, or is in both; no quantizer; one whose
            codes differ by time step, for a layer that does not stand in a ``PerStep`` or a network of another
            ``time_steps``; or a weight that others have parametrised.
    """
    check_names(skip, layer_quantizers)
    own = layer_quantizers or {}
    for argument, scheme in {"quantizer": quantizer, **{f"layer_quantizers.{key}": own[key] for key in own}}.items():
        check_quantizer(argument, scheme)
    for name, scheme in schemes_by_layer(network, quantizer, skip, own).items():
        layer: Any = network.get_submodule(name)
        if scheme.time_steps is not None:
            weigh_over_time(layer)
        new = QuantizedWeight(scheme, layer.weight)
        parametrize.register_parametrization(layer, "weight", new, unsafe=True)  # unsafe: skips a trial run


def _is_within(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(name + ".")


def plain_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a quantised network under the names of the plain one: its full-precision weights, no quantisers.

    For starting a training, quantised or not, from the weights of another (``network.load_state_dict``).
    """
    plain = {}
    for key, value in state.items():
        prefix, found, rest = key.rpartition("parametrizations.")
        if not found:
            plain[key] = value
        elif rest.endswith(".original"):
            plain[prefix + rest.removesuffix(".original")] = value
    return plain
