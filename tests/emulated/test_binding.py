"""What csrc/binding.cpp refuses, and what is launched where one table does not hold it all."""

import pytest
import torch

from dfa_kernels.backends.contract import Layer, LayerUpdate, Segment, Update
from dfa_kernels.backends.cuda import project, rules, update
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.backends.cuda.launch import Launcher
from dfa_kernels.backends.cuda.rules import Device
from dfa_kernels.backends.grouped.hyper import COLUMNS
from dfa_kernels.backends.grouped.plan import Applied, Group, Grouped, Target, Term
from dfa_kernels.feedback import Feedback

CPU, DEVICE = torch.device("cpu"), Device(0, 8)
SGD = (0.1, 0.9, 0, 0, 0, 0, 0)


def scratch(floats, counters):
    raise AssertionError("no sum is split here")


def numbers(launch):
    return [0, 0, launch.multiprocessors, *launch.table]


@pytest.fixture
def projection():
    """A good list for `project`."""
    error, out, saved = torch.zeros(4, 8), torch.zeros(4, 16), torch.zeros(4, 16)
    groups = [Group(error, 0.5, 0, [Target(out, 16, 1, saved, "tanh")])]
    (launch,) = project.launches(groups, Feedback(seed=2**63 - 1), DEVICE)
    yield numbers(launch)


@pytest.fixture
def step():
    """A good list for `update`."""
    weight = Applied(torch.zeros(16, 8), (torch.zeros(16, 8),), None, SGD)
    bias = Applied(torch.zeros(16), (torch.zeros(16),), None, SGD)
    grouped = [Grouped(weight, bias, [Term(torch.zeros(4, 8), torch.zeros(4, 16))])]
    (launch,) = update.launches("sgd", Feedback(), grouped, DEVICE)
    yield numbers(launch)


# Places in the lists, as the docstrings of project.py and update.py order them.
P = {"device": 0, "multiprocessors": 2, "compute": 3, "out dtype": 7, "groups": 10, "N": 11}
P |= {"E": 12, "error": 13, "error stride": 14, "stream": 15, "targets": 17, "k": 18, "D": 19}
P |= {"padded": 20, "out": 21, "out stride": 22, "activation": 23, "saved": 24}
U = {"fly": 6, "rule": 7, "rows": 13, "layers": 21, "D": 22, "K": 23, "stride": 24}
U |= {"weight": 25, "state": 26, "row": 29, "segments": 35, "N": 36, "x": 37, "x stride": 38}
U |= {"delta": 39, "delta stride": 40}


def test_good_lists_pass(nothing, projection, step):
    nothing.project(projection)
    nothing.update(step, scratch)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("device", -1, "the device must be in"),
        ("multiprocessors", 0, "multiprocessors must be in"),
        ("compute", 4, "what is computed in must be in"),
        ("out dtype", 3, "δ's dtype must be in"),
        ("groups", 33, r"the groups of a launch must be in \[0, 32\], got 33"),
        ("N", 2**31, "the rows of the error must be in"),
        ("E", -1, "the width of the error must be in"),
        ("error", 0, "the error is a null pointer"),
        ("error", 4098, "the error lies at an address that is no multiple of its elements' 4"),
        ("error stride", 7, "the error has rows of 8 elements, 7 apart"),
        ("stream", -2, "the stream must be in"),
        ("targets", 0, "the targets of a launch must be in"),
        ("targets", 65, "the targets of a launch must be in"),
        ("k", 0, "the rows for each row of the error must be in"),
        ("padded", 15, "padded to fewer columns"),
        ("out", 0, "δ is a null pointer"),
        ("out stride", 15, "δ has rows of 16 elements, 15 apart"),
        ("activation", 7, "the activation must be in"),
        ("saved", 0, "what f′ is read from is a null pointer"),
    ],
)
def test_project_refuses(nothing, projection, place, value, message):
    projection[P[place]] = value
    with pytest.raises(ValueError, match=message):
        nothing.project(projection)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("rule", 3, "the rule must be in"),
        ("rows", 33, r"the rows of hyperparameters must be in \[0, 32\]"),
        ("layers", 65, r"the layers of a launch must be in \[0, 64\]"),
        ("D", 2**31, "the rows of a weight must be in"),
        ("stride", 7, "a weight has rows of 8 elements, 7 apart"),
        ("weight", 0, "a parameter is a null pointer"),
        ("state", 2, "a state lies at an address"),
        ("state", 0, "a state that the rule reads is a null pointer"),
        ("row", 1, "the row of hyperparameters must be in"),
        ("segments", 129, r"the segments of a launch must be in \[0, 128\]"),
        ("x", 0, "x is a null pointer"),
        ("x stride", 4, "x has rows of 8 elements, 4 apart"),
        ("delta", 0, "δ is a null pointer"),
        ("delta stride", 15, "δ has rows of 16 elements"),
    ],
)
def test_update_refuses(nothing, step, place, value, message):
    step[U[place]] = value
    with pytest.raises(ValueError, match=message):
        nothing.update(step, scratch)


@pytest.mark.parametrize(
    ("address", "message"),
    [(0, "a row of hyperparameters is a null pointer"), (4, "no multiple of its elements' 8")],
)
def test_update_refuses_rows_that_are_nowhere(nothing, step, address, message):
    """Without rows in the list a weight's are in memory."""
    step[U["rows"] : U["layers"]] = [0]
    step[U["row"] - COLUMNS] = address
    with pytest.raises(ValueError, match=message):
        nothing.update(step, scratch)


