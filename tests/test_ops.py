"""The custom ops: opcheck on many layouts, and the same bits as the backend called directly."""

import pytest
import torch
from torch.library import opcheck

from dfa_kernels import ops
from dfa_kernels.activation import ACTIVATIONS, CODES
from dfa_kernels.backends.contract import HEAD, RULES
from dfa_kernels.feedback import MATRIX

LAYOUTS = {
    "contiguous": lambda t: t,
    "permuted": lambda t: t.T.contiguous().T,
    "offset": lambda t: torch.cat((t[:1], t))[1:],
    "row-strided": lambda t: torch.cat((t, t), dim=1)[:, : t.shape[1]],
}


def records(layout, rows=6):
    torch.manual_seed(0)
    change = LAYOUTS[layout]
    error = change(torch.randn(rows, 5))
    inputs = [change(torch.randn(rows, k)) for k in (3, 7)]
    saved = [change(torch.rand(rows, d)) for d in (7, 4)]
    return error, inputs, saved


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [False, True])
def test_project_passes_opcheck(layout, given):
    error, _, _ = records(layout)
    matrix = LAYOUTS[layout](torch.randn(5, 9)) if given else None
    distribution = MATRIX if given else "rademacher"
    args = (error, matrix, distribution, 3, 0.5, [9, 4, 4], [0, 0, 0], [1, 2, 1], [0, 1, 0])
    opcheck(torch.ops.dfa_kernels.project, args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [f.name for f in ACTIVATIONS])
def test_gradients_passes_opcheck(layout, activation):
    error, inputs, saved = records(layout)
    codes = [CODES[activation]] * 2
    args = (error, None, "uniform", 3, 0.5, inputs, saved, codes, [0, 1], [1, 1], torch.float32)
    opcheck(torch.ops.dfa_kernels.gradients, args)


def step_args(layout, rule, copied=(False, False, False), on_device=False):
    error, inputs, saved = records(layout)
    saved[1] = error.clone()
    change = LAYOUTS[layout]
    parameters = [change(torch.randn(7, 3)), change(torch.randn(5, 7)), torch.randn(7)]
    states = [torch.rand_like(p) for p in parameters for _ in RULES[rule].states]
    copies = [p.bfloat16() for p, has in zip(parameters, copied, strict=True) if has]
    hyper = torch.full((3, len(RULES[rule].hyper)), 0.5, dtype=torch.float64)
    return (
        parameters, states, copies, list(copied), hyper, on_device, rule, [True, False], [1, 1],
        [error], None, "rademacher", 3, [0, 0], [0.1, 0.1], inputs, saved,
        [CODES["tanh"], CODES["identity"]], [0, HEAD], [1, 1],
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_step_passes_opcheck(layout, rule):
    opcheck(torch.ops.dfa_kernels.step_, step_args(layout, rule))


@pytest.mark.parametrize("copied", [(True, True, True), (True, False, False), (False, True, True)])
def test_step_with_copies_passes_opcheck(copied):
    opcheck(torch.ops.dfa_kernels.step_, step_args("permuted", "adamw", copied))


@pytest.mark.parametrize("rule", RULES)
def test_step_by_rows_in_memory_passes_opcheck(rule):
    opcheck(torch.ops.dfa_kernels.step_, step_args("permuted", rule, on_device=True))


@pytest.mark.parametrize("on_device", [False, True])
def test_the_op_hands_rows_in_memory_on_unread(on_device, monkeypatch):
    given = []
    monkeypatch.setattr(
        ops.backends, "function", lambda *_: lambda feedback, rule, updates: given.extend(updates)
    )
    args = step_args("contiguous", "sgd", on_device=on_device)
    torch.ops.dfa_kernels.step_(*args)
    rows = [u.hyper for update in given for u in update[:2] if u is not None]
    assert {type(row) for row in rows} == {torch.Tensor if on_device else list}
    if on_device:  # the bias's row is the last of the table, and comes after its weight's
        assert [row.data_ptr() for row in rows] == [args[4][i].data_ptr() for i in (0, 2, 1)]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("copied", [(False, False, False), (False, True, True)])
def test_step_mutates_parameters_states_and_copies_alone(copied, on_device):
    args = step_args("contiguous", "sgd", copied, on_device)
    others = [args[4], *args[9], *args[15], *args[16]]
    before = [t.clone() for t in others]
    mutated = [*args[0], *args[1], *args[2]]
    changed = [t.clone() for t in mutated]
    torch.ops.dfa_kernels.step_(*args)
    assert all(torch.equal(a, b) for a, b in zip(others, before, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mutated, changed, strict=True))
    rounded = [p.bfloat16() for p, has in zip(args[0], copied, strict=True) if has]
    assert all(map(torch.equal, args[2], rounded))


def test_the_op_gives_the_bits_of_the_backend_called_directly(monkeypatch):
    from dfa_kernels.backends.contract import Layer, Point
    from dfa_kernels.feedback import Feedback

    error, inputs, saved = records("contiguous")
    layers = [Layer(x, h, "tanh", 0, 1) for x, h in zip(inputs, saved, strict=True)]
    points = [Point(9, 0, 1, torch.float32), Point(4, 0, 2, torch.bfloat16)]

    def both():
        made = ops.gradients(error, Feedback(seed=3), 0.5, layers, torch.float32)
        return [*ops.project(error, Feedback(seed=3), 0.5, points), *made[0], *made[1]]

    direct = both()
    monkeypatch.setattr(ops, "traced", lambda tensor: True)
    for a, b in zip(direct, both(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_an_optimizer_that_is_gone_is_named():
    with pytest.raises(RuntimeError, match="no longer exists"):
        ops.hyper(torch.ones(1, 1), -5, "sgd", [0])
