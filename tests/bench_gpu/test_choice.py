"""Steps are timed as a training loop takes them: by what a backend prepares for repeating."""

import pytest
import torch

from bench import launch
from bench.gpu import choice
from bench.gpu.context import Context


class Stand:
    """A backend that counts its calls."""

    def __init__(self):
        self.calls = []

    def step_(self, feedback, rule, updates):
        self.calls.append("step_")

    def repeated(self, feedback, rule, updates):
        return lambda error, inputs, saved, rows: self.calls.append(("repeated", rows[0][-1]))


@pytest.fixture
def stands(monkeypatch):
    made = {"triton": Stand(), "cuda": Stand()}
    for module in (choice, launch):
        monkeypatch.setattr(module, "cuda_backend", lambda _: "cuda")
        monkeypatch.setattr(module.backends, "get", made.__getitem__)
    return made


def context():
    rows = []
    return Context(torch.device("cpu"), True, 60.0, rows.append), rows


def test_a_choice_is_by_repeated_steps_and_by_planned_ones(monkeypatch, stands):
    given, rows = context()
    monkeypatch.setattr(choice, "TINY", ((8, 16),))
    choice.measure(given)
    assert [r["name"].split(", ")[2] for r in rows] == [
        "in a loop", "planned anew", "on the device",
    ]  # fmt: skip
    for stand in stands.values():
        # each is warmed up once and timed once, the host's own time being asked for in no rehearsal
        kinds = ["step_" if c == "step_" else "repeated" for c in stand.calls]
        assert kinds == ["repeated"] * 2 + ["step_"] * 2 + ["repeated"] * 2
        counts = [count for _, count in (c for c in stand.calls if c != "step_")]
        assert counts == [4.0, 5.0, 6.0, 7.0], "as an optimizer counts them"


def test_the_host_of_a_repeated_step_is_timed_on_the_device(monkeypatch, stands):
    prepared = []
    monkeypatch.setattr(
        launch, "calls", lambda kernels, case, variable, prepare: prepared.append(prepare) or []
    )
    launch.on_device(context()[0])
    assert prepared == [stand.repeated for stand in stands.values()]
    case = launch.Case.on(torch.device("cpu"), tiny=True)
    monkeypatch.undo()
    runs = launch.calls(launch.ops, case, "X", stands["cuda"].repeated)
    assert [r.operation for r in runs].count("step_ (AdamW), repeated") == 2
