"""Rows of hyperparameters in memory: what both suites of kernels are asked of them."""

import pytest
import torch
from torch.testing import assert_close

from dfa_kernels import ops
from dfa_kernels.backends.contract import LayerUpdate, Segment
from dfa_kernels.backends.reference import Reference
from dfa_kernels.feedback import Feedback
from tests.interpreted.oracle import HYPER, mapped, record, stepped, tensors

#: What a refusal of a row in memory says, and how a good row becomes such a one.
BAD_ROWS = {
    "7 float64 on cpu, got float32": lambda row: row.float(),
    r"7 float64 on cpu, got float64 of shape \(6,\)": lambda row: row[1:],
    "7 float64 on cpu, got float64 of shape .* on meta": lambda row: row.to("meta"),
    r"must be contiguous, got stride \(2,\)": lambda row: torch.stack((row, row), 1)[:, 0],
    "both be numbers or both rows in memory": lambda row: row.tolist(),
}


def with_rows(update, row, bias_row):
    """The update by these hyperparameters."""
    bias = None if update.bias is None else update.bias._replace(hyper=bias_row)
    return update._replace(weight=update.weight._replace(hyper=row), bias=bias)


def in_memory(update, *hypers):
    """The update with rows of its own for weight and bias, between NaNs."""
    around = torch.full((len(hypers), 9), float("nan"), dtype=torch.float64)
    values = torch.tensor(hypers, dtype=torch.float64)
    rows = [row[1:8].copy_(h) for row, h in zip(around, values, strict=True)]
    return with_rows(update, *rows)


def slower(hyper):
    """Half the rate."""
    return (hyper[0] / 2, *hyper[1:])


def copied(update):
    return LayerUpdate(*(mapped(u, torch.clone) for u in update[:2]), update.segments)


def forty_rates(rule):
    """Twenty layers, whose weights and biases have each a rate of their own."""
    error = torch.randn(3, 2)
    updates = []
    for i in range(20):
        update = stepped(rule, [Segment(error, 0.2, record(3, 2, 2))])
        rates = ((0.01 * i, *HYPER[rule][1:]), (0.02 * i, *HYPER[rule][1:]))
        updates.append(in_memory(update, *rates))
    return updates


def check_replay(rule, hyper, step, again):
    """``step(updates)``, and ``again()`` once the rows have changed: what a graph's replay does."""
    error = torch.randn(21, 6)
    update = stepped(rule, [Segment(error, 0.2, record(21, 33, 18))], copy=torch.bfloat16)
    update = in_memory(update, hyper, slower(hyper))
    wanted = copied(update)
    step([update])
    Reference().step_(Feedback(), rule, [wanted])
    for u in update[:2]:
        u.hyper[0] /= 4
        u.hyper[6] = u.hyper[6] + 1 if rule == "adamw" else 0
    again()
    Reference().step_(Feedback(), rule, [wanted])
    for ours, theirs in zip(tensors([update]), tensors([wanted]), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for u in update[:2]:
        assert torch.equal(u.copy, u.parameter.bfloat16())


def check_refusal(message):
    """Of the row that `BAD_ROWS` makes for it; nothing has changed then."""
    error = torch.randn(5, 3)
    update = stepped("adamw", [Segment(error, 0.2, record(5, 4, 3))])
    row = torch.tensor(HYPER["adamw"], dtype=torch.float64)
    bad = with_rows(update, row, BAD_ROWS[message](row))
    before = [t.clone() for t in tensors([bad])]
    with pytest.raises(ValueError, match=message):
        ops.step_(Feedback(), "adamw", [bad])
    assert all(map(torch.equal, before, tensors([bad])))
