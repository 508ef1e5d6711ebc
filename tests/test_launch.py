"""What `bench.launch` times: the whole host side of a launch, where nothing is started."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")

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
