"""Steps that repeat each other: the bits of steps planned anew, wherever their tensors lie."""

import pytest
import torch

from dfa_kernels import backends
from dfa_kernels.backends.contract import Repeated, Segment
from dfa_kernels.backends.triton import tuning
from dfa_kernels.backends.triton.launch import Launcher
from dfa_kernels.backends.triton.repeated import Arena, RepeatedStep
from dfa_kernels.backends.triton.update_kernel import HEADER, UPDATE
from dfa_kernels.feedback import Feedback
from tests.interpreted.oracle import HYPER, head, mapped, parameters, record, stepped, tensors
from tests.interpreted.rows import in_memory, with_rows

FEEDBACK = Feedback("uniform", seed=5)


@pytest.fixture
def again(monkeypatch):
    """How many steps were started without a plan."""
    counts = []
    start = Launcher.again
    monkeypatch.setattr(Launcher, "again", lambda *given: counts.append(1) or start(*given))
    return counts


class Loop:
    """A network of two layers and a head, stepped by a prepared step and, beside it, by `step_`;
    weights and biases have different rows."""

    def __init__(self, rule, dtype=torch.float32, copy=None, outputs=3, biases_too=True):
        torch.manual_seed(3)
        self.rule, self.dtype, self.outputs = rule, dtype, outputs
        self.batches = [self._batch(rows) for rows in (9, 9, 6)]
        error, layers = self.batches[0]
        rows = self.rows(0)
        self.ours = [
            with_rows(stepped(rule, [Segment(error, 0.2, layer)], copy=copy), *rows)
            for layer in layers
        ]
        if not biases_too:
            self.ours = [u._replace(bias=u.bias._replace(copy=None)) for u in self.ours]
        self.theirs = [
            type(u)(*(mapped(own, torch.clone) for own in u[:2]), u.segments) for u in self.ours
        ]
        self.run = backends.get("triton").repeated(FEEDBACK, rule, self.ours)

    def _batch(self, rows):
        layers = [record(rows, 5, 6, "tanh", dtype=self.dtype)]
        layers.append(record(rows, 6, 7, "gelu", dtype=self.dtype))
        error = torch.randn(rows, self.outputs).to(self.dtype)
        return error, [*layers, head(error, 7)]

    def rows(self, step):
        """Of all weights and of all biases: another rate and count at each step."""
        first = HYPER[self.rule]
        last = first[-1] + step if self.rule == "adamw" else first[-1]
        return [(rate * 0.8**step, *first[1:-1], last) for rate in (0.1, 0.2)]

    def step(self, number, batch=0, rows=None, error=None):
        given, layers = self.batches[batch]
        given = given if error is None else error
        rows = self.rows(number) if rows is None else rows
        whole = given, [x.inputs for x in layers], [x.saved for x in layers], rows
        self.run(*whole)
        made = Repeated.of(self.theirs).whole(*whole)
        backends.get("triton").step_(FEEDBACK, self.rule, made)
        ours, theirs = (
            [*tensors(u), *(own.copy for own in parameters(u) if own.copy is not None)]
            for u in (self.ours, self.theirs)
        )
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("copy", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_the_bits_are_those_of_planning_anew(rule, dtype, copy, either_delta, again):
    loop = Loop(rule, dtype, copy)
    for step, batch in enumerate((0, 0, 1, 2, 0, 2, 1)):
        loop.step(step, batch)
    if either_delta == "on-the-fly":  # what is stored may lie elsewhere
        assert len(again) == 4


def test_a_bias_without_a_copy_beside_a_weight_with_one(delta, again):
    """As where the weight is bf16, its bias fp32, with masters: the kept plan has no address of a
    copy for it, which would be of memory that only the first step had."""
    delta("on-the-fly")
    loop = Loop("adamw", torch.bfloat16, torch.bfloat16, biases_too=False)
    for step in range(4):
        loop.step(step)
    assert len(again) == 3
    (planned,) = loop.run._planned.values()
    (((launch, _),),) = planned.ready.values()
    starts = range(HEADER, HEADER + 3 * UPDATE, UPDATE)
    copies = [(launch.table[i + 5], launch.table[i + 10]) for i in starts]
    assert copies == [(u.weight.copy.data_ptr(), 0) for u in loop.ours]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_stored_delta_is_planned_once_for_every_place(places, delta, again, monkeypatch):
    """An allocator may give two blocks in turns."""
    delta("stored")
    monkeypatch.setattr(RepeatedStep, "LIMIT", 2)
    loop, blocks, made = Loop("sgd"), [], torch.Tensor.new_empty

    def in_turns(self, *given, **kwargs):
        if kwargs.get("dtype") is not torch.uint8:
            return made(self, *given, **kwargs)
        blocks.append(blocks[-places] if len(blocks) >= places else made(self, *given, **kwargs))
        return blocks[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", in_turns)
    for step in range(7):
        loop.step(step)
    assert len(again) == {1: 6, 2: 5, 3: 0}[places]


@pytest.mark.parametrize(("width", "bytes_"), [(3, 4 * 9 * (8 + 8 + 4)), (4, 4 * 9 * (8 + 8))])
def test_no_more_memory_is_asked_for_than_delta_takes(width, bytes_, delta, monkeypatch):
    """Of an error whose rows are whole vectors the head's δ is the error, where that lies."""
    delta("stored")
    monkeypatch.setattr(Arena, "APART", 4)
    asked, made = [], torch.Tensor.new_empty

    def asking(self, size, **kwargs):
        asked.append((size, kwargs.get("dtype")))
        return made(self, size, **kwargs)

    loop = Loop("sgd", outputs=width)
    monkeypatch.setattr(torch.Tensor, "new_empty", asking)
    for step in range(2):
        loop.step(step)
    assert [size for size, dtype in asked if dtype == torch.uint8] == [bytes_] * 2


def test_much_delta_has_memory_of_its_own(delta, again, monkeypatch):
    delta("stored")
    monkeypatch.setattr(Arena, "LARGEST", 500)
    loop = Loop("sgd")
    for step in range(3):
        loop.step(step)
    assert not again


def _a_weight_elsewhere(loop):
    for updates in (loop.ours, loop.theirs):
        weight = updates[1].weight.parameter
        weight.data = weight.data.clone()


def _a_state_elsewhere(loop):
    for updates in (loop.ours, loop.theirs):
        state = updates[1].bias.states[0]
        state.data = state.data.clone()


def _a_copy_elsewhere(loop):
    for updates in (loop.ours, loop.theirs):
        copy = updates[0].weight.copy
        copy.data = copy.data.clone()


def _inputs_elsewhere(loop):
    error, (first, *others) = loop.batches[0]
    loop.batches[0] = error, [first._replace(inputs=first.inputs.clone()), *others]


def _outputs_elsewhere(loop):
    error, (first, *others) = loop.batches[0]
    loop.batches[0] = error, [first._replace(saved=first.saved.clone()), *others]


def _fewer_rows_at_the_same_place(loop):
    error, layers = loop.batches[0]
    layers = [x._replace(inputs=x.inputs[:4], saved=x.saved[:4]) for x in layers]
    loop.batches[0] = error[:4], layers


def _rows_that_lie_apart(loop):
    """At the same place: every second row of twice as many."""
    error, (first, *others) = loop.batches[0]
    around = torch.randn(18, 5)
    loop.batches[0] = error, [first._replace(inputs=around[:9]), *others]
    loop.step(20)
    loop.step(21)
    loop.batches[0] = error, [first._replace(inputs=around[::2]), *others]


MOVED = {
    name.lstrip("_").replace("_", " "): change
    for name, change in list(globals().items())
    if name.startswith("_") and callable(change) and not name.startswith("__")
}


@pytest.mark.parametrize("change", MOVED)
def test_tensors_that_lie_elsewhere_are_found(change, delta, again):
    delta("on-the-fly")
    loop = Loop("adamw", copy=torch.bfloat16)
    loop.step(0), loop.step(1)
    MOVED[change](loop)
    before = len(again)
    loop.step(2)
    assert len(again) == before
    loop.step(3)
    assert len(again) == before + 1


def test_rows_that_become_equal_or_differ(delta, again):
    """A launch has each once: with others of them it is another."""
    delta("on-the-fly")
    loop = Loop("sgd")
    one, other = loop.rows(0)
    for step, rows in enumerate(([one, other], [one, one], [other, other], [other, one])):
        loop.step(step, rows=rows)
    assert len(again) == 2


@pytest.mark.parametrize("allowed", [False, True])
def test_what_the_environment_says_is_followed(allowed, delta, again, allow_tf32):
    delta("on-the-fly")
    loop = Loop("sgd")
    loop.step(0), loop.step(1)
    if allowed:
        allow_tf32(True)
    else:
        delta("stored")
    loop.step(2)
    assert len(again) == 1


def _an_error_of_another_dtype(loop):
    return {"error": loop.batches[0][0].double().float().bfloat16()}


def _an_input_that_is_transposed(loop):
    error, (first, *others) = loop.batches[0]
    across = torch.randn(5, 9).T
    loop.batches[0] = error, [first._replace(inputs=across), *others]
    return {}


@pytest.mark.parametrize("made_of", [_an_error_of_another_dtype, _an_input_that_is_transposed])
def test_what_is_made_for_one_step_is_planned_anew(made_of, delta, again):
    """The copies' addresses would be others'."""
    delta("on-the-fly")
    loop = Loop("sgd")
    given = made_of(loop)
    for step in range(3):
        loop.step(step, **given)
    assert not again


def test_a_transposed_parameter_is_planned_anew(again):
    loop = Loop("sgd")
    for updates in (loop.ours, loop.theirs):
        for u in parameters(updates):
            u.parameter.data = (
                u.parameter.data.T.contiguous().T if u.parameter.dim() == 2 else u.parameter
            )
    for step in range(3):
        loop.step(step)
    assert not again


def test_a_users_matrix_is_planned_anew(again):
    torch.manual_seed(3)
    error = torch.randn(4, 3)
    update = stepped("sgd", [Segment(error, 0.2, record(4, 5, 6))])
    matrix = Feedback.from_matrix(torch.randn(3, 6))
    run = backends.get("triton").repeated(matrix, "sgd", [update])
    layer = update.segments[0].layer
    for _ in range(3):
        run(error, [layer.inputs], [layer.saved], [HYPER["sgd"]])
    assert not again


def test_tuning_finds_its_tiles_by_the_usual_way(again, monkeypatch):
    monkeypatch.setattr(tuning, "ENABLED", True)
    monkeypatch.setattr(tuning, "settled", lambda *given: (next(iter(given[3])), None))
    loop = Loop("sgd")
    for step in range(3):
        loop.step(step)
    assert not again


def test_so_many_sets_of_addresses_are_kept(delta, again, monkeypatch):
    delta("on-the-fly")
    monkeypatch.setattr(RepeatedStep, "LIMIT", 2)
    loop = Loop("sgd")
    for step, batch in enumerate((0, 1, 2, 2, 1, 0)):
        loop.step(step, batch)
    assert len(again) == 2


def test_rows_in_memory_are_not_prepared():
    error = torch.randn(4, 3)
    update = stepped("sgd", [Segment(error, 0.2, record(4, 5, 6))])
    given = [in_memory(update, HYPER["sgd"], HYPER["sgd"])]
    assert backends.get("triton").repeated(FEEDBACK, "sgd", given) is None
