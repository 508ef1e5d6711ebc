"""`bench.detection` takes turns, counts verdicts, and fails where `--compare` is wrong."""

import json
from collections import Counter

import numpy as np
import pytest
import throughput_examples as examples

from bench import detection
from dfa_kernels.throughput.result import BASELINE, FASTER, SLOWER, UNDECIDED, Result

SHAPE = (8, 1, 8, 2)


def result(seed, factor):
    rng = np.random.default_rng(seed)
    base, own = (ms * np.exp(rng.normal(0, 0.02, 60)) for ms in (10.0, 7.0 * factor))
    rows = (
        examples.row(BASELINE, "bp", SHAPE, base.tolist(), base.tolist()),
        examples.row("planted", "dfa", SHAPE, own.tolist(), base.tolist()),
    )
    environment = {"optimizer": "sgd", "device": "d", "threads": 1, "torch": "t", "date": "x"}
    return Result(environment, rows=rows)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the command on made-up results; ``found``: the factor that the n-th run has."""

    def measure(found):
        asked = []

        def run(folder, factor, options):
            asked.append((folder.name, factor))
            return result(len(asked), found(len(asked), factor))

        monkeypatch.setattr(detection, "run", run)
        status = detection.main(["--same", "3", "--planted", "2", "--out", str(tmp_path)])
        return asked, status, json.loads((tmp_path / "detection.json").read_text())

    return measure


def test_turns_are_taken_and_verdicts_counted(measured, capsys):
    asked, status, made = measured(lambda n, factor: factor)
    assert asked == [
        ("same-0", 1.0), ("planted-0", 1.1), ("same-1", 1.0), ("planted-1", 1.1), ("same-2", 1.0)
    ]  # fmt: skip
    (row,) = made["rows"]
    assert row["same"]["verdicts"] == {UNDECIDED: 3}
    assert row["planted"]["verdicts"] == {SLOWER: 6}
    low, middle, high = row["planted"]["factors"]
    assert 1.05 < low <= middle <= high < 1.15
    assert status == 0
    shown = capsys.readouterr().out
    assert "| 8,1,8,2 | 3 undecided of 3 |" in shown and "| 6 slower of 6 |" in shown


def test_what_is_not_found_fails(measured):
    assert measured(lambda n, factor: 1.0)[1] == 1


def test_what_is_found_in_the_same_code_fails(measured):
    assert measured(lambda n, factor: 1.2 if n == 3 else factor)[1] == 1


@pytest.mark.parametrize(
    ("same", "planted", "well"),
    [
        ({UNDECIDED: 20}, {SLOWER: 9, UNDECIDED: 1}, True),
        ({UNDECIDED: 20}, {SLOWER: 8, UNDECIDED: 2}, False),
        ({UNDECIDED: 20}, {SLOWER: 19, FASTER: 1}, False),
        ({UNDECIDED: 19, FASTER: 1}, {SLOWER: 10}, False),
    ],
)
def test_one_in_ten_may_be_missed_and_none_made_up(same, planted, well):
    row = {"same": {"verdicts": Counter(same)}, "planted": {"verdicts": Counter(planted)}}
    assert detection.holds([row]) is well


def test_nothing_compared_is_nothing_shown():
    assert not detection.holds([])
