"""What goes into a learner and comes out of its networks must fit together; each misfit is refused in one line.

Letters: T time steps, B batch, K classes. Shapes are compared at every step, which asks nothing of a device.
"""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from tna_lightning.data.batch import Batch

_INDICES = (torch.int64, torch.uint8)  # what torch's cross-entropy takes


def check_batch(batch: Batch, num_classes: int) -> None:
    """Refuse inputs and targets whose shapes do not fit.

    Raises:
        ValueError: the first dimension of both is not B; targets are neither class indices ``[B]`` nor class
            probabilities ``[B, K]``.
    """
    x, target = batch.x, batch.target
    for name, value in (("x", x), ("target", target)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}={type(value).__name__}: must be a tensor")
    is_of_indices = target.ndim == 1 and target.dtype in _INDICES
    if not is_of_indices and not (target.shape[1:] == (num_classes,) and target.is_floating_point()):
        raise ValueError(
            f"target={list(target.shape)} of {target.dtype}: must be class indices [B] of torch.int64, or class "
            f"probabilities [B, {num_classes}] of a floating type"
        )
    if x.shape[:1] != target.shape[:1]:
        raise ValueError(
            f"x={list(x.shape)}: must begin with B={len(target)}, as the target does (event frames are [B, T, C, H, W])"
        )


def check_labels(target: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Refuse labels that are no class. It reads them, so a device has to be waited for.

    Args:
        target: class indices ``[B]``; of class probabilities nothing is looked at.
        num_classes: K.
        ignore_index: the label of samples that have none.

    Raises:
        ValueError: one lies outside of 0 to K - 1 and is not ``ignore_index``.
    """
    if target.ndim != 1:
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if not wrong.any():
        return
    label = int(target[wrong][0])
    is_torchs = label == -100 and ignore_index is None
    hint = "; the objective's ignore_index=-100 leaves out samples without a label" if is_torchs else ""
    raise ValueError(f"target={label}: labels must lie in 0 to {num_classes - 1} (num_classes={num_classes}){hint}")


def time_first(logits: object, name: str, batch_size: int, num_classes: int) -> Tensor:
    """A network's logits as ``[T, B, K]``; one without time returns ``[B, K]``, which is T = 1.

    Args:
        logits: what it returned.
        name: of the network, for errors.
        batch_size: B.
        num_classes: K.

    Raises:
        ValueError: they are no tensor, or of another shape.
    """
    wanted = f"must be [T, {batch_size}, {num_classes}] ([T, B, K]) or [{batch_size}, {num_classes}] ([B, K])"
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name}: returns a {type(logits).__name__}; {wanted}, logits alone")
    steps = logits.unsqueeze(0) if logits.ndim == 2 else logits
    if steps.ndim == 3 and steps.shape[1:] == (batch_size, num_classes) and len(steps):
        return steps
    reason = ""
    if steps.ndim == 3 and steps.shape[2] != num_classes:
        reason = f"; K of the network is {steps.shape[2]}, num_classes {num_classes}"
    elif steps.ndim == 3 and steps.shape[0] == batch_size:
        reason = "; time comes first"
    raise ValueError(f"{name}: its logits are {list(logits.shape)}, {wanted}{reason}")


def refuse_batch_first(network: nn.Module, name: str, x: Tensor, logits_TBK: Tensor) -> None:
    """Refuse a network whose logits are ``[B, T, K]``, which shapes alone do not show where T equals B.

    It sees the first sample once more, in eval mode.

    Raises:
        ValueError: the number of samples is the first dimension of its logits.
    """
    time_steps = len(logits_TBK)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), isolate_rng():
            # not by a call, for which torch.compile would compile the whole network once more
            one = network.forward(x[:1])
    finally:
        for module, mode in modes:
            module.training = mode
    if one.shape[:2] == (1, time_steps):
        raise ValueError(
            f"{name}: its logits are [B, T, K], {list(one.shape)} for one sample; must be [T, B, K], time first"
        )
