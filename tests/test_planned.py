"""A forward pass that follows the last one's plan: the bits of one that plans anew, and whatever is
not as it was is seen."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.planned import Planned


class Field(nn.Module):
    """Layers that are no chain, and take other ways where the attributes say so."""

    def __init__(self, head=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = dfa.Linear(6, 8, activation="relu")
        self.second = dfa.Linear(8, 8, activation="tanh")
        self.third = dfa.Linear(8, 8, bias=False, activation="gelu")
        self.fourth = dfa.Linear(14, 7, activation="relu")
        self.last = dfa.Linear(7, 3, activation="tanh" if head == "tanh" else None)
        self.head = nn.Linear(7, 3)
        self.opaque, self.point = nn.Linear(14, 14), nn.ReLU()
        self.top = nn.Linear(3, 3)
        self.fuses_head = bool(head)
        self.skips = self.wired = self.twice = self.idles = self.has_point = self.has_top = False

    def forward(self, x):
        h = low = self.first(x)
        h = self.second(h)
        if not self.skips:
            h = self.third(low if self.wired else h)
        if self.twice:
            h = self.second(h)
        h = torch.cat((h, x), dim=-1)
        if self.idles:
            h = self.point(h)
        if self.has_point:
            h = self.point(self.opaque(h))
        h = self.fourth(h)
        h = self.last(h) if self.fuses_head else self.head(h)
        return self.top(h) if self.has_top else h


@pytest.fixture
def followed(monkeypatch):
    """Whether each forward pass with a plan before it followed that."""
    answers = []
    follow = Planned.follow

    def spy(self, *given):
        chain = follow(self, *given)
        answers.append(chain is not None)
        return chain

    monkeypatch.setattr(Planned, "follow", spy)
    return answers


def batches(count, dtype=torch.float32, shape=(9,)):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(*shape, 6, generator=generator).to(dtype)


def forget(net):
    net.planned = None


def trained(
    make,
    between=None,
    steps=6,
    plain=False,
    rule="AdamW",
    shape=(9,),
    dtypes=None,
    update="step",
    **given,
):
    """Outputs, parameters and states of every step; ``between`` is called before the fifth."""
    net = dfa.DFA(make(), **given)
    optimizer = getattr(dfa.optim, rule)(net, lr=0.01, update=update)
    seen = []
    for i, x in enumerate(batches(steps, shape=shape)):
        if between is not None and i == 4:
            net = between(net, optimizer) or net
        if plain:
            forget(net)
            optimizer._remember = lambda *_: None
        dtype = dtypes and dtypes[i]
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = net(x[: 9 - i])
        output.float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += [output.detach(), *(p.detach().clone() for p in net.parameters())]
        for own in optimizer.state.values():
            seen += [t.clone() for t in own.values() if torch.is_tensor(t)]
    return seen


def assert_same(*made):
    assert len(made[0]) == len(made[1])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


UPDATES = ["step", "backward"]
HEADS = {"a layer of torch": False, "a fused head": True, "a head with tanh": "tanh"}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
@pytest.mark.parametrize("shape", [(9,), (9, 2)])
@pytest.mark.parametrize("head", HEADS)
def test_the_bits_are_those_of_planning_anew(head, shape, rule, update, followed, repeated):
    made = [
        trained(lambda: Field(HEADS[head]), plain=plain, rule=rule, shape=shape, update=update)
        for plain in (True, False)
    ]
    assert_same(*made)
    assert followed == [True] * 5
    # The second step has the first's layers and prepares, the third repeats.
    assert len(repeated) == 4


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.bfloat16] * 6,
        [None, torch.bfloat16, torch.bfloat16, torch.float16, None, torch.bfloat16],
    ],
)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("head", HEADS)
def test_autocast(head, update, dtypes, followed):
    made = [
        trained(lambda: Field(HEADS[head]), plain=p, dtypes=dtypes, update=update)
        for p in (True, False)
    ]
    assert_same(*made)
    assert followed == [a is b for a, b in itertools.pairwise(dtypes)]


# What is not as it was --------------------------------------------------------------------------


def _skips(net, optimizer):
    net.module.skips = True


def _wired(net, optimizer):
    net.module.wired = True


def _an_idle_point(net, optimizer):
    """Wider than all others: it counts for the scale."""
    net.module.idles = True


def _an_opaque_point(net, optimizer):
    net.module.has_point = True


def _a_layer_above(net, optimizer):
    """What was the head is not any more."""
    net.module.has_top = True


def _two_layers_exchanged(net, optimizer):
    """And their parameters: the same are used in the same order, by layers of other names."""
    own = net.module
    own.first.out_features = own.second.in_features = 8
    own.second, own.third = own.third, own.second
    for name in ("weight", "bias", "code"):
        a, b = getattr(own.second, name), getattr(own.third, name)
        setattr(own.second, name, b)
        setattr(own.third, name, a)


def _twice(net, optimizer):
    net.module.twice = True


def _frozen(net, optimizer):
    net.module.second.requires_grad_(False)


def _a_frozen_bias(net, optimizer):
    net.module.second.bias.requires_grad_(False)


def _without_a_bias(net, optimizer):
    net.module.second.bias = None


def _another_activation(net, optimizer):
    net.module.fourth.code = net.module.third.code


def _two_weights_exchanged(net, optimizer):
    """Of one shape."""
    a, b = net.module.second, net.module.third
    a.weight, b.weight = b.weight, a.weight


def _two_biases_exchanged(net, optimizer):
    a, b = net.module.first, net.module.second
    a.bias, b.bias = b.bias, a.bias


def _a_tied_bias(net, optimizer):
    net.module.second.bias = net.module.first.bias


def _only_the_top(net, optimizer):
    net.method = "shallow"


def _a_hook(net, optimizer):
    net.module.third.register_forward_hook(lambda module, args, output: output * 2)


def _a_copy(net, optimizer):
    """It belongs to no optimizer: its gradients are nobody's."""
    return copy.deepcopy(net)


