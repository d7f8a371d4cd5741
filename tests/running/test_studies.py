"""Every study composes: each of its jobs, with the folder that it would get."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from tna_lightning.running.config import check, compose, swept_by
from tna_lightning.running.identity import folder_name

STUDIES = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


def jobs(path):
    """The overrides of each job of a study, as Hydra's own sweeper makes them: what it inherits is swept too."""
    params = swept_by(path.stem)
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    return [[f"experiments={path.stem}", "hydra.mode=RUN", *combination] for combination in itertools.product(*choices)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_head_states_purpose_cost_and_command(path):
    first, second, *rest = path.read_text().splitlines()
    assert first == "# @package _global_"
    assert second.startswith("# ")
    head = "\n".join(line for line in rest if line.startswith("#"))
    for word in ("# Purpose: ", "# Cost: ", f"# Command: python -m tna_lightning experiments={path.stem}"):
        assert word in head
    study = yaml.safe_load(path.read_text())
    assert study["study"] == path.stem
    assert re.search(rf"\b{len(jobs(path))} runs?\b", head)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_jobs_compose_and_are_different_runs(path):
    first, *others = jobs(path)
    # every value of each setting, the others at their first
    varied = [job for job in others if sum(mine != theirs for mine, theirs in zip(job, first, strict=True)) == 1]
    configs = [compose(overrides) for overrides in (first, *varied)]
    for config in configs:
        check(config)
        assert config["study"] == path.stem
    assert len({folder_name(config) for config in configs}) == len(configs)
