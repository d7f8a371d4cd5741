"""Cost of inference, counted while the test set is looked at."""

from __future__ import annotations

from typing import Any, cast

import lightning

from tna_lightning.cost import PJ_PER_AC, PJ_PER_MAC, CostCounter, MemoryModel, check_energies, inference_cost
from tna_lightning.learner import refuse_spawned

__all__ = ["InferenceCost", "inference_cost"]


class InferenceCost(lightning.Callback):
    """Counts what the base's inference costs during ``trainer.test``, without a forward pass of its own.

    On several devices each counts its share of the images; what is kept is that of the first.

    Args:
        pj_per_mac: energy of a multiply-accumulate in picojoule (45 nm, Horowitz 2014).
        pj_per_ac: energy of an accumulate in picojoule.
        memory: energies of memory, a `tna_lightning.cost.MemoryModel`; null: that with its own defaults.

    Raises:
        ValueError: an energy below 0; at setup, a base that cannot be counted (scripted or traced).

    Attributes:
        result: after the test what :meth:`tna_lightning.cost.CostCounter.report` says; before it None.

    Example::

        cost = InferenceCost()
        lightning.Trainer(callbacks=[cost]).test(learner, datamodule)
        print(cost.result["energy_uj"])
    """

    def __init__(
        self, pj_per_mac: float = PJ_PER_MAC, pj_per_ac: float = PJ_PER_AC, memory: MemoryModel | None = None
    ) -> None:
        check_energies(pj_per_mac, pj_per_ac)
        self.pj_per_mac, self.pj_per_ac, self.memory = pj_per_mac, pj_per_ac, memory
        self.result: dict[str, Any] | None = None
        self._counter: CostCounter | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        CostCounter(cast(Any, pl_module).base)  # what cannot be counted is refused before training

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        refuse_spawned(trainer, self)
        base: Any = pl_module.base
        self._counter = CostCounter(base, self.pj_per_mac, self.pj_per_ac, self.memory).__enter__()

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert self._counter is not None
        self._counter.__exit__()
        self.result = self._counter.report()
        self._counter = None

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__()
            self._counter = None
