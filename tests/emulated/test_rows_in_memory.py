"""Hyperparameters that csrc/ reads from memory: the numbers' bits, and new ones at a replay."""

import pytest
import torch

from dfa_kernels import ops
from dfa_kernels.backends.contract import LayerUpdate, Segment
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.feedback import Feedback
from tests import emulator
from tests.interpreted.oracle import (
    ADAMW,
    HYPER,
    RULE_CASES,
    SGD,
    check_step,
    head,
    record,
    stepped,
    tensors,
)
from tests.interpreted.rows import (
    BAD_ROWS,
    check_refusal,
    check_replay,
    copied,
    forty_rates,
    in_memory,
    slower,
    with_rows,
)

pytestmark = pytest.mark.usefixtures("on_cuda", "unwritten_is_nan")


class Planned:
    """The compiled module where Python has planned the launches, or is to; keeps their lists."""

    def __init__(self, plainly):
        core = emulator.core()
        self.project, self._update = core.project, core.update
        self.plainly, self._plain, self.updates = plainly, core.plain_step, []

    def plain_step(self, *arguments):
        assert not self.plainly or self._plain(*arguments)
        return self.plainly

    def update(self, numbers, scratch):
        self.updates.append((numbers, scratch))
        self._update(numbers, scratch)

    def again(self):
        for launch in self.updates:
            self._update(*launch)


@pytest.mark.parametrize("how", [rules.STORED, rules.ON_THE_FLY])
@pytest.mark.parametrize(("rule", "hyper"), RULE_CASES.values(), ids=RULE_CASES)
def test_the_bits_are_those_of_numbers(rule, hyper, how, delta):
    """Planned in Python or in C++."""
    delta(how)
    error = torch.randn(21, 6)
    layers = [record(21, 33, 18), record(21, 70, 130), head(error, 5)]
    updates = [stepped(rule, [Segment(error, 0.2, x)]) for x in layers]
    made = [
        check_step(Feedback(), rule, [place(u, hyper, slower(hyper)) for u in updates])
        for place in (with_rows, in_memory)
    ]
    for plainly in (False, True):
        given = [in_memory(copied(u), hyper, slower(hyper)) for u in updates]
        Kernels(Planned(plainly)).step_(Feedback(), rule, given)
        made.append(tensors(given))
    for numbers, *others in zip(*made, strict=True):
        assert all(torch.equal(numbers, other) for other in others)


@pytest.mark.parametrize("step", [1, 2, 1000, 10**7])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999999), (0.999, 0.0)])
def test_bias_corrections_have_no_fp32_in_them(step, betas):
    error = torch.randn(5, 3)
    hyper = (1e-3, *betas, 1e-8, 0.0, 0, step)
    update = stepped("adamw", [Segment(error, 0.2, record(5, 4, 3))])
    given = [place(copied(update), hyper, hyper) for place in (with_rows, in_memory)]
    for one in given:
        ops.step_(Feedback(), "adamw", [one])
    for numbers, rows, before in zip(*(tensors([u]) for u in (*given, update)), strict=True):
        assert torch.equal(numbers, rows)
        assert not torch.equal(numbers, before)


@pytest.mark.parametrize(
    ("rule", "hyper"), [("sgd", SGD["nesterov first"]), ("adamw", ADAMW["plain"])]
)
def test_the_same_launch_again_steps_by_what_is_there_now(rule, hyper, delta):
    """As a graph's replay does: its list is the first step's."""
    delta(rules.ON_THE_FLY)
    planned = Planned(False)
    step = Kernels(planned).step_
    check_replay(rule, hyper, lambda updates: step(Feedback(), rule, updates), planned.again)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_forty_rates_are_one_launch(rule):
    """More than a table has rows for."""
    updates = forty_rates(rule)
    check_step(Feedback(), rule, updates)
    planned = Planned(False)
    Kernels(planned).step_(Feedback(), rule, updates)
    assert len(planned.updates) == 1


def test_a_momentum_without_a_buffer_is_none():
    """As for the reference: what is not there is neither read nor written."""
    error = torch.randn(5, 3)
    update = stepped("sgd", [Segment(error, 0.2, record(5, 4, 3))])
    update = LayerUpdate(*(u._replace(states=(torch.empty(0),)) for u in update[:2]), update[2])
    check_step(Feedback(), "sgd", [in_memory(update, SGD["nesterov"], SGD["nesterov"])])


def test_a_sum_in_parts(multiprocessors):
    multiprocessors(64)
    error = torch.randn(400, 8)
    update = stepped("adamw", [Segment(error, 0.2, record(400, 40, 20))])
    check_step(Feedback(), "adamw", [in_memory(update, HYPER["adamw"], HYPER["adamw"])])


@pytest.mark.parametrize("message", BAD_ROWS)
def test_other_rows_are_refused(message):
    check_refusal(message)
