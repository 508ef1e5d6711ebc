"""Where tensors lie: views that are read in place and those that are copied; rows of vectors."""

import mmap

import pytest
import torch
from oracle import check_gradients, check_project, check_step, head, record, stepped

from dfa_kernels import ops
from dfa_kernels.backends.contract import Layer, Point, Segment, Update
from dfa_kernels.feedback import Feedback


def strided(t):
    """Rows that are further apart than they are long, in whole vectors."""
    return torch.cat((t, t, t), dim=1)[:, : t.shape[1]]


def offset(t):
    """An address that is no multiple of a vector."""
    return torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape)


def transposed(t):
    return t.T.contiguous().T


def expanded(t):
    """One row for all: a row stride of 0."""
    return t[:1].expand(t.shape)


def columns(t):
    """The last columns of a wider matrix: nothing follows its last row."""
    return torch.cat((t, t), dim=1)[:, t.shape[1] :]


IN_PLACE = {"strided": strided, "offset": offset, "columns": columns}
VIEWS = {**IN_PLACE, "transposed": transposed}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_give_what_their_copies_give(view, dtype, either_delta):
    error = view(torch.randn(19, 12).to(dtype))
    layers = [record(19, 20, 36, f, dtype=dtype) for f in ("tanh", "silu")] + [head(error, 20)]
    layers = [x._replace(inputs=view(x.inputs), saved=view(x.saved)) for x in layers]
    check_gradients(error, Feedback(), 0.1, layers)
    check_project(error, Feedback(), 0.1, [Point(36, 0, 2, dtype)])


