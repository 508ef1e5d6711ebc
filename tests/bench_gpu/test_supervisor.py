"""A part that fails, dies or is late costs its own end and nothing else."""

import functools
from typing import NamedTuple

import odd_parts
import pytest
import torch

from bench.gpu import supervisor
from bench.gpu.supervisor import CUT_OFF, DONE, FAILED, LATE, SKIPPED, Budget, Result, Worker


@pytest.fixture(scope="module")
def worker():
    made = Worker("cpu", False, grace=0.2)
    yield made
    made.stop()


def run(worker, part, seconds=30.0):
    seen = []
    result = worker.run(part, seconds, seen.append)
    assert seen == result.rows
    return result


def test_a_failing_part_leaves_its_rows_and_the_process(worker):
    before = run(worker, odd_parts.well)
    assert (before.status, before.error) == (DONE, "")
    assert [r["name"] for r in before.rows] == ["first", "second"]
    failed = run(worker, odd_parts.fails)
    assert failed.status == FAILED
    assert failed.error.strip().endswith("ValueError: no such tile")
    assert [r["name"] for r in failed.rows] == ["before it failed"]
    assert run(worker, odd_parts.well).rows == before.rows  # the same process


def test_a_dead_process_leaves_its_rows_and_is_replaced(worker):
    before = run(worker, odd_parts.well)
    dead = run(worker, odd_parts.dies)
    assert dead.status == FAILED
    assert dead.error == "its process ended with exit status 3"
    assert [r["name"] for r in dead.rows] == ["before it died"]
    after = run(worker, odd_parts.well)
    assert after.status == DONE
    assert after.rows[0]["value"] != before.rows[0]["value"]


def test_a_late_part_leaves_its_rows_and_is_stopped(worker):
    run(worker, odd_parts.well)
    late = run(worker, odd_parts.sleeps, 1.0)
    assert (late.status, late.error) == (LATE, "stopped after 1 s")
    assert [r["name"] for r in late.rows] == ["before it slept"]
    assert late.seconds < 10
    assert run(worker, odd_parts.well).status == DONE


def test_seconds_begin_once_the_process_is_ready():
    """It imports torch first, which takes longer than a second."""
    fresh = Worker("cpu", False, grace=0.0)
    try:
        result = run(fresh, odd_parts.well, 0.7)
    finally:
        fresh.stop()
    assert (result.status, result.error) == (DONE, "")
    assert result.seconds < 0.7


def test_a_process_that_never_is_ready_costs_its_part(monkeypatch):
    for ends, error in (
        (odd_parts.ends_at_once, "its process ended with exit status 4"),
        (odd_parts.is_never_ready, "its process was not ready after 3 s"),
    ):
        monkeypatch.setattr(supervisor, "START", 30.0 if ends is odd_parts.ends_at_once else 3.0)
        monkeypatch.setattr(supervisor, "_serve", ends)
        result = run(Worker("cpu", False), odd_parts.well)
        assert (result.status, result.error) == (FAILED, error)


def test_a_stopped_part_ends_what_it_started(worker, tmp_path):
    marker = tmp_path / "marker"
    run(worker, odd_parts.well)
    late = run(worker, functools.partial(odd_parts.sleeps_beside, str(marker)), 1.0)
    assert late.status == LATE
    assert marker.read_text() == "ended"


def test_a_device_that_no_longer_answers_is_noticed(monkeypatch):
    def fail(_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert supervisor._usable(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert not supervisor._usable(torch.device("cuda"))
    assert supervisor._usable(torch.device("cpu"))


# The whole run --------------------------------------------------------------------------------


class Part(NamedTuple):
    least: float
    most: float

    @property
    def run(self):
        return self


def walk(parts, budget, run):
    """What was seen, in its order."""
    seen = []
    supervisor.run_all(parts, parts, budget, run, lambda name, result: seen.append((name, result)))
    return seen


def test_parts_share_the_budget_and_what_does_not_fit_is_left_out():
    now = [0.0]
    given = []

    def run(part, seconds, emit):
        given.append(seconds)
        now[0] += 60
        return Result(DONE, 60.0, [])

    parts = {"a": Part(10, 40), "b": Part(10, 90), "c": Part(40, 90), "d": Part(5, 90)}
    seen = walk(parts, Budget(150, lambda: now[0]), run)
    assert [(n, r.status) for n, r in seen] == [
        ("a", DONE), ("b", DONE), ("c", SKIPPED), ("d", DONE),
    ]  # fmt: skip
    assert given == [40, 90, 30]
    assert seen[2][1].error == "30 s were left, and it takes at least 40"


def test_a_row_is_seen_before_its_part_ends():
    def run(part, seconds, emit):
        emit("x")
        emit("y")
        return Result(FAILED, 1.0, ["x", "y"], "why")

    seen = walk({"a": Part(0, 9)}, Budget(9), run)
    assert [(r.status, r.rows) for _, r in seen] == [
        (CUT_OFF, ["x"]), (CUT_OFF, ["x", "y"]), (FAILED, ["x", "y"]),
    ]  # fmt: skip
