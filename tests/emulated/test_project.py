"""csrc/project.cu on the CPU: B entry by entry, δ element by element against fp64."""

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.grouped.plan import Group, Target
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback
from tests import definition, emulator
from tests.emulator.build import build
from tests.test_philox import KNOWN
from tests.vectors.project import (
    ALLOWED,
    CASES,
    COMPUTE,
    FLOATS,
    FORWARD,
    Machine,
    given,
    target,
)

computes = pytest.mark.parametrize("compute", COMPUTE)
tiles = pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
distributions = pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "matrix"])


def machine():
    return Machine(emulator.core(), torch.device("cpu"))


def run(*given):
    machine().run(*given)


def check(*given, **more):
    machine().check(*given, **more)


# The random stream ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream():
    library = ctypes.CDLL(str(build([Path(__file__).with_name("stream.cu")])))
    library.log_unit.restype, library.log_unit.argtypes = ctypes.c_float, [ctypes.c_uint32]
    return library


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_known_answers_of_philox(stream, key, counter, answer):
    given, out = ((ctypes.c_uint32 * len(c))(*c) for c in (key, counter)), (ctypes.c_uint32 * 4)()
    stream.words(*given, out)
    assert [f"{w:08x}" for w in out] == answer.split()


@pytest.mark.parametrize("at_once", [1, 4, 8, 16])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entries_of_a_row(stream, distribution, at_once):
    code, made = rules.DISTRIBUTIONS[distribution], np.empty((3, 272), np.float32)
    for k, row in enumerate(made):
        pointer = row.ctypes.data_as(ctypes.c_void_p)
        stream.entries(code, ctypes.c_uint64(2**63 - 5), 7, k, 272, at_once, pointer)
    wanted = definition.matrix(3, 272, distribution=distribution, seed=2**63 - 5, stream=7)
    assert np.abs(made - wanted.numpy()).max() <= ALLOWED[distribution]


@pytest.mark.parametrize("word", [0, 1, 2**31 - 1, 2**31, 2**32 - 2**9, 2**32 - 2, 2**32 - 1])
def test_logarithm_at_the_ends(stream, word):
    wanted = (
        math.log1p(-(2**32 - word - 0.5) * 2**-32) if word >> 31 else math.log((word + 0.5) / 2**32)
    )
    assert stream.log_unit(word) == pytest.approx(wanted, rel=2e-7)


@computes
@tiles
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_b_entry_by_entry(distribution, large, compute):
    """The identity as the error brings out B: to the bit, but for a normal's rounding."""
    _, dtype, rounding = COMPUTE[compute]
    for seed, stream, rows, width in (
        (0, 0, 1, 1),
        (2**63 - 1, 5, 37, 129),
        (1234, 2**31 - 1, 66, 300),
    ):
        feedback, made = Feedback(distribution, seed), torch.full((rows, width), math.nan)
        error = torch.eye(rows, dtype=dtype)
        run([Group(error, 1.0, stream, [Target(made, width, 1)])], feedback, compute, large)
        wanted = feedback.matrix(rows, width, stream)
        exact = distribution != "normal"
        allowed = 0.0 if exact else ALLOWED[distribution] + rounding * wanted.abs()
        assert ((made - wanted).abs() <= allowed).all(), (seed, stream)


@computes
def test_b_far_down(compute):
    """E = 2500: many turns of the pipeline, the last of them partly empty."""
    feedback, error = (
        Feedback("rademacher", seed=77),
        torch.zeros(3, 2500, dtype=COMPUTE[compute][1]),
    )
    error[torch.arange(3), torch.tensor([1, 1500, 2499])] = 1
    made = torch.full((3, 130), math.nan)
    run([Group(error, 1.0, 4, [Target(made, 130, 1)])], feedback, compute)
    assert torch.equal(made, feedback.matrix(2500, 130, 4)[[1, 1500, 2499]])


