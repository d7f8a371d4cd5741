"""The callback counts during the test what the function counts in a pass of its own."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tna_lightning.callbacks.inference_cost import InferenceCost
from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF, convnet

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"
    ),  # lightning 2.6.6
]


class Learner(lightning.LightningModule):
    def __init__(self, fails=False):
        super().__init__()
        self.base = convnet(1, 3, LIF, time_steps=2, width=0.2)
        self.companion = convnet(1, 3, nn.ReLU, width=0.2)
        self.fails = fails

    def test_step(self, batch, batch_idx):
        self.base(batch[0])
        self.companion(batch[0])
        if self.fails:
            raise RuntimeError("halfway")


def run(learner, callback, x):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback]
    )
    trainer.test(learner, DataLoader(TensorDataset(x), batch_size=3), verbose=False)


def test_the_base_is_counted_over_the_test_set():
    torch.manual_seed(0)
    learner, callback, x = Learner(), InferenceCost(pj_per_mac=2.0), torch.randn(8, 1, 8, 8)
    assert callback.result is None
    run(learner, callback, x)
    assert callback.result == inference_cost(learner.base, [x], pj_per_mac=2.0)
    assert callback.result["images"] == 8
    assert not any(module._forward_hooks for module in learner.modules())


def test_a_test_that_fails_leaves_no_hooks():
    learner, callback = Learner(fails=True), InferenceCost()
    with pytest.raises(RuntimeError, match="halfway"):
        run(learner, callback, torch.randn(4, 1, 8, 8))
    assert callback.result is None
    assert not any(module._forward_hooks for module in learner.modules())


def test_a_compiled_network_is_counted_too():
    torch.manual_seed(0)
    network, x = convnet(1, 3, nn.ReLU, width=0.2).eval(), torch.randn(4, 1, 8, 8)
    expected = inference_cost(network, [x])
    network.compile(backend="eager")
    with torch.inference_mode():
        network(x)
    assert inference_cost(network, [x]) == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_base_that_cannot_be_counted_is_refused_before_training():
    traced = torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(1, 4))
    learner = SimpleNamespace(base=torch.nn.Sequential(traced))
    with pytest.raises(ValueError, match=r"^network.0: is scripted or traced"):
        InferenceCost().setup(None, learner, "fit")
