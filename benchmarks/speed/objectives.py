"""The step of each objective over the plain one, and ternary weights over full precision: `TwinLearner`'s own passes.

Base and companion are of one architecture; the optimizer is SGD with the learner's parameter groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.speed.comparison import Comparison, Ratio, Run, Settings
from benchmarks.speed.peers import our_neuron
from benchmarks.speed.training_step import Size, mixed_precision, network
from tna_lightning.data import Batch
from tna_lightning.models import compile_neurons
from tna_lightning.objectives import Distillation, MutualLearning, Objective, Plain, TwinAugmentation
from tna_lightning.quantization import Ternary, quantize_network


def size_for(settings: Settings) -> Size:
    """The size on a device; the batch on a CPU is half of that of the contest, as two networks take turns."""
    if settings.toy:
        return Size("resnet18", 0.0625, 2, 2)
    return Size("resnet18", 0.25, 16) if settings.device == "cpu" else Size("resnet19", 1.0, 128)


class LearnerStep:
    """One training step of a `TwinLearner` on one batch, which stays the same."""

    def __init__(self, settings: Settings, objective: Objective, ternary: bool = False, frozen: bool = False) -> None:
        from tna_lightning import TwinLearner  # here: Lightning takes seconds to import, and most comparisons need none

        size = size_for(settings)
        base = network(size, our_neuron)
        companion = network(size, our_neuron, seed=1) if objective.num_companions else None
        if ternary:
            quantize_network(base, Ternary())
        self.learner = TwinLearner(base, companion, objective, num_classes=10, freeze_companion=frozen)
        self.learner.to(settings.device)
        compile_neurons(self.learner)
        groups = list(self.learner.parameter_groups())
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.settings = settings
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(size.batch, 3, 32, 32, generator=generator).to(settings.device)
        self.batch = Batch(x, torch.randint(10, (size.batch,), generator=generator).to(settings.device))

    def __call__(self) -> None:
        """Both passes, the loss, backward, the optimizer's step."""
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.settings):
            losses, _ = self.learner.losses(self.batch)
        losses["loss"].backward()
        self.optimizer.step()


def contestants(settings: Settings) -> dict[str, Callable[[], Run]]:
    """Every objective, and plain and TNA with ternary weights."""
    return {
        "plain": lambda: LearnerStep(settings, Plain()),
        "TNA": lambda: LearnerStep(settings, TwinAugmentation()),
        "distillation, frozen teacher": lambda: LearnerStep(settings, Distillation(), frozen=True),
        "mutual learning": lambda: LearnerStep(settings, MutualLearning()),
        "plain, ternary": lambda: LearnerStep(settings, Plain(), ternary=True),
        "TNA, ternary base": lambda: LearnerStep(settings, TwinAugmentation(), ternary=True),
    }


COMPARISONS = {
    "objectives": Comparison(
        title="Objectives and ternary weights",
        sizes=lambda settings: (
            f"{size_for(settings)}, neurons compiled; base and companion alike, both trained but for distillation's "
            "frozen teacher. Ternary: every convolution and linear layer of the base (TWN, a scale for each output "
            "channel)."
        ),
        contestants=contestants,
        ratios=(
            Ratio("TNA over plain", ("TNA",), ("plain",)),
            Ratio("distillation over plain", ("distillation, frozen teacher",), ("plain",)),
            Ratio("mutual learning over plain", ("mutual learning",), ("plain",)),
            Ratio("ternary over full precision", ("plain, ternary",), ("plain",)),
            Ratio("ternary over full precision, in TNA", ("TNA, ternary base",), ("TNA",)),
        ),
    )
}
