"""The sum over N: its segments, its tiles' edges, and its parts."""

import itertools

import pytest
import torch
from oracle import check_gradients, check_project, check_step, head, record, stepped

from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import Point, Segment
from dfa_kernels.backends.triton import rules
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback


def _counters():
    kept = backends.get("triton")._kernels._launcher._arrived
    return list(kept.values())


@pytest.fixture
def parts(monkeypatch):
    """Force the number of parts of every sum."""
    return lambda count: monkeypatch.setattr(rules, "splits", lambda *_: count)


# Segments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_accumulation(rule, count, either_delta):
    """Segments of different lengths, errors, scales, streams, activations and rows."""
    updates = [[], [], []]
    for i in range(count):
        error = torch.randn((1, 40, 17, 0, 64)[i], (10, 3, 16, 5, 4)[i])
        layers = [
            record(len(error), 9, 20, ("tanh", "gelu", "relu")[i % 3], i % 2),
            record(len(error), 20, 33, "identity", 0, 1 + i % 2),
            record(len(error), 33, 8, "sigmoid", 1),
        ]
        for kept, layer in zip(updates, layers, strict=True):
            kept.append(Segment(error, 0.1 * (i + 1), layer))
    check_step(Feedback(), rule, [stepped(rule, s, bias=i != 1) for i, s in enumerate(updates)])


def test_layers_with_different_numbers_of_segments(either_delta):
    errors = [torch.randn(20, 6), torch.randn(33, 6)]
    segments = [[Segment(e, 0.2, record(len(e), 9, 20)) for e in errors[:n]] for n in (1, 2, 1)]
    check_step(Feedback(), "sgd", [stepped("sgd", s) for s in segments])


def test_a_head_of_several_segments(either_delta):
    errors = [torch.randn(20, 6), torch.randn(33, 6)]
    check_step(
        Feedback(), "adamw", [stepped("adamw", [Segment(e, 1.0, head(e, 9)) for e in errors])]
    )


def test_one_error_with_two_scales(launched, delta):
    delta("stored")
    error = torch.randn(20, 6)
    segments = [Segment(error, scale, record(20, 9, 12)) for scale in (0.2, -0.5)]
    check_step(Feedback(), "sgd", [stepped("sgd", segments)])
    assert launched[0].table[0] == 2


# Parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 7, 16])
def test_a_sum_in_parts(count, parts, launched, either_delta):
    """8 blocks or fewer: of 16 parts half are empty at least."""
    parts(count)
    errors = [torch.randn(70, 8), torch.randn(41, 8)]
    segments = [
        [Segment(e, 0.2, record(len(e), k, d, stream=s)) for e in errors]
        for k, d, s in ((9, 20, 0), (70, 33, 1))
    ]
    updates = [stepped("adamw", s) for s in segments]
    made = check_step(Feedback(), "adamw", updates)
    again = check_step(Feedback(), "adamw", updates)
    assert all(map(torch.equal, made, again))
    assert launched[-1].constants.split.value
    assert all((c == 0).all() for c in _counters())


def test_the_counters_serve_the_next_launch(parts):
    """Each launch leaves zeros, so that the one after it is right too."""
    parts(3)
    error = torch.randn(70, 8)
    for width in (20, 300, 20):
        check_gradients(error, Feedback(), 0.2, [record(70, width, 9), head(error, 9)])
    assert _counters()
    assert all((c == 0).all() for c in _counters())


def test_parts_are_added_in_their_order(parts, either_delta):
    """fp32 sums of 2²⁴, 1, 1, … depend on their order: part by part from the first."""
    parts(4)
    cpu, fly = rules.device_of(torch.device("cpu")), either_delta == "on-the-fly"
    tiles = rules.update_tiles(cpu, False, False, fly, False, [(1, 1)])
    error = torch.zeros(4 * tiles.n, 1)
    error[:: tiles.n, 0] = torch.tensor([2.0**24, 1.0, 1.0, -(2.0**24)])
    layer = head(error, 1)._replace(inputs=torch.ones(len(error), 1))
    ((weight, bias),) = ops.gradients(error, Feedback(), 1.0, [layer], torch.float32)
    first_to_last = ((torch.tensor(2.0**24) + 1) + 1) - 2.0**24
    assert first_to_last == 0.0
    assert weight.item() == 0.0
    assert bias.item() == 0.0


