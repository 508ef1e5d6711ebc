"""Whatever a user does between steps, and in whatever order: the shortcuts that a step takes (the
chain, the last forward pass's plan, the last step's) change no bit of it, and in fp64 the numbers
are those of torch.optim over the same network's gradients."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE


class Tower(nn.Module):
    """Fused layers that are no chain between layers of torch's: no shortcut but a plan."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(5, 6)
        self.first, self.second = (dfa.Linear(6, 6, activation=f) for f in ("gelu", "tanh"))
        self.third = dfa.Linear(12, 4, bias=False, activation="relu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        low = self.first(self.embedding(x))
        return self.head(self.third(torch.cat((low, self.second(low)), -1)))


def chain():
    layers = (nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.ReLU())
    return dfa.fuse(nn.Sequential(*layers, nn.Linear(6, 3)))


class World:
    """A network and its optimizer. ``kind``: ``"quick"`` takes every shortcut, ``"plain"`` none;
    ``"torch"`` is torch.optim over whole gradients; ``"compiled"`` is quick under torch.compile."""

    def __init__(self, kind, network, rule, masters, dtype, update="step"):
        torch.manual_seed(0)
        self.net = dfa.DFA(network()).to(dtype)
        self.kind, self.dtype, self.autocast = kind, dtype, False
        self.update = update
        self.data = torch.Generator().manual_seed(1)
        name, numbers = rule
        if kind == "torch":
            self.optimizer = getattr(torch.optim, name)(self.net.parameters(), **numbers)
        else:
            self.optimizer = getattr(dfa.optim, name)(
                self.net, master_weights=masters, update=update, **numbers
            )
        if kind == "plain":
            self.net._chain = None
        self.run = self.net
        if kind == "compiled":
            torch._dynamo.reset()
            self.run = torch.compile(self.net, backend="aot_eager")

    @property
    def layers(self):
        return [m for m in self.net.modules() if isinstance(m, nn.Linear)]

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def forget(self):
        if self.kind == "plain":
            self.net.planned = self.optimizer._repeat = self.optimizer._before = None

    def output(self, rows):
        self.forget()
        x = torch.randn(rows, 5, generator=self.data, dtype=torch.float64)
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            return self.run(x.to(self.dtype))

    def backward(self, rows, **given):
        y = self.output(rows)
        target = torch.randn(y.shape, generator=self.data, dtype=torch.float64)
        F.mse_loss(y.double(), target).backward(**given)

    def step(self):
        self.forget()
        self.optimizer.step()

    def numbers(self):
        own = [*self.net.parameters()]
        # Those of a frozen layer may be there already.
        unbegun = getattr(self.optimizer, "_fresh", ())
        states = [self.optimizer.state.get(p, {}) for p in own if id(p) not in unbegun]
        states = [s for s in states if s.get("step", 1) > 0]
        return [p.detach() for p in own] + [s[k] for s in states for k in sorted(s)]


# What a user may do -----------------------------------------------------------------------------


def train(world, steps, rows):
    for _ in range(steps):
        world.backward(rows)
        world.step()
        world.optimizer.zero_grad()


def train_twice_over(world, steps, rows):
    for _ in range(steps):
        world.backward(rows)
        world.backward(rows + 1)
        world.step()
        world.optimizer.zero_grad()


def train_and_keep_the_gradients(world, steps, rows):
    for _ in range(steps):
        world.backward(rows)
        world.step()


def zero(world, to_none):
    world.optimizer.zero_grad(set_to_none=to_none)


def zero_by_the_module(world):
    world.net.zero_grad()


def look(world, rows):
    with torch.no_grad():
        world.output(rows)


def start_and_leave(world, rows):
    world.output(rows)


def ask_for_one_gradient(world, rows):
    """Of the head's bias where autograd knows it, which accumulates nothing."""
    y = world.output(rows)
    if world.layers[-1].bias.requires_grad and not isinstance(world.layers[-1], dfa.Linear):
        torch.autograd.grad(y.float().sum(), world.layers[-1].bias)


def go_back_twice(world, rows):
    world.backward(rows, retain_graph=True)
    y = world.output(rows)
    loss = y.double().square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    world.step()
    world.optimizer.zero_grad()


def step_by_a_closure(world, rows):
    def closure():
        world.optimizer.zero_grad()
        world.backward(rows)

    world.forget()
    world.optimizer.step(closure)
    world.optimizer.zero_grad()


def fail_in_the_forward_pass(world):
    with pytest.raises((ValueError, RuntimeError)):
        world.net(torch.zeros(2, 4, dtype=world.dtype))


def change_the_rate(world, rate, as_tensor):
    world.group["lr"] = torch.tensor(rate, dtype=torch.float64) if as_tensor else rate


def write_to_the_rate(world, rate):
    if torch.is_tensor(world.group["lr"]):
        world.group["lr"].fill_(rate)


def change_a_number(world, number):
    if "betas" in world.group:
        world.group["betas"] = (number, 0.99)
    elif number != 0 and world.group["momentum"] != 0:
        world.group["momentum"] = number
    world.group["weight_decay"] = number / 10


def go_uphill(world):
    world.group["maximize"] = not world.group["maximize"]


def shrink_the_weights(world):
    with torch.no_grad():
        for p in world.net.parameters():
            p.mul_(0.75)


def exchange_data(world, layer):
    weight = world.layers[layer].weight
    weight.data = weight.data * 0.5


def freeze_or_thaw(world, layer, whole):
    own = world.layers[layer]
    for p in own.parameters() if whole else [own.weight]:
        p.requires_grad_(not p.requires_grad)


def drop_a_gradient(world, layer, rows):
    world.backward(rows)
    world.layers[layer].weight.grad = None
    world.step()
    world.optimizer.zero_grad()


def give_a_gradient(world, layer, rows):
    world.backward(rows)
    weight = world.layers[layer].weight
    weight.grad = torch.full_like(weight, 0.1)
    world.step()
    world.optimizer.zero_grad()


def add_a_penalty(world, layer, rows, first):
    weight = world.layers[layer].weight
    if not first:
        world.backward(rows)
    if weight.requires_grad:
        weight.square().sum().backward()
    if first:
        world.backward(rows)
    world.step()
    world.optimizer.zero_grad()


def drop_a_gradient_between(world, layer, rows):
    world.backward(rows)
    world.layers[layer].weight.grad = None
    world.backward(rows + 2)
    world.step()
    world.optimizer.zero_grad()


def add_to_a_gradient(world, layer, rows, alpha):
    world.backward(rows)
    weight = world.layers[layer].weight
    if weight.grad is not None:
        with torch.no_grad():
            weight.grad.add_(weight, alpha=alpha)
    world.step()
    world.optimizer.zero_grad()


def watch_a_gradient(world, layer, steps):
    """By a hook of the parameter."""
    weight = world.layers[layer].weight
    if weight.requires_grad:
        handle = weight.register_hook(lambda g: g / 2)
        train(world, steps, 4)
        handle.remove()


def exchange_weights(world):
    """Of two layers of one shape, which the optimizer goes on to know."""
    for a in world.layers:
        for b in world.layers:
            if a is not b and a.weight.shape == b.weight.shape:
                a.weight, b.weight = b.weight, a.weight
                return


def exchange_a_state(world, layer):
    own = world.optimizer.state.get(world.layers[layer].weight, {})
    for name in own:
        if name != "step" and torch.is_tensor(own[name]):
            own[name] = own[name] / 2


def leave_one_out(world, steps):
    """A parameter is in no group for some steps."""
    left = world.group["params"].pop()
    train(world, steps, 4)
    left.grad = None
    world.group["params"].append(left)


def choose_a_method(world, method):
    world.net.method = method


def listen(world, layer):
    handle = world.layers[layer].register_forward_hook(lambda *_: None)
    world.output(3)
    handle.remove()


def save_and_load(world):
    model = {k: v.clone() for k, v in world.net.state_dict().items() if torch.is_tensor(v)}
    saved = world.optimizer.state_dict()
    train(world, 1, 4)
    world.net.load_state_dict(model, strict=False)
    world.optimizer.load_state_dict(saved)


def forget_the_state(world):
    world.optimizer.state.clear()


def set_the_counts_back(world, layer):
    own = world.optimizer.state.get(world.layers[layer].weight, {})
    if "step" in own:
        own["step"].fill_(1)


def in_groups(world):
    """The first group's last parameter gets a group of its own."""
    if len(world.group["params"]) > 2:
        last = world.group["params"].pop()
        rest = {k: v for k, v in world.group.items() if k != "params"}
        world.optimizer.add_param_group({**rest, "params": [last], "lr": 0.02})


def toggle_autocast(world):
    world.autocast = world.dtype is torch.float32 and not world.autocast


LAYER = st.integers(0, 3)
ROWS = st.sampled_from([0, 1, 4, 7])
SOME = st.integers(1, 9)


class Action(NamedTuple):
    function: Callable[..., None]
    drawn: dict

    def __repr__(self):
        return f"{self.function.__name__}({self.drawn})"


def action(function, **drawn):
    return st.fixed_dictionaries(drawn).map(lambda numbers: Action(function, numbers))


#: Of one forward and one backward pass a step.
SIMPLE = [
    action(zero, to_none=st.booleans()),
    action(zero_by_the_module),
    action(look, rows=ROWS),
    action(start_and_leave, rows=ROWS),
    action(ask_for_one_gradient, rows=SOME),
    action(step_by_a_closure, rows=SOME),
    action(fail_in_the_forward_pass),
    action(change_the_rate, rate=st.sampled_from([0.05, 0.01, 0.0]), as_tensor=st.booleans()),
    action(write_to_the_rate, rate=st.sampled_from([0.03, 0.02])),
    action(change_a_number, number=st.sampled_from([0.0, 0.5, 0.9])),
    action(go_uphill),
    action(shrink_the_weights),
    action(exchange_data, layer=LAYER),
    action(freeze_or_thaw, layer=st.integers(0, 2), whole=st.booleans()),
    action(watch_a_gradient, layer=LAYER, steps=st.integers(1, 3)),
    action(exchange_weights),
    action(exchange_a_state, layer=LAYER),
    action(leave_one_out, steps=st.integers(1, 3)),
    action(choose_a_method, method=st.sampled_from(dfa.module.METHODS)),
    action(listen, layer=LAYER),
    action(save_and_load),
    action(forget_the_state),
    action(set_the_counts_back, layer=LAYER),
    action(in_groups),
    action(toggle_autocast),
]
#: Several, or a gradient is looked for where update="backward" has none.
OTHERS = [
    action(train_twice_over, steps=st.integers(1, 3), rows=SOME),
    action(train_and_keep_the_gradients, steps=st.integers(1, 3), rows=SOME),
    action(go_back_twice, rows=SOME),
    action(drop_a_gradient, layer=LAYER, rows=SOME),
    action(give_a_gradient, layer=LAYER, rows=SOME),
    action(add_a_penalty, layer=LAYER, rows=SOME, first=st.booleans()),
    action(drop_a_gradient_between, layer=LAYER, rows=SOME),
    action(add_to_a_gradient, layer=LAYER, rows=SOME, alpha=st.sampled_from([1, 0.1])),
]

RULES = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.5}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("AdamW", {"lr": 0.01}),
]
EVERY = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip


