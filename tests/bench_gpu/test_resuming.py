"""A run that goes on from another's file, on a machine that has nothing but the checkout."""

import json

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import sources, supervisor
from bench.gpu.rows import NO_TIME, PASSED, check, fact, timed
from bench.gpu.supervisor import DONE, FAILED, Result
from dfa_kernels.throughput import environment
from dfa_kernels.throughput.counting import Work

PARTS = ("environment", "build", "tests", "ceilings", "large", "project")


class Machine:
    """Parts that end as they do on a machine with this name and bandwidth; those that fail."""

    def __init__(self, folder, name="first", copy_ms=2.0, fails=()):
        self.folder, self.name, self.copy_ms, self.fails = folder, name, copy_ms, fails
        self.ran = []

    def rows(self, part):
        if part == "machine:describe":
            return [fact("driver", self.name)]
        if part == "ceilings:measure":
            return [
                timed("copy", [self.copy_ms], Work(0, 8 * 10**9)),
                timed("product", [1.0], Work(8 * 10**11, 1)),
            ]
        if part == "kernels:projections":
            return [timed("E 10", [1.25] * 3, Work(1, 4 * 10**9), "bf16", "project")]
        return [check("tests/gpu/a", PASSED)]

    def run(self, worker, part, seconds, emit):
        name = part.args[0].removeprefix("bench.gpu.")
        self.ran.append(name)
        made = self.rows(name)
        for row in made:
            emit(row)
        if name in self.fails:
            return Result(FAILED, 1.0, made, "RuntimeError: the lease ended")
        return Result(DONE, 1.0, made)

    @property
    def file(self):
        return self.folder / "some-gpu" / "gpu.json"

    def held(self):
        return json.loads(self.file.read_text())

    def page(self):
        return self.file.with_suffix(".md").read_text()


@pytest.fixture
def on(monkeypatch):
    """Runs the command on a machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(supervisor, "end_on_terminate", lambda: None)
    monkeypatch.setattr(environment, "commit", lambda: "unknown")

    def run(machine, *arguments, parts=PARTS):
        monkeypatch.setattr(supervisor.Worker, "run", lambda *given: machine.run(*given))
        out = ["--device", "Some GPU", "--out", str(machine.folder), "--only", *parts]
        return command.main([*out, *arguments])

    return run


def moved(before, to):
    """What a caller keeps of a run: its gpu.json alone."""
    there = to / "some-gpu" / "gpu.json"
    there.parent.mkdir(parents=True)
    there.write_text(before.file.read_text())


def test_a_fresh_machine_is_described_built_and_measured_anew(on, tmp_path):
    first = Machine(tmp_path / "a", fails=("steps:large",))
    assert on(first) == 1
    second = Machine(tmp_path / "b", "second", 4.0)
    moved(first, second.folder)
    assert on(second) == 0
    assert second.ran == ["machine:describe", "build:build", "ceilings:measure", "steps:large"]
    assert list(second.held()["parts"]) == list(PARTS)


def test_what_was_taken_over_stays_held_against_its_own_ceilings(on, tmp_path):
    first = Machine(tmp_path / "a", fails=("steps:large",))
    on(first)
    second = Machine(tmp_path / "b", "second", 4.0)
    moved(first, second.folder)
    on(second)
    (before,), (after,) = (m.held()["parts"]["project"]["rows"] for m in (first, second))
    assert before == after
    assert after["share"] == pytest.approx([0.8] * 3)  # of 4 TB/s, not of 2
    assert second.held()["ceilings"]["copy"] == pytest.approx(2e12)
    (run,) = second.held()["earlier"]
    assert run["parts"] == ["tests", "project"]
    assert run["machine"] == {"driver": "first"}
    page = second.page()
    assert "earlier run, on another machine or at another time: Tests, `project`." in page
    assert page.index("driver second") < page.index("copy 2000 GB/s") < page.index("driver first")
    assert page.index("driver first") < page.index("copy 4000 GB/s")
    assert not first.held()["earlier"]
    assert "earlier run" not in first.page()


def test_a_third_machine_goes_on_from_both(on, tmp_path):
    first = Machine(tmp_path / "a", fails=("steps:large", "kernels:projections"))
    on(first)
    second = Machine(tmp_path / "b", "second", fails=("steps:large",))
    moved(first, second.folder)
    on(second)
    third = Machine(tmp_path / "c", "third")
    moved(second, third.folder)
    assert on(third) == 0
    runs = [(run["machine"]["driver"], run["parts"]) for run in third.held()["earlier"]]
    assert runs == [("first", ["tests"]), ("second", ["project"])]


def test_where_nothing_is_left_nothing_runs_and_the_page_is_there(on, tmp_path):
    first = Machine(tmp_path / "a")
    on(first)
    second = Machine(tmp_path / "b")
    moved(first, second.folder)
    assert on(second) == 0
    assert second.ran == []
    assert second.held() == first.held()
    assert second.page() == first.page()


def test_tests_that_had_no_time_are_run_again(on, tmp_path):
    first = Machine(tmp_path / "a")
    first.rows = lambda part: [check("tests/gpu/a", PASSED), check("tests/gpu/b", NO_TIME, "x")]
    assert on(first, parts=("tests",)) == 1
    first.rows = lambda part: [check("tests/gpu/a", PASSED), check("tests/gpu/b", PASSED)]
    assert on(first, parts=("tests",)) == 0
    assert first.ran == ["checks:tests"] * 2


def test_other_sources_are_another_run(on, tmp_path, monkeypatch, capsys):
    machine = Machine(tmp_path)
    for commit in ((), ("--commit", "abc")):
        monkeypatch.setattr(sources, "digest", lambda: "0")
        on(machine, "--overwrite", *commit)
        monkeypatch.setattr(sources, "digest", lambda: "1")
        assert on(machine, *commit) == 2
        assert "of other sources: --overwrite, or another --out" in capsys.readouterr().err


def test_a_commit_that_git_does_not_know_is_compared(on, tmp_path, monkeypatch, capsys):
    machine, sha = Machine(tmp_path), "0123456789ab" + "c" * 28
    assert on(machine, "--commit", sha) == 0
    assert machine.held()["commit"] == "0123456789ab"
    assert on(machine, "--commit", "0123456789ab") == 0  # as git says it here
    assert on(machine) == 2
    monkeypatch.setattr(environment, "commit", lambda: "0123456789ab")
    assert on(machine, "--commit", sha) == 0
    capsys.readouterr()
    monkeypatch.setattr(environment, "commit", lambda: "0123456789ab+")
    assert on(machine, "--commit", sha) == 2
    assert "--commit is 0123456789ab, and git says 0123456789ab+" in capsys.readouterr().err


def test_sources_are_known_by_name_and_content(tmp_path):
    (tmp_path / "csrc").mkdir()
    made = {sources.digest(tmp_path)}
    for name, text in (
        ("csrc/a.cu", "1"),
        ("csrc/a.cu", "2"),
        ("csrc/b.cu", "2"),
        ("setup.py", ""),
    ):
        (tmp_path / name).write_text(text)
        made.add(sources.digest(tmp_path))
    assert len(made) == 5
    (tmp_path / "csrc/_build.json").write_text("what a build leaves is no source")
    assert sources.digest(tmp_path) in made
