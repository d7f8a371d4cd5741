"""Networks from config nodes."""

import torch

from tna_lightning.factory import build_network


def test_channels_last_is_left_out_where_a_strided_shortcut_is_too_narrow_for_it(caplog):
    """oneDNN writes past the end of such a layer's weight gradient: the steps below would end the process."""
    lif = {"_target_": "tna_lightning.models.LIF", "_partial_": True}
    for width, is_channels_last in ((0.25, False), (1.0, True)):
        model = {"_target_": "tna_lightning.models.resnet8", "width": width, "time_steps": 1}
        spec = {"model": model, "neuron": lif, "in_channels": 3, "num_classes": 2}
        network = build_network(spec, channels_last=True)
        assert network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last) is is_channels_last
        for _ in range(5):
            network(torch.randn(4, 3, 32, 32)).sum().backward()
    (warning,) = caplog.messages
    assert warning == "channels_last=true: left out, since body.2.shortcut.conv has too few channels for it"
