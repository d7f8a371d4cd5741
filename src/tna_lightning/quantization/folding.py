"""Batch norm folded into the convolution before it: what is left are codes, scale and bias per channel, and neurons."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tna_lightning.models.over_time import OverTime
from tna_lightning.quantization.codes import CHANNEL, SIGN, Codes
from tna_lightning.quantization.kept import kept_weights


class ScaledConv2d(nn.Conv2d):
    """``conv(x, codes) * scale + bias``: integer weights, then one scale and one bias per output channel.

    With spikes as inputs the convolution is a sum of integers, and exact.

    Args:
        conv: whose shape it has.
    """

    bias: nn.Parameter

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast("tuple[int, int]", conv.kernel_size),
            cast("tuple[int, int]", conv.stride),
            cast("tuple[int, int]", conv.padding),
            cast("tuple[int, int]", conv.dilation),
            conv.groups,
            bias=True,
            padding_mode=conv.padding_mode,
        )
        self.scale = nn.Parameter(torch.ones(conv.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Currents, from spikes or images ``[N, C, H, W]``."""
        return self._conv_forward(x, self.weight, None) * self.scale[:, None, None] + self.bias[:, None, None]


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of a network for deployment, in eval mode: no batch norm and no quantisers.

    ``norm(conv(x))`` becomes ``conv(x, codes) * scale + bias`` (:class:`ScaledConv2d`) where the weight is codes times
    one scale per channel or layer. Where it has two scales (TTQ) or is not quantised, it becomes a plain convolution
    with bias, whose weight has the norm's gain in it. The new scales and biases are computed in float64.

    Raises:
        ValueError: a batch norm does not directly follow a convolution in an ``nn.Sequential``, or follows one whose
            weight differs by time step, as its own scale may.
    """
    network = without_quantizers(network)
    for parent, conv_name, norm_name in _conv_norm_pairs(network):
        conv, norm = cast(nn.Conv2d, parent[conv_name]), cast(nn.BatchNorm2d, parent[norm_name])
        if isinstance(conv, OverTime) or isinstance(norm, OverTime):
            (name,) = [name for name, module in network.named_modules() if module is norm]
            what = "the weight before it" if isinstance(conv, OverTime) else "its scale"
            raise ValueError(f"network: cannot fold {name}: {what} differs by time step")
        parent[conv_name], parent[norm_name] = _folded(conv, norm), nn.Identity()
    left = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise ValueError(f"network: cannot fold {', '.join(left)}: not directly behind a convolution in a Sequential")
    return network


def without_quantizers(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights are the decoded ones, as :func:`~.packing.load_packed` would give it."""
    network = copy.deepcopy(network).eval()
    kept = {name: kept for name, _, kept in kept_weights(network) if kept is not None}
    for name, weight in kept.items():
        layer: Any = network.get_submodule(name)
        if parametrize.is_parametrized(layer, "weight"):
            # not torch's remove_parametrizations: it changes the class, which a copied layer shares with its original
            del layer.parametrizations
            layer.__class__ = type(layer).__bases__[0]
            layer.weight = nn.Parameter(weight.weight)
        layer.kept = weight
    return network


def adopt_folding(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the layers of the folded one that a state dict was taken from."""
    names = {id(module): name for name, module in network.named_modules()}
    for parent, conv_name, norm_name in _conv_norm_pairs(network):
        conv = cast(nn.Conv2d, parent[conv_name])
        prefix = f"{names[id(conv)]}."
        if f"{prefix}bias" in state and f"{names[id(parent[norm_name])]}.running_mean" not in state:
            parent[conv_name] = ScaledConv2d(conv) if f"{prefix}scale" in state else _with_bias(conv)
            parent[norm_name] = nn.Identity()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    if norm.affine:
        gain = gain * norm.weight.double()
    bias = bias * gain
    if norm.affine:
        bias = bias + norm.bias.double()

    kept: Codes | None = getattr(conv, "kept", None)
    if kept is not None and kept.scale is not None and SIGN not in kept.scale_axes:
        folded: Any = ScaledConv2d(conv)
        folded.weight.copy_(kept.values)
        folded.scale.copy_(kept.scale.double().flatten() * gain)
        folded.kept = dataclasses.replace(kept, scale=None, scale_axes=())
    else:
        folded = _with_bias(conv)
        gain_per_channel = gain.view(-1, 1, 1, 1)
        if kept is not None and kept.scale is not None:
            scale = (kept.scale.double() * gain_per_channel).to(conv.weight.dtype)
            folded.kept = dataclasses.replace(kept, scale=scale, scale_axes=(SIGN, CHANNEL))
            folded.weight.copy_(folded.kept.weight)
        else:
            folded.weight.copy_(conv.weight.double() * gain_per_channel)
    folded.bias.copy_(bias)
    return folded.to(conv.weight.dtype).eval()


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    copied = copy.deepcopy(conv)
    copied.bias = nn.Parameter(torch.zeros(conv.out_channels))
    copied.__dict__.pop("kept", None)
    return copied


def _conv_norm_pairs(network: nn.Module) -> Iterator[tuple[Any, Any, Any]]:
    """The Sequential, and the keys of a convolution and the batch norm directly behind it."""
    for parent in list(network.modules()):
        if isinstance(parent, nn.Sequential):
            for index in range(len(parent) - 1):
                if isinstance(parent[index], nn.Conv2d) and isinstance(parent[index + 1], nn.BatchNorm2d):
                    yield parent, index, index + 1
