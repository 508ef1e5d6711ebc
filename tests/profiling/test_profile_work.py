"""The floors: flops as torch counts them, bytes as the mathematics does."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dfa_kernels as dfa
from dfa_kernels.profiling import parts, work
from dfa_kernels.profiling.options import Input, Options
from dfa_kernels.profiling.subject import Subject, factory_of
from dfa_kernels.profiling.trace import Step
from dfa_kernels.profiling.work import Work
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import Ceilings

SIZES = (784, 7, 7, 3)  # of Shape(5, 2, 7, 3)
ROWS = 5


def subject(method="dfa", make=None, batch=((ROWS, 784),), **options):
    if make is None:
        given = Options(shape=Shape(ROWS, 2, 7, 3), method=(method,), device="cpu", **options)
        return Subject(given, method, factory_of(given))
    inputs = tuple(Input(shape) for shape in batch)
    given = Options("its:own", inputs, method=(method,), device="cpu", **options)
    return Subject(given, method, make)


def _addmm(total, a, b, **_):
    return 2 * a[0] * a[1] * b[1]


def by_torch(taken):
    in_place = {torch.ops.aten.addmm_: _addmm}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        taken.step()
    return counter.get_total_flops()


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["dfa", "bp", "shallow"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_flops_are_those_that_torch_counts(method, fused, optimizer):
    taken = subject(method, fused=fused, optimizer=optimizer)
    assert sum(w.total for w in work.count(taken).values()) == by_torch(taken)


@pytest.mark.parametrize("method", ["dfa", "bp", "shallow"])
def test_flops_of_a_convolutional_network_are_those_that_torch_counts(method):
    taken = subject(method, net, ((3, 1, 8, 8),))
    assert sum(w.total for w in work.count(taken).values()) == by_torch(taken)


def test_every_part_of_a_chain_from_the_mathematics():
    works = work.count(subject())
    d = dict(
        zip(("hidden1", "hidden2", "output"), zip(SIZES[1:], SIZES[:-1], strict=True), strict=True)
    )
    for name, (height, width) in d.items():
        flops = {"float32": 2 * ROWS * height * width}
        weight = height * width + height
        # x, W, b and h, each once: the activation is in place
        assert works["forward", name] == Work(flops, 4 * (ROWS * (height + width) + weight))
        # δ and x; the parameters and their momentum, read and written
        assert works["update", name] == Work(flops, 4 * (ROWS * (height + width) + 4 * weight))
    # e; h and δ of two layers: one product serves both
    assert works["projection", ""] == Work(
        {"float32": 2 * ROWS * 3 * 7}, 4 * (ROWS * 3 + 2 * 2 * ROWS * 7)
    )


def test_backpropagation_of_a_layer_reads_and_writes_its_gradients():
    works = work.count(subject("bp"))
    height = width = 7
    # dX and dW; reads the gradient, x and W, writes dX, dW and db
    assert works["backward", "hidden2"] == Work(
        {"float32": 2 * 2 * ROWS * height * width},
        4
        * (ROWS * height + ROWS * width + height * width + ROWS * width + height * width + height),
    )


def test_what_does_not_outlive_a_layer_is_not_written():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            with torch.no_grad():
                return ((x * 2 + 1) * 3).sum(0, keepdim=True)  # two temporaries, one result

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.squares, self.head = Squares(), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.squares(x))

    works = work.count(subject("bp", Net, ((11, 3),)))
    assert works["forward", "squares"] == Work({}, 4 * (11 * 3 + 3))


def test_an_expanded_tensor_is_read_as_often_as_it_is_stored():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 6))

        def forward(self, x):
            return x * self.scale.expand(50, 6)

    works = work.count(subject("bp", Net, ((50, 6),)))
    assert works["forward", ""].bytes == 4 * (300 + 6 + 300)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 9), st.lists(st.integers(1, 9), min_size=2, max_size=4), st.booleans(),
    st.sampled_from(["dfa", "bp"]),
)  # fmt: skip
def test_flops_of_any_stack_are_those_that_torch_counts(rows, widths, shared, method):
    def make():
        layers = []
        for below, above in itertools.pairwise(widths):
            layers += [nn.Linear(below, above), nn.GELU()]
        stack = nn.Sequential(*layers[:-1])
        return dfa.DFA(dfa.fuse(stack), dfa.Feedback(shared=shared))

    taken = subject(method, lambda: (make(), torch.mean), ((rows, widths[0]),))
    assert sum(w.total for w in work.count(taken).values()) == by_torch(taken)


def test_counting_leaves_the_step_as_it_was():
    """Its own step aside, nothing differs from two plain steps."""
    counted, plain = subject(), subject()
    work.count(counted)
    plain.step()
    for a, b in zip(counted.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(counted.step(), plain.step())


# Floors -----------------------------------------------------------------------------------------

MOST = Ceilings(10.0, {"float32": 0.1}, 1.0)


def test_a_floor_is_the_longer_of_two_times():
    assert parts.floor(Work({"float32": 10**8}, 10**6), MOST) == (1.0, "products")
    assert parts.floor(Work({"float32": 10**6}, 10**7), MOST) == (1.0, "memory")
    assert parts.floor(Work({"bfloat16": 1}, 1), MOST) is None
    assert parts.floor(Work({}, 1), Ceilings()) is None


def test_a_parts_floor_is_the_sum_of_its_layers():
    works = {
        ("forward", "a"): Work({"float32": 10**8}, 10**6),
        ("forward", "b"): Work({"float32": 10**6}, 2 * 10**7),
    }
    steps = [Step(9.0, {("forward", "a"): t, ("forward", "b"): 3.0}) for t in (1.0, 2.0, 4.0)]
    found = parts.apart(steps, works, MOST)
    (forward,) = found.parts
    assert (forward.ms, forward.floor_ms, forward.bound) == (5.0, 3.0, "memory")
    assert forward.gap_ms == 2.0 and not found.notes
    assert [(line.layer, line.ms, line.floor_ms) for line in found.layers] == [
        ("a", 2.0, 1.0), ("b", 3.0, 2.0),
    ]  # fmt: skip


def test_a_projection_that_is_made_on_the_fly_is_the_updates():
    works = {
        ("projection", ""): Work({"float32": 10**8}, 10**9),
        ("update", "a"): Work({"float32": 10**8}, 10**6),
    }
    found = parts.apart([Step(3.0, {("update", ""): 2.5})], works, MOST)
    (update,) = found.parts
    assert (update.part, update.floor_ms, update.flops) == ("update", 2.0, 2 * 10**8)
    assert update.bytes == 10**6 and "on the fly" in found.notes[0]


def test_a_ceiling_that_is_missing_is_said():
    found = parts.apart(
        [Step(3.0, {("update", ""): 2.5})], {("update", ""): Work({"x": 1}, 1)}, MOST
    )
    assert found.parts[0].floor_ms is None
    assert any("products of x" in note for note in found.notes)


@pytest.mark.parametrize(("ms", "said"), [(0.8, True), (0.95, False), (2.0, False)])
def test_a_floor_that_is_beaten_says_what_is_wrong(ms, said):
    """Where it is of products; a cache beats those of memory."""
    works = {("forward", ""): Work({"float32": 10**8}, 0), ("update", ""): Work({}, 10**9)}
    found = parts.apart([Step(3.0, {("forward", ""): ms, ("update", ""): 1.0})], works, MOST)
    assert [line.bound for line in found.parts] == ["products", "memory"]
    assert any(note.startswith("forward took less than a floor") for note in found.notes) == said


def test_a_floor_that_is_beaten_leaves_no_gap():
    works = {("forward", ""): Work({"float32": 10**8}, 0), ("optimizer", ""): Work({}, 10**8)}
    steps = [Step(9.0, {("forward", ""): 3.0, ("optimizer", ""): 4.0})]
    found = parts.apart(steps, works, MOST)
    forward, optimizer = found.parts
    assert (forward.floor_ms, forward.gap_ms, forward.beaten) == (1.0, 2.0, False)
    assert (optimizer.floor_ms, optimizer.gap_ms, optimizer.beaten) == (10.0, None, True)
    (note,) = found.notes
    assert note.startswith("optimizer took less than a floor of memory: the copy's rate is of")


def test_what_has_no_work_has_no_floor():
    found = parts.apart([Step(3.0, {("error", ""): 2.5})], {}, MOST)
    assert found.parts[0].floor_ms is None
