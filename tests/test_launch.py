"""What `bench.launch` times: the whole host side of a launch, where nothing is started."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")

import triton

from bench import launch, launch_triton
from dfa_kernels.backends.triton import table
from dfa_kernels.feedback import Feedback

CPU = torch.device("cpu")
WRITTEN = table._written  # `without_device` replaces it
WITHOUT_DEVICE = launch_triton.without_device


def test_a_table_is_written_by_one_kernel_whatever_its_words():
    """A compilation takes a third of a second, and may not happen while a graph is captured."""
    words = [1, 16, 0, 7, 2**40, -1, 48, 1] * 4
    with launch_triton.without_device(with_triton=True):
        WRITTEN(words, CPU)
        WRITTEN([w + 1 for w in words], CPU)
    (compiled,) = table._write.device_caches.values()
    assert len(compiled[0]) == 1


def test_a_call_reaches_the_driver(monkeypatch):
    """On the fly: one launch. Nothing runs, so nothing may change."""
    started = []
    monkeypatch.setattr(
        launch_triton._Driver, "launcher_cls", lambda *_: lambda *a: started.append(a)
    )
    case = launch.Case.on(CPU, tiny=True)
    before = [u.weight.parameter.clone() for u in case.updates]
    with launch_triton.without_device(with_triton=True) as kernels:
        for _ in range(3):
            kernels.step_(Feedback(), "adamw", case.updates)
    assert len(started) == 3
    assert started[0][:3] == started[1][:3] == (len(case.updates), 1, 1)
    for update, same in zip(case.updates, before, strict=True):
        assert torch.equal(update.weight.parameter, same)


class _Apart(launch_triton._Driver):
    """Of two devices: says where what it is given is started."""

    def __init__(self, current):
        super().__init__()
        self.current, self.started = current, []

    def get_current_device(self):
        return self.current[-1]

    def launcher_cls(self, source, metadata):
        return lambda *_: self.started.append(self.current[-1])


@pytest.mark.parametrize("delta", ["stored", "on-the-fly"])
def test_kernels_start_where_the_tensors_are(delta, devices, monkeypatch):
    """Triton starts what it is given on torch's current device, which may be another."""
    monkeypatch.setenv(launch_triton.VARIABLE, delta)
    case = launch.Case.on(CPU, tiny=True)
    with launch_triton.without_device(with_triton=True) as kernels:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
        driver = _Apart(devices)
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        there, launcher = torch.device("cuda", 1), kernels.launcher
        launcher._nothing[there] = launcher._nothing[torch.device("cuda", 0)]
        ours = type(launcher).__mro__[1]  # which sends nothing to cuda:0
        plan = kernels._plan(
            Feedback(), "adamw", kernels._wanted(case.updates, []), torch.Tensor.new_empty
        )
        ours.run(launcher, plan.launches, there)
        ready = ours.first(launcher, plan.launches, there)
        ours.again(launcher, ready, (0.0,) * 7, there)
    assert set(driver.started) == {1}
    assert len(driver.started) == 3 * len(plan.launches)
    assert devices == [0]


def test_it_is_measured_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch_triton, "without_device", lambda with_triton: WITHOUT_DEVICE(False))
    assert launch.main(["triton", "--repeats", "3", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "launch.md").read_text()
    assert page in capsys.readouterr().out
    rows = [line for line in page.splitlines() if line.startswith(("| step_", "| gradients"))]
    assert len(rows) == 6
    assert [row.split("|")[3].strip() for row in rows] == ["1"] * 3 + ["2"] * 3


def test_turns_give_every_run_its_repeats(monkeypatch):
    monkeypatch.setenv("HOW", "before")
    seen = []
    runs = [launch.Run("", d, {"HOW": d}, lambda: seen.append(os.environ["HOW"])) for d in "ab"]
    first, second = launch.timed(runs, 30)
    assert seen.count("a") == seen.count("b") == 10 * (20 + 3)
    assert "".join(seen[:: 20 + 3]) == "ab" * 10
    assert os.environ["HOW"] == "before"
    assert min(first.median, second.median) > 0
