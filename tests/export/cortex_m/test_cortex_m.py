"""The demo's network on microcontrollers without an operating system, which qemu emulates."""

import shutil

import numpy as np
import pytest
import torch
from board import BOARDS, missing_tools, run_on_board

import tna_lightning
from tna_lightning.data import DigitsDataModule
from tna_lightning.export import export_c
from tna_lightning.quantization import Ternary, quantize_network
from tna_lightning.running.config import compose
from tna_lightning.running.factory import build_network, network_spec

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) or shutil.which("cc") is None, reason=f"no C compiler, or no {', no '.join(missing_tools())}"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The network of the demo with statistics of digits, as C; three of them, and their logits on this processor."""
    torch.manual_seed(0)
    digits = DigitsDataModule(seed=0)
    digits.setup("fit")
    digits.setup("test")
    network = build_network(network_spec(compose([]), digits))
    quantize_network(network, Ternary())
    with torch.no_grad():
        for batch in (digits.train_set[range(64)] for _ in range(3)):
            network(digits.prepare(batch.x))
    pixels = digits.test_set[range(3)].x
    folder = tmp_path_factory.mktemp("demo") / "network"
    export_c(network.eval(), folder, [pixels], digits.normalization, digits.class_names, is_checked=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        return folder, pixels.numpy(), tna_lightning.load_c(folder)(pixels.numpy())


@pytest.mark.parametrize("cpu", BOARDS)
def test_the_demos_network_runs_and_its_logits_are_the_hosts_to_the_bit(cpu, demo, tmp_path):
    folder, pixels, logits = demo
    answer = run_on_board(shutil.copytree(folder, tmp_path / "copy"), pixels, cpu)
    assert np.array_equal(answer.logits, logits)
    # what docs/c_runtime.md promises; a compiler of another version may need some bytes more or less
    assert answer.state == 31_232
    assert 17_700 < answer.flash < 25_000
    assert 500 < answer.stack < 1_600
