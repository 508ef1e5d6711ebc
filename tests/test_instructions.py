"""`python -m bench.instructions`: what it reads, compares and says, without valgrind."""

import json

import pytest
import torch

from bench import instructions


def dump(label, total):
    return f"version: 1\ndesc: Trigger: dump {label}\nevents: Ir\ntotals: {total}\n"


def test_two_runs_are_one_step_without_what_surrounds_them():
    n = instructions.STEPS
    dumps = [dump(f"a:{2 * n}", 1000 + 2 * n * 50), dump(f"a:{n}", 1000 + n * 50)]
    dumps += [dump(f"torch.optim:{n}", n * 7), dump(f"torch.optim:{2 * n}", 2 * n * 7)]
    dumps.append("version: 1\ndesc: Trigger: Program termination\ntotals: 0\n")
    assert instructions.per_step(dumps) == {"a": 50, "torch.optim": 7}


@pytest.mark.parametrize(
    ("now", "fine", "said"),
    [
        (1000, True, "+0.0% of the recorded 1,000"),
        (1050, True, "+5.0%"),
        (1051, False, "more than 5% above it"),
        (940, True, "record the gain with --write"),
    ],
)
def test_more_than_five_percent_is_a_failure(now, fine, said):
    (line,), passed = instructions.compare({"fused": now}, {"fused": 1000})
    assert passed == fine and said in line


def test_a_case_that_is_not_recorded_does_not_fail():
    (line,), passed = instructions.compare({"new": 5}, {"fused": 1000})
    assert passed and line == "new: 5 instructions a step, none recorded"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A record of its own, and a valgrind that counts what it is told to."""
    path = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "RECORD", path)
    monkeypatch.setattr(instructions.shutil, "which", lambda tool: tool)
    counts = {"fused": 1000}
    monkeypatch.setattr(instructions, "count", lambda names: dict(counts))
    return path, counts


def test_what_is_recorded_is_compared_with(recorded, capsys):
    path, counts = recorded
    path.write_text(json.dumps({"Python 9.9, torch 9.9, x": {"fused": 1}}))
    assert instructions.main(["--write"]) == 0
    assert json.loads(path.read_text())[instructions.versions()] == {"fused": 1000}
    assert json.loads(path.read_text())["Python 9.9, torch 9.9, x"] == {"fused": 1}
    assert instructions.main([]) == 0
    counts["fused"] = 1100
    assert instructions.main([]) == 1
    assert "+10.0% of the recorded 1,000: more than 5% above it" in capsys.readouterr().out


def test_other_versions_are_skipped_in_a_sentence(recorded, capsys):
    path, _ = recorded
    path.write_text(json.dumps({"Python 9.9, torch 9.9, x": {"fused": 1}}))
    assert instructions.main([]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"none are recorded for {instructions.versions()}, but for Python 9.9" in said


@pytest.mark.parametrize("tool", ["valgrind", "callgrind_control"])
def test_a_missing_tool_is_skipped_in_a_sentence(recorded, monkeypatch, capsys, tool):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None if name == tool else name)
    assert instructions.main([]) == 0
    assert capsys.readouterr().out == f"instructions are not counted: there is no {tool} here\n"


def test_valgrind_that_fails_is_a_failure(recorded, monkeypatch, capsys):
    path, _ = recorded
    path.write_text(json.dumps({instructions.versions(): {"fused": 1}}))

    def fails(names):
        raise RuntimeError("valgrind failed: no memory")

    monkeypatch.setattr(instructions, "count", fails)
    assert instructions.main([]) == 1
    assert capsys.readouterr().err == "valgrind failed: no memory\n"


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("fused", "ChainNode"),
        ("backward", "ChainNode"),
        ("torch.optim", "ErrorNode"),
        ("opaque", "ErrorNode"),
    ],
)
def test_each_case_takes_its_own_way(monkeypatch, name, node):
    nodes = []
    backward = torch.Tensor.backward

    def watched(loss):
        found = [loss.grad_fn]
        while found:
            function = found.pop()
            nodes.append(type(function).__name__)
            found += [below for below, _ in function.next_functions if below is not None]
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    instructions.CASES[name]()()
    ours = {
        n for n in nodes if n in ("ChainNodeBackward", "ErrorNodeBackward", "DeferringNodeBackward")
    }
    assert ours == {f"{node}Backward"}
    assert ("AddmmBackward0" in nodes) == (name == "opaque")


def test_the_committed_counts_are_of_these_cases():
    record = json.loads(instructions.RECORD.read_text())
    for counts in record.values():
        assert set(counts) == set(instructions.CASES)
        assert all(100_000 < n < 10_000_000 for n in counts.values())


def test_what_runs_under_valgrind_counts_each_case_twice(monkeypatch):
    told = []
    monkeypatch.setattr(instructions, "_control", told.append)
    monkeypatch.setattr(instructions.gc, "freeze", lambda: None)
    monkeypatch.setattr(instructions.gc, "disable", lambda: None)
    instructions.run(["fused"])
    n = instructions.STEPS
    assert told == [
        "--instr=on", "--instr=off", f"--dump=fused:{n}",
        "--instr=on", "--instr=off", f"--dump=fused:{2 * n}",
    ]  # fmt: skip
