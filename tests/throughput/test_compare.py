"""A planted slowdown is found, and nothing is found where there is none: on made-up noise, and on
what a busy machine recorded."""

import json
import math
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import throughput_examples as examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from dfa_kernels.cli import main
from dfa_kernels.throughput import compare, result
from dfa_kernels.throughput.compare import ALIVE, DIED, between, difference
from dfa_kernels.throughput.result import BASELINE, EAGER, FASTER, SLOWER, UNDECIDED, Result
from dfa_kernels.training import InputError

#: Seven runs of the same code and two with 10 % planted by `bench.planted`, one after another on a
#: busy machine: samples of the baseline and the contestant by shape.
RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())


def noisy(seed, rounds=40, slower=1.0, sigma=0.03, moods=0.3):
    """A result of two contestants on three shapes: the machine's mood meets both of a round, one
    round resembles the next, and now and then somebody is disturbed alone."""
    rng = np.random.default_rng(seed)
    rows = []
    for place, shape in enumerate(examples.SHAPES):
        mood = np.exp(np.cumsum(rng.normal(0, moods / math.sqrt(rounds), rounds)))

        def times(ms, mood=mood):
            own = rng.normal(0, sigma, rounds)
            for i in range(1, rounds):
                own[i] = 0.4 * own[i - 1] + math.sqrt(1 - 0.16) * own[i]
            own += (rng.random(rounds) < 0.1) * rng.exponential(0.5, rounds)
            process = rng.normal(0, 0.005)  # where its memory came to lie
            return (ms * mood * np.exp(own + process)).tolist()

        base = times(10.0)
        other = times(7.0 * (slower if place == 1 else 1.0))
        rows += [
            examples.row(BASELINE, "bp", shape, base, base),
            examples.row("reference", "dfa", shape, other, base),
        ]
    return Result({"optimizer": "sgd", "device": "made up"}, rows=tuple(rows))


def verdicts(old, new):
    return [change.verdict for change in compare.compare(old, new)[0]]


def test_nothing_is_found_in_20_comparisons_of_the_same_code():
    for seed in range(20):
        assert set(verdicts(noisy(seed), noisy(1000 + seed))) == {UNDECIDED}, seed


@pytest.mark.parametrize(("factor", "wanted"), [(1.1, SLOWER), (0.9, FASTER)])
def test_ten_percent_are_found_in_20_of_20(factor, wanted):
    for seed in range(20):
        new = noisy(2000 + seed, rounds=120, slower=factor)
        found = verdicts(noisy(seed, rounds=120), new)
        assert found == [UNDECIDED, wanted, UNDECIDED], seed


def test_too_few_rounds_find_nothing():
    old, new = noisy(1, rounds=4), noisy(2, rounds=4, slower=3.0)
    assert set(verdicts(old, new)) == {UNDECIDED}
    assert difference([1.0], [2.0]) == (0.0, math.inf)


def recorded(run):
    rows = []
    for text, (base, own) in run.items():
        shape = tuple(map(int, text.split(",")))
        rows += [
            examples.row(BASELINE, "bp", shape, base, base),
            examples.row("planted", "dfa", shape, own, base),
        ]
    return Result({"optimizer": "sgd"}, rows=tuple(rows))


def test_nothing_is_found_among_the_recorded_runs_of_the_same_code():
    same = [recorded(run) for run in RECORDED["same"]]
    pairs = list(combinations(same, 2))
    assert len(pairs) >= 20
    for old, new in pairs:
        assert set(verdicts(old, new)) == {UNDECIDED}


def test_the_recorded_slowdown_is_found_in_nine_of_ten():
    pairs = list(product(RECORDED["same"], RECORDED["planted"]))
    found = [verdicts(recorded(old), recorded(new)) for old, new in pairs]
    assert all(FASTER not in each for each in found)
    assert sum(SLOWER in each for each in found) >= 0.9 * len(pairs)


