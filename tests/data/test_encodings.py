"""Images as spikes over time: against snntorch's own, seeded, up to a training."""

import pytest
import torch
from snntorch import spikegen

from tna_lightning.data import DigitsDataModule
from tna_lightning.data.encodings import latency, rate
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build_data, expected_inputs, network_spec
from tna_lightning.running.train import build_learner


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rate_draws_each_step_with_the_pixel_as_probability():
    images = torch.tensor([0.0, 0.25, 0.9, 1.0]).view(1, 1, 2, 2).expand(50, 1, 2, 2)
    spikes = rate(images, 80, generator())
    assert spikes.shape == (50, 80, 1, 2, 2)
    assert spikes.unique().tolist() == [0, 1]
    torch.testing.assert_close(spikes.mean((0, 1)), images[0], atol=0.02, rtol=0)
    assert (spikes[:, 0] != spikes[:, 1]).any()
    torch.manual_seed(0)
    theirs = spikegen.rate(images, num_steps=80).transpose(0, 1)
    torch.testing.assert_close(theirs.mean((0, 1)), spikes.mean((0, 1)), atol=0.03, rtol=0)
    assert torch.equal(spikes, rate(images, 80, generator()))


def test_latency_has_one_spike_a_pixel_the_earlier_the_brighter():
    images = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.02, 0.0]).view(1, 1, 2, 3)
    spikes = latency(images, 5)
    assert spikes.shape == (1, 5, 1, 2, 3)
    assert spikes.sum(1).flatten().tolist() == [1, 1, 1, 1, 1, 0]
    when = spikes.argmax(1).flatten()[:5]
    assert (when.diff() >= 0).all()
    assert (when[0], when[-1]) == (0, 4)
    theirs = spikegen.latency(images, num_steps=5, normalize=True, linear=True, clip=True)
    assert torch.equal(spikes, theirs.transpose(0, 1))


class Stage:
    """A trainer, as far as a data module looks at it."""

    def __init__(self, training, batch=0, epoch=0):
        self.training, self.current_epoch, self.global_rank = training, epoch, 0
        self.fit_loop = type("Fit", (), {"epoch_loop": type("Epoch", (), {"batch_idx": batch - 1})})
        self.precision_plugin = type("Plain", (), {"convert_input": staticmethod(lambda x: x)})


def seen(data, batch, stage):
    data.trainer = stage
    return data.on_after_batch_transfer(batch, 0).x


@pytest.mark.parametrize("encode", ["rate", "latency"])
def test_a_data_module_gives_frames_seeded_and_each_batch_its_own(encode):
    data = DigitsDataModule(encode=encode, encode_steps=3)
    data.setup("fit")
    first, second = data.train_set[[0, 1, 2]], data.train_set[[3, 4, 5]]
    x = seen(data, first, Stage(training=True))
    assert x.shape == (3, 3, 1, 8, 8)
    assert x.unique().tolist() == [0, 1]
    assert data.inputs.time_steps == 3
    assert torch.equal(x, seen(data, first, Stage(training=True)))
    is_random = encode == "rate"
    for other in (Stage(training=True, epoch=1), Stage(training=True, batch=1)):
        assert torch.equal(x, seen(data, first, other)) != is_random
    evaluated = seen(data, first, Stage(training=False))
    assert torch.equal(evaluated, seen(data, first, Stage(training=False, epoch=4)))
    assert (seen(data, second, Stage(training=False)) != evaluated).any()
    assert torch.equal(data.prepare(first.x), data.prepare(first.x))
    with pytest.raises(ValueError, match=rf"^data\.encode={encode}: is done by the data module alone"):
        data.normalization  # noqa: B018


def test_from_the_command_line():
    config = compose(["data.encode=rate", "data.encode_steps=2", "model.time_steps=2", "model.width=0.125"])
    data = build_data(config)
    learner = build_learner(config, data)
    assert learner.base(torch.rand(2, 2, 1, 8, 8).round()).shape == (2, 2, 10)
    assert network_spec(config, data)["model"]["time_steps"] == 2
    expected = expected_inputs(learner.base, data)
    assert (expected["kind"], expected["time_steps"], expected["mean"]) == (None, 2, None)
    with pytest.raises(ValueError, match=r"^model\.time_steps=4: event frames .*data\.encode_steps and this"):
        build_learner(compose(["data.encode=rate", "data.encode_steps=2"]), data)
    for settings, message in (
        ({"encode": "phase"}, r"encode='phase': must be one of direct, rate, latency"),
        ({"encode_steps": 3}, r"encode_steps=3: is T of encode=rate and latency; here encode='direct'"),
        ({"encode": "latency", "encode_steps": 1}, r"encode_steps=1: must be at least 1, for a latency code 2"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            DigitsDataModule(**settings)
