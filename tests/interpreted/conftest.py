"""The Triton backend on CPU tensors, in Triton's interpreter: a pytest run of its own.

    python -m pytest tests/interpreted

Triton reads TRITON_INTERPRET when a kernel is defined, so it is set here, before the first import.
"""

import os
import sys

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("tests/interpreted must be a pytest run of its own: Triton is imported")
os.environ["TRITON_INTERPRET"] = "1"

import bfloat16
import torch
from hypothesis import HealthCheck, Phase, settings
from interpreter import check_overflow, quicken

from dfa_kernels import backends
from dfa_kernels.backends.triton import rules
from dfa_kernels.backends.triton.launch import Launcher

BROKEN = bfloat16.repair()
quicken()

# An example takes a tenth of a second or more: few of them, and no search for a smaller one.
settings.register_profile(
    "interpreted",
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("interpreted")


@pytest.fixture(autouse=True)
def on_triton():
    with backends.use("triton"):
        yield


@pytest.fixture(autouse=True)
def unwritten_is_nan():
    """Memory that nobody wrote to is NaN: torch.empty fills it in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def overflow_checked():
    check_overflow(True)
    yield
    check_overflow(False)


@pytest.fixture
def launched(monkeypatch):
    """Every launch of a kernel from here on."""
    seen, run, first, again = [], Launcher.run, Launcher.first, Launcher.again

    def running(self, launches, device):
        seen.extend(launch for launch in launches if launch.grid)
        run(self, launches, device)

    def starting(self, launches, device):
        seen.extend(launch for launch in launches if launch.grid)
        return first(self, launches, device)

    def repeating(self, every, hyper, device):
        seen.extend(ready.launch for ready in every)
        again(self, every, hyper, device)

    monkeypatch.setattr(Launcher, "run", running)
    monkeypatch.setattr(Launcher, "first", starting)
    monkeypatch.setattr(Launcher, "again", repeating)
    return seen


@pytest.fixture
def device(monkeypatch):
    """Have the rules believe in another device."""

    def believe(multiprocessors=8, kind="cpu"):
        pretended = rules.Device(kind, 0, multiprocessors)
        monkeypatch.setattr(rules, "device_of", lambda _: pretended)
        return pretended

    return believe


@pytest.fixture
def delta(monkeypatch):
    """Name how δ is made, whatever the rule says."""
    return lambda how: monkeypatch.setenv(rules.VARIABLE, how)


@pytest.fixture(params=[rules.STORED, rules.ON_THE_FLY])
def either_delta(request, delta):
    """δ stored, and δ on the fly."""
    delta(request.param)
    return request.param
