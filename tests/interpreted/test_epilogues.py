"""What a tile becomes before it is stored: activations and optimizers, in every mix of dtypes."""

import itertools

import pytest
import torch
from oracle import (
    ADAMW,
    SGD,
    check_gradients,
    check_project,
    check_step,
    head,
    mapped,
    parameter,
    record,
    stepped,
)

from dfa_kernels import ops
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import Point, Segment
from dfa_kernels.feedback import Feedback

FLOATS = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_activations_in_one_launch(dtype, launched, either_delta):
    error = torch.randn(17, 6).to(dtype)
    layers = [record(17, 5, 19, f.name, 0, dtype=dtype) for f in ACTIVATIONS]
    check_gradients(error, Feedback(seed=8), 0.3, layers)
    assert launched[0].constants.codes.value == 2 ** len(ACTIVATIONS) - 1


@pytest.mark.parametrize("f", ACTIVATIONS, ids=lambda f: f.name)
def test_an_activation_far_from_zero(f, either_delta):
    """Saturated on both sides, and 0 itself."""
    error = torch.randn(5, 3)
    layer = record(5, 4, 5, f.name)
    a = torch.tensor([-90.0, -6.0, 0.0, 6.0, 90.0]).repeat(5, 1)
    layer = layer._replace(saved=a if f.from_preactivations else f.forward_(a.clone()))
    check_gradients(error, Feedback(seed=8), 0.3, [layer])


@pytest.mark.parametrize("hyper", SGD.values(), ids=SGD)
def test_sgd(hyper, either_delta):
    _check_step("sgd", hyper)


@pytest.mark.parametrize("hyper", ADAMW.values(), ids=ADAMW)
def test_adamw(hyper, either_delta):
    _check_step("adamw", hyper)


def _check_step(rule, hyper, **dtypes):
    error = torch.randn(21, 6)
    layers = [record(21, 33, 18), head(error, 5)]
    check_step(
        Feedback(), rule, [stepped(rule, [Segment(error, 0.2, x)], hyper=hyper) for x in layers]
    )


@pytest.mark.parametrize("hyper", [SGD["plain"], SGD["decay"], SGD["maximize"]])
def test_sgd_without_momentum_has_no_buffer(hyper):
    error = torch.randn(9, 6)
    update = stepped("sgd", [Segment(error, 0.2, record(9, 7, 5))], hyper=hyper)
    without = [u._replace(states=(torch.empty(0),)) for u in update[:2]]
    check_step(Feedback(), "sgd", [update._replace(weight=without[0], bias=without[1])])


def test_a_first_step_reads_no_momentum(either_delta):
    """The buffer may hold anything: it is not there yet."""
    error = torch.randn(9, 6)
    update = stepped("sgd", [Segment(error, 0.2, record(9, 7, 5))], hyper=SGD["first"])
    for u in update[:2]:
        u.states[0].fill_(float("nan"))
    made = check_step(Feedback(), "sgd", [update])
    assert all(t.isfinite().all() for t in made)