CHANGES = {
    name.lstrip("_").replace("_", " "): change
    for name, change in list(globals().items())
    if name.startswith("_") and callable(change) and not name.startswith("__")
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("update", UPDATES)
def test_a_change_between_two_passes_is_seen(update, change, head, shared, followed):
    if (update, change) == ("backward", "a tied bias"):
        pytest.skip("such a bias is refused")
    feedback, given = dfa.Feedback(shared=shared), {"update": update}
    made = [
        trained(lambda: Field(HEADS[head]), CHANGES[change], 8, plain, feedback=feedback, **given)
        for plain in (True, False)
    ]
    assert_same(*made)
    assert followed[:3] == [True] * 3
    # A copy has no plan; what a hook returns is no layer's; above a layer of torch is none of ours.
    if change in ("a copy", "a hook") or (change == "a layer above" and not HEADS[head]):
        return
    assert followed[3:4] != [True]


def test_an_error_of_another_width_is_planned_anew(followed):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = dfa.Linear(6, 8, activation="relu")
            self.tops = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 5)])
            self.top = 0

        def forward(self, x):
            return self.tops[self.top](self.first(x))

    def other(net, optimizer):
        net.module.top = 1

    assert_same(*[trained(Wide, other, plain=plain) for plain in (True, False)])
    assert followed == [True] * 3 + [False, True]


@pytest.mark.parametrize("rows", [(1, 2), (2, 1)])
def test_other_rows_for_each_of_the_error_are_planned_anew(rows, followed):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.top = dfa.Linear(6, 8, activation="relu"), nn.Linear(8, 3)
            self.rows = rows[0]

        def forward(self, x):
            if self.rows == 1:
                return self.top(self.first(x))
            return self.top(self.first(torch.stack((x, x), 1)).mean(1))

    def other(net, optimizer):
        net.module.rows = rows[1]

    assert_same(*[trained(Tokens, other, plain=plain) for plain in (True, False)])
    assert followed == ([True] * 3 + [False] * 2 if rows == (1, 2) else [False] * 4 + [True])


def test_a_second_optimizer_takes_over(followed):
    made = []
    for plain in (True, False):
        net = dfa.DFA(Field())
        optimizers = [dfa.optim.AdamW(net, lr=0.01)]
        for i, x in enumerate(batches(6)):
            if i == 3:
                optimizers.append(torch.optim.SGD(net.parameters(), lr=0.1))
                net._optimizer = None
            if plain:
                forget(net)
            net(x).square().sum().backward()
            optimizers[-1].step()
            optimizers[-1].zero_grad()
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made)


def test_what_was_changed_in_place_is_refused_as_before():
    class Overwrites(Field):
        overwrites = False

        def forward(self, x):
            h = self.first(x)
            y = self.second(h)
            if self.overwrites:
                h.mul_(2)
            return self.head(self.fourth(torch.cat((y, x), dim=-1)))

    net = dfa.DFA(Overwrites())
    optimizer = dfa.optim.SGD(net, lr=0.1)
    for x in batches(2):
        net(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    net.module.overwrites = True
    with pytest.raises(
        RuntimeError, match="layer 'first': its input or output was changed in place"
    ):
        net(x)
    optimizer.zero_grad()


def test_the_plan_is_of_passes_with_a_fused_optimizer_alone():
    net = dfa.DFA(Field())
    x = next(batches(1))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1)]
    net(x).sum().backward()
    assert net.planned is None
    optimizers[0].zero_grad()
    optimizers.append(dfa.optim.SGD(net, lr=0.1, update="backward"))
    net(x).sum().backward()
    assert net.planned is not None