def run(worlds, actions, same):
    """Three steps before each, of which the third repeats the second, and three at the end."""
    for function, drawn in actions:
        for world in worlds:
            train(world, 3, 5)
            function(world, **drawn)
            if world.update == "backward":
                world.optimizer.zero_grad()  # leave a pass that was only made
        assert_same(*worlds, same)
    for world in worlds:
        train(world, 3, 5)
    assert_same(*worlds, same)


def assert_same(world, other, same):
    ours, others = world.numbers(), other.numbers()
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        same(a, b)


def bits(a, b):
    assert a.dtype is b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


ACTIONS = st.lists(st.one_of(SIMPLE + OTHERS), min_size=1, max_size=8)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("network", [chain, Tower])
@given(actions=ACTIONS, low=st.booleans())
@EVERY
def test_no_shortcut_changes_a_bit(network, rule, actions, low):
    dtype = torch.bfloat16 if low else torch.float32
    worlds = [World(kind, network, rule, low, dtype) for kind in ("quick", "plain")]
    run(worlds, actions, bits)


def close(a, b):
    if not (b.abs() < 1e12).all():
        return  # uphill, where sums of fp64 soon hold no digit in common
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("network", [chain, Tower])
@given(actions=ACTIONS)
@EVERY
def test_the_numbers_are_those_of_torch_optim(network, rule, actions):
    worlds = [World(kind, network, rule, False, torch.float64) for kind in ("quick", "torch")]
    run(worlds, actions, close)


