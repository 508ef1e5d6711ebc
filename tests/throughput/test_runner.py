"""Jobs in a process of their own, and what is left when somebody in it dies."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch

from dfa_kernels.throughput import lineup, runner, timing, turns
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.runner import Interrupted

ODD = ("odd-steady", "odd-raiser", "odd-killer")
SHAPE = (3, 1, 4, 2)


def job(*contestants, **others):
    given = {"contestants": contestants, "shape": SHAPE, "modules": ("odd_backends",), "least": 5}
    return Job(**{**given, **others})


def of(events, kind):
    return {e["contestant"]: e for e in events if e["event"] == kind}


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """Who is registered here is forgotten; and every turn is one run."""
    before = set(lineup.backends.available("cpu"))
    monkeypatch.setattr(timing, "turn", lambda *_: (1, 0))
    yield
    for name in set(lineup.backends.available("cpu")) - before:
        lineup.backends.unregister(name)
    sys.modules.pop("odd_backends", None)


def test_a_job_is_what_its_json_says():
    made = job("bp-eager", "reference", seconds=2.5, threads=2)
    assert Job.of(runner.asdict(made) | {"shape": list(SHAPE), "contestants": ["bp-eager",
                  "reference"], "modules": ["odd_backends"]}) == made  # fmt: skip
    assert made.where == "3,1,4,2 float32"


def test_every_contestant_has_its_turns_in_this_process(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinydfa", None)
    events, marks = [], []
    turns.measure(
        job("bp-eager", "tinydfa", "triton", "odd-raiser", "reference"),
        events.append, marks.append, clock=lambda: 0.0,
    )  # fmt: skip
    measured, died = of(events, "measured"), of(events, "died")
    # eight calls: two while built, three to warm up, one to time a turn, two turns
    assert {n: len(e["samples_ms"]) for n, e in measured.items()} == {
        "bp-eager": 5, "reference": 5, "odd-raiser": 2,
    }  # fmt: skip
    assert set(of(events, "absent")) == {"tinydfa"}
    assert died["odd-raiser"]["why"] == "ValueError: the card fell"
    assert "cannot run on cpu" in died["triton"]["why"]
    assert marks[:5] == ["bp-eager", "tinydfa", "triton", "odd-raiser", "reference"]
    assert set(marks[5:]) == {"bp-eager", "odd-raiser", "reference"}
    assert measured["reference"]["launches"] > 5


def test_every_contestant_is_timed_on_its_own_backend(monkeypatch):
    """Though no step of its own names it, and another is in use around them all."""
    lineup.bring(["odd_backends"])
    turn, seen = [], Counter()
    odd = sys.modules["odd_backends"]
    step_ = odd.Odd.step_

    def spy(self, *given):
        seen[turn[-1], self is odd.BACKENDS["odd-steady"]] += 1
        step_(self, *given)

    monkeypatch.setattr(odd.Odd, "step_", spy)
    names = ("bp-eager", "odd-steady", "reference", "odd-steady/backward")
    with lineup.backends.use("odd-killer"):
        turns.measure(job(*names), lambda event: None, turn.append, clock=lambda: 0.0)
        assert lineup.backends.chosen(torch.device("cpu"))[0] == "odd-killer"
    assert set(turn) == set(names)
    # two while built, three to warm up, one to time a turn, five turns
    assert seen == {("odd-steady", True): 11, ("odd-steady/backward", True): 11}


def test_an_interruption_emits_what_was_measured(monkeypatch):
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 9:  # two while built, three, one, and three turns
            raise KeyboardInterrupt
        return torch.zeros(())

    built = lineup.contestants.Built(step, lambda: 0)
    entry = lineup.Contestant("mine", "bp", lambda task, setting: built)
    monkeypatch.setitem(lineup.FIXED, "mine", entry)
    events = []
    with pytest.raises(KeyboardInterrupt):
        turns.measure(job("mine"), events.append)
    assert len(of(events, "measured")["mine"]["samples_ms"]) == 2


def test_the_threads_are_the_jobs_and_then_what_they_were():
    seen = []

    def build(task, setting):
        seen.append(torch.get_num_threads())
        raise ImportError("no")

    entry = lineup.Contestant("mine", "bp", build)
    lineup.FIXED["mine"] = entry
    try:
        turns.measure(job("mine", threads=2), lambda event: None)
    finally:
        del lineup.FIXED["mine"]
    assert seen == [2]
    assert torch.get_num_threads() == 1


def test_who_ends_the_process_ends_its_own_row_alone():
    events = list(runner.events([job(*ODD), job("odd-steady")]))
    begun = [i for i, e in enumerate(events) if e["event"] == "begun"]
    assert [events[i]["job"] for i in begun] == [0, 0, 1]
    first = events[: begun[2]]
    assert of(first, "died")["odd-killer"]["why"] == "it ended the process by SIGKILL"
    assert "ValueError" in of(first, "died")["odd-raiser"]["why"]
    # measured once, by the process that lived, without either of the dead
    (measured,) = (e for e in first if e["event"] == "measured")
    assert measured["contestant"] == "odd-steady"
    assert len(measured["samples_ms"]) >= 5
    assert set(of(events[begun[2] :], "measured")) == {"odd-steady"}


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Stands in for `turns`: a module of the given text, in a process that starts at once."""

    def make(text):
        (tmp_path / "scripted_turns.py").write_text("import json, os, sys, time\n" + text)
        monkeypatch.syspath_prepend(tmp_path)
        return "scripted_turns"

    return make