# δ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors(case):
    """Those that a GPU is asked first."""
    case.check(machine())


@computes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (131, 2, 5), (2, 10, 257)])
def test_odd_shapes(shape, compute):
    rows, error_width, width = shape
    error = torch.randn(rows, error_width).to(COMPUTE[compute][1])
    for distribution in (*DISTRIBUTIONS, "matrix"):
        reader = target(rows, width, error.dtype)
        check([Group(error, 0.3, 0, [reader])], given(distribution, error_width), compute)


@pytest.mark.parametrize("activation", FORWARD)
def test_activations_of_what_is_not_finite(activation):
    """f′(NaN) and f′(±Inf) are PyTorch's, as is a NaN of the error where relu's f′ is 0."""
    saved = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1.0, 2.0]).repeat(3, 1)
    error = torch.tensor([[1.0], [-2.0], [math.nan]])
    out = torch.full((3, 8), math.nan)
    reader = Target(out, 8, 1, saved, activation)
    run([Group(error, 1.0, 0, [reader])], Feedback())
    wanted = FORWARD[activation].backward(error * Feedback().matrix(1, 8), saved)
    if activation == "identity":
        wanted = error * Feedback().matrix(1, 8)
    torch.testing.assert_close(out, wanted, equal_nan=True)


@pytest.mark.parametrize("out", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_of_the_error_and_of_delta(dtype, out):
    error = torch.randn(33, 24).to(dtype)
    readers = [target(33, 72, out, "silu"), target(33, 65, out, "relu", 2)]
    check([Group(error, 0.3, 0, readers)], Feedback("uniform"))


@computes
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_error_is_rounded_to_what_is_computed_in(dtype, compute):
    error = torch.randn(33, 40).to(dtype)
    check([Group(error, 0.3, 0, [target(33, 72, dtype)])], Feedback(seed=5), compute)


@pytest.mark.parametrize("kind", ["row-strided", "offset", "one element on"])
@computes
def test_layouts_of_the_error(compute, kind):
    whole = torch.randn(37, 64).to(COMPUTE[compute][1])
    error = {
        "row-strided": whole[:, :40],
        "offset": whole[2:, 8:48],
        "one element on": whole[1:, 1:41],
    }[kind]
    for distribution in ("rademacher", "matrix"):
        reader = target(len(error), 50, error.dtype, "tanh", offset=11)
        check([Group(error, 0.3, 0, [reader])], given(distribution, 40), compute)


# What is not finite -----------------------------------------------------------------------------


@computes
@tiles
@distributions
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(bad, distribution, large, compute):
    error = torch.randn(39, 45).to(COMPUTE[compute][1])
    error[17, 44] = bad
    made = torch.full((78, 150), math.nan)
    run([Group(error, 1.0, 0, [Target(made, 150, 2)])], given(distribution, 45), compute, large)
    rows = made.isfinite().reshape(39, 300)
    assert not rows[17].any()
    rows[17] = True
    assert rows.all()


# Orders -----------------------------------------------------------------------------------------


@pytest.fixture
def order():
    """Run threads and blocks in another order than theirs."""
    choose = ctypes.CDLL(emulator.core().__spec__.origin).dfa_emulator_options
    choose.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    yield lambda threads, blocks: choose(threads, blocks, 1)
    choose(0, 0, 1)


@computes
@distributions
def test_any_order_of_threads_gives_the_same_bits(distribution, compute, order):
    error = torch.randn(40, 200).to(COMPUTE[compute][1])
    feedback, made = given(distribution, 200), []
    for threads, blocks in ((0, 0), (1, 1), (2, 2), (3, 5)):
        order(threads, blocks)
        out = torch.full((40, 130), math.nan)
        run([Group(error, 0.3, 0, [Target(out, 130, 1)])], feedback, compute)
        made.append(out)
    assert made[0].isfinite().all()
    assert all(torch.equal(made[0], other) for other in made[1:])