def test_one_row_for_all_is_what_its_copies_are(either_delta):
    """As the error of a loss that sums over the batch is."""
    error = expanded(torch.randn(19, 12))
    layers = [record(19, 20, 36), head(error, 20)]
    given = [x._replace(inputs=expanded(x.inputs), saved=expanded(x.saved)) for x in layers]
    copies = [x._replace(inputs=x.inputs.clone(), saved=x.saved.clone()) for x in given]
    made = ops.gradients(error, Feedback(), 0.1, given, torch.float32)
    wanted = ops.gradients(error.clone(), Feedback(), 0.1, copies, torch.float32)
    for ours, theirs in zip(made, wanted, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_the_head_reads_no_further_than_its_error(delta, launched):
    """The error lies between NaNs, in rows of whole vectors."""
    delta("stored")
    around = torch.full((21, 24), float("nan"))
    error = around[1:20, 8:20].copy_(torch.randn(19, 12))
    made = check_gradients(error, Feedback(), 0.1, [head(error, 20)])
    assert len(launched) == 1
    assert made[0][0].isfinite().all()


def test_a_users_matrix_that_is_copied_lives_until_it_is_read(launched):
    """A transposed one, whose copy has the address that the launch reads."""
    matrix, error = torch.randn(17, 5).T, torch.randn(6, 5)
    points = [Point(17, 0, 1, torch.float32)]
    (made,) = ops.project(error, Feedback.from_matrix(matrix), 0.5, points)
    torch.testing.assert_close(made, error @ matrix * 0.5)
    (launch,) = launched
    assert launch.table[2] == launch.kept.data_ptr() != matrix.data_ptr()


@pytest.mark.parametrize("view", IN_PLACE.values(), ids=IN_PLACE)
def test_rows_of_adjacent_elements_are_read_where_they_lie(view, launched, either_delta):
    error = view(torch.randn(19, 12))
    layer = record(19, 20, 36)
    layer = layer._replace(inputs=view(layer.inputs), saved=view(layer.saved))
    ops.gradients(error, Feedback(), 0.1, [layer], torch.float32)
    addresses = {entry for launch in launched for entry in launch.table}
    for tensor in (error, layer.inputs, layer.saved):
        assert tensor.data_ptr() in addresses


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("view", [strided, offset, transposed], ids=lambda f: f.__name__)
def test_parameters_that_are_views(view, rule, either_delta):
    error = torch.randn(19, 12)
    update = stepped(rule, [Segment(error, 0.1, record(19, 20, 36))])
    weight = Update(
        view(update.weight.parameter), tuple(map(view, update.weight.states)), update.weight.hyper
    )
    check_step(Feedback(), rule, [update._replace(weight=weight)])


@pytest.mark.parametrize("view", [strided, offset, transposed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", ["parameter", "copy"])
def test_copies_and_their_masters_that_are_views(which, view, either_delta):
    error = torch.randn(19, 12)
    segments = [Segment(error, 0.1, record(19, 20, 36))]
    update = stepped("adamw", segments, copy=torch.bfloat16)
    weight = update.weight
    changed = {which: view(getattr(weight, which))}
    if which == "parameter":
        changed["states"] = tuple(map(view, weight.states))
    check_step(Feedback(), "adamw", [update._replace(weight=weight._replace(**changed))])


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_states_with_other_strides_than_their_parameter(rule):
    error = torch.randn(19, 12)
    update = stepped(rule, [Segment(error, 0.1, record(19, 20, 36))])
    states = [transposed(update.weight.states[0]), *map(strided, update.weight.states[1:])]
    weight = update.weight._replace(states=tuple(states))
    check_step(Feedback(), rule, [update._replace(weight=weight)])


def test_what_lies_between_rows_is_not_touched(either_delta):
    error = torch.randn(19, 12)
    update = stepped("sgd", [Segment(error, 0.1, record(19, 21, 35))])
    around = [torch.full((37, 30), 7.0) for _ in range(2)]
    inside = [t[1:36, 4:25] for t in around]
    inside[0].copy_(update.weight.parameter)
    inside[1].copy_(update.weight.states[0])
    weight = update.weight._replace(parameter=inside[0], states=(inside[1],))
    ops.step_(Feedback(), "sgd", [update._replace(weight=weight)])
    for t in around:
        t[1:36, 4:25] = 7.0
        assert (t == 7.0).all()


# Which variant is compiled -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "variant"),
    [([16, 32], "all"), ([15, 33], "none"), ([15, 32], "some")],
    ids=["all", "none", "some"],
)
@pytest.mark.parametrize("kind", ["cpu", "hip"], ids=["bulk copies", "plain loads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aligned_rows(widths, variant, kind, dtype, launched, either_delta, device):
    device(kind=kind)
    error = torch.randn(35, 8).to(dtype)
    layers = [record(35, w, w, dtype=dtype) for w in widths]
    check_gradients(error, Feedback(), 0.1, layers, dtype)
    update = launched[-1].constants
    assert (update.aligned.value, update.bulk.value) == (variant, kind == "cpu")
    # δ's own rows are always whole vectors, but what f′ is read from may not be
    assert either_delta == "on-the-fly" or launched[0].constants.whole.value == variant


@pytest.mark.parametrize("width", [15, 16])
@pytest.mark.parametrize("error_width", [7, 8])
def test_steps_of_aligned_and_other_rows(width, error_width, either_delta):
    error = torch.randn(35, error_width)
    layers = [record(35, width, 32), record(35, 32, width), head(error, width)]
    for rule in ("sgd", "adamw"):
        check_step(Feedback(), rule, [stepped(rule, [Segment(error, 0.1, x)]) for x in layers])


FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("x", "parameter", "state", "width", "variant"),
    [
        (FP32, FP32, FP32, 12, "all"),
        (BF16, FP32, FP32, 12, "none"),
        (FP32, BF16, FP32, 12, "none"),
        (FP32, FP32, BF16, 12, "none"),
        (BF16, BF16, FP32, 16, "all"),
    ],
)
def test_rows_are_whole_vectors_of_every_dtype(x, parameter, state, width, variant, launched):
    error = torch.randn(9, 8).to(x)
    segment = Segment(error, 0.1, record(9, width, 16, dtype=x))
    ops.step_(Feedback(), "sgd", [stepped("sgd", [segment], dtype=parameter, state=state)])
    assert launched[-1].constants.aligned.value == variant


@pytest.mark.parametrize("what", ["parameter", "state", "inputs", "saved", "nothing"])
def test_an_address_that_is_no_vectors_is_seen(what, launched, delta):
    delta("on-the-fly")
    layer = record(9, 16, 16)
    if what in ("inputs", "saved"):
        layer = layer._replace(**{what: offset(getattr(layer, what))})
    update = stepped("sgd", [Segment(torch.randn(9, 8), 0.1, layer)])
    weight = update.weight
    if what == "parameter":
        weight = weight._replace(parameter=offset(weight.parameter))
    elif what == "state":
        weight = weight._replace(states=(offset(weight.states[0]),))
    ops.step_(Feedback(), "sgd", [update._replace(weight=weight)])
    assert launched[-1].constants.aligned.value == ("all" if what == "nothing" else "none")


# Offsets of more than 2³¹ elements ---------------------------------------------------------------

ROWS, APART = 300, 2**24 - 16  # the last row is 5·10⁹ elements from the first


@pytest.fixture
def far(overflow_checked):
    """fp16 matrices whose rows are ``APART`` elements apart: 10 GB of address space, of which only
    the pages that are written exist."""
    torch.use_deterministic_algorithms(False)

    def make(values):
        memory = mmap.mmap(-1, 2 * ((ROWS - 1) * APART + values.shape[1]) + 4096)
        whole = torch.frombuffer(memory, dtype=torch.float16)
        return whole.as_strided(values.shape, (APART, 1)).copy_(values)

    return make


def test_rows_beyond_32_bits_are_read(far, either_delta):
    error = far(torch.randn(ROWS, 5))
    layer = record(ROWS, 7, 9, "tanh", dtype=torch.float16)
    layer = layer._replace(inputs=far(layer.inputs), saved=far(layer.saved))
    check_gradients(error, Feedback(), 0.1, [layer, head(error, 7)])


def test_rows_beyond_32_bits_are_written(far):
    error = torch.randn(9, 5).half()
    update = stepped("sgd", [Segment(error, 0.1, record(9, 7, ROWS, dtype=torch.float16))],
                     dtype=torch.float16)  # fmt: skip
    near = update.weight
    weight = near._replace(parameter=far(near.parameter), states=(far(near.states[0]),))
    for given in (near, weight):
        ops.step_(Feedback(), "sgd", [update._replace(weight=given, bias=None)])
    assert torch.equal(near.parameter, weight.parameter)
    assert torch.equal(near.states[0], weight.states[0])


def test_several_far_rows_for_each_row_of_the_error(far, either_delta):
    error = torch.randn(ROWS // 3, 5).half()
    layer = record(ROWS // 3, 7, 9, "gelu", rows=3, dtype=torch.float16)
    whole = [far(t) for t in (layer.inputs, layer.saved)]
    ours = [t.as_strided(t.shape, (APART // 4, 1)).copy_(t) for t in whole]
    check_gradients(error, Feedback(), 0.1, [Layer(ours[0], ours[1], "gelu", 0, 3)])