@given(
    st.lists(st.floats(0.1, 10), min_size=9, max_size=30),
    st.lists(st.floats(0.1, 10), min_size=9, max_size=30),
    st.floats(0.2, 5),
)
def test_a_difference_follows_its_samples(old, new, factor):
    shift, half = difference(old, new)
    assert half >= 0
    back, same = difference(new, old)
    assert (back, same) == (pytest.approx(-shift), pytest.approx(half))
    moved, same = difference(old, [factor * b for b in new])
    assert moved == pytest.approx(shift + math.log(factor), abs=1e-9)
    assert same == pytest.approx(half, abs=1e-9)


def test_what_resembles_its_neighbours_tells_less():
    calm = [1.0 + 0.01 * (i * 7 % 11) for i in range(44)]
    _, mixed = difference(calm, calm)
    _, ordered = difference(sorted(calm), sorted(calm))
    assert ordered > 2 * mixed


def processes(seed, apart, slower=1.0, count=3, rounds=40):
    """A result whose every process has the two contestants differ by another factor (``apart``:
    its deviation), for one of them lies badly in a cache, or somebody else uses that."""
    rng = np.random.default_rng(seed)
    base, own = [], []
    for _ in range(count):
        base.append(10.0 * np.exp(rng.normal(0, 0.02, rounds)))
        factor = slower * math.exp(rng.normal(0, apart))
        own.append(7.0 * factor * np.exp(rng.normal(0, 0.02, rounds)))
    base, own = np.concatenate(base).tolist(), np.concatenate(own).tolist()
    shape, counts = examples.SHAPES[0], (rounds,) * count
    rows = (
        examples.row(BASELINE, "bp", shape, base, base, processes=counts),
        examples.row("reference", "dfa", shape, own, base, processes=counts),
    )
    return Result({"optimizer": "sgd"}, rows=rows)


def alike(result):
    """The same, as if nobody knew which process measured what."""
    return replace(result, rows=tuple(replace(row, processes=()) for row in result.rows))


def test_what_differs_between_processes_of_the_same_code_is_not_found():
    pairs = [(processes(seed, 0.06), processes(1000 + seed, 0.06)) for seed in range(20)]
    assert [verdicts(old, new) for old, new in pairs] == 20 * [[UNDECIDED]]
    fooled = [verdicts(alike(old), alike(new)) for old, new in pairs]
    assert any(found != [UNDECIDED] for found in fooled)


def test_ten_percent_are_found_beyond_what_processes_differ_by():
    found = [
        verdicts(processes(seed, 0.008), processes(1000 + seed, 0.008, slower=1.1))
        for seed in range(20)
    ]
    assert found == 20 * [[SLOWER]]


def two_times(seed, eager, slower=1.0, count=6, rounds=20):
    """A result whose compiled baseline takes one of two times as long as its process lives; with
    ``eager`` an eager one beside it, which takes one."""
    rng = np.random.default_rng(seed)
    times = {BASELINE: [], EAGER: [], "reference": []}
    for _ in range(count):
        for name, ms in ((BASELINE, rng.choice([8.7, 10.0])), (EAGER, 10.0), ("reference", 7.0)):
            ms *= (slower if name == "reference" else 1.0) * np.exp(rng.normal(0, 0.005))
            times[name] += (ms * np.exp(rng.normal(0, 0.02, rounds))).tolist()
    shape, counts = examples.SHAPES[0], (rounds,) * count
    rows = tuple(
        examples.row(name, "dfa" if name == "reference" else "bp", shape, each, times[BASELINE],
                     processes=counts)
        for name, each in times.items() if eager or name != EAGER
    )  # fmt: skip
    return Result({"optimizer": "sgd"}, rows=rows)


def test_eager_backpropagation_is_the_yardstick_where_it_takes_part():
    missed = 0
    for seed in range(20):
        slower = {
            eager: compare.compare(two_times(seed, eager), two_times(99 + seed, eager, 1.1))[0]
            for eager in (True, False)
        }
        assert [c.row.contestant for c in slower[True]] == [BASELINE, "reference"]
        assert slower[True][1].verdict == SLOWER
        assert verdicts(two_times(seed, True), two_times(99 + seed, True)) == 2 * [UNDECIDED]
        assert [c.row.contestant for c in slower[False]] == ["reference"]
        missed += slower[False][0].verdict == UNDECIDED
    assert missed > 10


