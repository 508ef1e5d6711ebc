"""csrc/update.cu on the CPU: dW = Σ δᵀ·x, db = Σ δ and the rules' steps, against fp64."""

import ctypes
import itertools
import mmap

import pytest
import torch

from dfa_kernels import backends, ops
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import RULES, LayerUpdate, Segment
from dfa_kernels.backends.cuda import rules, update
from dfa_kernels.backends.cuda.launch import Launcher
from dfa_kernels.backends.grouped.plan import Applied, Grouped, Term
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback
from tests import emulator
from tests.interpreted.oracle import (
    ADAMW,
    SGD,
    check_gradients,
    check_step,
    head,
    parameter,
    record,
    stepped,
)
from tests.vectors.project import Machine
from tests.vectors.update import CASES, FLOATS, LARGE, SMALL

pytestmark = pytest.mark.usefixtures("on_cuda", "unwritten_is_nan")

CPU = torch.device("cpu")
F32 = 3  # of csrc/tables.h's Compute


@pytest.fixture(params=[rules.STORED, rules.ON_THE_FLY])
def either_delta(request, delta):
    delta(request.param)
    return request.param


@pytest.fixture(params=["allow_tf32", "fp32_precision"])
def tf32(request):
    """By torch's older setting, and by its newer."""
    if request.param == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
        yield
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        yield
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.fixture
def order():
    """Run threads and blocks in another order than theirs."""
    library = ctypes.CDLL(emulator.core().__spec__.origin)
    choose = library.dfa_emulator_options
    choose.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    yield lambda threads, blocks: choose(threads, blocks, 1)
    choose(0, 0, 1)


def _counters():
    kept = backends.get("cuda-emulated")._kernels._launcher._scratch.values()
    return [scratch.counters for scratch in kept if len(scratch.counters)]


def _gradients_of(layers, error, feedback=None, scale=0.2):
    return check_gradients(error, feedback or Feedback(), scale, layers)


# Tiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors(case):
    """Those that a GPU is asked first."""
    case.check(Machine(emulator.core(), CPU))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (2, 300, 5), (131, 2, 3)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_odd_shapes(shape, dtype, either_delta):
    n, k, d = shape
    error = torch.randn(n, 1).to(dtype)
    _gradients_of([record(n, k, d, dtype=dtype), head(error, k)], error)


def test_many_tiles_along_d(multiprocessors, delta):
    """Eight neighbours and two, of each of three columns of tiles."""
    multiprocessors(SMALL), delta(rules.STORED)
    _gradients_of([record(3, 130, 630, "identity")], torch.randn(3, 4))


def test_an_empty_batch(either_delta):
    error = torch.randn(0, 6)
    for weight, bias in _gradients_of([record(0, 9, 20), head(error, 20)], error):
        assert (weight == 0).all()
        assert (bias == 0).all()


# Layers and segments ----------------------------------------------------------------------------


