"""Tensors of more than 2³¹ elements: no address may have 32 bits."""

import unittest

import torch
from gpu_cases import BACKENDS, DEVICE, ON_GPU, over, pick, use

from dfa_kernels import ops
from dfa_kernels.backends.contract import HEAD, Layer, LayerUpdate, Point, Segment, Update
from dfa_kernels.feedback import Feedback

FEEDBACK = Feedback(seed=3)
TALL, WIDE = pick((131_136, 16_400), (136, 144))  # their product is 2³¹ + 3,146,752


def _needs(gigabytes):
    if not ON_GPU:
        return
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 1e9:
        raise unittest.SkipTest(f"needs {gigabytes} GB free, and {free / 1e9:.0f} GB are")


@over(BACKENDS)
def test_a_projection_of_more_than_2_31_elements(case):
    _needs(20)
    error = torch.randn(TALL, 5, device=DEVICE, dtype=torch.bfloat16)
    with use(case):
        (made,) = ops.project(error, FEEDBACK, 0.1, [Point(WIDE, 0, 1, torch.bfloat16)])
    matrix = FEEDBACK.matrix(5, WIDE, device=DEVICE)
    for rows in (slice(0, 3), slice(TALL // 2, TALL // 2 + 3), slice(TALL - 3, TALL)):
        wanted = (error[rows].double() @ matrix.double() * 0.1).bfloat16()
        torch.testing.assert_close(made[rows], wanted, rtol=0.01, atol=0.01)


@over(BACKENDS)
def test_gradients_from_more_than_2_31_elements(case):
    """Both with δ made on the fly and stored: x is narrow, or wider than the rule allows."""
    _needs(30)
    error = torch.randn(TALL, 5, device=DEVICE, dtype=torch.bfloat16)
    saved = torch.rand(TALL, WIDE, device=DEVICE, dtype=torch.bfloat16)
    matrix = FEEDBACK.matrix(5, WIDE, device=DEVICE)
    for width in pick((16, 520), (16, 24)):
        x = torch.randn(TALL, width, device=DEVICE, dtype=torch.bfloat16)
        layer = Layer(x, saved, "tanh", 0, 1)
        with use(case):
            ((weight, bias),) = ops.gradients(error, FEEDBACK, 0.1, [layer], torch.float32)
        for columns in (slice(0, 3), slice(WIDE - 3, WIDE)):
            delta = error.double() @ matrix[:, columns].double() * 0.1
            delta *= 1 - saved[:, columns].double() ** 2
            near = 0.02 * delta.norm(dim=0).max().item()  # of a sum of that many random terms
            wanted = delta.T @ x.double()
            torch.testing.assert_close(weight[columns].double(), wanted, rtol=0.01, atol=near)
            torch.testing.assert_close(bias[columns].double(), delta.sum(0), rtol=0.01, atol=near)


@over(BACKENDS)
def test_a_step_of_a_weight_of_more_than_2_31_elements(case):
    _needs(30)
    n, height, width = 8, *pick((65_600, 32_800), (72, 136))
    x = torch.randn(n, width, device=DEVICE, dtype=torch.bfloat16)
    error = torch.randn(n, height, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.zeros(height, width, device=DEVICE)
    row = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    segment = Segment(error, 1.0, Layer(x, error, "identity", HEAD, 1))
    update = LayerUpdate(Update(weight, (weight.new_empty(0),), row), None, [segment])
    with use(case):
        ops.step_(FEEDBACK, "sgd", [update])
    for rows in (slice(0, 3), slice(height // 2, height // 2 + 3), slice(height - 3, height)):
        wanted = -(error[:, rows].float().T @ x.float())
        torch.testing.assert_close(weight[rows], wanted, rtol=1e-3, atol=1e-2)