STARTER = """
from dfa_kernels.throughput import runner
from dfa_kernels.throughput.job import Job

for event in runner.events([Job(("bp-eager", "reference"), (3, 1, 4, 2), seconds=600.0)]):
    print(event["event"], flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM for one process there")
def test_whoever_is_ended_leaves_nobody_behind_that_measures_or_complains():
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout.readline() == "begun\n"
    starter.terminate()
    # the end of what both of them may write to: at once, and not after 600 seconds
    _, complaints = starter.communicate(timeout=60)
    assert starter.returncode == -signal.SIGTERM
    assert complaints == ""


def test_what_cannot_be_told_ends_a_process_without_a_word(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "dfa_kernels.throughput.turns", str(tmp_path / "marker")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.write('[{"contestants": ["bp-eager"], "shape": [3, 1, 4, 2]}]')
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


def test_a_process_that_ends_before_anybodys_turn_ends_all_rows(scripted):
    events = list(runner.events([job("a", "b"), job("c")], scripted("sys.exit(3)")))
    assert [(e["contestant"], e["why"]) for e in events] == [
        (name, "it ended the process with status 3") for name in "abc"
    ]


def test_nobody_is_measured_twice(scripted):
    module = scripted(
        """
jobs = json.load(sys.stdin)
for i, job in enumerate(jobs):
    print(json.dumps({"event": "begun", "job": i}), flush=True)
    for name in job["contestants"]:
        open(sys.argv[1], "w").write(name)
        if name == "bad":
            os._exit(9)
        print(json.dumps({"event": "measured", "contestant": name, "samples_ms": [1.0]}))
        sys.stdout.flush()
"""
    )
    events = list(runner.events([job("a"), job("b", "bad"), job("c")], module))
    told = [e.get("job", e.get("contestant")) for e in events]
    assert told == [0, "a", 1, "bad", 1, "b", 2, "c"]


@pytest.fixture
def heard():
    """SIGINT as a terminal sends it: who starts the tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_is_passed_on_and_what_was_measured_comes_back(scripted):
    module = scripted(
        """
json.load(sys.stdin)
print(json.dumps({"event": "begun", "job": 0}), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(json.dumps({"event": "measured", "contestant": "a", "samples_ms": [1.0]}), flush=True)
    sys.exit(130)
"""
    )
    found = []
    with pytest.raises(Interrupted):
        for event in runner.events([job("a", "b")], module):
            found.append(event["event"])
            if event["event"] == "begun":
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert found == ["begun", "measured"]
