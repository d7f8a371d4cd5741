"""Networks from config nodes."""

import pytest
import torch

from tna_lightning.running import factory
from tna_lightning.running.factory import build_network, compile_network


def a_resnet8(width):
    lif = {"_target_": "tna_lightning.models.LIF", "_partial_": True}
    model = {"_target_": "tna_lightning.models.resnet8", "width": width, "time_steps": 1}
    return {"model": model, "neuron": lif, "in_channels": 3, "num_classes": 2}


def test_channels_last_is_left_out_where_a_strided_shortcut_is_too_narrow_for_it(caplog):
    """oneDNN writes past the end of such a layer's weight gradient: the steps below would end the process."""
    for width, is_channels_last in ((0.25, False), (1.0, True)):
        network = build_network(a_resnet8(width), channels_last=True)
        assert network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last) is is_channels_last
        for _ in range(5):
            network(torch.randn(4, 3, 32, 32)).sum().backward()
    (warning,) = caplog.messages
    assert warning == "channels_last=true: left out, since body.2.shortcut.conv has too few channels for it"


# torch's own, inside of torch.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "width", "compiler", "whole", "neurons"),
    [
        ("none", 1.0, True, False, False),
        ("neurons", 1.0, True, False, True),
        ("network", 1.0, True, True, False),
        ("network", 1.0, False, False, True),  # which stay eager and say so
        ("network", 0.25, True, False, True),  # the compiler would choose channels-last
    ],
)
def test_what_is_compiled(how, width, compiler, whole, neurons, monkeypatch, caplog):
    monkeypatch.setattr(factory, "has_compiler", lambda device_type: compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = build_network(a_resnet8(width))
    compile_network(network, how)
    assert (network._compiled_call_impl is not None) is whole
    assert all(module.compiled is neurons for module in network.modules() if hasattr(module, "compiled"))
    warning = "compile=network: the neurons alone are compiled, since body.2.shortcut.conv has too few channels for it"
    assert caplog.messages == ([warning] if width == 0.25 else [])
