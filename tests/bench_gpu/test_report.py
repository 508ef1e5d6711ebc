"""Figures are derived from the rows alone, and held against the issue's targets."""

import json

import pytest

from bench.gpu import report, rows, steps
from bench.gpu.rows import (
    BROKEN,
    MISSED,
    NO_TIME,
    NOT_RUN,
    PASSED,
    REACHED,
    TARGETS,
    UNDECIDED,
    Spread,
    check,
    compared,
    fact,
    timed,
    verdict,
)
from bench.gpu.supervisor import CUT_OFF, DONE, FAILED, LATE, SKIPPED, Result
from dfa_kernels.throughput.counting import Work

CEILINGS = [
    timed("copy, device to device", [2.0], Work(0, 8 * 10**9)),  # 4 TB/s
    timed("product 8192³, bf16", [1.0], Work(8 * 10**11, 1), "bf16"),  # 800 TFLOP/s
    timed("product 8192³, tf32", [1.0], Work(4 * 10**11, 1), "tf32"),
]
RATES = {"copy": 4e12, "bf16": 8e14, "tf32": 4e14}


def test_the_ceilings_are_of_the_same_run():
    assert rows.ceilings(CEILINGS) == pytest.approx(RATES)
    assert report.derived({})["ceilings"] == {}