def test_a_head_of_several_segments(either_delta):
    errors = [torch.randn(20, 6), torch.randn(33, 6)]
    segments = [Segment(e, 1.0, head(e, 9)) for e in errors]
    check_step(Feedback(), "adamw", [stepped("adamw", segments)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_views(dtype, either_delta):
    """Rows apart, addresses that are no multiple of a vector, last columns of a wider matrix."""
    views = (
        lambda t: torch.cat((t, t, t), dim=1)[:, : t.shape[1]],
        lambda t: torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape),
        lambda t: torch.cat((t, t), dim=1)[:, t.shape[1] :],
    )
    for view in views:
        error = view(torch.randn(19, 12).to(dtype))
        layers = [record(19, 20, 36, f, dtype=dtype) for f in ("tanh", "silu")]
        layers = [
            x._replace(inputs=view(x.inputs), saved=view(x.saved))
            for x in (*layers, head(error, 20))
        ]
        _gradients_of(layers, error)


@pytest.mark.parametrize("width", [20, 21])
def test_what_lies_between_rows_is_not_touched(width, either_delta):
    error = torch.randn(19, 12)
    given = stepped("adamw", [Segment(error, 0.1, record(19, width, 35))])
    around = [torch.full((37, 32), 7.0) for _ in range(3)]
    inside = [t[1:36, 4 : 4 + width] for t in around]
    for to, start in zip(inside, (given.weight.parameter, *given.weight.states), strict=True):
        to.copy_(start)
    weight = given.weight._replace(parameter=inside[0], states=tuple(inside[1:]))
    ops.step_(Feedback(), "adamw", [given._replace(weight=weight)])
    for t in around:
        t[1:36, 4 : 4 + width] = 7.0
        assert (t == 7.0).all()


def test_rows_beyond_32_bits(either_delta):
    """The last row is 5·10⁹ elements from the first; of 10 GB, only written pages exist."""
    torch.use_deterministic_algorithms(False)
    rows, apart = 300, 2**24 - 16

    def far(values):
        memory = mmap.mmap(-1, 2 * ((rows - 1) * apart + values.shape[1]) + 4096)
        whole = torch.frombuffer(memory, dtype=torch.float16)
        return whole.as_strided(values.shape, (apart, 1)).copy_(values)

    error = far(torch.randn(rows, 5))
    layer = record(rows, 7, 9, dtype=torch.float16)
    layer = layer._replace(inputs=far(layer.inputs), saved=far(layer.saved))
    _gradients_of([layer, head(error, 7)], error)
    near = stepped("sgd", [Segment(error[:9], 0.1, record(9, 7, rows, dtype=torch.float16))],
                   bias=False, dtype=torch.float16)  # fmt: skip
    weight = near.weight
    there = weight._replace(parameter=far(weight.parameter), states=(far(weight.states[0]),))
    for w in (weight, there):
        ops.step_(Feedback(), "sgd", [near._replace(weight=w)])
    assert torch.equal(weight.parameter, there.parameter)
    assert torch.equal(weight.states[0], there.states[0])


# The product ------------------------------------------------------------------------------------


def _rounded(t):
    """To the nearest tf32, halves away from zero."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("number", [LARGE, SMALL], ids=["large", "small"])
def test_tf32_rounds_x_and_delta_and_nothing_else(number, multiprocessors, tf32):
    multiprocessors(number)
    error = torch.randn(50, 132)
    layer = head(error, 140)
    ((weight, bias),) = ops.gradients(error, Feedback(), 1.0, [layer], torch.float32)
    torch.testing.assert_close(weight, _rounded(error).T @ _rounded(layer.inputs))
    assert (weight - error.T @ layer.inputs).abs().max() > 1e-4
    torch.testing.assert_close(bias, error.sum(0), rtol=1e-6, atol=1e-5)


def test_tf32_on_the_fly(delta, tf32):
    delta(rules.ON_THE_FLY)
    error, layer = torch.randn(50, 12), record(50, 70, 67, "tanh", rows=1)
    ((_, bias),) = ops.gradients(error, Feedback("normal"), 0.3, [layer], torch.float32)
    ((_, wanted),) = backends.get("reference").gradients(
        error, Feedback("normal"), 0.3, [layer], torch.float32
    )
    torch.testing.assert_close(bias, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_bad_numbers_stay_where_they_are(dtype, bad, either_delta):
    """Of the error: in what f′ lets through; of the head's, in one row; of x, in one column."""
    error = torch.randn(40, 6).to(dtype)
    error[33, 2] = bad
    layer = record(40, 5, 21, "relu", dtype=dtype)
    layer.saved[33, :10] = 0
    layers = [layer, head(error, 5)]
    layers[1].inputs[33] = 1.0
    made = ops.gradients(error, Feedback("uniform"), 0.1, layers, torch.float32)
    for t in made[0]:
        assert t[:10].isfinite().all()
        assert not t[10:][layer.saved[33, 10:] > 0].isfinite().any()
    for t in made[1]:
        finite = t.isfinite().reshape(6, -1)
        assert torch.equal(finite.all(1), torch.arange(6) != 2)
        assert not finite[2].any()
    layer.inputs[7, 3] = bad
    ((weight, bias),) = ops.gradients(error[:33], Feedback(), 0.1, [
        layer._replace(inputs=layer.inputs[:33], saved=layer.saved[:33].clamp(min=1))
    ], torch.float32)  # fmt: skip
    assert torch.equal(weight.isfinite().all(0), torch.arange(5) != 3)
    assert bias.isfinite().all()


# Parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sum_in_parts(dtype, multiprocessors, either_delta):
    multiprocessors(SMALL)
    errors = [torch.randn(170, 8).to(dtype), torch.randn(141, 8).to(dtype)]
    updates = [
        stepped("adamw", [Segment(e, 0.2, record(len(e), k, d, stream=s, dtype=dtype))
                          for e in errors])
        for k, d, s in ((9, 20, 0), (70, 33, 1))
    ]  # fmt: skip
    made = check_step(Feedback(), "adamw", updates)
    again = check_step(Feedback(), "adamw", updates)
    assert all(map(torch.equal, made, again))
    assert _counters()
    assert all((c == 0).all() for c in _counters())


def test_parts_are_added_in_their_order(multiprocessors, order, either_delta):
    """fp32 sums of 2²⁴, 1 and −2²⁴ depend on it; blocks come in any."""
    multiprocessors(SMALL)
    n = emulator.core().update_tile(F32, False, False)[0]
    error = torch.zeros(16 * n, 1)
    error[:: 4 * n, 0] = torch.tensor([2.0**24, 1.0, 1.0, -(2.0**24)])
    layer = head(error, 1)._replace(inputs=torch.ones(len(error), 1))
    for seed in range(5):
        order(0, seed)
        ((weight, bias),) = ops.gradients(error, Feedback(), 1.0, [layer], torch.float32)
        assert weight.item() == bias.item() == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_order_of_threads_gives_the_same_bits(dtype, multiprocessors, order, either_delta):
    multiprocessors(SMALL)
    error = torch.randn(270, 10).to(dtype)
    layers = [record(270, 67, 20, "gelu", dtype=dtype), record(270, 20, 65, "relu", 1, dtype=dtype)]
    made = []
    for threads, blocks in ((0, 0), (1, 1), (12345, 2), (999, 3)):
        order(threads, blocks)
        made.append(ops.gradients(error, Feedback(), 0.2, layers, torch.float32))
    for other in made[1:]:
        for ours, first in zip(other, made[0], strict=True):
            assert all(map(torch.equal, ours, first))


# δ on the fly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_activation_of_every_distribution(dtype, distribution, either_delta):
    error = torch.randn(11, 13).to(dtype)
    layers = [
        record(11, 6, 70, f.name, i % 2, 1 + i % 3, dtype=dtype) for i, f in enumerate(ACTIVATIONS)
    ]
    _gradients_of(layers, error, Feedback(distribution, seed=2**40 + 3, shared=False), 0.3)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 32])
