"""What csrc/plain.h plans is what dfa_kernels/backends/grouped would have launched, bit for bit."""

import itertools

import pytest
import torch

from dfa_kernels.backends.contract import (
    HEAD,
    RULES,
    Layer,
    LayerUpdate,
    Repeated,
    Segment,
    Update,
)
from dfa_kernels.backends.cuda.kernels import _COLUMNS, Kernels, _known
from dfa_kernels.backends.cuda.rules import ON_THE_FLY, STORED
from dfa_kernels.feedback import Feedback
from tests import emulator

HYPER = {"sgd": (0.1, 0.9, 0.5, 0.01, 0, 1, 0), "adamw": (0.1, 0.8, 0.99, 1e-3, 0.01, 0, 7)}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch is older than 2.10"
)


class Seen:
    """The compiled module, and what was asked of it."""

    def __init__(self, core, plainly=True):
        self.project, self.update = core.project, core.update
        self.asked = []
        self._plain = core.plain_step if plainly else lambda *_: False

    def plain_step(self, *arguments):
        self.asked.append(self._plain(*arguments))
        return self.asked[-1]


def started(core, rule, given, repeated=None):
    """Whether C++ takes a step, or one that repeats it."""
    known = _known(SEEDED, rule, given)
    given = given if repeated is None else Repeated.of(given).updates
    return Kernels(core)._start(known, given, repeated)


def layers(error, dtype):
    """A layer with two rows for each of the error's, one without, and a head."""
    n, width = error.shape
    sizes = (("tanh", 7, 24, 0, 2), ("gelu", 24, 16, 3, 1), ("identity", 16, width, HEAD, 1))
    for name, k, d, stream, repeat in sizes:
        x, saved = torch.randn(n * repeat, k).to(dtype), torch.rand(n * repeat, d).to(dtype)
        yield Layer(x, saved, name, stream, repeat)


def updates(rule, dtype=torch.float32, width=10, change=lambda t: t, copied=None):
    """``copied``: the dtype of low-precision copies."""
    torch.manual_seed(1)
    made = []
    error = torch.randn(21, width).to(dtype)
    for i, layer in enumerate(layers(error, dtype)):
        pair = []
        for shape in ((layer.saved.shape[1], layer.inputs.shape[1]), layer.saved.shape[1:]):
            states = tuple(change(torch.rand(shape)) for _ in RULES[rule].states)
            copy = None if copied is None else torch.zeros(shape, dtype=copied)
            pair.append(Update(change(torch.randn(shape)), states, HYPER[rule], copy))
        segments = [Segment(error, 0.25, layer)] * (1 + i % 2)
        made.append(LayerUpdate(pair[0], pair[1] if i != 1 else None, segments))
    return made


def tensors(given):
    """What a step changes."""
    pairs = [u for update in given for u in update[:2] if u is not None]
    every = [t for u in pairs for t in (u.parameter, *u.states, u.copy)]
    return [t for t in every if t is not None and t.numel()]


SEEDED = Feedback("uniform", seed=2**62 + 5)


