"""How every layer changes over the epochs, for a logger's charts."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tna_lightning.data.batch import Batch
from tna_lightning.models.recording import watched
from tna_lightning.quantization.kept import weight_report


class LayerCurves(Callback):
    """Logs ``firing_rate/LAYER`` and ``zeros/LAYER`` of the base every epoch, to the logger alone.

    Firing rates (spikes a neuron and step) are those on the first validation batch, in a forward pass of their own in
    eval mode, which changes nothing; zeros are the share of a layer's weights that would be kept as 0. They do not
    become metrics of the run, so that a run's record is the same with and without a logger.
    """

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.logger is None or not trainer.is_global_zero:
            return
        base: Any = pl_module.base
        with trainer.precision_plugin.val_step_context():
            rates = firing_rates(base, Batch.of(batch).x)
        zeros = {layer["name"]: layer["zeros"] / layer["weights"] for layer in weight_report(base)["layers"]}
        metrics = {f"firing_rate/{name}": rate for name, rate in rates.items()}
        metrics |= {f"zeros/{name}": share for name, share in zeros.items()}
        trainer.logger.log_metrics({"epoch": trainer.current_epoch} | metrics, step=trainer.global_step)


def firing_rates(network: nn.Module, x: Tensor) -> dict[str, float]:
    """Spikes a neuron and step in each layer of neurons, by its name, for one batch; as the network stands now."""
    rates: dict[str, float] = {}

    def note(name: str, currents: Tensor, spikes: Tensor) -> None:
        rates[name] = float((spikes != 0).float().mean())

    with torch.no_grad(), watched(network, note):
        network(x)
    return rates
