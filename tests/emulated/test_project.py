"""csrc/project.cu on the CPU: B entry by entry, δ element by element against fp64."""

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.cuda import project, rules
from dfa_kernels.backends.cuda.launch import Launcher
from dfa_kernels.backends.grouped.plan import Group, Target
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback
from tests import definition, emulator
from tests.emulator.build import build
from tests.test_philox import KNOWN

CPU = torch.device("cpu")
FORWARD = {f.name: f for f in ACTIVATIONS}
FLOATS = torch.float32, torch.bfloat16, torch.float16
# What csrc/tables.h computes in: its code, the dtype that its operands are rounded to, and how far.
COMPUTE = {
    "bf16": (0, torch.bfloat16, 2**-8),
    "f16": (1, torch.float16, 2**-11),
    "tf32": (2, torch.float32, 2**-11),
    "f32": (3, torch.float32, 0.0),
}
OWN = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
computes = pytest.mark.parametrize("compute", COMPUTE)
tiles = pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
distributions = pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "matrix"])
ALLOWED = {"rademacher": 0.0, "uniform": 0.0, "matrix": 0.0, "normal": 1e-5}


def tile(compute, large):
    return emulator.core().project_tile(COMPUTE[compute][0], large)


def run(groups, feedback, compute=None, large=False):
    """Launch `project` as Python does, but in `compute` if that is given."""
    # As many multiprocessors as tiles at the most: large ones.
    device = rules.Device(0, 1 if large else 1 << 20)
    launches = project.launches(groups, feedback, device)
    if compute is not None:
        code = COMPUTE[compute][0]
        launches = [made._replace(table=[code, *made.table[1:]]) for made in launches]
    Launcher(emulator.core()).run(launches, CPU)


def given(distribution, error_width, seed=2**40 + 7):
    if distribution != "matrix":
        return Feedback(distribution, seed)
    return Feedback.from_matrix(torch.randn(error_width, 301))


class Out:
    """δ (rows, columns) among NaN: `view` is written, and nothing beside it may be."""

    def __init__(self, rows, columns, dtype, offset=8):
        self.whole = torch.full((rows + 2, columns + 24 - columns % 8), math.nan, dtype=dtype)
        self.view = self.whole[1 : rows + 1, offset : offset + columns]

    def check_outside(self):
        self.view.fill_(math.nan)
        assert self.whole.isnan().all(), "written outside"


def target(rows, width, dtype, activation="identity", repeat=1, padded=None, offset=8):
    """Somebody who reads a projection of `rows` rows, and the memory it lies in."""
    out = Out(rows * repeat, padded or width, dtype, offset)
    if activation == "identity":
        return Target(out.view, width, repeat), out
    a = torch.randn(rows * repeat, width)
    f = FORWARD[activation]
    saved = Out(rows * repeat, width, dtype, offset).view
    saved.copy_(a if f.from_preactivations else f.forward_(a))
    return Target(out.view, width, repeat, saved, activation), out


def check(groups, feedback, compute=None, large=False):
    """Run, and compare each element with fp64: it may be off by what e and B lose where they are
    rounded, by fp32's noise of a sum, and by one rounding of the result."""
    run([g._replace(targets=[t for t, _ in g.targets]) for g in groups], feedback, compute, large)
    for i, (error, scale, stream, targets) in enumerate(groups):
        for j, (reader, out) in enumerate(targets):
            made = reader.out.double()
            assert (made[:, reader.width :] == 0).all(), "padding is not zero"
            truth, slack = _truth(error, scale, stream, reader, feedback, compute)
            wrong = ~((made[:, : reader.width] - truth).abs() <= slack)
            assert not wrong.any(), (i, j, wrong.nonzero()[:4].tolist(), int(wrong.sum()))
            out.check_outside()


def _truth(error, scale, stream, reader, feedback, compute):
    """δ in fp64, and by how much each of its elements may be off."""
    compute = compute or OWN[torch.promote_types(error.dtype, reader.out.dtype)]
    _, dtype, rounding = COMPUTE[compute]
    noise = (16 + error.shape[1]) * 2**-24
    if stream == HEAD:
        product = error.double()[:, : reader.width]
        size = product.abs()
    else:
        e = error.to(dtype).double()
        b = feedback.matrix(error.shape[1], reader.width, stream, dtype=torch.float64)
        product, size = e @ b * scale, e.abs() @ b.abs() * abs(scale)
        noise += ALLOWED[feedback.distribution]
        noise += rounding if feedback.distribution in ("normal", "matrix") else 0.0
        noise += rounding if compute == "tf32" else 0.0  # of e
    share = math.sqrt(reader.rows)
    truth = product.repeat_interleave(reader.rows, 0) / share
    size = size.repeat_interleave(reader.rows, 0) / share
    if reader.saved is not None:
        truth = FORWARD[reader.activation].backward(truth, reader.saved.double())
    last = torch.finfo(reader.out.dtype)
    return truth, 1.2 * noise * size + last.eps / 2 * truth.abs() + last.tiny * last.eps


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


@computes
@tiles
@distributions
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_edges_of_tiles(edge, distribution, large, compute):
    n, d, k, *_ = tile(compute, large)
    rows, width, error_width = n + edge, d + edge, 2 * k + edge
    error = torch.randn(rows, error_width).to(COMPUTE[compute][1])
    reader = target(rows, width, error.dtype, "tanh")
    check([Group(error, 0.3, 3, [reader])], given(distribution, error_width), compute, large)


@computes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (131, 2, 5), (2, 10, 257)])
def test_odd_shapes(shape, compute):
    rows, error_width, width = shape
    error = torch.randn(rows, error_width).to(COMPUTE[compute][1])
    for distribution in (*DISTRIBUTIONS, "matrix"):
        reader = target(rows, width, error.dtype)
        check([Group(error, 0.3, 0, [reader])], given(distribution, error_width), compute)


@pytest.mark.parametrize("activation", FORWARD)
@pytest.mark.parametrize("dtype", FLOATS)
def test_activations(dtype, activation):
    """In whole vectors and, one column on, element by element."""
    error = torch.randn(19, 10).to(dtype)
    readers = [target(19, width, dtype, activation, k) for width in (40, 41) for k in (1, 3)]
    readers += [target(19, 40, dtype, activation, offset=5)]
    check([Group(error, 0.3, 0, readers)], Feedback(seed=3))


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


@tiles
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_network_in_one_launch(dtype, large):
    """Groups of several rows, widths and streams, one empty, one a head, each with its targets."""
    a, b, none = (torch.randn(n, 24).to(dtype) for n in (37, 5, 0))
    groups = [
        Group(a, 0.3, 0, [target(37, 7, dtype, "relu", padded=8), target(37, 300, dtype, "gelu")]),
        Group(none, 0.3, 0, [target(0, 20, dtype, "tanh")]),
        Group(b, -2.0, 4, [target(5, 129, dtype, "sigmoid", k, 136) for k in (1, 2, 5)]),
        Group(a, 0.7, HEAD, [target(37, 24, dtype), target(37, 21, dtype, padded=24)]),
        Group(b, 0.3, 0, [target(5, 130, dtype, "gelu_tanh")]),
    ]
    check(groups, Feedback("uniform", seed=9), large=large)


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
