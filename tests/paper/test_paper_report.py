"""The page: what it says follows from the rows alone, and it needs nothing but itself."""

import argparse
import base64
import math
import re

import pytest

from bench.paper import published, report, rows, verdict
from bench.paper.rows import Row
from dfa_kernels.training import InputError


def row(method, mean, std=1.0, seeds=4, **more):
    given = {"task": "graph", "model": "gcn", "data": "cora", "metric": "accuracy"} | more
    return Row(method=method, mean=mean, std=std, seeds=seeds, **given)


def judged(bp, dfa, shallow, **more):
    made = [row("bp", bp, **more), row("dfa", dfa, **more), row("shallow", shallow, **more)]
    return verdict.of("dfa", {r.method: r for r in made})


def test_standard_errors_and_share():
    found = judged(80.0, 78.0, 70.0)
    assert found.errors == pytest.approx(8 / math.sqrt(0.5))
    assert found.share == pytest.approx(0.8)
    assert found.behind == pytest.approx(2.0)
    assert found.sentence == "above shallow (11.3 standard errors)"


def test_less_may_be_better():
    found = judged(30.0, 50.0, 400.0, higher_is_better=False)
    assert found.errors > 2
    assert found.share == pytest.approx(350 / 370)
    assert found.behind == pytest.approx(20.0)


@pytest.mark.parametrize(
    "dfa, std, said",
    [
        (70.5, 1.0, "not told from shallow (+0.7 standard errors)"),
        (60.0, 1.0, "below shallow (14.1 standard errors)"),
        (70.0, 0.0, "not told from shallow (+0.0 standard errors)"),
        (71.0, 0.0, "above shallow (inf standard errors)"),
    ],
)
def test_sentences(dfa, std, said):
    assert judged(80.0, dfa, 70.0, std=std).sentence == said


def test_one_seed_says_nothing_and_no_gap_has_no_share():
    assert judged(80.0, 78.0, 70.0, seeds=1).errors is None
    assert judged(80.0, 78.0, 70.0, seeds=1).share == pytest.approx(0.8)
    assert judged(70.0, 78.0, 70.0, seeds=1).share is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gap_that_may_be_chance_has_no_share(sign):
    """A standard error of the difference is √½."""
    for gap, wanted in ((1.5, 8 / 1.5), (1.4, None), (0.0, None), (-5.0, None)):
        found = judged(sign * gap, sign * 8.0, 0.0, higher_is_better=sign > 0)
        assert found.share == (None if wanted is None else pytest.approx(wanted))
    assert verdict.of("dfa", {"dfa": row("dfa", 1.0)}) == (None, None, None)


@pytest.fixture
def results(tmp_path):
    rows.write(
        tmp_path / "graph.json",
        [
            row("shallow", 57.25),
            row("bp", 81.5, grid={"0.01": 79.0, "0.1": 60.0}, lr=0.01),
            row("dfa", 80.25, step_ratio=[0.9, 0.8, 1.1], alignment={"0": 0.25, "1": 0.75},
                feedback_bytes=1234, environment={"processor": "<b>CPU</b>"}),
        ],
    )  # fmt: skip
    other = {"task": "recommender", "model": "deepfm", "data": "bank", "metric": "AUC"}
    rows.write(tmp_path / "recommender.json", [row("bp", 0.8, digits=4, **other)])
    (tmp_path / "graph" / "gcn-cora").mkdir(parents=True)
    (tmp_path / "graph" / "gcn-cora" / "hidden.png").write_bytes(b"picture")
    return tmp_path


def page(results):
    out = results / "page" / "report.html"
    assert report.main(argparse.Namespace(results=results, out=out)) == 0
    return out.read_text(encoding="utf-8")


def cells(text, model):
    (line,) = re.findall(rf"<tr><td class=\"name\">{model}</td>.*?</tr>", text, re.S)[:1]
    return [re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", c)).strip() for c in line.split("</td>")]


def test_the_table_holds_what_the_rows_say(results):
    assert cells(page(results), "gcn")[:-1] == [
        "gcn", "cora", "accuracy ↑", "81.50 ± 1.00†", "80.25 ± 1.00", "57.25 ± 1.00",
        "above shallow (32.5 standard errors)", "95 %", "0.90 (0.80–1.10, undecided)", "1,234",
        "0.50 (0.25–0.75)", "4",
    ]  # fmt: skip


def test_the_papers_figures_stand_beside_ours(results):
    assert "0.8000 ± 1.0000 0.79536 (Criteo)" in cells(page(results), "deepfm")[3]
    assert published.of("language", "transformer-small", "perplexity")["shallow"].text == "> 400"
    assert published.of("graph", "gcn", "accuracy") == {}


def test_the_page_needs_nothing_but_itself(results):
    text = page(results)
    assert base64.b64encode(b"picture").decode() in text
    assert "<figcaption>gcn-cora/hidden</figcaption>" in text
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert "<script" not in text and "@import" not in text
    assert "<b>CPU</b>" not in text and "&lt;b&gt;CPU" in text


def test_the_grid_shows_every_rate(results):
    assert re.search(
        r"class=\"best\">\s*0\.01: 79\.00</span>, <span>\s*0\.1: 60\.00", page(results)
    )


def test_without_results_it_says_so(tmp_path):
    with pytest.raises(InputError, match=r"holds none of view\.json, recommender\.json"):
        report.html(tmp_path)


def test_a_broken_result_is_named(tmp_path):
    (tmp_path / "view.json").write_text("[")
    with pytest.raises(InputError, match=r"view\.json is no result file"):
        report.html(tmp_path)
