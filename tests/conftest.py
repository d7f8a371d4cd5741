"""Fixtures for all tests: no network, and no state left behind."""

import logging
import os
import random
import socket

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def leaves_no_state_behind():
    """Restore what a test may change: random generators, environment, Hydra, where the log is written."""
    environment = dict(os.environ)
    root = logging.getLogger()
    handlers = [*root.handlers]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    GlobalHydra.instance().clear()
    torch.set_rng_state(generators[0])
    np.random.set_state(generators[1])  # noqa: NPY002
    random.setstate(generators[2])
    os.environ.clear()
    os.environ.update(environment)
    for handler in {*root.handlers} - {*handlers}:
        if type(handler) is logging.StreamHandler:  # not those of pytest, which come and go with the phases of a test
            root.removeHandler(handler)  # its stream is the test's and closed from now on


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Connections leave this machine in no test; loopback is allowed."""
    connect = socket.socket.connect

    def only_loopback(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)