IN_BACKWARD = st.lists(st.one_of(SIMPLE), min_size=1, max_size=8)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("network", [chain, Tower])
@given(actions=IN_BACKWARD, low=st.booleans())
@EVERY
def test_no_shortcut_of_an_update_in_the_backward_pass_changes_a_bit(network, rule, actions, low):
    dtype = torch.bfloat16 if low else torch.float32
    worlds = [World(kind, network, rule, low, dtype, "backward") for kind in ("quick", "plain")]
    run(worlds, actions, bits)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("network", [chain, Tower])
@given(actions=IN_BACKWARD)
@EVERY
def test_the_numbers_of_an_update_in_the_backward_pass(network, rule, actions):
    kinds = ("quick", "backward"), ("torch", "backward")
    worlds = [World(kind, network, rule, False, torch.float64, how) for kind, how in kinds]
    run(worlds, actions, close)


#: Not hooks of parameters and states that are exchanged, which a compiled update refuses.
UNCOMPILED = {watch_a_gradient, listen, exchange_a_state, exchange_weights, forget_the_state}
UNCOMPILED |= {leave_one_out, ask_for_one_gradient, fail_in_the_forward_pass, toggle_autocast}
COMPILED = st.one_of(SIMPLE).filter(lambda action: action.function not in UNCOMPILED)


@pytest.mark.skipif(not UPDATES_COMPILE, reason="a compiled update needs torch 2.12")
@pytest.mark.parametrize("rule", RULES[1:], ids=str)
@pytest.mark.parametrize("network", [chain, Tower])
@given(actions=st.lists(COMPILED, min_size=3, max_size=5))
@settings(EVERY, max_examples=4)
def test_the_numbers_of_a_compiled_update(network, rule, actions):
    kinds = ("compiled", "backward"), ("torch", "backward")
    worlds = [World(kind, network, rule, False, torch.float64, how) for kind, how in kinds]
    run(worlds, actions, close)
