"""`python -m bench.gpu`: what it refuses, what it leaves on disk, and its exit status."""

import json

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import supervisor
from bench.gpu.rows import BROKEN, PASSED, check, fact
from bench.gpu.supervisor import DONE, FAILED, Result
from dfa_kernels.throughput import environment


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU to all appearance, and parts that do as the returned function says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(supervisor, "end_on_terminate", lambda: None)
    monkeypatch.setattr(environment, "commit", lambda: "unknown")

    def run(part, *arguments):
        monkeypatch.setattr(supervisor.Worker, "run", lambda self, *given: part(*given))
        given = ["--device", "Some GPU", "--out", str(tmp_path), "--commit", "abc", *arguments]
        return command.main(given)

    run.folder = tmp_path / "some-gpu"
    return run


def passes(part, seconds, emit):
    row = check("tests/gpu/a", PASSED)
    emit(row)
    return Result(DONE, 1.0, [row])


def held(gpu):
    return json.loads((gpu.folder / "gpu.json").read_text())


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "bench.gpu: torch sees no GPU here.\n"
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused(capsys, gpu):
    assert gpu(passes, "--only", "tests", "speed") == 2
    assert "unknown part 'speed'" in capsys.readouterr().err


def test_results_of_another_run_are_not_touched_unless_asked(capsys, gpu):
    assert gpu(passes, "--only", "tests", "large") == 0
    before = (gpu.folder / "gpu.json").read_text()
    for commit in ("other", "abc+", "unknown"):
        assert gpu(passes, "--only", "tests", "--commit", commit) == 2
        assert "holds the results of another run, at commit abc:" in capsys.readouterr().err
    assert (gpu.folder / "gpu.json").read_text() == before
    assert gpu(passes, "--only", "tests", "--overwrite") == 0
    assert list(held(gpu)["parts"]) == ["tests"]
    assert held(gpu)["commit"] == "abc"
    assert held(gpu)["rehearsal"] is False


def test_a_failing_part_is_recorded_and_the_next_goes_on(capsys, gpu):
    def part(run, seconds, emit):
        if run.args == ("bench.gpu.steps:large",):
            return Result(FAILED, 1.0, [], "RuntimeError: no memory")
        return passes(run, seconds, emit)

    assert gpu(part, "--only", "tests", "large", "small") == 1
    parts = held(gpu)["parts"]
    assert [p["status"] for p in parts.values()] == [DONE, FAILED, DONE]
    assert "failed: large: failed" in capsys.readouterr().err
    assert "Failed after 1 s: RuntimeError: no memory" in (gpu.folder / "gpu.md").read_text()


def test_a_second_call_goes_on_with_what_is_not_done(capsys, gpu):
    ran = []

    def part(run, seconds, emit):
        ran.append(run.args[0])
        if ran == ["bench.gpu.checks:tests", "bench.gpu.steps:large"]:
            return Result(FAILED, 1.0, [], "RuntimeError: no memory")
        return passes(run, seconds, emit)

    assert gpu(part, "--only", "tests", "large", "small") == 1
    first = held(gpu)["parts"]
    assert gpu(part, "--only", "tests", "large", "small") == 0
    assert ran == [f"bench.gpu.{n}" for n in ("checks:tests", "steps:large", "steps:small",
                                              "steps:large")]  # fmt: skip
    parts = held(gpu)["parts"]
    assert {p["status"] for p in parts.values()} == {DONE}
    assert parts["tests"] == first["tests"]
    assert "2 parts are taken over; 1 to go" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commit": "abc", "parts": 3}'])
def test_a_file_that_is_no_result_is_kept(capsys, gpu, text):
    gpu.folder.mkdir()
    (gpu.folder / "gpu.json").write_text(text)
    assert gpu(passes, "--only", "tests") == 2
    assert "holds a gpu.json that is no result: --overwrite" in capsys.readouterr().err
    assert (gpu.folder / "gpu.json").read_text() == text


def test_a_failing_test_is_the_exit_status(gpu):
    def part(run, seconds, emit):
        return Result(DONE, 1.0, [check("a", PASSED), check("b", BROKEN, "no")])

    assert gpu(part, "--only", "tests") == 1
    assert held(gpu)["parts"]["tests"]["verdict"] == "missed"


def test_a_row_is_on_disk_before_its_part_ends(gpu):
    def part(run, seconds, emit):
        emit(fact("a", 1))
        assert held(gpu)["parts"]["large"]["rows"][0]["name"] == "a"
        emit(fact("b", 2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu(part, "--only", "large")
    (large,) = held(gpu)["parts"].values()
    assert large["status"] == "cut off"
    assert [r["name"] for r in large["rows"]] == ["a", "b"]
    assert "| b | 2 |" in (gpu.folder / "gpu.md").read_text()