def test_widths_of_the_error(width, delta):
    delta(rules.ON_THE_FLY)
    error = torch.randn(35, width)
    _gradients_of([record(35, 5, 130), head(error, 9)], error, Feedback("normal"))


def test_a_head_whose_output_was_activated(either_delta):
    error = torch.randn(17, 8)
    layer = head(error, 9)._replace(saved=torch.rand(17, 8), activation="sigmoid")
    _gradients_of([layer], error)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize(("given", "kept"), list(itertools.permutations(FLOATS, 2)))
def test_an_error_of_another_dtype(given, kept, distribution, delta, monkeypatch):
    delta(rules.ON_THE_FLY)
    monkeypatch.setattr(rules, "flies", lambda *_: True)
    error = torch.randn(17, 6).to(given)
    layers = [record(17, 33, 18, "silu", dtype=kept), head(error, 9, kept)]
    _gradients_of(layers, error, Feedback(distribution))


# Rules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [(rule, h) for rule, hypers in (("sgd", SGD), ("adamw", ADAMW)) for h in hypers.values()],
)
@pytest.mark.parametrize("width", [20, 21], ids=["vectors", "elements"])
def test_rules(rule, hyper, width):
    error = torch.randn(21, 6)
    layers = [record(21, width, 18), record(21, 5, 3)]
    check_step(
        Feedback(), rule, [stepped(rule, [Segment(error, 0.2, x)], hyper=hyper) for x in layers]
    )


def test_a_first_step_reads_no_momentum():
    """The buffer may hold anything: it is not there yet."""
    given = stepped("sgd", [Segment(torch.randn(9, 6), 0.2, record(9, 7, 5))], hyper=SGD["first"])
    for u in given[:2]:
        u.states[0].fill_(float("nan"))
    assert all(t.isfinite().all() for t in check_step(Feedback(), "sgd", [given]))


@pytest.mark.parametrize("hyper", [SGD["plain"], SGD["decay"]])
def test_sgd_without_momentum_has_no_buffer(hyper):
    given = stepped("sgd", [Segment(torch.randn(9, 6), 0.2, record(9, 7, 5))], hyper=hyper)
    without = [u._replace(states=(torch.empty(0),)) for u in given[:2]]
    check_step(Feedback(), "sgd", [given._replace(weight=without[0], bias=without[1])])


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_every_dtype(dtype):
    error = torch.randn(9, 6)
    check_gradients(error, Feedback(), 0.2, [record(9, w, 5) for w in (8, 7)], dtype)


@pytest.mark.parametrize("width", [24, 7], ids=["vectors", "elements"])
@pytest.mark.parametrize("copy", [None, *FLOATS])
@pytest.mark.parametrize("state", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_parameters_states_and_copies_of_every_dtype(rule, dtype, state, copy, width):
    """The step is fp32's, rounded once; the copy is rounded from fp32 too."""
    x, e = torch.randn(20, width), torch.randn(20, 12)
    given = [parameter(rule, *shape, dtype=dtype, state=state) for shape in ((12, width), (12,))]
    exact = [
        u._replace(parameter=u.parameter.double(), states=tuple(s.double() for s in u.states))
        for u in given
    ]
    layer = head(e.double(), width)._replace(inputs=x.double())
    segments = [Segment(e.double(), 1.0, layer)]
    backends.get("reference").step_(Feedback(), rule, [LayerUpdate(*exact, segments)])
    copies = [u.parameter.new_empty(u.parameter.shape, dtype=copy) if copy else None for u in given]
    own = [Applied(*u[:2], c, u.hyper) for u, c in zip(given, copies, strict=True)]
    launches = update.launches(
        rule, Feedback(), [Grouped(*own, [Term(x, e)])], rules.Device(0, SMALL)
    )
    Launcher(emulator.core()).run(launches, CPU)
    for u, right, copied in zip(given, exact, copies, strict=True):
        made = [u.parameter, *u.states, *([] if copied is None else [copied])]
        wanted = [right.parameter, *right.states, *([] if copied is None else [right.parameter])]
        for a, b in zip(made, wanted, strict=True):
            eps = torch.finfo(a.dtype).eps
            torch.testing.assert_close(a.double(), b, rtol=eps / 2 + 2**-20, atol=2**-18)