def check_step(rule, given, feedback=SEEDED):
    """``given`` makes the same updates each time."""
    plain, grouped, before = given(), given(), given()
    seen = Seen(emulator.core())
    Kernels(seen).step_(feedback, rule, plain)
    assert seen.asked == [True]
    Kernels(Seen(emulator.core(), False)).step_(feedback, rule, grouped)
    for a, b, c in zip(*map(tensors, (plain, grouped, before)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_steps(rule, dtype, how, delta):
    delta(how)
    check_step(rule, lambda: updates(rule, dtype))


@pytest.mark.parametrize("width", [1, 16, 33])
def test_errors_of_other_widths(width, delta):
    """16: rows of whole vectors, so that the head's δ is the error itself. 33: too wide to fly."""
    delta(ON_THE_FLY if width == 33 else STORED)
    check_step("sgd", lambda: updates("sgd", width=width))


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
@pytest.mark.parametrize("copied", [torch.float16, torch.bfloat16])
def test_low_precision_copies(copied, how, delta):
    delta(how)
    check_step("adamw", lambda: updates("adamw", torch.bfloat16, copied=copied))


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
@pytest.mark.parametrize(
    ("error", "own"),
    list(itertools.permutations((torch.float32, torch.bfloat16, torch.float16), 2)),
)
@pytest.mark.parametrize("width", [10, 16])
@pytest.mark.parametrize("rule", RULES)
def test_an_error_of_another_dtype_than_the_activations(rule, width, error, own, how, delta):
    """A loss in fp32 of outputs that were widened, say. 16: where an error of their dtype were the
    head's δ itself."""
    delta(how)
    check_step(rule, lambda: with_errors(error, own, rule, width))


@pytest.mark.parametrize("tf32", [False, True])
def test_it_is_projected_in_what_torchs_own_products_are(tf32, allow_tf32):
    allow_tf32(tf32)
    check_step("sgd", lambda: with_errors(torch.float32, torch.bfloat16))


def test_no_momentum_has_no_state():
    def given():
        made = updates("sgd")
        changed = {"states": (torch.empty(0),), "hyper": (0.1, *[0.0] * 6)}
        none = [[u and u._replace(**changed) for u in m[:2]] for m in made]
        return [m._replace(weight=w, bias=b) for m, (w, b) in zip(made, none, strict=True)]

    check_step("sgd", given)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_that_the_rule_reads_is_there(rule, nothing):
    first, *others = updates(rule)
    states = (torch.empty(0), *first.weight.states[1:])
    given = [first._replace(weight=first.weight._replace(states=states)), *others]
    assert not started(Seen(nothing), rule, given)


def test_a_row_of_other_columns_is_refused(nothing, monkeypatch):
    monkeypatch.setitem(_COLUMNS, "sgd", lambda row: row[:3])
    with pytest.raises(ValueError, match="has 3 columns, and a kernel reads 7"):
        started(nothing, "sgd", updates("sgd"))


def test_rows_of_a_compiled_step_are_lists():
    """Each parameter has its own."""

    def given():
        made = updates("adamw")
        rows = [[u and u._replace(hyper=list(u.hyper)) for u in m[:2]] for m in made]
        return [m._replace(weight=w, bias=b) for m, (w, b) in zip(made, rows, strict=True)]

    check_step("adamw", given)


def test_rows_that_differ(delta):
    delta(STORED)

    def given():
        made = updates("sgd")
        rows = [(0.1 + i, *m.weight.hyper[1:]) for i, m in enumerate(made)]
        return [
            m._replace(weight=m.weight._replace(hyper=r)) for m, r in zip(made, rows, strict=True)
        ]

    check_step("sgd", given)


def in_memory(given):
    rows = [
        [u and u._replace(hyper=torch.tensor(u.hyper, dtype=torch.float64)) for u in update[:2]]
        for update in given
    ]
    return [g._replace(weight=w, bias=b) for g, (w, b) in zip(given, rows, strict=True)]


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_rows_in_memory(rule, how, delta):
    delta(how)
    check_step(rule, lambda: in_memory(updates(rule)))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.float(),
        lambda row: row[1:],
        lambda row: torch.stack((row, row), 1)[:, 0],
        lambda row: row.to("meta"),
        lambda row: row[None],
        lambda row: row.tolist(),
        lambda row: None,
    ],
)
@pytest.mark.parametrize("where", [0, -1])
def test_rows_that_are_not_plain(nothing, change, where):
    given = in_memory(updates("sgd"))
    weight = given[where].weight
    given[where] = given[where]._replace(weight=weight._replace(hyper=change(weight.hyper)))
    seen = Seen(nothing)
    assert not started(seen, "sgd", given)
    assert seen.asked == [False]


def test_a_matrix_of_the_user():
    matrix = torch.randn(10, 25, generator=torch.Generator().manual_seed(2))
    check_step("sgd", lambda: updates("sgd"), Feedback.from_matrix(matrix))
    check_step(
        "sgd", lambda: with_errors(torch.float32, torch.bfloat16), Feedback.from_matrix(matrix)
    )


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
def test_gradients(how, delta):
    delta(how)
    error = torch.randn(21, 10)
    given = list(layers(error, torch.float32))
    seen = Seen(emulator.core())
    arguments = error, Feedback(seed=3), 0.25, given, torch.bfloat16
    plain = Kernels(seen).gradients(*arguments)
    assert seen.asked == [True]
    grouped = Kernels(Seen(emulator.core(), False)).gradients(*arguments)
    for a, b in zip(plain, grouped, strict=True):
        assert a[0].dtype == torch.bfloat16
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_sum_that_is_split(delta, multiprocessors):
    """δ and the parts of the sum lie in one scratch."""
    delta(STORED)
    multiprocessors(64)
    error = torch.randn(400, 10)
    given = [Layer(torch.randn(400, 24), torch.rand(400, 16), "tanh", 0, 1)]
    seen = Seen(emulator.core())
    arguments = error, SEEDED, 0.25, given, torch.float32
    ((weight, bias),) = Kernels(seen).gradients(*arguments)
    assert seen.asked == [True]
    ((same, bias_too),) = Kernels(Seen(emulator.core(), False)).gradients(*arguments)
    assert torch.equal(weight, same) and torch.equal(bias, bias_too)