def test_quartiles_decide():
    assert rows.spread([3.0]) == (3.0, 3.0, 3.0)
    assert rows.spread([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert verdict(Spread(2.0, 1.6, 3.0), 1.6) == REACHED
    assert verdict(Spread(2.0, 1.59, 3.0), 1.6) == UNDECIDED
    assert verdict(Spread(1.0, 0.9, 1.59), 1.6) == MISSED
    assert verdict(Spread(float("nan"), 2.0, 3.0), 1.6) == UNDECIDED


def test_what_is_derived_from_a_time():
    # 4e9 bytes: 1 ms at 4 TB/s; 2e11 flops: 0.25 ms at 800 TFLOP/s
    row = timed("project", [1.25] * 3, Work(2 * 10**11, 4 * 10**9), "bf16", "project")
    made = rows.against_ceilings(row, RATES)
    assert made["gb_per_s"] == pytest.approx(3200)
    assert made["tflop_per_s"] == pytest.approx(160)
    assert (made["floor_ms"], made["bound"]) == (pytest.approx(1.0), "memory")
    assert made["share"] == pytest.approx([0.8] * 3)
    assert "verdict" not in rows.against_ceilings(row, {"copy": 4e12})
    assert "verdict" not in rows.against_ceilings(timed("other", [1.0], Work(1, 1)), RATES)


def test_ratios_are_round_by_round():
    row = compared("step", [1.0, 2.0, 4.0], [2.0, 4.0, 8.0], "the other", 1.6)
    assert row["ratio"] == [2.0, 2.0, 2.0]
    assert row["verdict"] == REACHED


def test_what_was_compared_again_replaces_what_was_compared_first():
    first = [compared("step", [1.0], [2.0], who, None) for who in ("eager", "other")]
    of_cuda = {**compared("step", [1.0], [7.0], "eager", None), "ours": "CUDA"}
    again = compared("step", [1.0], [3.0], "eager", None)
    given = [first[0], fact("a", 1), first[1], of_cuda, again]
    made = report.derived({"large": Result(DONE, 1.0, given)})["parts"]["large"]["rows"]
    assert made == [fact("a", 1), first[1], of_cuda, again]


# The issue's table -----------------------------------------------------------------------------

MEMORY, PRODUCTS = Work(1, 4 * 10**9), Work(8 * 10**11, 1)  # a millisecond each


@pytest.mark.parametrize(
    ("kind", "work", "wanted"),
    [("project", MEMORY, 0.9), ("project", PRODUCTS, 0.7), ("update", PRODUCTS, 0.8)],
)
def test_kernels_reach_their_share_or_miss_it(kind, work, wanted):
    for ms, right in ((0.99 / wanted, REACHED), (1.01 / wanted, MISSED)):
        row = timed("kernel", [ms] * 5, work, "bf16", kind)
        assert rows.against_ceilings(row, RATES)["verdict"] == right


def test_an_update_is_held_against_the_products_alone():
    """Its optimizer's traffic is on top, and no excuse."""
    row = timed("update", [2.0], Work(8 * 10**11, 8 * 10**9), "bf16", "update")
    made = rows.against_ceilings(row, RATES)
    assert (made["bound"], made["share"]) == ("products", [0.5] * 3)
    assert made["verdict"] == MISSED


def test_the_targets_are_the_issues():
    mma = {"update, mma.sync": (0.0, 0.6)}
    assert {"project": (0.9, 0.7), "update": (0.0, 0.8), **mma} == TARGETS
    assert (steps.LARGE_TARGET, steps.FIELD_TARGET) == (1.6, 1.6)
    assert (steps.SMALL_TARGET, steps.SMALL_GRAPH_TARGET) == (4.0, 1.5)
    assert (steps.NARROW_TARGET, steps.FIELD_CUDA_TARGET) == (5.0, 1.0)
    assert steps.REFERENCE_TARGET == 1.15


# What is written ------------------------------------------------------------------------------


def results():
    return {
        "environment": Result(DONE, 1.0, [fact("device", "NVIDIA H200"), fact("torch", "2.11")]),
        "tests": Result(
            DONE, 9.0,
            [check("tests/gpu/a", PASSED), check("tests/gpu/b", NOT_RUN, "needs 30 GB free")],
        ),
        "ceilings": Result(DONE, 1.0, CEILINGS),
        "project": Result(
            DONE, 1.0, [timed("E 10", [1.0] * 5, Work(1, 4 * 10**9), "bf16", "project")]
        ),
        "promises": Result(DONE, 1.0, [fact("memory held for feedback", 64, 0, "bytes")]),
        "large": Result(
            DONE, 1.0,
            [compared("step", [1], [1.7], "compiled", 1.6), compared("x", [1], [2], "y", None)],
        ),
        "nerf": Result(CUT_OFF, 3.0, [fact("its flops", 1.4)], "the run ended here"),
        "sanitizer": Result(SKIPPED, 0.0, [], "3 s were left, and it takes at least 20"),
    }  # fmt: skip


def lines(given):
    made = {"commit": "abc", "rehearsal": False, "earlier": [], **report.derived(given)}
    json.dumps(made)
    return report.markdown(made).splitlines()


def test_every_target_has_its_verdict():
    text = lines(results())
    start = text.index("## Targets")
    table = text[start + 4 : text.index("", start + 4)]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in table]
    assert cells == [
        ["Tests", "all pass", "1 passed, 1 skipped", REACHED],
        ["E 10", "≥ 90% of copy, 70% of products", "100 % (100–100) of memory", REACHED],
        ["memory held for feedback", "0 bytes", "64 bytes", MISSED],
        ["step; against compiled", "≥ 1.6 ×", "1.70 (1.70–1.70)", REACHED],
    ]


def test_a_reader_sees_what_is_missing():
    text = "\n".join(lines(results()))
    assert "Cut off after 3 s: the run ended here" in text
    assert "| its flops | 1.4 |" in text
    assert "Skipped after 0 s: 3 s were left, and it takes at least 20" in text
    assert "skipped: `tests/gpu/b`: needs 30 GB free" in text
    assert "copy 4000 GB/s (read and written), bf16 products 800 TFLOP/s" in text
    assert "device NVIDIA H200; torch 2.11" in text
    assert "abc" in text
    assert "rehearsal" not in text
    made = {"commit": "abc", "rehearsal": True, "earlier": [], **report.derived({})}
    assert "A rehearsal" in report.markdown(made)


def test_without_ceilings_nothing_is_held_against_one():
    given = results()
    del given["ceilings"]
    text = "\n".join(lines(given))
    assert "No ceiling was measured" in text
    assert "of memory" not in text


def test_tests_that_did_not_all_run_have_no_verdict():
    passed, failed = check("a", PASSED), check("b", BROKEN, "no")
    assert rows.checked([passed], True) == ({PASSED: 1}, REACHED)
    assert rows.checked([passed], False) == ({PASSED: 1}, None)
    assert rows.checked([check("c", NOT_RUN)], True)[1] is None
    assert rows.checked([passed, failed], False)[1] == MISSED
    late = check("d", NO_TIME, "stopped after 9 s")
    assert rows.checked([passed, late], True) == ({PASSED: 1, NO_TIME: 1}, None)
    assert rows.checked([passed, late, failed], True)[1] == MISSED


def test_a_test_without_time_is_shown_and_no_failure_of_a_kernel():
    late = [check("tests/gpu/a", PASSED), check("tests/gpu/b", NO_TIME, "stopped after 9 s")]
    given = {"tests": Result(DONE, 9.0, late)}
    text = "\n".join(lines(given))
    assert "| Tests | all pass | 1 passed, 1 not run: time | not run to the end |" in text
    assert "- not run: time: `tests/gpu/b`: stopped after 9 s" in text
    assert report.failures(given) == ["tests: 1 had too little time"]


def test_failures():
    assert report.failures(results()) == ["nerf: cut off"]
    ok = {"tests": Result(DONE, 1.0, [check("a", PASSED)])}
    assert report.failures(ok) == []
    assert report.failures({"large": Result(LATE, 1.0, [], "x")}) == []
    assert report.failures({"large": Result(FAILED, 1.0, [], "x")}) == ["large: failed"]
    broken = {"tests": Result(DONE, 1.0, [check("a", PASSED), check("b", BROKEN)])}
    assert report.failures(broken) == ["b"]
    assert report.failures({"tests": Result(LATE, 1.0, ok["tests"].rows, "x")}) == [
        "tests: out of time"
    ]
    assert report.failures({"tests": Result(DONE, 1.0, [check("a", NOT_RUN)])}) == [
        "tests: none passed"
    ]
    assert report.failures({"large": Result(LATE, 1.0, [], "x")}, rehearsal=True) == [
        "large: out of time"
    ]
