"""`bench.throughput` writes the pages from a result, and `bench.agreement` says who agrees."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import throughput_examples as examples
import torch

from bench import agreement, throughput, throughput_report
from dfa_kernels.throughput import predict, result
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.result import BASELINE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """As much of one as is written to."""
    (tmp_path / "bench/results").mkdir(parents=True)
    for name in ("README.md", "bench/results/README.md", "bench/results/quality.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    made = examples.result()
    ours = [r for r in made.rows if r.contestant == "reference"]
    eager = [replace(r, contestant="bp-eager", method="bp") for r in ours]
    names = {BASELINE: "bp-eager"}
    curves = [replace(c, contestant=names.get(c.contestant, c.contestant)) for c in made.scaling]
    others = [
        replace(c, axis=axis, points=tuple(replace(p, value=p.value + 1) for p in c.points))
        for c in curves
        for axis in ("batch", "depth")
    ]
    env = {**made.environment, "capability": "AVX2", "optimizer": "sgd", "commit": "abc"}
    made = replace(made, environment=env, rows=(*made.rows, *eager), scaling=(*curves, *others))
    result.write(tmp_path / "bench/results/throughput.json", made)
    return tmp_path


def test_every_page_is_written_from_the_result(checkout, capsys):
    for _ in range(2):  # a second time it replaces what it wrote
        assert throughput.main(["--keep", "--root", str(checkout)]) == 0
    page = (checkout / "bench/results/throughput.md").read_text()
    assert "| reference | 0.70 (0.70–0.70) | 0.70 (0.70–0.70) | 0.70 (0.70–0.70) |" in page
    assert "*0.99 (0.97–1.02)*" in page  # the hand-written row straddles 1
    assert "| optical | – | – | died |" in page
    assert "| reference ÷ hand-written-dfa |" in page
    assert "From a width of about 96 on, reference is faster." in page
    assert "- TinyDFA is not installed" in page
    claims = (checkout / "bench/results/README.md").read_text()
    assert claims.count("throughput.json") == 2  # one link, its name and its address
    assert "| an example, 2 cores, 2 threads | 2026-11-24 | abc |" in claims.replace(
        "cpu,", "an example,"
    )
    readme = (checkout / "README.md").read_text()
    section = readme.split("<!-- step: begin -->")[1].split("<!-- step: end -->")[0]
    assert "| reference | 0.70 | 0.70 | 0.70 |" in section
    assert "| peak memory of reference ÷ bp-eager | 1.00 | 1.00 | 1.00 |" in section
    assert readme.count("<!-- step: begin -->") == 1
    (device,) = (checkout / "dfa_kernels/throughput/devices").glob("*.json")
    assert {m.contestant for m in predict.read(device).models} == {"bp-eager", "reference"}


def test_a_ratio_to_the_hand_written_loop_is_by_rounds():
    made = examples.result()
    assert throughput_report.over_hand(made) == ["0.71", "0.70", "0.70"]
    alone = replace(made, rows=tuple(r for r in made.rows if r.contestant == BASELINE))
    assert throughput_report.over_hand(alone) == ["–"] * 3


def test_they_agree_where_their_quartiles_overlap():
    ours = {("a", "1"): [1.0, 2.0, 3.0], ("b", "1"): [1.0, 1.1, 1.2]}
    theirs = {("a", "1"): [2.0, 3.0, 4.0], ("b", "1"): [2.0, 2.1, 2.2]}
    rows = agreement.agreed(ours, theirs)
    assert [r["agree"] for r in rows] == [True, False]
    made = {"environment": {"device": "x", "threads": 1, "torch": "2", "date": "d"}, "rows": rows}
    assert "| b | 1 | 1.10 (1.05–1.15) | 2.10 (2.05–2.15) | 0.52 | no |" in agreement.markdown(made)


def test_the_agreement_takes_turns_and_is_written(tmp_path, monkeypatch, capsys):
    order = []

    def source(name, ms):
        def found(shapes, seconds, threads):
            order.append(name)
            return {("bp-eager", shapes[0]): [ms, ms * 1.1]}

        return found

    monkeypatch.setattr(agreement, "by_turns", source("bench", 1.0))
    monkeypatch.setattr(agreement, "by_suite", source("suite", 1.05))
    given = ["--shape", "8,1,8,2", "--turns", "3", "--out", str(tmp_path)]
    assert agreement.main(given) == 0
    assert order == ["bench", "suite", "suite", "bench", "bench", "suite"]
    (row,) = json.loads((tmp_path / "agreement.json").read_text())["rows"]
    assert row["rounds"] == [6, 6]
    monkeypatch.setattr(agreement, "by_suite", source("suite", 2.0))
    assert agreement.main(given) == 1


def test_the_turns_of_an_agreement_are_the_commands(monkeypatch):
    asked = []

    def events(jobs):
        asked.extend(jobs)
        for i in range(len(jobs)):
            yield {"event": "begun", "job": i}
            yield {"event": "measured", "contestant": "bp-eager", "samples_ms": [float(i)]}

    monkeypatch.setattr(agreement, "events", events)
    found = agreement.by_turns(["8,1,8,2", "8,2,8,2"], 0.5, 1)
    assert found == {("bp-eager", "8,1,8,2"): [0.0], ("bp-eager", "8,2,8,2"): [1.0]}
    assert all(isinstance(job, Job) and job.contestants == agreement.CONTESTANTS for job in asked)


def test_a_slowdown_is_planted_in_the_whole_step(monkeypatch):
    monkeypatch.delenv("DFA_PLANTED", raising=False)
    from bench import planted

    planted.backends.unregister("planted")
    now = [0.0]

    def clock():
        now[0] += 0.001
        return now[0]

    made = planted.Planted(1.5, clock)
    ends = []
    for took in (1.0, 3.0, 1.0, 1.0):  # the second waited for another's turn
        now[0] += took
        made.step_(None, "sgd", [])
        ends.append(now[0])
    lasted = [b - a for a, b in itertools.pairwise(ends)]
    assert lasted == pytest.approx([4.5, 1.5, 1.5], abs=0.01)
    assert made.unavailable(torch.device("cuda")) == "it waits on the CPU's clock"
