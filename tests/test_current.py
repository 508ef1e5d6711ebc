"""Kernels start on the device of the tensors, and torch's current one is as it was afterwards."""

from types import SimpleNamespace

import pytest
import torch

from dfa_kernels.backends.contract import LayerUpdate, Update
from dfa_kernels.backends.cuda import kernels, launch, rules
from dfa_kernels.backends.current import current
from dfa_kernels.feedback import Feedback


@pytest.mark.parametrize("index", [0, 1])
def test_another_device_is_made_current(index, devices):
    with current(torch.device("cuda", index)):
        assert devices == ([0] if index == 0 else [0, 1])
    assert devices == [0]


def test_a_cpu_is_asked_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked"))
    with current(torch.device("cpu")):
        pass


def test_cudas_launches_start_there(devices, monkeypatch):
    class Core:
        started: list = []  # noqa: RUF012

        def project(self, numbers):
            self.started.append(devices[-1])

        def update(self, numbers, scratch):
            self.started.append(devices[-1])

    monkeypatch.setattr(launch, "stream_of", lambda gpu: 0)
    there, launcher = torch.device("cuda", 1), launch.Launcher(Core())
    monkeypatch.setattr(launcher, "scratch", lambda *_: None)
    launcher.run(
        [launch.Launch(kernel, 1, 132, [], None) for kernel in ("project", "update")], there
    )
    assert Core.started == [1, 1]
    assert devices == [0]


@pytest.mark.parametrize("index", [0, 1])
def test_cudas_own_plan_starts_there(index, devices, monkeypatch):
    started = []

    class Core:
        project = update = None

        def plain_step(self, *_):
            started.append(list(devices))
            return True

    there = torch.device("cuda", index)
    monkeypatch.setattr(rules, "device_of", lambda _: rules.Device(index, 132, True))
    monkeypatch.setattr(kernels, "stream_of", lambda gpu: 0)
    ours = kernels.Kernels(Core())
    monkeypatch.setattr(ours._launcher, "scratch", lambda *_: None)
    monkeypatch.setattr(ours, "_exchange", object())
    update = LayerUpdate(Update(SimpleNamespace(device=there), (), ()), None, [])
    ours.step_(Feedback(), "sgd", [update])
    assert started == [[0] if index == 0 else [0, 1]]
    assert devices == [0]
