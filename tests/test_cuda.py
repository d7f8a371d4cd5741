"""What needs a CUDA device: compiled neurons, mixed precision, and a companion on a device of its own."""

import copy
from functools import partial

import lightning
import pytest
import torch

from tna_lightning.data import Batch, DigitsDataModule
from tna_lightning.learner import TwinLearner
from tna_lightning.models import LIF, compile_neurons, convnet, surrogates
from tna_lightning.objectives import TwinAugmentation
from tna_lightning.quantization import Ternary, WeightQuantization

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_compiled_neurons_equal_those_of_the_cpu(dtype, reset):
    lif = LIF(0.7, 0.9, reset, surrogates.ATan(2.0), learn_beta=True, learn_threshold=True)
    current, grad_spikes = torch.randn(4, 3, 5, 6, 6).to(dtype), torch.randn(4, 3, 5, 6, 6).to(dtype)
    outcomes = []
    for device, compiled in (("cpu", False), ("cuda", False), ("cuda", True)):
        neuron = copy.deepcopy(lif).to(device)
        compile_neurons(neuron, compiled)
        leaf = current.to(device).requires_grad_()
        spikes = neuron(leaf)
        spikes.backward(grad_spikes.to(device))
        assert spikes.dtype == dtype
        gradients = [leaf.grad, *(parameter.grad for parameter in neuron.parameters())]
        outcomes.append((spikes.detach().cpu(), [gradient.cpu() for gradient in gradients]))
    (spikes, gradients), *others = outcomes
    for other_spikes, other_gradients in others:
        assert (
            other_spikes != spikes
        ).float().mean() < 1e-3  # a fused multiply-add may round to the threshold's other side
        for other, gradient in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(other.float(), gradient.float(), rtol=2e-2, atol=2e-2)


def fitted(accelerator="gpu", compiled=False, precision="32-true", **settings):
    lightning.seed_everything(0, verbose=False)
    base, twin = (convnet(1, 10, LIF, time_steps=2, width=0.5) for _ in range(2))
    for network in (base, twin):
        compile_neurons(network, compiled)
    learner = TwinLearner(base, twin, TwinAugmentation(), num_classes=10, optimizer=SGD, **settings)
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=3,
        precision=precision,
        callbacks=[WeightQuantization(Ternary())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, DigitsDataModule(seed=0))
    return learner, float(trainer.callback_metrics["val/acc"])


def test_training_reaches_what_it_reaches_on_the_cpu():
    _, on_cpu = fitted("cpu")
    for settings in ({}, {"compiled": True}, {"precision": "bf16-mixed"}):
        _, on_gpu = fitted(**settings)
        assert abs(on_gpu - on_cpu) < 0.15, settings  # 144 images, three epochs


def test_a_companion_elsewhere_learns_the_same():
    beside, accuracy = fitted()
    elsewhere, other_accuracy = fitted(companion_device="cpu")
    assert abs(accuracy - other_accuracy) < 0.1
    assert {parameter.device.type for parameter in elsewhere.companion.parameters()} == {"cpu"}
    x, target = torch.randn(8, 1, 8, 8, device="cuda"), torch.arange(8, device="cuda")
    losses = []
    for learner in (beside.cuda(), elsewhere.cuda()):
        learner.load_state_dict(beside.state_dict())
        losses.append(learner.eval().losses(Batch(x, target))[0]["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_base_and_twin_on_two_devices():
    learner, accuracy = fitted(companion_device="cuda:1")
    assert accuracy > 0.5
    assert {parameter.device for parameter in learner.cuda().companion.parameters()} == {torch.device("cuda:1")}
