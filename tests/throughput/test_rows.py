"""Rows from samples: what is derived, and what is left out where it cannot be had."""

import json

import pytest
import throughput_examples as examples

from dfa_kernels.throughput import rows
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.memory import Memory
from dfa_kernels.throughput.result import BASELINE, FASTER, SLOWER, UNDECIDED, Ceilings
from dfa_kernels.throughput.spread import Spread, spread

METHODS = {BASELINE: "bp", "reference": "dfa", "odd": "dfa", "tinydfa": "dfa"}
SHAPE = (10, 1, 20, 5)
CEILINGS = Ceilings(2.0, {"float32": 0.001}, 5.0)


def made(events, ceilings=CEILINGS, contestants=tuple(METHODS), **others):
    job = Job(contestants, SHAPE, **others)
    return {row.contestant: row for row in rows.rows(job, METHODS, events, ceilings)}


def measured(name, samples, launches=40):
    return {
        "event": "measured", "contestant": name, "samples_ms": samples, "launches": launches,
    }  # fmt: skip


EVENTS = [
    measured(BASELINE, [2.0, 4.0, 2.0, 4.0, 2.0], None),
    measured("reference", [1.0, 2.1, 0.9, 2.0, 1.0]),
    measured("odd", [2.2, 4.0]),
    {"event": "died", "contestant": "odd", "why": "ValueError: it fell"},
    {"event": "absent", "contestant": "tinydfa", "why": "No module"},
]


def test_quartiles():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([5, 1, 2, 4, 3]) == (3, 2, 4)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.8, 0.99, FASTER), (0.8, 1.0, UNDECIDED), (1.0, 1.2, UNDECIDED), (1.01, 1.2, SLOWER)],
)
def test_the_quartiles_decide(low, high, wanted):
    assert rows.verdict(Spread((low + high) / 2, low, high)) == wanted


def test_what_is_derived():
    row = made(EVENTS)["reference"]
    assert (row.ms, row.quartiles, row.rounds) == (1.0, (1.0, 2.0), 5)
    assert row.ratio == pytest.approx(0.5)  # by rounds: .5, .525, .45, .5, .5
    assert row.ratio_quartiles == pytest.approx((0.5, 0.5))
    assert row.verdict == FASTER
    assert row.samples_per_s == pytest.approx(10_000)
    forward = 2 * 10 * (784 * 20 + 20 * 5)
    assert row.flops == 2 * forward + 2 * 10 * 5 * 20
    assert row.tflops == pytest.approx(row.flops / 1e9)  # in 1 ms
    assert row.percent_of_matrix_rate == pytest.approx(100 * row.tflops / 0.001)
    assert row.gbps == pytest.approx(row.bytes / 1e6)
    assert row.percent_of_bandwidth == pytest.approx(50 * row.gbps)
    assert row.percent_of_launches == pytest.approx(100 * 40 * 5e-3 / 1.0)
    json.dumps(row.flops)  # plain numbers


def test_the_baseline_and_the_dead_have_no_verdict():
    found = made(EVENTS)
    base, odd = found[BASELINE], found["odd"]
    assert (base.ratio, base.verdict, base.percent_of_launches) == (1.0, None, None)
    assert (odd.error, odd.verdict) == ("ValueError: it fell", None)
    assert odd.ms == pytest.approx(3.1)  # what it did before
    assert odd.ratio == pytest.approx(1.05)
    assert "tinydfa" not in found


def test_without_baseline_and_ceilings_there_are_times_alone():
    row = made([measured("reference", [1.0, 2.0])], Ceilings())["reference"]
    assert row.ms == 1.5
    assert row.ratio is row.ratio_quartiles is row.verdict is None
    assert row.percent_of_matrix_rate is row.percent_of_bandwidth is row.percent_of_launches is None


def test_who_died_while_built_is_a_row_without_a_time():
    row = made([{"event": "died", "contestant": "odd", "why": "no"}])["odd"]
    assert (row.ms, row.rounds, row.error) == (None, 0, "no")
    assert row.flops > 0


def test_bytes_follow_the_dtype():
    sizes = {
        precision: rows.work(Job(("x",), SHAPE, precision), "dfa").bytes
        for precision in ("float64", "float32", "autocast", "bfloat16")
    }
    assert sizes["float64"] == 2 * sizes["float32"] == 4 * sizes["bfloat16"]
    assert sizes["bfloat16"] < sizes["autocast"] < sizes["float32"]
    adamw = rows.work(Job(("x",), SHAPE, rule="adamw"), "dfa").bytes
    parameters = 784 * 20 + 20 + 20 * 5 + 5
    assert adamw - sizes["float32"] == 2 * 4 * parameters  # one state more, read and written


def test_memory_goes_to_its_row():
    found = examples.result().rows
    told = Memory("reference", examples.SHAPES[1], 12345, 67)
    changed = rows.with_memory(found, told, "float32")
    (which,) = (i for i, (a, b) in enumerate(zip(found, changed, strict=True)) if a != b)
    assert (changed[which].contestant, changed[which].shape) == ("reference", examples.SHAPES[1])
    assert (changed[which].peak_memory_bytes, changed[which].feedback_bytes) == (12345, 67)
    assert rows.with_memory(found, told, "bfloat16") == list(found)
