"""The demo, as `make demo` runs it: a twin on real digits, every weight of the base ternary."""

import subprocess
import sys

from tna_lightning import runs
from tna_lightning.quantization.packing import load_packed


def test_the_demo_reaches_98_percent_with_every_weight_ternary(tmp_path):
    command = [sys.executable, "-m", "tna_lightning", "resume=false", "trainer.enable_progress_bar=false"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (folder,) = runs.find_runs(tmp_path / "runs")
    record = runs.finished_record(folder)
    assert record["results"]["test/acc"] >= 0.98
    assert record["data"]["test_samples"] == 360
    assert record["weights"]["quantized_share"] == 1.0
    assert f"{record['results']['test/acc']:.2%}" in result.stdout
    assert (folder / "curves.png").stat().st_size > 10_000
    network = load_packed(folder / runs.NETWORK)
    weights = [module.weight for module in network.modules() if getattr(module, "weight", None) is not None]
    for weight in (weight for weight in weights if weight.ndim > 1):
        for channel in weight:  # each channel of each layer: -s, 0, +s
            assert len(channel.abs().unique()) <= 2
