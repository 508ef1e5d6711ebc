"""Flops as FlopCounterMode counts them, and bytes as one counts them by hand."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dfa_kernels as dfa
from dfa_kernels import ops
from dfa_kernels.backends.contract import Layer
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.counting import Work
from dfa_kernels.throughput.networks import MLP, NeRF

TASKS = [MLP(19, 23, 3, 29, 5), NeRF(11, 16, 5, 3)]


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def step(task, net):
    inputs, target = task.data(torch.device("cpu"), torch.float32)

    def run():
        task.loss(net(*inputs), target).backward()

    return run


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_backpropagations_flops(task):
    run = step(task, task.network(fused=False))
    assert counting.backpropagation(task.batch, task.sizes()) == counted(run)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_direct_feedbacks_flops(task):
    error = 4 if isinstance(task, NeRF) else task.outputs
    run = step(task, dfa.DFA(task.network(fused=True)))
    assert counting.direct_feedback(task.batch, task.sizes(), error) == counted(run)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_sizes_are_the_networks(task):
    for fused in (True, False):
        weights = [p for p in task.network(fused).parameters() if p.dim() == 2]
        assert sorted(tuple(p.shape) for p in weights) == sorted(task.sizes())


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_plain_and_fused_are_the_same_network(task):
    inputs, _ = task.data(torch.device("cpu"), torch.float32)
    plain, fused = (task.network(fused)(*inputs) for fused in (False, True))
    torch.testing.assert_close(plain, fused)


@pytest.mark.parametrize("shared", [True, False])
def test_the_flops_of_project_and_of_stored_gradients(shared):
    n, e, widths = 7, 5, [11, 13, 12]
    error = torch.randn(n, e)
    layers = [
        Layer(torch.randn(n, k), torch.randn(n, d), "tanh", 0 if shared else i, 1)
        for i, (k, d) in enumerate(itertools.pairwise([3, *widths]))
    ]
    products = counted(lambda: ops.gradients(error, Feedback(), 0.1, layers, torch.float32))
    sizes = [(x.saved.shape[1], x.inputs.shape[1]) for x in layers]
    project = counting.project(n, e, widths, shared, 4).flops
    assert project == 2 * n * e * (13 if shared else 36)
    assert products == project + counting.store(n, sizes, 4, 4).flops


@pytest.mark.parametrize("sizes", [[(7, 3), (5, 7)], [(7, 3), (9, 7), (8, 9), (5, 8)]])
def test_the_products_have_the_flops_of_the_step(sizes):
    for method, whole in (
        ("bp", counting.backpropagation(11, sizes)),
        ("dfa", counting.direct_feedback(11, sizes, sizes[-1][0])),
    ):
        products = counting.products(method, 11, sizes)
        assert sum(2 * m * n * k for m, n, k in products) == whole
        assert counting.step(method, 11, sizes, 4, 4, 1).flops == whole


def test_bytes_by_hand():
    # h read and δ written for two layers, and the error
    assert counting.project(8, 5, [10, 20], True, 2).bytes == 2 * (8 * 5 + 2 * 8 * 30)
    assert counting.project(8, 5, [10, 20], True, 2, saved=False).bytes == 2 * (8 * 5 + 8 * 30)
    # δ and x read; 10·3 + 10 values and two states of each read and written
    work = counting.update(8, [(10, 3)], 2, 4, 2)
    assert work == Work(2 * 8 * 10 * 3, 2 * 8 * 13 + 4 * 40 * 6)
    assert counting.store(8, [(10, 3)], 2, 4).bytes == 2 * 8 * 13 + 4 * 40


def test_the_floor_is_of_what_takes_longer():
    assert counting.floor(Work(10**9, 4 * 10**9), 2e12, 1e12) == (2.0, "memory")
    assert counting.floor(Work(4 * 10**9, 10**9), 2e12, 1e12) == (4.0, "products")