def test_no_rows_are_stored(nothing, step):
    step[U["rule"]] = 0
    step[U["rows"] : U["layers"]] = [0]
    with pytest.raises(ValueError, match="to store a gradient takes a row of zeros"):
        nothing.update(step, scratch)


@pytest.mark.parametrize("change", [lambda n: n[:-1], lambda n: [*n, 0]])
def test_lists_of_another_length(nothing, projection, step, change):
    with pytest.raises(ValueError, match="the list (ends after|has)"):
        nothing.project(change(projection))
    with pytest.raises(ValueError, match="the list (ends after|has)"):
        nothing.update(change(step), scratch)


def test_numbers_that_are_none(nothing, projection):
    for wrong, raises in ((2**64, OverflowError), ("8", TypeError), (None, TypeError)):
        projection[P["N"]] = wrong
        with pytest.raises(raises):
            nothing.project(projection)


def test_a_device_that_is_not_there(nothing, projection):
    projection[P["device"]] = 7
    with pytest.raises(RuntimeError, match="there is no such device"):
        nothing.project(projection)


def test_the_limits_are_the_tables(nothing):
    assert nothing.limits == {
        "groups": project.GROUPS,
        "targets": project.TARGETS,
        "layers": update.LAYERS,
        "segments": update.SEGMENTS,
        "rows": update.ROWS,
        "fly_error": rules.FLY_ERROR,
    }


# A sum that is split ----------------------------------------------------------------------------


def test_a_split_sum_asks_for_scratch(nothing):
    asked = []

    def give(floats, counters):
        asked.append((floats, counters))
        return 4096, 8192

    grouped = [
        Grouped(Applied(torch.zeros(5, 7)), None, [Term(torch.zeros(999, 7), torch.zeros(999, 8))])
    ]
    (launch,) = update.launches("store", Feedback(), grouped, DEVICE)
    nothing.update(numbers(launch), give)
    rows, height, width, *_ = nothing.update_tile(rules.compute(torch.float32), False, False)
    splits = min(8, -(-999 // rows) // 4)
    assert asked == [(splits * height * (width + 1), 1)]


# More than a table holds ------------------------------------------------------------------------


class Counted:
    """A module that counts its launches, and runs none."""

    def __init__(self, core):
        self.core, self.seen = core, []
        self.plain_step = lambda *_: False  # each must be planned in Python

    def project(self, numbers):
        self.seen.append("project")
        self.core.project(numbers)

    def update(self, numbers, scratch):
        self.seen.append("update")
        self.core.update(numbers, scratch)


@pytest.fixture
def counted(nothing):
    return Counted(nothing)


@pytest.mark.parametrize(("groups", "targets", "launches"), [(33, 1, 2), (1, 65, 2), (3, 60, 3)])
def test_projections_beyond_a_table(counted, groups, targets, launches):
    error = torch.zeros(2, 3)
    made = [
        Group(error, 1.0, stream, [Target(torch.zeros(2, 4), 4, 1) for _ in range(targets)])
        for stream in range(groups)
    ]
    planned = project.launches(made, Feedback(), DEVICE)
    Launcher(counted).run(planned, CPU)
    assert counted.seen == ["project"] * launches
    served = [t for x in planned for g in x.kept[0] for t in g.targets]
    assert len(served) == groups * targets


def layer(rows, lr=0.1, count=1, scales=(0.1,)):
    weight, bias = torch.zeros(4, 5), torch.zeros(4)
    hyper = (lr, *SGD[1:])
    error = torch.zeros(rows, 33)
    record = Layer(torch.zeros(rows, 5), torch.zeros(rows, 4), "tanh", 0, 1)
    segments = [Segment(error, s, record) for s in scales for _ in range(count)]
    return LayerUpdate(
        Update(weight, (torch.zeros(4, 5),), hyper),
        Update(bias, (torch.zeros(4),), hyper),
        segments,
    )


@pytest.mark.parametrize(
    ("updates", "launches"),
    [
        ([layer(3) for _ in range(64)], 1),
        ([layer(3) for _ in range(65)], 2),
        ([layer(3, count=64) for _ in range(3)], 2),
        ([layer(3, lr=i) for i in range(33)], 2),
        ([layer(3, count=200)], 1),
    ],
    ids=["as many layers", "layers", "segments", "rows", "segments of one layer"],
)
def test_updates_beyond_a_table(counted, updates, launches):
    Kernels(counted).step_(Feedback(), "sgd", updates)
    assert counted.seen.count("update") == launches


def test_too_many_kinds_of_terms(counted):
    updates = [layer(3, scales=[0.1 + i for i in range(5)], count=30)]
    Kernels(counted).step_(Feedback(), "sgd", updates)
    terms = [Term(torch.zeros(1, 2), torch.zeros(1, 4), scale=float(i)) for i in range(129)]
    grouped = [Grouped(Applied(torch.zeros(4, 2)), None, terms)]
    with pytest.raises(ValueError, match="at most 128 kinds of terms into a gradient, and 129"):
        update.launches("store", Feedback(), grouped, DEVICE)
