"""Hyperparameters that a launch reads from memory: the numbers' bits, and new ones at a replay."""

import pytest
import torch
from oracle import ADAMW, HYPER, RULE_CASES, SGD, check_step, head, record, stepped
from rows import BAD_ROWS, check_refusal, check_replay, forty_rates, in_memory, slower, with_rows

from dfa_kernels import ops
from dfa_kernels.backends.contract import Segment
from dfa_kernels.backends.triton import rules
from dfa_kernels.backends.triton.launch import Launcher
from dfa_kernels.feedback import Feedback


@pytest.mark.parametrize(("rule", "hyper"), RULE_CASES.values(), ids=RULE_CASES)
def test_the_bits_are_those_of_numbers(rule, hyper, either_delta):
    error = torch.randn(21, 6)
    made = []
    layers = [record(21, 33, 18), record(21, 70, 130), head(error, 5)]
    updates = [stepped(rule, [Segment(error, 0.2, x)]) for x in layers]
    for place in (with_rows, in_memory):
        given = [place(u, hyper, slower(hyper)) for u in updates]
        made.append(check_step(Feedback(), rule, given))
    for numbers, rows in zip(*made, strict=True):
        assert torch.equal(numbers, rows)


@pytest.mark.parametrize("step", [1, 2, 1000, 10**7])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999999), (0.999, 0.0)])
def test_bias_corrections_have_no_fp32_in_them(step, betas, delta):
    delta(rules.ON_THE_FLY)
    error = torch.randn(5, 3)
    hyper = (1e-3, *betas, 1e-8, 0.0, 0, step)
    update = stepped("adamw", [Segment(error, 0.2, record(5, 4, 3))])
    made = [
        check_step(Feedback(), "adamw", [place(update, hyper, hyper)])
        for place in (with_rows, in_memory)
    ]
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize(
    ("rule", "hyper"), [("sgd", SGD["nesterov first"]), ("adamw", ADAMW["plain"])]
)
def test_the_same_launch_again_steps_by_what_is_there_now(rule, hyper, launched, delta):
    """As a graph's replay does: the table, the constants and the arguments are the first step's."""
    delta(rules.ON_THE_FLY)
    check_replay(
        rule, hyper, lambda updates: ops.step_(Feedback(), rule, updates),
        lambda: Launcher().run(list(launched), torch.device("cpu")),
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_forty_rates_are_one_launch(rule, launched, delta):
    delta(rules.ON_THE_FLY)
    check_step(Feedback(), rule, forty_rates(rule))
    assert len(launched) == 1
    assert launched[0].constants.in_memory.value


def test_a_sum_in_parts(monkeypatch, either_delta):
    monkeypatch.setattr(rules, "splits", lambda *_: 3)
    error = torch.randn(70, 8)
    update = stepped("adamw", [Segment(error, 0.2, record(70, 40, 20))])
    check_step(Feedback(), "adamw", [in_memory(update, HYPER["adamw"], HYPER["adamw"])])


@pytest.mark.parametrize("message", BAD_ROWS)
def test_other_rows_are_refused(message):
    check_refusal(message)