def test_the_interval_of_two_means_is_student_s():
    shift, half = between([1.0, 1.1, 1.2], [1.3, 1.2, 1.4])
    a, b = np.log([1.0, 1.1, 1.2]), np.log([1.3, 1.2, 1.4])
    assert shift == pytest.approx(b.mean() - a.mean())
    interval = ttest_ind(b, a).confidence_interval(0.99)
    assert (shift - half, shift + half) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )


def test_one_process_alone_is_said():
    many, single = processes(1, 0.0), processes(2, 0.0, count=1)
    (note,) = compare.compare(many, single)[1]
    assert note.startswith("One process timed rows of the new result")
    assert compare.compare(many, many)[1] == []


def one(samples, base, **others):
    shape = examples.SHAPES[0]
    rows = [examples.row(BASELINE, "bp", shape, base, base)] if base else []
    row = examples.row("reference", "dfa", shape, samples, base or samples)
    return Result({"optimizer": "sgd"}, rows=(*rows, replace(row, **others)))


def test_the_machines_mood_cancels_where_the_baseline_shares_it():
    samples = [1.0 + 0.01 * (i % 5) for i in range(40)]
    twice = [2 * s for s in samples]
    (change,) = compare.compare(one(samples, samples), one(twice, twice))[0]
    assert (change.verdict, change.paired) == (UNDECIDED, True)
    assert change.factor == pytest.approx(1.0)
    alone = compare.compare(one(samples, None), one(twice, None))[0][0]
    assert (alone.verdict, alone.paired) == (SLOWER, False)
    a_little = [1.12 * s for s in samples]  # which the machine alone may have done
    assert verdicts(one(samples, None), one(a_little, None)) == [UNDECIDED]
    assert verdicts(one(samples, samples), one(a_little, samples)) == [SLOWER]


def test_who_died_and_who_lives_again():
    fine = one([1.0] * 20, [1.0] * 20)
    dead = one([1.0] * 20, [1.0] * 20, error="ValueError: it fell")
    assert verdicts(fine, dead) == [DIED]
    assert verdicts(dead, fine) == [ALIVE]
    assert verdicts(dead, dead) == [UNDECIDED]


def test_what_else_differs_is_said():
    old = noisy(1)
    new = replace(noisy(2), rows=noisy(2).rows[:4])
    new = replace(new, environment={**new.environment, "device": "another", "torch": "3.0"})
    changes, notes = compare.compare(old, new)
    assert len(changes) == 2
    assert "device: made up before, another now." in notes
    (alone,) = (note for note in notes if note.startswith("Only"))
    assert alone.startswith(
        "Only the old result has bp-compiled at 256,4,1024,10000 float32; reference"
    )
    adamw = replace(old, environment={"optimizer": "adamw"})
    with pytest.raises(InputError, match="the old result steps by sgd and the new one by adamw"):
        compare.compare(old, adamw)


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    made = {
        "old": noisy(1, 120),
        "same": noisy(2, 120),
        "slower": noisy(3, 120, 1.1),
        "died": replace(noisy(4, 120), rows=tuple(
            replace(r, error=None if r.contestant == BASELINE else "it fell") for r in
            noisy(4, 120).rows)),
    }  # fmt: skip
    for name, content in made.items():
        result.write(tmp_path / f"{name}.json", content)
    return lambda *names: [str(tmp_path / f"{name}.json") for name in names]


@pytest.mark.parametrize(
    ("new", "status", "words"),
    [("same", 0, "3 undecided"), ("slower", 1, "1 slower"), ("died", 1, "3 died")],
)
def test_the_status_is_1_on_a_real_slowdown(files, capsys, new, status, words):
    assert main(["bench", "--compare", *files("old", new)]) == status
    assert words in capsys.readouterr().out


def test_faster_is_no_failure(files, capsys):
    assert main(["bench", "--compare", *files("slower", "old")]) == 0
    assert "1 faster" in capsys.readouterr().out


def test_files_that_cannot_be_compared_are_one_sentence(files, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text('{"format": 99}')
    assert main(["bench", "--compare", *files("old"), str(other)]) == 2
    assert "format 99" in capsys.readouterr().err
    result.write(other, Result({"optimizer": "sgd"}))
    assert main(["bench", "--compare", *files("old"), str(other)]) == 2
    assert "no row in common" in capsys.readouterr().err
