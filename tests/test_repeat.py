"""A step that repeats the last one has the bits of one that plans anew."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from test_chain import network
from test_optim import CASES, IDS, batches
from torch import nn

import dfa_kernels as dfa
from dfa_kernels import backends
from dfa_kernels.activation import ACTIVATIONS

NAMES = [f.name for f in ACTIVATIONS]


def step(net, optimizer, x, y):
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(
    optimizer_of, net, between=None, steps=6, plain=False, dtype=torch.float64, schedule_of=None
):
    """The parameters and states after every step; ``between`` is called once, when steps are
    repeated."""
    optimizer = optimizer_of(net)
    if plain:
        optimizer._remember = lambda *_: None
    schedule = schedule_of and schedule_of(optimizer)
    seen = []
    for i, (x, y) in enumerate(batches(steps, dtype)):
        if between is not None and i == 4:
            between(net, optimizer)
        step(net, optimizer, x[: 11 - i], y[: 11 - i])
        if schedule:
            schedule.step()
        seen += [p.detach().clone() for p in net.parameters()]
        for own in optimizer.state.values():
            seen += [t.clone() for t in own.values() if torch.is_tensor(t)]
    return seen


def assert_same(ours, wanted):
    assert len(ours) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def momentum(net, **kwargs):
    return dfa.optim.SGD(net, lr=0.1, momentum=0.9, **kwargs)


# The bits ---------------------------------------------------------------------------------------


def constant(optimizer):
    return None


def another_rate_at_every_step(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)


@pytest.mark.parametrize("schedule", [constant, another_rate_at_every_step])
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_every_rule(name, kwargs, masters, schedule, repeated):
    def optimizer(net):
        return getattr(dfa.optim, name)(net, lr=0.1, master_weights=masters, **kwargs)

    dtype = torch.bfloat16 if masters else torch.float64
    made = [
        trained(
            optimizer, network().to(dtype), plain=plain, dtype=dtype, schedule_of=schedule
        )
        for plain in (True, False)
    ]  # fmt: skip
    assert_same(*made)
    assert len(repeated) == 4


def test_a_schedule_of_momentum_repeats_nothing(repeated):
    def cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=6)

    made = [trained(momentum, network(), plain=plain, schedule_of=cycle) for plain in (True, False)]
    assert_same(*made)
    assert not repeated


@pytest.mark.parametrize("head", ["identity", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", NAMES)
def test_every_activation(hidden, head, repeated):
    wanted = trained(momentum, network((hidden, "relu", head)), plain=True)
    assert_same(trained(momentum, network((hidden, "relu", head))), wanted)
    assert len(repeated) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [{"shared": False}, {"distribution": "normal"}, {"scale": 0.3}])
def test_any_feedback_and_dtype(given, dtype, repeated):
    made = []
    for plain in (True, False):
        net = network(feedback=dfa.Feedback(seed=3, **given)).to(dtype)
        made.append(trained(momentum, net, plain=plain, dtype=dtype))
    assert_same(*made)
    assert len(repeated) == 4


def test_a_matrix_of_many_bytes_is_multiplied_in_slabs(repeated, monkeypatch):
    monkeypatch.setattr("dfa_kernels.backends.reference._COMPACT", 100)
    monkeypatch.setattr("dfa_kernels.backends.reference._SLAB", 2 * 31 * 8)
    made = []
    for plain in (True, False):
        backends.get("reference").matrices.clear()
        made.append(trained(momentum, network(), plain=plain))
    backends.get("reference").matrices.clear()
    assert_same(*made)
    assert len(repeated) == 4


@pytest.mark.parametrize(
    ("name", "own"),
    [("SGD", {"momentum": 0.5}), ("SGD", {"lr": 0.2}), ("AdamW", {"betas": (0.5, 0.6)})],
)
def test_by_groups_of_other_numbers(name, own, repeated):
    def optimizer(net):
        first = {"params": [net.module[0].weight], "weight_decay": 0.1, **own}
        return getattr(dfa.optim, name)([first, {"params": net}], lr=0.05)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda i: 1 / (1 + i), lambda i: 1])

    made = [
        trained(optimizer, network(), plain=plain, schedule_of=schedule) for plain in (True, False)
    ]
    assert_same(*made)
    assert len(repeated) == 4


# Other networks and steps -----------------------------------------------------------------------


def square(**kwargs):
    """Three layers, of which the last two have one shape."""
    torch.manual_seed(0)
    layers = [dfa.Linear(13, 5), dfa.Linear(5, 5, activation="tanh"), dfa.Linear(5, 5)]
    return dfa.DFA(nn.Sequential(*layers).double(), **kwargs)


def plain_sgd(net):
    return dfa.optim.SGD(net, lr=0.1)


def adamw(net):
    return dfa.optim.AdamW(net, lr=0.1)


def _another_matrix(net, optimizer):
    net.feedback_matrix = torch.ones_like(net.feedback_matrix)


def test_a_users_matrix_is_read_at_every_step(repeated):
    made = []
    for plain in (True, False):
        matrix = torch.linspace(-1, 1, 5 * 5, dtype=torch.float64).reshape(5, 5)
        net = square(feedback=dfa.Feedback.from_matrix(matrix))
        made.append(trained(momentum, net, _another_matrix, plain=plain))
    assert_same(*made)


def _by_another_feedback(net):
    return dfa.DFA(net.module, feedback=dfa.Feedback(seed=9))


def _by_other_activations(net):
    layers = [dfa.Linear(m.in_features, m.out_features, activation="relu") for m in net.module]
    other = dfa.DFA(nn.Sequential(*layers))
    for mine, layer in zip(other.module, net.module, strict=True):
        mine.weight, mine.bias = layer.weight, layer.bias
    return dfa.DFA(other.module, feedback=net.feedback)


@pytest.mark.parametrize("made_of", [_by_another_feedback, _by_other_activations])
def test_two_modules_of_the_same_parameters(made_of, repeated):
    made = []
    for plain in (True, False):
        net = square()
        other = made_of(net)
        optimizer = dfa.optim.SGD([{"params": net}, {"params": other}], lr=0.1)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(10)):
            step((net, other)[i % 5 // 3], optimizer, x, y)
        made.append(list(net.parameters()))
    assert_same(*made)
    assert repeated


def test_a_first_step_may_be_what_is_repeated(repeated):
    """Two on end are first ones: the next has other numbers."""
    made = []
    for plain in (True, False):
        net = square()
        optimizer = momentum(net)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(8)):
            if i in (3, 4):
                optimizer.state.clear()
            step(net, optimizer, x, y)
        made.append(list(net.parameters()))
    assert_same(*made)
    assert len(repeated) == 1 + 3


def test_a_step_of_two_records_is_not_what_is_repeated(repeated):
    net = square()
    optimizer = momentum(net)
    for count in (1, 2, 2, 2, 1, 1, 1):
        for x, y in batches(count):
            F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(repeated) == 1


def test_weights_of_another_dtype_are_seen(repeated):
    made = []
    for plain in (True, False):
        net = network()
        optimizer = dfa.optim.SGD(net, lr=0.1)
        if plain:
            optimizer._remember = lambda *_: None
        for x, y in batches(4):
            step(net, optimizer, x, y)
        net.float()
        for x, y in batches(4, torch.float32):
            step(net, optimizer, x, y)
        made.append(list(net.parameters()))
    assert_same(*made)
    # Two steps with the same numbers come before those that are repeated.
    assert len(repeated) == 2 + 3


def test_a_learning_rate_in_a_tensor_is_read_at_every_step(repeated):
    made = []
    for plain in (True, False):
        rate = torch.tensor(0.1)
        made.append(
            trained(
                lambda net, rate=rate: dfa.optim.SGD(net, lr=rate, momentum=0.9),
                network(), lambda *_, rate=rate: rate.fill_(0.01), plain=plain,
            )
        )  # fmt: skip
    assert_same(*made)
    assert len(repeated) == 4


def test_numbers_on_the_device_repeat_nothing(repeated):
    trained(lambda net: momentum(net, capturable=True), network())
    assert not repeated


def test_a_step_that_a_graph_captures_is_no_repetition(repeated, monkeypatch):
    """AdamW refuses it, whose count a replay would repeat."""
    net = network()
    optimizer = adamw(net)
    for x, y in batches(4):
        step(net, optimizer, x, y)
    assert len(repeated) == 2
    monkeypatch.setattr("dfa_kernels.repeat.capturing", lambda _: True)
    optimizer._repeat._on_gpu = True
    step(net, optimizer, x, y)
    assert len(repeated) == 2


@pytest.mark.parametrize("compiled", [0, 4])
def test_a_compiled_step_is_what_it_is_uncompiled(compiled, repeated):
    """From the first step on, or from the fifth."""
    torch._dynamo.reset()
    nets = [network(), network()]
    for net in nets:
        optimizer = momentum(net)
        of_compiler = torch.compile(optimizer.step, backend="eager")
        for i, (x, y) in enumerate(batches(6)):
            F.cross_entropy(net(x), y).backward()
            (of_compiler if net is nets[0] and i >= compiled else optimizer.step)()
            optimizer.zero_grad()
        assert not optimizer._fresh
    assert_same(*([p.detach() for p in net.parameters()] for net in nets))
    assert len(repeated) == 8


def test_two_networks_of_one_optimizer(repeated):
    made = []
    for plain in (True, False):
        nets = [network(), network(("relu", "relu", "tanh"))]
        optimizer = dfa.optim.SGD([{"params": n} for n in nets], lr=0.1, momentum=0.9)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(12)):
            step(nets[i % 5 // 4], optimizer, x, y)
        made.append([p.detach() for n in nets for p in n.parameters()])
    assert_same(*made)
    assert repeated


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.bfloat16] * 6,
        [None, None, None, torch.bfloat16, torch.bfloat16, None],
        [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float16, torch.float16, None],
    ],
)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_autocast_from_one_step_to_the_next(name, dtypes, repeated):
    made = []
    for plain in (True, False):
        net = network().float()
        optimizer = getattr(dfa.optim, name)(net, lr=0.1)
        if plain:
            optimizer._remember = lambda *_: None
        for (x, y), dtype in zip(batches(6, torch.float32), dtypes, strict=True):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made)
    # With every change of the dtype a step that is planned anew, and prepared.
    changes = sum(a is not b for a, b in itertools.pairwise(dtypes))
    assert len(repeated) == 4 - changes


# Backends ---------------------------------------------------------------------------------------


class _Own:
    """A backend that is told of `step_` alone."""

    def __init__(self):
        self.updates = []

    def unavailable(self, device):
        return None

    def describe(self):
        return "ours"

    def project(self, *args):
        return backends.get("reference").project(*args)

    def step_(self, feedback, rule, updates):
        self.updates.append([(id(u.weight), len(u.segments)) for u in updates])
        backends.get("reference").step_(feedback, rule, updates)


@pytest.fixture
def own():
    made = _Own()
    backends.register("own", made)
    yield made
    backends.unregister("own")


def test_another_backend_is_given_the_same_updates_with_new_segments(own, repeated):
    wanted = trained(momentum, network(), plain=True)
    with backends.use("own"):
        assert_same(trained(momentum, network()), wanted)
    assert len(repeated) == 4 and len(own.updates) == 6
    assert own.updates[3] == own.updates[4] == own.updates[5]
    assert [n for _, n in own.updates[5]] == [1, 1, 1]


def test_another_backend_from_here_on(own, repeated):
    net = network()
    optimizer = momentum(net)
    for i, (x, y) in enumerate(batches(9)):
        with backends.use("own" if i > 5 else None):
            step(net, optimizer, x, y)
    assert len(own.updates) == 3
    assert len(repeated) == 4 + 2


# Memory -----------------------------------------------------------------------------------------


def test_nothing_of_a_step_lives_on(repeated):
    net = network()
    optimizer = momentum(net)
    for x, y in batches(6):
        step(net, optimizer, x, y)
    assert [record() for record in repeated] == [None] * 4
    gc.disable()
    left = weakref.ref(optimizer), weakref.ref(net)
    del net, optimizer
    alive = left[0]()
    gc.enable()
    assert alive is None
    gc.collect()
    assert left[1]() is None
