"""Whole steps: what is there before torch compiles the rivals, and who is left out."""

import itertools

import pytest
import torch

from bench.gpu import compiling, steps
from bench.gpu.contestants import COMPILED, CUDA, EAGER, OURS, REFERENCE
from bench.gpu.context import Context
from dfa_kernels.throughput.contestants import Built
from dfa_kernels.throughput.networks import MLP

TASK = MLP(8, 16, 2, 16, 4)


def context(seconds=2.0, tiny=False):
    rows = []
    return Context(torch.device("cpu"), tiny, seconds, rows.append), rows


def notes(rows):
    return [r["text"] for r in rows if r["kind"] == "note"]


def compared(rows):
    return [(r.get("ours", OURS), r["against"]) for r in rows if r["kind"] == "compared"]


@pytest.fixture(autouse=True)
def compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def built(*_):
    return Built(lambda: None, lambda: 0)


def compiled_anew():
    """Each of its runs is another graph."""
    run = torch.compile(lambda x, n: x + n, backend="eager", dynamic=False)
    numbers, x = itertools.count(), torch.zeros(2)
    return lambda: run(x, next(numbers))


def compiled_once():
    run = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    x = torch.zeros(2)
    return lambda: run(x)


def test_ours_and_eager_are_there_before_a_rival_is_compiled(monkeypatch):
    given, rows = context()

    def takes_too_long(task, setting):
        raise SystemExit  # as a worker's process that is stopped

    who = {OURS: built, EAGER: built, CUDA: built, COMPILED: takes_too_long}
    monkeypatch.setattr(steps, "CONTESTANTS", who)
    with pytest.raises(SystemExit):
        steps._compare(given, TASK, 4.0, on_cuda={EAGER: 5.0})
    assert compared(rows) == [(OURS, EAGER), (CUDA, EAGER)]
    assert [r["target"] for r in rows if r["kind"] == "compared"] == [None, 5.0]


def test_all_are_timed_together_once_they_are_built(monkeypatch):
    given, rows = context()
    who = dict.fromkeys((OURS, EAGER, COMPILED, REFERENCE), built)
    monkeypatch.setattr(steps, "CONTESTANTS", {**who, CUDA: lambda *_: 1 / 0})
    steps._compare(given, TASK, 4.0)
    assert compared(rows) == [(OURS, EAGER), (OURS, COMPILED), (OURS, EAGER), (OURS, REFERENCE)]
    targets = [r["target"] for r in rows if r["kind"] == "compared"]
    assert targets == [None, 4.0, None, steps.REFERENCE_TARGET]
    wanted = f"{TASK}: {CUDA} did not run: ZeroDivisionError: division by zero"
    assert notes(rows) == [wanted, wanted]


def test_who_is_compiled_anew_is_left_out():
    given, rows = context()
    runs = {"steady": compiled_once(), "anew": compiled_anew(), "eager": lambda: None}
    for run in runs.values():
        run()
    times = compiling.rounds(runs, given, 0.0, "a step")
    assert set(times) == {"steady", "eager"}
    assert notes(rows) == ["a step: anew is left out: it was compiled anew while it was timed"]
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="a step: anew: it was compiled anew"):
        compiling.rounds({"anew": compiled_anew()}, context(tiny=True)[0], 0.0, "a step")


def test_what_torch_gives_up_compiling_is_left_out():
    given, rows = context()
    runs = {"anew": compiled_anew(), "eager": lambda: None}
    with compiling.to_the_end():
        times = compiling.rounds(runs, given, 0.0, "a step")
    assert set(times) == {"eager"}
    (note,) = notes(rows)
    assert note.startswith("a step: anew is left out: FailOnRecompileLimitHit: ")
