"""How many launches a network takes, and what one of them serves."""

import pytest
import torch
from oracle import HYPER, check_gradients, check_project, check_step, head, record, stepped

from dfa_kernels import ops
from dfa_kernels.backends.contract import Point, Segment
from dfa_kernels.backends.grouped.plan import Group, Target
from dfa_kernels.backends.triton import project, update
from dfa_kernels.backends.triton.optimizer import COLUMNS
from dfa_kernels.backends.triton.project import project_kernel
from dfa_kernels.backends.triton.update_kernel import update_kernel
from dfa_kernels.feedback import Feedback

WIDTHS = ((13, 31), (31, 129), (129, 7))


def _network(n=19, error_width=10, streams=(0, 0, 0), dtype=torch.float32):
    error = torch.randn(n, error_width).to(dtype)
    layers = [
        record(n, k, d, "tanh", s, dtype=dtype) for (k, d), s in zip(WIDTHS, streams, strict=True)
    ]
    return error, [*layers, head(error, 7)]


def _groups(launch):
    return launch.table[0]


@pytest.mark.parametrize("streams", [(0, 0, 0), (0, 1, 2)])
def test_gradients_of_a_network_are_two_launches(streams, launched, delta):
    delta("stored")
    error, layers = _network(streams=streams)
    check_gradients(error, Feedback(), 0.1, layers)
    assert [x.kernel for x in launched] == [project_kernel, update_kernel]


def test_the_head_with_its_own_error_is_not_projected(launched, delta):
    """An error of whole vectors is the head's δ as it lies; another is copied by `project`."""
    delta("stored")
    for width, groups in ((8, 1), (10, 2)):
        launched.clear()
        error, layers = _network(error_width=width)
        check_gradients(error, Feedback(), 0.1, layers)
        assert _groups(launched[0]) == groups


def test_gradients_on_the_fly_are_one_launch(launched, delta):
    delta("on-the-fly")
    error, layers = _network()
    check_gradients(error, Feedback(), 0.1, layers)
    assert [x.kernel for x in launched] == [update_kernel]


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_of_a_network_is_two_launches(rule, launched, delta):
    delta("stored")
    error, layers = _network()
    updates = [stepped(rule, [Segment(error, 0.1, x)]) for x in layers]
    check_step(Feedback(), rule, updates)
    assert [x.kernel for x in launched] == [project_kernel, update_kernel]


@pytest.mark.parametrize(("streams", "groups"), [((0, 0, 0), 1), ((0, 1, 2), 3), ((0, 1, 0), 2)])
def test_a_stream_is_projected_once(streams, groups, launched):
    error = torch.randn(9, 40)
    points = [Point(d, s, 1, torch.float32) for (_, d), s in zip(WIDTHS, streams, strict=True)]
    check_project(error, Feedback(seed=4), 0.3, points)
    assert [(x.kernel, _groups(x)) for x in launched] == [(project_kernel, groups)]


def test_a_shared_stream_costs_the_widest_point(launched):
    """Tiles of e·B: those of 129 columns, whoever else reads them."""
    error = torch.randn(9, 40)
    ops.project(error, Feedback(), 0.3, [Point(129, 0, 1, torch.float32)])
    ops.project(error, Feedback(), 0.3, [Point(d, 0, 1, torch.float32) for _, d in WIDTHS])
    assert launched[0].grid == launched[1].grid == 2


def test_points_of_two_dtypes_are_two_launches(launched):
    error = torch.randn(9, 5)
    points = [Point(20, 0, 1, torch.float32), Point(20, 0, 1, torch.float16)]
    check_project(error, Feedback(), 0.3, points)
    assert len(launched) == 2


@pytest.mark.parametrize("distribution", ["rademacher", "normal", "matrix"])
def test_several_rows_for_each_row_of_the_error(distribution, either_delta):
    matrix = Feedback.from_matrix(torch.randn(6, 150))
    feedback = matrix if distribution == "matrix" else Feedback(distribution, 5)
    error = torch.randn(11, 6)
    check_project(error, feedback, 0.2, [Point(150, 0, k, torch.float32) for k in (1, 2, 5)])
    layers = [record(11, 9, 21, "gelu", 0, k) for k in (1, 2, 5)]
    check_gradients(error, feedback, 0.2, layers)


def test_many_layers_in_one_launch(launched, either_delta):
    """17: the search for a program's layer looks through 32."""
    error = torch.randn(5, 8)
    layers = [record(5, 3 + i, 20 - i, "relu", i) for i in range(16)]
    check_gradients(error, Feedback(), 0.2, [*layers, head(error, 5)])
    assert len(launched) == (1 if either_delta == "on-the-fly" else 2)


def test_layers_with_rates_of_their_own(launched, delta):
    """Five rows of hyperparameters: of weights, and of biases."""
    delta("on-the-fly")
    error, layers = _network()
    updates = []
    for i, layer in enumerate(layers):
        given = stepped("sgd", [Segment(error, 0.1, layer)])
        rate = (0.1 * (i + 1), *HYPER["sgd"][1:])
        updates.append(given._replace(weight=given.weight._replace(hyper=rate)))
    check_step(Feedback(), "sgd", updates)
    assert [len(x.hyper) for x in launched] == [4 * COLUMNS]


def test_more_rates_than_a_launch_takes(launched, delta, monkeypatch):
    delta("on-the-fly")
    monkeypatch.setattr(update, "_ROWS", 4)
    error = torch.randn(3, 2)
    updates = [
        stepped("sgd", [Segment(error, 0.1, record(3, 2, 2))], hyper=(0.01 * i, *HYPER["sgd"][1:]))
        for i in range(1, 7)
    ]
    check_step(Feedback(), "sgd", updates)
    assert [x.table[0] for x in launched] == [4, 2]


def test_delta_is_zero_beyond_its_width():
    """Rows are padded to whole vectors, and nothing there is left unwritten."""
    error = torch.randn(7, 5)
    saved = torch.rand(7, 21)
    out = error.new_empty(7, 24)
    target = Target(out, 21, 1, saved, "tanh")
    groups = [Group(error, 0.5, 0, [target])]
    (launch,) = project.launches(groups, Feedback(), project.rules.Device("cpu", 0, 8))
    table = torch.tensor(launch.table)
    launch.kernel[(launch.grid,)](table, launch.constants, **launch.options)
    assert torch.equal(out[:, 21:], torch.zeros(7, 3))
    wanted = 0.5 * error @ Feedback().matrix(5, 21) * (1 - saved**2)
    torch.testing.assert_close(out[:, :21], wanted)
