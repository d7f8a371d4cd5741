"""Each choice of `quant=` is the scheme that its name says, with every setting written out."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tna_lightning.quantization import WeightQuantization
from tna_lightning.running.config import compose

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
        )
    }
    assert not OmegaConf.load(CHOICES["none"])


@pytest.mark.parametrize("name", sorted(set(CHOICES) - {"none"}))
def test_a_choice_builds_its_scheme_from_defaults_written_out(name):
    text = CHOICES[name].read_text()
    assert text.startswith("# ")
    config = OmegaConf.create(compose([f"quant={name}"])["quant"])
    callback = instantiate(config, _convert_="all")
    assert isinstance(callback, WeightQuantization)
    quantizer = callback._quantizers["base"]
    assert quantizer.name == {"ternary_hidden": "ternary"}.get(name, name)
    assert callback.skip == (["stem", "classifier"] if name == "ternary_hidden" else [])
    for target, node in ((WeightQuantization, config), (type(quantizer), config.quantizer)):
        parameters = set(inspect.signature(target).parameters) - {"network", "companion_quantizer"}  # companions' own
        assert set(node) - {"_target_"} == parameters
