"""B as the kernels make it in registers, entry by entry."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import record

from dfa_kernels import ops
from dfa_kernels.backends.contract import Point
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback

ALLOWED = {"rademacher": 0.0, "uniform": 0.0, "normal": 1e-5}


def _differs(made, feedback, stream, first=0):
    """The largest difference from B's rows ``first`` and after."""
    wanted = feedback.matrix(first + made.shape[0], made.shape[1], stream)[first:]
    return (made - wanted).abs().max().item()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**31 - 1),
    rows=st.integers(1, 20),
    width=st.integers(1, 300),
)
def test_project_makes_b(distribution, seed, stream, rows, width):
    feedback = Feedback(distribution, seed)
    points = [Point(width, stream, 1, torch.float32)]
    (made,) = ops.project(torch.eye(rows), feedback, 1.0, points)
    assert _differs(made, feedback, stream) <= ALLOWED[distribution]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(seed=st.integers(0, 2**63 - 1), stream=st.integers(0, 2**31 - 1), width=st.integers(1, 300))
def test_update_makes_b_on_the_fly(delta, distribution, seed, stream, width):
    """With the identity as the error and as x, dWᵀ is B."""
    delta("on-the-fly")
    feedback, rows = Feedback(distribution, seed), 20
    layer = record(rows, rows, width, "identity", stream)._replace(inputs=torch.eye(rows))
    ((made, _),) = ops.gradients(torch.eye(rows), feedback, 1.0, [layer], torch.float32)
    assert _differs(made.T, feedback, stream) <= ALLOWED[distribution]


@pytest.fixture(params=[True, False], ids=["tf32", "ieee"])
def tf32(request, allow_tf32):
    allow_tf32(request.param)
    return request.param


@pytest.mark.parametrize(
    ("error", "saved"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float32, torch.float16),
    ],
)
def test_update_on_the_fly_is_what_the_rule_chose(error, saved, tf32, launched):
    """Where every product, e·B too, runs on tensor cores: of fp32 that is tf32 alone."""
    layer = record(20, 20, 7, "identity", dtype=saved)
    ops.gradients(torch.eye(20, dtype=error), Feedback(), 1.0, [layer], torch.float32)
    cores = tf32 or error == torch.bfloat16
    assert [x.constants.fly.value for x in launched if x.split] == [cores]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_rows_far_down(distribution):
    """E = 2500: blocks of E after the first, and the last of them partly empty."""
    feedback, error = Feedback(distribution, seed=77), torch.zeros(3, 2500)
    error[torch.arange(3), torch.tensor([1, 1500, 2499])] = 1
    (made,) = ops.project(error, feedback, 1.0, [Point(130, 4, 1, torch.float32)])
    wanted = feedback.matrix(2500, 130, 4)[[1, 1500, 2499]]
    assert (made - wanted).abs().max() <= ALLOWED[distribution]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", ["rademacher", "uniform"])
def test_b_is_exact_in_16_bits(distribution, dtype):
    feedback = Feedback(distribution, seed=2**40)
    (made,) = ops.project(torch.eye(5, dtype=dtype), feedback, 1.0, [Point(200, 1, 1, dtype)])
    assert torch.equal(made.float(), feedback.matrix(5, 200, 1))