def _nothing(net):
    pass


UNPLANNED = {
    "a point": lambda net: setattr(net.module, "has_point", True),
    "an idle point": lambda net: setattr(net.module, "idles", True),
    "a layer called twice": lambda net: setattr(net.module, "twice", True),
    "a users matrix": _nothing,
}


@pytest.mark.parametrize("what", UNPLANNED)
def test_these_are_planned_anew(what):
    matrix = dfa.Feedback.from_matrix(torch.ones(3, 14)) if "matrix" in what else dfa.Feedback()
    net = dfa.DFA(Field(), feedback=matrix)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    UNPLANNED[what](net)
    net(next(batches(1))).sum().backward()
    assert net.planned is None
    optimizer.zero_grad()


def test_copies_and_pickles_carry_no_plan():
    net = dfa.DFA(Field())
    optimizer = dfa.optim.SGD(net, lr=0.1)
    net(next(batches(1))).sum().backward()
    assert net.planned is not None
    optimizer.zero_grad()
    assert copy.deepcopy(net).planned is None
    assert pickle.loads(pickle.dumps(net)).planned is None


# Casts ------------------------------------------------------------------------------------------


def test_each_cast_is_let_go_when_it_is_used():
    net = dfa.DFA(Field())
    optimizer = dfa.optim.SGD(net, lr=0.1)
    left = []
    for x in batches(2):
        with torch.autocast("cpu", torch.bfloat16):
            for layer in (net.module.first, net.module.fourth):
                layer.register_forward_hook(
                    lambda *_: left.append(len(dfa.recording.active.recording._low))
                )
            output = net(x)
        output.float().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert left[-1] == 0 and max(left) == 5  # of seven


def test_what_checkpointing_runs_again_casts_no_other_layers(monkeypatch):
    class Checkpointed(Field):
        def forward(self, x):
            h = torch.cat((self.second(self.first(x)), x), dim=-1)
            return torch.utils.checkpoint.checkpoint(self.above, h, use_reentrant=False)

        def above(self, h):
            return self.head(self.fourth(h))

    casts, lowered = [], Planned.lowered
    monkeypatch.setattr(Planned, "lowered", lambda *given: casts.append(1) or lowered(*given))
    dtypes = [torch.bfloat16] * 6
    assert_same(*[trained(Checkpointed, plain=plain, dtypes=dtypes) for plain in (True, False)])
    assert len(casts) == 5  # one for each forward pass but the first


def test_a_cast_of_another_dtype_is_not_used():
    """Where a part of the forward pass runs under another autocast."""

    class Two(Field):
        def forward(self, x):
            h = self.first(x)
            with torch.autocast("cpu", torch.float16):
                h = self.second(h)
            return self.head(self.fourth(torch.cat((h.float(), x), dim=-1)))

    dtypes = [torch.bfloat16] * 6
    assert_same(*[trained(Two, plain=plain, dtypes=dtypes) for plain in (True, False)])


def test_parameters_of_the_autocast_dtype_build_no_graph(monkeypatch):
    seen = []
    fused = dfa.recording.Recording.fused
    monkeypatch.setattr(
        dfa.recording.Recording, "fused", lambda own, layer: seen.append(layer) or fused(own, layer)
    )
    net = dfa.DFA(Field().bfloat16())
    optimizer = dfa.optim.SGD(net, lr=0.1)
    for x in batches(3, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            net(x).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) == 3 * 4
    assert not any(layer.output.requires_grad for layer in seen)


# What the node and its layers do for less --------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_what_a_point_gets_is_differentiated_once():
    net = dfa.DFA(field := Field())
    field.has_point = True
    optimizer = dfa.optim.SGD(net, lr=0.1)
    (x,) = batches(1)
    net(x).square().sum().backward(create_graph=True)
    assert optimizer.ledger.records
    with pytest.raises(RuntimeError, match="differentiate twice"):
        field.opaque.weight.grad.sum().backward()
    optimizer.zero_grad()


def test_a_product_that_fails_leaves_gradients_enabled():
    net = dfa.DFA(field := Field())
    dfa.optim.SGD(net, lr=0.1)
    field.second.bias.data = torch.zeros(3)
    (x,) = batches(1)
    with pytest.raises(RuntimeError):
        net(x)
    assert torch.is_grad_enabled()
