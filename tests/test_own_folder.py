"""A user's own folder, nothing changed in the package: what the guides' examples (test_docs.py) do not show.

There a neuron, a backbone, a quantiser, codes per step, an objective, an augmentation, a callback and a data set; in
test_companions.py a cohort of three and sample weights. Here a spiking block with attention.
"""

import contextlib
import json
import sys

import pytest

from tna_lightning.running.record import find_runs, finished_record

ATTENTION = '''
import torch
from torch import nn

from tna_lightning.models import PerStep


class Projection(nn.Module):
    """Spikes of a linear map of tokens, [T, B, N, D]."""

    def __init__(self, dim, neuron):
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)
        self.norm = PerStep(nn.BatchNorm1d(dim))
        self.neuron = neuron()

    def forward(self, x):
        current = self.norm(self.linear(x).movedim(3, 2))  # [T, B, D, N]
        return self.neuron(current).movedim(2, 3)


class SpikingAttentionNet(nn.Module):
    def __init__(self, inputs, neuron, dim=16, time_steps=2):
        super().__init__()
        self.time_steps = time_steps
        self.stem = PerStep(nn.Conv2d(inputs.channels, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))
        self.neuron = neuron()
        self.q, self.k, self.v = (Projection(dim, neuron) for _ in range(3))
        self.out = Projection(dim, neuron)
        self.position = nn.Parameter(torch.zeros(inputs.height * inputs.width, dim))
        self.classifier = nn.Linear(dim, inputs.num_classes)

    def forward(self, x):
        current = self.stem(x.unsqueeze(0)).expand(self.time_steps, -1, -1, -1, -1)
        tokens = self.neuron(current).flatten(3).movedim(2, 3) + self.position
        attention = self.q(tokens) @ self.k(tokens).transpose(2, 3)  # [T, B, N, N], counts of common spikes
        mixed = tokens + self.out(attention @ self.v(tokens) * 0.125)
        return self.classifier(mixed.mean(2))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with `my_attention.py` and its YAML, in which commands are run; the module is forgotten afterwards."""
    (tmp_path / "my_attention.py").write_text(ATTENTION)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    choice = "# attention\n_target_: my_attention.SpikingAttentionNet\ndim: 16\ntime_steps: 2\n"
    (tmp_path / "my_conf" / "model" / "attention.yaml").write_text(choice)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_attention", None)


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_a_block_with_attention_trains_with_a_twin_is_kept_and_taken_away(folder, monkeypatch, capsys):
    from tna_lightning import __main__ as front
    from tna_lightning import evaluate
    from tna_lightning.export import __main__ as export

    small = ["data.train_subset=100", "epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    command = ["--config-dir", "my_conf", "model=attention", "quant.skip=[classifier]", *small]
    call(front, monkeypatch, *command)
    (run,) = find_runs(folder / "runs")
    record = finished_record(run)
    assert record["name"].startswith("digits-attention-lif-tna-ternary-s0-")
    layers = {layer["name"]: layer["is_quantized"] for layer in record["weights"]["layers"]}
    assert layers["q.linear"]
    assert not layers["classifier"]
    capsys.readouterr()
    for door, options in ((evaluate, []), (export, ["--format", "packed"])):  # a record does not choose what is called
        with pytest.raises(SystemExit) as left:
            call(door, monkeypatch, str(run), *options)
        assert left.value.code == 2
        assert "names model._target_='my_attention.SpikingAttentionNet', which is no part" in capsys.readouterr().err
    call(evaluate, monkeypatch, str(run), "--trust")
    assert f"test/acc {record['results']['test/acc']:.2%} (" in capsys.readouterr().out
    call(export, monkeypatch, str(run), "--format", "packed", "--images", "20", "--trust")
    assert "checked on 20 images: 0 predictions" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        call(export, monkeypatch, str(run), "--format", "nir", "--images", "20", "--trust")
    assert left.value.code == 2
    assert "q.norm.0" in capsys.readouterr().err

    call(front, monkeypatch, *command)  # the same command again finds the run done
    assert "done already" in capsys.readouterr().out
    (folder / "my_attention.py").write_text(ATTENTION.replace("0.125", "0.25"))
    call(evaluate, monkeypatch, str(run), "--trust")
    assert capsys.readouterr().err == "warning: my_attention has changed since this run was trained\n"
    for threads, outcome in ((record["environment"]["threads"], "error: not the rec"), (77, "warning: not the rec")):
        results = record["results"] | {"test/acc": 0.0625}  # not what the network does
        environment = record["environment"] | {"threads": threads}
        (run / "run.json").write_text(json.dumps(record | {"results": results, "environment": environment}))
        with contextlib.suppress(SystemExit) if threads == 77 else pytest.raises(SystemExit, match=outcome) as left:
            call(evaluate, monkeypatch, str(run), "--trust")
        said = capsys.readouterr().err if threads == 77 else left.value.code
        assert f"{outcome}orded results" in said
        assert "(recorded: 0.0625)" in said
    (run / "run.json").write_text(json.dumps(record))
    call(front, monkeypatch, *command)
    assert len(list(find_runs(folder / "runs"))) == 2  # an edited file is another run
