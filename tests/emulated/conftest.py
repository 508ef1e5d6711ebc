"""The CUDA backend on CPU tensors: csrc/ compiled by g++ over tests/emulator.

python -m pytest tests/emulated
"""

import shutil
from pathlib import Path

import pytest
import torch

from tests.emulator.build import COMPILER

if shutil.which(COMPILER):
    from dfa_kernels.backends.cuda import launch, rules
    from tests import emulator
else:  # what needs no compiler has no tests here
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def nothing():
    """The extension with launchers that start nothing: compiled in seconds."""
    return emulator.core((Path(__file__).with_name("nothing.cpp"),))


@pytest.fixture
def on_cuda():
    """Every operation by the kernels of csrc/."""
    from dfa_kernels import backends

    with backends.use("cuda-emulated"):
        yield


@pytest.fixture
def unwritten_is_nan(monkeypatch):
    """Memory that nobody wrote to is NaN: torch.empty fills it in deterministic mode, and no
    scratch of an earlier launch is used again."""
    monkeypatch.setattr(launch, "KEPT", 0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def delta(monkeypatch):
    """Name how δ is made, whatever the rule says."""
    return lambda how: monkeypatch.setenv(rules.VARIABLE, how)


@pytest.fixture
def multiprocessors(monkeypatch):
    """Have the rules believe in a device of so many."""
    return lambda count: monkeypatch.setattr(rules, "device_of", lambda _: rules.Device(0, count))