@pytest.mark.parametrize(
    ("activations", "weights", "states"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_weights_and_states_of_other_dtypes(rule, activations, weights, states, either_delta):
    if rule == "adamw" and weights != states:
        pytest.skip("torch's own AdamW, which the reference uses, takes one dtype")
    error = torch.randn(17, 6).to(activations)
    layers = [record(17, 33, 18, dtype=activations), head(error, 9)]
    hyper = {"sgd": SGD["nesterov"], "adamw": ADAMW["maximize"]}[rule]
    updates = [
        stepped(rule, [Segment(error, 0.2, x)], hyper=hyper, dtype=weights, state=states)
        for x in layers
    ]
    check_step(Feedback(), rule, updates)


@pytest.mark.parametrize("copy", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_low_precision_copies_of_fp32_masters(rule, copy, launched, either_delta):
    """Odd widths and whole vectors; the copy is written by the launch that steps its master."""
    error = torch.randn(17, 6).to(copy)
    layers = [record(17, k, d, dtype=copy) for k, d in ((33, 18), (1, 5), (32, 24), (70, 130))]
    updates = [
        stepped(rule, [Segment(error, 0.2, x)], copy=copy) for x in (*layers, head(error, 9))
    ]
    check_step(Feedback(), rule, updates)
    assert [x.constants.copied.value for x in launched if x.hyper] == [True]


def test_copies_of_some_parameters_alone(launched, delta):
    """Weights with and without are two launches; a bias goes with its weight."""
    delta("on-the-fly")
    error = torch.randn(17, 6)
    updates = []
    for i in range(4):
        update = stepped("adamw", [Segment(error, 0.2, record(17, 9, 18))], copy=torch.bfloat16)
        weight, bias = (
            u if i & bit else u._replace(copy=None)
            for u, bit in zip(update[:2], (1, 2), strict=True)
        )
        updates.append(update._replace(weight=weight, bias=bias))
    check_step(Feedback(), "adamw", updates)
    assert len(launched) == 2


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_bias_of_another_dtype_than_its_weight(rule, either_delta):
    """Also where neither lies in rows of adjacent elements."""
    error = torch.randn(17, 6)
    for own, other in itertools.permutations((torch.float32, torch.bfloat16), 2):
        update = stepped(rule, [Segment(error, 0.2, record(17, 9, 18))], dtype=own)
        bias = parameter(rule, 18, dtype=other)
        check_step(Feedback(), rule, [update._replace(bias=bias)])
        apart = mapped(bias, lambda t: torch.stack((t, t), 1)[:, 0])
        turned = mapped(update.weight, lambda t: t.T.contiguous().T)
        check_step(Feedback(), rule, [update._replace(weight=turned, bias=apart)])


@pytest.mark.parametrize(("error", "kept"), list(itertools.permutations(FLOATS, 2)))
def test_an_error_of_another_dtype_than_the_activations(error, kept, either_delta):
    e = torch.randn(17, 6).to(error)
    layers = [record(17, 33, 18, "silu", dtype=kept), head(e, 9, kept)]
    check_gradients(e, Feedback(), 0.2, layers)
    check_project(e, Feedback(), 0.2, [Point(18, 0, 1, kept)])


def test_a_head_whose_output_was_activated(either_delta):
    """Its δ is e ⊙ f′: a copy of the error will not do."""
    error = torch.randn(17, 8)
    layer = head(error, 9)._replace(saved=torch.rand(17, 8), activation="sigmoid")
    check_gradients(error, Feedback(), 0.2, [layer])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_matrix_of_the_users(dtype, either_delta):
    """Of a dtype of its own, wider than any layer, and one whose rows are no whole vectors."""
    for columns, given in itertools.product((40, 43), FLOATS):
        feedback = Feedback.from_matrix(torch.randn(37, columns).to(given))
        error = torch.randn(9, 37).to(dtype)
        check_project(error, feedback, 0.2, [Point(d, 0, 1, dtype) for d in (40, 7)])
    check_gradients(error, feedback, 0.2, [record(9, 5, 40, dtype=dtype)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_rows_stay_where_they_are(bad, either_delta):
    """In one row of the error: that row of δh alone; every gradient that sums it."""
    error = torch.randn(40, 6)
    error[33, 2] = bad
    feedback = Feedback("uniform")
    (made,) = ops.project(error, feedback, 0.1, [Point(21, 0, 1, torch.float32)])
    wanted = torch.ones(40, 21, dtype=torch.bool)
    wanted[33] = False
    assert torch.equal(made.isfinite(), wanted)
    layer = record(40, 5, 21, "relu")
    layer.saved[33, :10] = 0  # a relu that is off lets nothing through
    ((weight, bias),) = ops.gradients(error, feedback, 0.1, [layer], torch.float32)
    assert weight[:10].isfinite().all()
    assert bias[:10].isfinite().all()
    on = layer.saved[33] > 0
    assert not weight[on].isfinite().any()
    assert not bias[on].isfinite().any()
