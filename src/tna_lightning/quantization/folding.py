"""Batch norm folded into the layer before it: what is left are codes, scale and bias per channel, and neurons."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tna_lightning.models.over_time import OverTime
from tna_lightning.quantization.codes import CHANNEL, SIGN, Codes
from tna_lightning.quantization.kept import kept_weights
from tna_lightning.quantization.parametrized import put_back, quantization_of
from tna_lightning.quantization.weights import WRAPPER, aliases_of, computed_tensors, has_hooks, modules_of, own_tensors


class Scaled(nn.Module):
    """``layer(x, codes) * scale + bias``: integer weights, then one scale and one bias per output channel.

    With spikes as inputs the layer is a sum of integers, and exact.
    """

    scale: nn.Parameter


class _ScaledConv(Scaled):
    """A convolution of that kind.

    Args:
        conv: whose shape it has.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=True,
            padding_mode=conv.padding_mode,
        )
        self.scale = nn.Parameter(torch.ones(conv.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Currents, from spikes or images ``[N, C, ...]``."""
        layer = cast(Any, self)
        channels = (-1, *[1] * (layer.weight.ndim - 2))
        return layer._conv_forward(x, layer.weight, None) * self.scale.view(channels) + layer.bias.view(channels)


class ScaledConv1d(_ScaledConv, nn.Conv1d):
    """``conv(x, codes) * scale + bias`` on ``[N, C, L]``."""


class ScaledConv2d(_ScaledConv, nn.Conv2d):
    """``conv(x, codes) * scale + bias`` on ``[N, C, H, W]``."""


class ScaledConv3d(_ScaledConv, nn.Conv3d):
    """``conv(x, codes) * scale + bias`` on ``[N, C, D, H, W]``."""


class ScaledLinear(Scaled, nn.Linear):
    """``linear(x, codes) * scale + bias``.

    Args:
        linear: whose shape it has.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=True)
        self.scale = nn.Parameter(torch.ones(linear.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Currents ``[N, F]``, from spikes ``[N, F]``."""
        return nn.functional.linear(x, self.weight) * self.scale + self.bias


FOLDS: dict[Any, tuple[Any, Any]] = {
    nn.Conv1d: (nn.BatchNorm1d, ScaledConv1d),
    nn.Conv2d: (nn.BatchNorm2d, ScaledConv2d),
    nn.Conv3d: (nn.BatchNorm3d, ScaledConv3d),
    nn.Linear: (nn.BatchNorm1d, ScaledLinear),
}


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of a network for deployment, in eval mode: no batch norm and no quantisers.

    ``norm(layer(x))`` becomes ``layer(x, codes) * scale + bias`` (:class:`ScaledConv2d`, :class:`ScaledLinear`) where
    the weight is codes times one scale per channel or layer. Where it has two scales (TTQ) or is not quantised, it
    becomes a plain layer with bias, whose weight has the norm's gain in it. The new scales and biases are computed in
    float64. A linear layer before a ``BatchNorm1d`` must see ``[N, F]``.

    Raises:
        ValueError: a batch norm does not directly follow a convolution or linear layer in an ``nn.Sequential``, has no
            running statistics, or stands at a second place too; its scale, or the weight before it, differs by time
            step; or that weight is computed by others; or there is a forward hook.
    """
    network = without_quantizers(network)
    aliases = aliases_of(network)
    for parent, layer_name, norm_name in _pairs(network):
        layer, norm = parent[layer_name], cast(nn.BatchNorm2d, parent[norm_name])
        name = aliases[id(norm)][0]
        if isinstance(layer, OverTime) or isinstance(norm, OverTime):
            what = "the weight before it" if isinstance(layer, OverTime) else "its scale"
            raise ValueError(f"network: cannot fold {name}: {what} differs by time step")
        if norm.running_mean is None:
            raise ValueError(f"network: cannot fold {name}: it has no running statistics (track_running_stats=False)")
        if computed := computed_tensors(layer):
            tensor = next(iter(computed.values()))
            raise ValueError(f"network: cannot fold {name}: the layer before it is {tensor.words} ({tensor.removal})")
        if has_hooks(layer) or has_hooks(norm):
            raise ValueError(f"network: cannot fold {name}: it, or the layer before it, has a hook that would be lost")
        if len(aliases[id(layer)]) > 1 or len(aliases[id(norm)]) > 1 or _is_tied(network, layer):
            raise ValueError(f"network: cannot fold {name}: it, or the layer before it, is used at several places")
        parent[layer_name], parent[norm_name] = _folded(layer, norm), nn.Identity()
    left = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise ValueError(
            f"network: cannot fold {', '.join(left)}: not directly behind a convolution or linear layer in a Sequential"
        )
    return network


def _is_tied(network: nn.Module, layer: nn.Module) -> bool:
    weight = layer.weight
    return sum(tensor is weight for module in network.modules() for tensor in own_tensors(module).values()) > 1


def without_quantizers(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights are the decoded ones, as :func:`~.packing.load_packed` would give it."""
    network = copy.deepcopy(network.__dict__["_modules"].get(WRAPPER.removesuffix("."), network)).eval()
    modules = modules_of(network)
    kept = {name: kept for name, _, kept in kept_weights(network) if kept is not None}
    for name, weight in kept.items():
        layer: Any = modules[name]
        if quantization_of(layer) is not None:
            put_back(layer, nn.Parameter(weight.weight))
        layer.kept = weight
    return network


def adopt_folding(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the layers of the folded one that a state dict was taken from."""
    names = {id(module): name for name, module in network.named_modules()}
    for parent, layer_name, norm_name in _pairs(network):
        layer, norm = parent[layer_name], parent[norm_name]
        prefix = f"{names[id(layer)]}."
        has_statistics = norm.running_mean is None or f"{names[id(norm)]}.running_mean" in state
        if f"{prefix}bias" in state and not has_statistics:
            parent[layer_name] = _scaled(layer) if f"{prefix}scale" in state else _with_bias(layer)
            parent[norm_name] = nn.Identity()


def _folded(layer: Any, norm: Any) -> nn.Module:
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    if norm.affine:
        gain = gain * norm.weight.double()
    bias = bias * gain
    if norm.affine:
        bias = bias + norm.bias.double()

    kept: Codes | None = getattr(layer, "kept", None)
    if kept is not None and kept.scale is not None and SIGN not in kept.scale_axes:
        folded: Any = _scaled(layer)
        folded.weight.copy_(kept.values)
        folded.scale.copy_(kept.scale.double().flatten() * gain)
        folded.kept = dataclasses.replace(kept, scale=None, scale_axes=())
    else:
        folded = _with_bias(layer)
        gain_per_channel = gain.view(-1, *[1] * (layer.weight.ndim - 1))
        if kept is not None and kept.scale is not None:
            scale = (kept.scale.double() * gain_per_channel).to(layer.weight.dtype)
            folded.kept = dataclasses.replace(kept, scale=scale, scale_axes=(SIGN, CHANNEL))
            folded.weight.copy_(folded.kept.weight)
        else:
            folded.weight.copy_(layer.weight.double() * gain_per_channel)
    folded.bias.copy_(bias)
    return folded.to(layer.weight.dtype).eval()


def _scaled(layer: nn.Module) -> nn.Module:
    return next(scaled(layer) for kind, (_, scaled) in FOLDS.items() if isinstance(layer, kind))


def _with_bias(layer: Any) -> Any:
    copied = copy.deepcopy(layer)
    copied.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    copied.__dict__.pop("kept", None)
    return copied


def _pairs(network: nn.Module) -> Iterator[tuple[Any, Any, Any]]:
    """The Sequential, and the keys of a layer and the batch norm directly behind it."""
    for parent in list(network.modules()):
        if isinstance(parent, nn.Sequential):
            for index in range(len(parent) - 1):
                for kind, (norm, _) in FOLDS.items():
                    if isinstance(parent[index], kind) and isinstance(parent[index + 1], norm):
                        yield parent, index, index + 1
