"""`project`, `gradients` and `step_` over a network of eight tanh layers and a head."""

import pytest
import torch

from bench.gpu.promises import network, updates_of
from dfa_kernels import ops
from dfa_kernels.backends.contract import Point
from dfa_kernels.feedback import Feedback

FEEDBACK = Feedback()
#: Rows, layers, width, outputs.
CASES = [(64, 8, 256, 10), (256, 8, 512, 10), (64, 4, 256, 10000)]


@pytest.fixture(params=CASES, ids=lambda case: ",".join(map(str, case)))
def case(request, device):
    rows, depth, width, outputs = request.param
    error, layers = network(device, torch.float32, rows, outputs, [width] * depth)
    return error, layers, [Point(width, 0, 1, torch.float32)] * depth


def test_project(case, backend, finished):
    error, _, points = case
    made = finished(lambda: ops.project(error, FEEDBACK, 0.01, points))
    assert len(made) == len(points)


def test_gradients(case, backend, finished):
    error, layers, _ = case
    made = finished(lambda: ops.gradients(error, FEEDBACK, 0.01, layers, torch.float32))
    assert len(made) == len(layers)


def test_step(case, backend, finished):
    error, layers, _ = case
    updates = updates_of(error, layers)
    finished(lambda: ops.step_(FEEDBACK, "adamw", updates))
