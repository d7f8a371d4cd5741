"""Each choice of `quant=` is the scheme that its name says."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tna_lightning.quantization import WeightQuantization
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build

CHOICES = {path.stem: path for path in (Path(__file__).parents[2] / "conf" / "quant").glob("*.yaml")}


def test_the_choices_are_those_of_the_readme():
    assert set(CHOICES) == {
        *(
            "none",
            "int8",
            "int4",
            "int3",
            "int2",
            "ternary",
            "ternary_hidden",
            "ternary_ttq",
            "ternary_absmean",
            "binary",
            "tawq",
        )
    }
    assert not OmegaConf.load(CHOICES["none"])


@pytest.mark.parametrize("name", sorted(set(CHOICES) - {"none"}))
def test_a_choice_builds_its_scheme(name):
    callback = build("quant", compose([f"quant={name}"])["quant"])
    assert isinstance(callback, WeightQuantization)
    quantizer = callback._quantizers["base"]
    assert quantizer.name == {"ternary_hidden": "ternary"}.get(name, name)
    assert callback.skip == (["stem", "classifier"] if name in ("ternary_hidden", "tawq") else [])
    learned = quantizer.for_weight(torch.ones(2, 3)).scale is not None
    assert learned == (name in ("int2", "int3", "ternary_ttq"))
