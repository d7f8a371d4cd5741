"""A short run of `make torture`, every case at least once."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # every case, in a process of its own, which forks
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it has forked")
def test_every_case_of_torture_is_right_for_a_while():
    command = [sys.executable, Path(__file__).parent, "--minutes", "2", "--seed", "18"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("|\n") >= 20
