"""Quantisation-aware training as a Lightning callback."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import lightning
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from tna_lightning.length import length_of
from tna_lightning.quantization.parametrized import (
    QUANTIZERS,
    check_names,
    check_quantizer,
    check_quantizers,
    layers_to_quantize,
    quantize_network,
    quantized_layers,
    quantizers_of,
    schemes_by_layer,
)
from tna_lightning.quantization.quantizers import Quantizer

log = logging.getLogger(__name__)


class WeightQuantization(lightning.Callback):
    """Quantises the weights of a learner's networks while they train; the optimizer keeps the full-precision ones.

    Validation and test see quantised weights from the first epoch on, whatever training sees: what would be deployed.

    Args:
        quantizer: prototype, see :mod:`tna_lightning.quantization.quantizers`; each weight gets its own copy.
        network: ``base``, ``companion`` (a twin or peer that trains along; a frozen one is refused), ``both``, or names
            of networks.
        companion_quantizer: the companions' own scheme, or one each by name; by default ``quantizer``.
        skip: layers that are not quantised, by names of modules, with all they contain: ``[stem, classifier]`` leaves
            the first layer and the last layer at full precision.
        layer_quantizers: names of modules with a scheme of their own, in every network that is quantised.
        start_epoch: training sees full-precision weights before this epoch, counted from 0.
        growth_epochs: from ``start_epoch`` on, the share of each layer's weights that training sees quantised grows
            epoch by epoch, the largest magnitudes first, to all of them after this many epochs.

    Example::

        trainer = lightning.Trainer(callbacks=[WeightQuantization(Ternary(), skip=["classifier"], start_epoch=2)])
    """

    def __init__(
        self,
        quantizer: Quantizer,
        network: str | Sequence[str] = "base",
        companion_quantizer: Quantizer | Mapping[str, Quantizer] | None = None,
        skip: Sequence[str] = (),
        start_epoch: int = 0,
        growth_epochs: int = 0,
        layer_quantizers: Mapping[str, Quantizer] | None = None,
    ) -> None:
        check_names(skip, layer_quantizers)
        self.layer_quantizers = dict(layer_quantizers or {})
        if isinstance(network, str) and network not in ("base", "companion", "both"):
            raise ValueError(f"network={network!r}: must be 'base', 'companion', 'both' or a list of networks")
        networks = ("base", "companion") if network == "both" else (network,) if isinstance(network, str) else network
        companions = [name for name in networks if name != "base"]
        schemes = {"quantizer": quantizer}
        if isinstance(companion_quantizer, Mapping):
            own = dict(companion_quantizer)
            schemes |= {f"companion_quantizer.{name}": scheme for name, scheme in own.items()}
        elif companion_quantizer is not None:
            own = dict.fromkeys(companions or ["companion"], companion_quantizer)
            schemes["companion_quantizer"] = companion_quantizer
        else:
            own = {}
        if own.keys() - set(companions):
            raise ValueError(
                f"companion_quantizer: has no effect with network={network!r}; set 'both', or name the companions there"
            )
        schemes |= {f"layer_quantizers.{layer}": scheme for layer, scheme in self.layer_quantizers.items()}
        for name, scheme in schemes.items():
            check_quantizer(name, scheme)
        for name, value in {"start_epoch": start_epoch, "growth_epochs": growth_epochs}.items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: must be a whole number of 0 or more")
        for name, scheme in schemes.items():
            if growth_epochs and not scheme.grows:
                raise ValueError(
                    f"growth_epochs={growth_epochs!r}: not with {name} {scheme.name}, whose scales start at 1 whatever "
                    "the weights are; allowed is 0"
                )
        self.network = network
        self.skip = list(skip)
        self.start_epoch = start_epoch
        self.growth_epochs = growth_epochs
        self._epochs_trained: int | None = None
        self._quantizers = {name: own.get(name, quantizer) for name in networks}

    def share(self, epoch: int) -> float:
        """Share of the weights that training sees quantised in this epoch (counted from 0)."""
        return min(1.0, max(0.0, (epoch - self.start_epoch + 1) / (self.growth_epochs + 1)))

    def check(self, learner: lightning.LightningModule, max_epochs: int | None = None) -> None:
        """Refuse what does not fit the networks, or a training of so many epochs; ``setup`` does, before it begins.

        Raises:
            ValueError: a network that is not there, or a frozen companion; a name in ``skip`` or ``layer_quantizers``
                that matches no layer; a schedule after which training has not seen all weights quantised
                (``max_epochs`` of None or below 1 sets no end); codes that differ by time step for a layer that does
                not stand in a ``PerStep``.
        """
        for name, (network, quantizer) in zip(self._quantizers, self._networks(learner), strict=True):
            schemes_by_layer(network, quantizer, self.skip, self.layer_quantizers)
            if name != "base" and not any(weight.requires_grad for weight in network.parameters()):
                raise ValueError(
                    f"network={self.network!r}: the {name} is frozen and keeps the weights that it was trained to; "
                    "leave it out, or train it quantised and take its weights from there"
                )
        if max_epochs is None or max_epochs < 1:
            return
        last = max_epochs - 1
        if self.start_epoch > last:
            raise ValueError(
                f"start_epoch={self.start_epoch!r}: must be at most {last}, the last of {max_epochs} epochs counted "
                "from 0; else training sees no quantised weights"
            )
        if self.start_epoch + self.growth_epochs > last:
            raise ValueError(
                f"growth_epochs={self.growth_epochs!r}: must be at most {last - self.start_epoch} after "
                f"start_epoch={self.start_epoch} in {max_epochs} epochs; else training never sees all weights quantised"
            )

    def change_networks(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        """Quantise the networks that are not yet.

        A :class:`~tna_lightning.learner.TwinLearner` asks for it before any callback is set up.

        Raises:
            ValueError: as :meth:`check`.
        """
        if trainer.state.fn == "fit":
            self.check(learner, None if _is_dry_run(trainer) else trainer.max_epochs)
        self._quantize(learner)

    def _quantize(self, learner: lightning.LightningModule) -> None:
        # before the optimizer is made, so that it gets the learned scales, and before a checkpoint is loaded
        for network, quantizer in self._networks(learner):
            quantize_network(network, quantizer, self.skip, self.layer_quantizers)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:  # noqa: D102
        if stage == "fit":
            self.check(pl_module, None if _is_dry_run(trainer) else trainer.max_epochs)
            # a TwinLearner's networks are quantised by now; those of another module may have been copied
            if any(layers_to_quantize(network, self.skip) for network, _ in self._networks(pl_module)):
                others: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # not in Lightning's annotations
                for earlier in takewhile(lambda callback: callback is not self, others):
                    if isinstance(earlier, WeightAveraging):
                        raise ValueError(
                            f"callbacks: {type(earlier).__name__} has copied the networks already; WeightQuantization "
                            "must come first"
                        )
        self._quantize(pl_module)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        self._epochs_trained = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        if not _is_dry_run(trainer):
            self.check(pl_module, length_of(trainer).epochs)  # now it is known when max_steps ends it

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        try:
            self.check(pl_module, None if _is_dry_run(trainer) else self._epochs_trained)
        except ValueError as error:
            log.warning("training ended after %d epochs; %s", self._epochs_trained, error)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: D102
        epoch = trainer.current_epoch
        self._epochs_trained = epoch + 1
        for network, _ in self._networks(pl_module):
            for _, weight, quantized in quantized_layers(network):
                quantized.set_share(weight, self.share(epoch))
                # before the start nothing learns the scales while the weights move; from epoch 0 on, those that an
                # earlier training has learned are kept
                if epoch <= self.start_epoch and (self.start_epoch or not quantized.has_trained):
                    quantized.quantizer.reset_scale(weight)
                quantized.has_trained = self.share(epoch) > 0

    def on_save_checkpoint(  # noqa: D102
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        networks = zip(self._quantizers, self._networks(pl_module), strict=True)
        checkpoint[QUANTIZERS] = {name: quantizers_of(network) for name, (network, _) in networks}

    def on_load_checkpoint(  # noqa: D102
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, (network, _) in zip(self._quantizers, self._networks(pl_module), strict=True):
            check_quantizers(name, network, checkpoint.get(QUANTIZERS, {}).get(name, {}))

    def _networks(self, pl_module: lightning.LightningModule) -> Iterator[tuple[nn.Module, Quantizer]]:
        for name, quantizer in self._quantizers.items():
            network: Any = getattr(pl_module, name, None)
            if network is None:
                raise ValueError(f"network={self.network!r}: there is no {name} to quantise")
            yield network, quantizer


def _is_dry_run(trainer: Any) -> bool:
    """Whether a few batches shall show that all works, so that no schedule can be kept."""
    return bool(trainer.fast_dev_run)