# Steps that repeat each other --------------------------------------------------------------------


def once(made, seed, rows=5):
    """The updates with one segment each, of a batch of their own."""
    torch.manual_seed(seed)
    (like,) = {id(s.error): s.error for u in made for s in u.segments}.values()
    error = torch.randn(rows, like.shape[1]).to(like.dtype)
    given = layers(error, like.dtype)
    return [
        u._replace(segments=[Segment(error, 0.25, layer)])
        for u, layer in zip(made, given, strict=True)
    ]


def numbers(made, rule):
    """A row for each layer, of which the first and last have the same numbers; and those of a later
    step, which all differ."""
    first = HYPER[rule]
    rows = [first, (first[0] * 2, *first[1:]), (first[0], *first[1:])]
    made = [
        u._replace(weight=u.weight._replace(hyper=row), bias=u.bias and u.bias._replace(hyper=row))
        for u, row in zip(made, rows, strict=True)
    ]
    counted = rule == "adamw"
    return made, [(row[0] / (3 + i), *row[1:-1], row[-1] + counted) for i, row in enumerate(rows)]


def given_of(made):
    """What a repeated step is given of a record."""
    records = [u.segments[0].layer for u in made]
    return made[0].segments[0].error, *zip(*[(x.inputs, x.saved) for x in records], strict=True)


@pytest.mark.parametrize("how", [ON_THE_FLY, STORED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_repeated_steps(rule, dtype, how, delta):
    """Two of them, with other batches and numbers than the one that they were prepared with."""
    delta(how)
    copied = torch.float16 if dtype == torch.bfloat16 else None
    ours, wanted = (updates(rule, dtype, copied=copied) for _ in range(2))
    seen = Seen(emulator.core())
    prepared, later = numbers(once(ours, 2), rule)
    run = Kernels(seen).repeated(SEEDED, rule, prepared)
    before = [t.clone() for t in tensors(ours)]
    for seed, rows in ((3, 5), (4, 19)):
        run(*given_of(once(ours, seed, rows)), later)
        made, _ = numbers(once(wanted, seed, rows), rule)
        made = Repeated.of(made).whole(*given_of(made), later)
        Kernels(Seen(emulator.core(), False)).step_(SEEDED, rule, made)
    assert seen.asked == [True, True]
    assert all(map(torch.equal, tensors(ours), tensors(wanted)))
    assert not any(map(torch.equal, before, tensors(ours)))


def test_a_repeated_step_of_an_error_of_fp32():
    ours, wanted = (updates("adamw", torch.bfloat16) for _ in range(2))
    seen = Seen(emulator.core())
    prepared, later = numbers(once(ours, 2), "adamw")
    run = Kernels(seen).repeated(SEEDED, "adamw", prepared)
    error, inputs, saved = given_of(once(ours, 3))
    error = error.float() * (1 + 2**-9 + 2**-14)
    run(error, inputs, saved, later)
    made = Repeated.of(numbers(once(wanted, 2), "adamw")[0])
    Kernels(Seen(emulator.core(), False)).step_(
        SEEDED, "adamw", made.whole(error, inputs, saved, later)
    )
    assert seen.asked == [True]
    assert all(map(torch.equal, tensors(ours), tensors(wanted)))


def test_a_repeated_step_of_tensors_that_are_not_plain_is_left_to_python():
    ours, wanted = updates("sgd"), updates("sgd")
    seen = Seen(emulator.core())
    prepared, later = numbers(once(ours, 2), "sgd")
    run = Kernels(seen).repeated(SEEDED, "sgd", prepared)
    error, inputs, saved = given_of(once(ours, 3))
    error = transposed(error)
    run(error, inputs, saved, later)
    made = Repeated.of(numbers(once(wanted, 2), "sgd")[0])
    Kernels(Seen(emulator.core(), False)).step_(
        SEEDED, "sgd", made.whole(error, inputs, saved, later)
    )
    assert seen.asked == [False]
    assert all(map(torch.equal, tensors(ours), tensors(wanted)))


def test_rows_in_memory_are_not_prepared(nothing):
    assert Kernels(nothing).repeated(SEEDED, "sgd", in_memory(once(updates("sgd"), 2))) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda error, inputs, saved, rows: (error, inputs[1:], saved, rows),
        lambda error, inputs, saved, rows: (error, inputs, saved[1:], rows),
        lambda error, inputs, saved, rows: (error, inputs, (None, *saved[1:]), rows),
        lambda error, inputs, saved, rows: (error, list(inputs), saved, rows),
        lambda error, inputs, saved, rows: (error, inputs, list(saved), rows),
        lambda error, inputs, saved, rows: (error, inputs, saved, rows[1:]),
        lambda error, inputs, saved, rows: (error, inputs, saved, tuple(rows)),
        lambda error, inputs, saved, rows: (error.double(), inputs, saved, rows),
        lambda error, inputs, saved, rows: (error, tuple(x[1:] for x in inputs), saved, rows),
    ],
)
def test_what_a_repeated_step_lacks_is_seen(nothing, wrong):
    made, later = numbers(once(updates("sgd"), 2), "sgd")
    given = *given_of(made), later
    assert started(nothing, "sgd", made, given)
    assert not started(nothing, "sgd", made, wrong(*given))


