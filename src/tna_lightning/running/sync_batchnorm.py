"""Batch normalisation over the whole batch of several processes on CPUs.

Why not torch's: ``nn.SyncBatchNorm`` refuses tensors on a CPU ("expected input tensor to be on GPU or XPU ...", torch
2.13), since its kernels are for accelerators alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn


class SyncBatchNorm(LayerSync):
    """Lightning plugin: while a strategy with several processes trains, batch norm sees the batches of all of them.

    A network then learns what it would learn on one device with the whole batch, to rounding. Modules keep their
    parameters and their place: their class alone changes, and changes back. On GPUs ``sync_batchnorm=True`` is faster.

    Example::

        lightning.Trainer(strategy="ddp", devices=2, accelerator="cpu", plugins=[SyncBatchNorm()])
    """

    def apply(self, model: nn.Module) -> nn.Module:  # noqa: D102
        for module in model.modules():
            if type(module) in _SYNCED:
                module.__class__ = _SYNCED[type(module)]
        return model

    def revert(self, model: nn.Module) -> nn.Module:  # noqa: D102
        plain = {synced: original for original, synced in _SYNCED.items()}
        for module in model.modules():
            if type(module) in plain:
                module.__class__ = plain[type(module)]
        return model


class _AllReduce(torch.autograd.Function):
    """Sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _Synced(nn.modules.batchnorm._BatchNorm):
    """In training from sums over all processes; in evaluation as ever."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = _AllReduce.apply(x.new_tensor(x.numel() / x.size(1)))
        mean = _AllReduce.apply(x.sum(dims)) / count
        centered = x - mean.view(shape)
        variance = _AllReduce.apply(centered.square().sum(dims)) / count
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if not self.affine:
            return normalized
        return normalized * self.weight.view(shape) + self.bias.view(shape)


class _SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    pass


class _SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    pass


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _SyncedBatchNorm1d,
    nn.BatchNorm2d: _SyncedBatchNorm2d,
}
