"""What torch compiles of a rival is compiled once: a rival that is compiled at every step, or that
torch gives up compiling, is none."""

import pytest
import torch
from torch._dynamo.utils import counters

from bench.gpu import contestants
from bench.gpu.contestants import COMPILED, CONTESTANTS, OURS_COMPILED, REFERENCE, Setting
from dfa_kernels import backends
from dfa_kernels.backends.contract import HEAD, Layer, Point
from dfa_kernels.backends.reference import Reference
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput.networks import MLP, NeRF

SETTING = Setting(torch.device("cpu"), "autocast", "adamw", compiler="aot_eager")


@pytest.fixture(autouse=True)
def compiler():
    torch.compiler.reset()
    counters.clear()
    before = set(backends.available(SETTING.device))
    yield
    for name in set(backends.available(SETTING.device)) - before:
        backends.unregister(name)
    torch.compiler.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("task", [MLP(8, 16, 3, 16, 4), NeRF(8, 16, 5, 3)])
@pytest.mark.parametrize("name", [COMPILED, OURS_COMPILED, REFERENCE])
def test_ten_steps_with_new_errors_are_one_graph(name, task):
    try:
        step = CONTESTANTS[name](task, SETTING).run
    except NotImplementedError as old_torch:
        pytest.skip(str(old_torch))
    for _ in range(11):  # the reference's first step is eager
        step()
    assert graphs() == 1


@pytest.mark.parametrize("name", ["project", "gradients"])
def test_an_operation_of_the_reference_is_one_graph(name):
    run = contestants.compiled_reference(SETTING, Reference(), name)
    x, h = torch.randn(6, 8), torch.randn(6, 8).tanh()
    for _ in range(11):
        error = torch.randn(6, 4)
        layers = [Layer(x, h, "tanh", 0, 1), Layer(x, error, "identity", HEAD, 1)]
        points = [Point(8, 0, 1, torch.float32), Point(5, 1, 1, torch.float32)]
        given = (points,) if name == "project" else (layers, torch.float32)
        made = run(error, Feedback(seed=1), 0.1, *given)
        wanted = getattr(Reference(), name)(error, Feedback(seed=1), 0.1, *given)
        torch.testing.assert_close(made, wanted)
    assert graphs() == 1
