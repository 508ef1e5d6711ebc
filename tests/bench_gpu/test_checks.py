"""The tests of tests/gpu as `bench.gpu` collects and runs them, and what a sanitizer prints."""

import importlib
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import checks
from bench.gpu.checks import Case, outcome, run_tests, sanitized
from bench.gpu.context import Context
from bench.gpu.parts import PARTS
from bench.gpu.rows import BROKEN, NO_TIME, NOT_RUN, PASSED
from bench.gpu.supervisor import DONE, FAILED, LATE, Result
from dfa_kernels.testing import _checks

ROOT = Path(__file__).parents[2]


def context(seconds=60.0):
    rows = []
    return Context(torch.device("cpu"), True, seconds, rows.append), rows


def case(name):
    return Case("folder", "test_x", name, None, "")


class Stand:
    """A worker whose results are given."""

    results: dict

    def ready(self):
        return ""

    def run(self, part, seconds, emit):
        (test,) = part.args
        return self.results[test.function]

    def stop(self, patience):
        pass


def test_every_test_of_the_folder_is_collected_once():
    found = checks.collected(checks.TESTS)
    names = [str(t) for t in found]
    # a compiler's cases are two on a GPU and one, twice, here
    assert len(set(names)) >= len(names) - 2
    files = {f.stem for f in checks.TESTS.glob("test_*.py")}
    assert {t.module for t in found} == files
    assert len([t for t in found if t.function == "test_the_suite"]) == 2 * 16
    conformance = [t.module == checks.CONFORMANCE for t in found]
    assert conformance == sorted(conformance, reverse=True), "it takes longest, and comes first"


def test_every_check_of_the_suite_is_in_one_share(monkeypatch):
    monkeypatch.syspath_prepend(str(checks.TESTS))
    conformance = importlib.import_module(checks.CONFORMANCE)
    monkeypatch.setattr(conformance, "SHARES", 48)
    every = [name for name, _ in _checks(torch.device("cpu"))]
    for prefixes in (("",), ("gradients ", "step_ ", "layouts")):
        shares = [[n for n, _ in conformance.dealt(s, *prefixes)] for s in range(48)]
        wanted = [name for name in every if name.startswith(prefixes)]
        assert sorted(itertools.chain(*shares)) == sorted(wanted)
        # costs are even: neighbours, which compile about as much, are in different ones
        assert {len(share) for share in shares} <= {len(wanted) // 48, len(wanted) // 48 + 1}
        assert [share[0] for share in shares] == wanted[:48]


def test_vectors_come_by_themselves_and_first():
    found = checks.collected(checks.TESTS, checks.VECTORS)
    assert {t.function for t in found} == {"test_instructions", "test_project", "test_update"}
    names = list(PARTS)
    assert names.index("build") < names.index("vectors") < names.index("tests")


def test_a_test_runs_over_its_case_and_says_why_it_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "test_of_one_run.py").write_text(
        "import unittest\n"
        "def test_even(case):\n    assert case % 2 == 0, f'{case} is odd'\n"
        "test_even.cases = (2, 3)\n"
        "def test_large():\n    raise unittest.SkipTest('needs 30 GB free')\n"
    )
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder = str(tmp_path)
    given, rows = context()
    checks.run_one(Case(folder, "test_of_one_run", "test_even", 0, "2"), given)
    with pytest.raises(AssertionError, match="3 is odd"):
        checks.run_one(Case(folder, "test_of_one_run", "test_even", 1, "3"), given)
    assert rows == []
    checks.run_one(Case(folder, "test_of_one_run", "test_large", None, ""), given)
    assert rows == [{"kind": "note", "text": "needs 30 GB free"}]


def test_the_outcome_of_a_test():
    note = {"kind": "note", "text": "needs 30 GB free"}
    made = [
        outcome(case("test_a"), Result(DONE, 1.0, [])),
        outcome(case("test_b"), Result(DONE, 1.0, [note])),
        outcome(case("test_c"), Result(FAILED, 1.0, [], "Traceback\n  line\nAssertionError: no\n")),
        outcome(case("test_d"), Result(LATE, 9.0, [], "stopped after 9 s")),
    ]
    assert [(r["name"].split("::")[1], r["outcome"], r["why"]) for r in made] == [
        ("test_a", PASSED, ""),
        ("test_b", NOT_RUN, "needs 30 GB free"),
        ("test_c", BROKEN, "AssertionError: no"),
        ("test_d", NO_TIME, "stopped after 9 s"),
    ]
    assert "line" in made[2]["output"]