def test_a_long_sum_of_a_small_layer_is_split_by_the_rule(launched):
    error = torch.randn(600, 8)
    check_gradients(error, Feedback(), 0.2, [record(600, 9, 20)])
    launch = launched[-1]
    assert launch.split.parts > 1
    assert launch.grid == launch.split.tiles * launch.split.parts


def test_the_rule_of_parts():
    device = rules.Device("cpu", 0, 8)
    for tiles, blocks in itertools.product((1, 2, 3, 7, 8, 9), (0, 1, 7, 8, 100, 1000)):
        parts = rules.splits(device, tiles, blocks)
        assert parts >= 1
        assert parts == 1 or (tiles * parts <= 8 and parts * 4 <= blocks)


# Tiles ------------------------------------------------------------------------------------------

DEVICES = {"large tiles": 1, "small tiles": 1000}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multiprocessors", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_edges_of_project(edge, multiprocessors, dtype, device):
    pretended = device(multiprocessors)
    half = dtype.itemsize == 2
    tiles = rules.project_tiles(pretended, half, False, edge == 0, 300, 300, 100)
    error = torch.randn(tiles.n + edge, tiles.k + edge).to(dtype)
    points = [Point(tiles.d + edge, 0, k, dtype) for k in (1, 2)]
    check_project(error, Feedback("uniform"), 0.1, points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multiprocessors", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_edges_of_update(edge, multiprocessors, dtype, device, either_delta):
    pretended = device(multiprocessors)
    fly = either_delta == "on-the-fly"
    half = dtype.itemsize == 2
    tiles = rules.update_tiles(pretended, half, False, fly, edge == 0, [(200, 200)])
    error = torch.randn(tiles.n + edge, 17 + edge).to(dtype)
    layer = record(len(error), tiles.k + edge, tiles.d + edge, dtype=dtype)
    check_step(Feedback(), "sgd", [stepped("sgd", [Segment(error, 0.1, layer)])])


def test_many_tiles_along_d(device):
    """Twelve neighbours and four, of each of three columns of tiles."""
    device(1)
    error = torch.randn(3, 4)
    check_gradients(error, Feedback(), 0.1, [record(3, 300, 1500, "identity")])


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "matrix"])
@pytest.mark.parametrize("width", [1, 3000])
def test_narrow_and_wide_errors(width, distribution):
    error = torch.randn(3, width)
    if distribution == "matrix":
        feedback = Feedback.from_matrix(torch.randn(width, 20))
    else:
        feedback = Feedback(distribution)
    check_project(error, feedback, 0.1, [Point(17, 0, 1, torch.float32)])
    check_gradients(error, feedback, 0.1, [record(3, 5, 17)])


def test_an_empty_batch_steps_with_zero_gradients(either_delta):
    error = torch.randn(0, 6)
    layers = [record(0, 9, 20), head(error, 20)]
    for rule in ("sgd", "adamw"):
        check_step(Feedback(), rule, [stepped(rule, [Segment(error, 0.1, x)]) for x in layers])
    for weight, bias in check_gradients(error, Feedback(), 0.1, layers):
        assert (weight == 0).all()
        assert (bias == 0).all()


def test_nothing_to_project_or_to_step(launched):
    assert ops.project(torch.randn(3, 4), Feedback(), 1.0, []) == []
    assert ops.gradients(torch.randn(3, 4), Feedback(), 1.0, [], torch.float32) == []
    assert launched == []