def test_a_repeated_step_of_two_segments_is_not_plain(nothing):
    made, later = numbers(once(updates("sgd"), 2), "sgd")
    given = *given_of(made), later
    kernels, known = Kernels(nothing), _known(SEEDED, "sgd", made)
    twice = [u._replace(segments=2 * u.segments) for u in Repeated.of(made).updates]
    assert not kernels._start(known, twice, given)


def test_a_repeated_step_of_less_is_refused(nothing):
    made, _ = numbers(once(updates("sgd"), 2), "sgd")
    with pytest.raises(ValueError, match="an error, inputs, saved and rows"):
        started(nothing, "sgd", made, given_of(made))


# What is left to Python -------------------------------------------------------------------------


def transposed(t):
    return t.T.contiguous().T if t.dim() == 2 else t


def with_errors(dtype, own=torch.float32, rule="sgd", width=10):
    """Errors of another dtype than the activations."""
    made = updates(rule, own, width)
    # Of more digits than 16 bits, or tf32, have.
    error = (made[0].segments[0].error.double() * (1 + 2**-9 + 2**-14)).to(dtype)
    terms = [[s._replace(error=error) for s in u.segments] for u in made]
    return [u._replace(segments=t) for u, t in zip(made, terms, strict=True)]


@pytest.mark.parametrize(
    ("given", "feedback"),
    [
        (lambda: updates("sgd", change=transposed), Feedback()),
        (
            lambda: with_errors(torch.float32, torch.float16),
            Feedback.from_matrix(torch.randn(10, 25, dtype=torch.float16)),
        ),
        (lambda: updates("sgd"), Feedback.from_matrix(torch.randn(10, 25, dtype=torch.float64))),
        (lambda: updates("sgd"), Feedback.from_matrix(torch.randn(25, 10).T)),
    ],
    ids=[
        "transposed",
        "a matrix of less",
        "a matrix of another",
        "a matrix transposed",
    ],
)
def test_what_is_not_plain_is_left_to_python(nothing, given, feedback):
    given, seen = given(), Seen(nothing)
    before = [t.clone() for t in tensors(given)]
    Kernels(seen).step_(feedback, "sgd", given)
    assert seen.asked == [False]
    assert all(map(torch.equal, before, tensors(given)))


@pytest.mark.parametrize(
    ("scales", "count", "plain"), [(32, 1, True), (33, 1, False), (2, 32, True), (2, 33, False)]
)
def test_projections_beyond_a_table_are_left_to_python(nothing, delta, scales, count, plain):
    """Of different scales, each ``count`` times."""
    delta(STORED)
    first, *_ = updates("sgd")
    segments = [first.segments[0]._replace(scale=float(i)) for i in range(scales)] * count
    given = [first._replace(segments=segments)]
    assert started(Seen(nothing), "sgd", given) is plain


def replaced(given, **changed):
    """With another record in the last update."""
    *first, last = given
    (segment, *_) = last.segments
    segments = [segment._replace(layer=segment.layer._replace(**changed))]
    return [*first, last._replace(segments=segments)]


def described(changed):
    """The same in every process, which a tensor's values are not."""
    ((name, value),) = changed.items()
    if torch.is_tensor(value):
        return f"{name} {tuple(value.shape)} {value.stride()} {value.dtype}"
    return f"{name} {value}"


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": torch.randn(20, 16)},
        {"inputs": torch.randn(21, 15)},
        {"inputs": torch.randn(21, 16).double()},
        {"saved": torch.randn(21, 9)},
        {"saved": torch.randn(21, 10).half()},
        {"activation": "unknown"},
        {"stream": -2},
        {"rows": 2},
        {"inputs": torch.randn(16, 21).T},
        {"inputs": torch.randn(1, 16).expand(21, 16)},
        {"inputs": None},
        {"stream": None},
    ],
    ids=described,
)
def test_records_that_are_not_plain(nothing, changed):
    seen = Seen(nothing)
    given = replaced(updates("sgd"), **changed)
    assert not started(seen, "sgd", given)
    assert seen.asked == [False]