def test_all_tests_have_their_turn_whatever_becomes_of_the_others():
    Stand.results = {f"test_{i}": Result(FAILED if i == 2 else DONE, 1.0, [], "x") for i in "12345"}
    Stand.results["test_2"] = Result(FAILED, 1.0, [], "its process ended with exit status -11")
    given, rows = context()
    run_tests([case(n) for n in Stand.results], 3, Stand, given)
    assert sorted((r["name"][-1], r["outcome"]) for r in rows) == [
        ("1", PASSED), ("2", BROKEN), ("3", PASSED), ("4", PASSED), ("5", PASSED),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tests_without_a_turn_are_no_success():
    Stand.results = {"test_1": Result(DONE, 1.0, [])}
    given, _ = context(seconds=2.0)
    with pytest.raises(TimeoutError, match="1 tests did not have their turn"):
        run_tests([case("test_1")], 1, Stand, given)
    Stand.results = {}  # its thread ends by an exception
    given, rows = context()
    with pytest.raises(TimeoutError, match="1 tests did not have their turn"):
        run_tests([case("test_1")], 1, Stand, given)
    assert rows == []


CLEAN = "========= COMPUTE-SANITIZER\nsmall case: done\n========= ERROR SUMMARY: 0 errors\n"
RACES = (
    "small case: done\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
)
WILD = "========= Invalid __global__ read of size 16 bytes\n========= ERROR SUMMARY: 12 errors\n"


@pytest.mark.parametrize(
    ("output", "code", "wanted", "why"),
    [
        (CLEAN, 0, PASSED, "0 errors"),
        (RACES, 9, BROKEN, "2 hazards displayed (2 errors, 0 warnings)"),
        (WILD, 9, BROKEN, "12 errors"),
        ("========= COMPUTE-SANITIZER\n", None, NOT_RUN, "timed out"),
        ("Traceback\nImportError: torch\n", 1, NOT_RUN, "did not get to its end (exit status 1)"),
        ("========= ERROR SUMMARY: 0 errors\n", 1, NOT_RUN, "exit status 1"),
        ("========= ERROR SUMMARY: 0 errors\n", 0, NOT_RUN, "exit status 0"),
    ],
)
def test_what_a_sanitizer_prints(output, code, wanted, why):
    row = sanitized("memcheck", output, code)
    assert row["outcome"] == wanted
    assert why in row["why"]
    assert wanted == PASSED or row["output"] == output


class Clock:
    """Turned by what runs."""

    now = 0.0

    def __call__(self):
        return self.now


def sanitizers(monkeypatch, takes):
    """What `checks.sanitizer` runs, and for how long it may, where a tool takes that long."""
    clock, rows, ran = Clock(), [], []

    def run(command, seconds, **variables):
        tool = command[command.index("--tool") + 1]
        ran.append((tool, seconds, command))
        clock.now += min(seconds, takes[tool])
        return (CLEAN, 0) if takes[tool] <= seconds else ("", None)

    monkeypatch.setattr(checks, "_run", run)
    monkeypatch.setattr(checks.shutil, "which", lambda _: "compute-sanitizer")
    checks.sanitizer(Context(torch.device("cuda"), False, 40.0, rows.append, clock))
    return ran, [(r["name"].split()[-1], r["outcome"]) for r in rows]


def test_memcheck_leaves_racecheck_its_share(monkeypatch):
    ran, outcomes = sanitizers(monkeypatch, {"memcheck": 60.0, "racecheck": 18.0})
    assert [(tool, seconds) for tool, seconds, _ in ran] == [
        ("memcheck", 18.5),
        ("racecheck", 18.5),
    ]
    assert outcomes == [("memcheck", NOT_RUN), ("racecheck", PASSED)]
    ran, _ = sanitizers(monkeypatch, {"memcheck": 5.0, "racecheck": 18.0})
    assert [seconds for _, seconds, _ in ran] == [18.5, 32.0]


def test_a_failing_question_to_the_driver_is_no_error_of_a_kernel(monkeypatch):
    ran, _ = sanitizers(monkeypatch, {"memcheck": 5.0, "racecheck": 18.0})
    (_, _, memcheck), (_, _, racecheck) = ran
    assert memcheck[memcheck.index("--report-api-errors") + 1] == "no"
    assert "--report-api-errors" not in racecheck, "an option of memcheck's alone"


def test_a_program_is_heard_to_its_end_or_ended():
    python = [sys.executable, "-c"]
    says = "import sys; print('a'); print('b', file=sys.stderr); sys.exit(4)"
    assert checks._run([*python, says], 30) == ("a\nb\n", 4)
    where = "import bench, os; print(os.path.dirname(os.path.dirname(bench.__file__)))"
    assert checks._run([*python, where], 30) == (f"{ROOT}\n", 0)
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    printed, code = checks._run([*python, waits], 2)
    assert code is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(printed), 0)
