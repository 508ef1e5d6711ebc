"""update="backward": which backward pass steps, and with which states."""

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE


def beside_torch(change, name="SGD", steps=5, **numbers):
    """``change`` is called before the third step."""
    nets = [network() for _ in range(2)]
    optimizers = [
        getattr(torch.optim, name)(nets[0].parameters(), **numbers),
        getattr(dfa.optim, name)(nets[1], update="backward", **numbers),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for i, (x, y) in enumerate(batches(steps)):
            if i == 2:
                change(net, optimizer)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def _cleared(net, optimizer):
    optimizer.state.clear()


def _exchanged(net, optimizer):
    for own in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if name in own:
                own[name] = torch.ones_like(own[name])


def _momentum_begins(net, optimizer):
    optimizer.param_groups[0]["momentum"] = 0.9


def _momentum_ends(net, optimizer):
    optimizer.param_groups[0]["momentum"] = 0.0


def _for_one_gradient(net, optimizer):
    """autograd.grad accumulates nothing: it may not step either, and the pass may still be used."""
    optimizer.zero_grad()
    ((x, y),) = batches(1)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(net(x) * scale, y)
    torch.autograd.grad(loss, scale, retain_graph=True)
    loss.backward()
    optimizer.step()


def _a_batch_is_left_out(net, optimizer):
    ((x, _),) = batches(1)
    net(x)
    optimizer.zero_grad()


def _a_pass_between(net, optimizer):
    """zero_grad between a forward pass and its backward, as many loops have it."""
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


CHANGES = [_cleared, _exchanged, _for_one_gradient, _a_batch_is_left_out, _a_pass_between]


@pytest.mark.parametrize("change", CHANGES)
def test_sgd(change):
    beside_torch(change, lr=0.1, momentum=0.9, dampening=0.5)


@pytest.mark.parametrize("change", CHANGES)
def test_adamw(change):
    beside_torch(change, "AdamW", lr=1e-3, eps=1e-3)


def test_momentum_begins():
    beside_torch(_momentum_begins, lr=0.1, dampening=0.5)


def test_momentum_ends():
    beside_torch(_momentum_ends, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("update", ["step", "backward"])
def test_a_state_from_before_the_first_step(update):
    """The first momentum is the gradient, not the undampened part of it."""
    nets = [network() for _ in range(2)]
    numbers = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), **numbers),
        dfa.optim.SGD(nets[1], update=update, **numbers),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        saved = optimizer.state_dict()
        assert saved["state"] == {}
        optimizer.load_state_dict(saved)
        for x, y in batches(3):
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all("momentum_buffer" in own for own in optimizer.state_dict()["state"].values())
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_two_backward_passes_of_passes_that_zero_grad_divides_are_refused():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    ((x, y),) = batches(1)
    first = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    second = F.cross_entropy(net(x), y)
    first.backward()
    with pytest.raises(RuntimeError, match=r"has stepped since this forward pass"):
        second.backward()


def test_autograd_grad_of_a_fused_parameter_is_refused():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    ((x, y),) = batches(1)
    assert optimizer.update == "backward"
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(F.cross_entropy(net(x), y), net.module[0].weight)


def test_a_momentum_between_backward_and_step_is_saved():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, momentum=0.9, update="backward")
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    assert len(optimizer.state_dict()["state"]) == len(list(net.parameters()))


# Which pass it is ---------------------------------------------------------------------------------


def general():
    """A network that takes no short way."""
    net = network()
    net.module.register_forward_hook(lambda *_: None)
    return net


NETWORKS = pytest.mark.parametrize("made", [network, general])


def unchanged(net):
    """Afterwards, what has been written to."""
    before = [p.detach().clone() for p in net.parameters()]
    return lambda: [a for a, b in zip(net.parameters(), before, strict=True) if not a.equal(b)]


@NETWORKS
def test_a_pass_from_before_the_last_step_is_refused(made):
    net = made()
    optimizer = dfa.optim.AdamW(net, update="backward")
    (x, y), (u, v) = batches(2)
    first = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    F.cross_entropy(net(u), v).backward()
    optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(net(x), y)
    written = unchanged(net)
    with pytest.raises(RuntimeError, match="has stepped since this forward pass"):
        first.backward()
    assert written() == []


@NETWORKS
def test_weights_that_are_written_to_between_the_passes_are_refused(made):
    net = made()
    optimizer = dfa.optim.SGD(net, update="backward")
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    with torch.no_grad():
        net.module[2].weight.clamp_(-0.1, 0.1)
    written = unchanged(net)
    with pytest.raises(RuntimeError, match="somebody has written to its parameters"):
        loss.backward()
    assert written() == []
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    assert len(written()) == 6


@NETWORKS
def test_an_optimizer_that_is_gone_steps_nothing(made):
    net = made()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    written = unchanged(net)
    del optimizer
    with pytest.raises(RuntimeError, match="the optimizer that .* no longer exists"):
        loss.backward()
    assert written() == []
    F.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None for p in net.parameters())


@NETWORKS
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_second_derivative_may_be_asked_for_above_the_error_point(made):
    nets = [made(), made()]
    optimizers = [torch.optim.AdamW(nets[0].parameters(), eps=1e-3)]
    optimizers.append(dfa.optim.AdamW(nets[1], eps=1e-3, update="backward"))
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(4):
            F.cross_entropy(net(x), y).backward(create_graph=True)
            optimizer.step()
            optimizer.zero_grad()
        assert not any(state["exp_avg"].requires_grad for state in optimizer.state.values())
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Gradients beside ---------------------------------------------------------------------------------


class UsedAgain(nn.Module):
    """One weight in a fused layer, and once more outside any."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = dfa.Linear(13, 13, activation="tanh")
        self.head = dfa.Linear(13, 5)

    def forward(self, x):
        return self.head(self.first(x) + F.linear(x, self.first.weight))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_gradient_of_another_use_is_refused(name):
    """It would be stepped apart: two steps of momentum, and no sum."""
    net = dfa.DFA(UsedAgain().double(), points="first")
    optimizer = getattr(dfa.optim, name)(net, update="backward")
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    written = unchanged(net)
    with pytest.raises(RuntimeError, match=r"shape \(13, 13\) has a gradient too, of another use"):
        optimizer.step()
    assert written() == []
    optimizer.zero_grad()
    optimizer.step()


@NETWORKS
def test_a_gradient_of_an_earlier_backward_pass_is_refused(made):
    net = made()
    optimizer = dfa.optim.SGD(net, lr=0.1, momentum=0.9, update="backward")
    ((x, y),) = batches(1)
    net.method = "bp"
    F.cross_entropy(net(x), y).backward()
    net.method = "dfa"
    loss = F.cross_entropy(net(x), y)
    written = unchanged(net)
    with pytest.raises(RuntimeError, match=r"has a gradient too, .* as zero_grad\(\) does"):
        loss.backward()
    assert written() == []
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    assert len(written()) == 6


# Under torch.compile ------------------------------------------------------------------------------


COMPILES = pytest.mark.skipif(not UPDATES_COMPILE, reason="a compiled update needs torch 2.12")


def _compiled(net, optimizer):
    torch._dynamo.reset()
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    for x, y in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(run(x), y).backward()
        optimizer.step()
    return run


def _a_parameter_is_taken_away(net, optimizer):
    optimizer.param_groups[0]["params"].pop()


@COMPILES
@pytest.mark.parametrize(
    "change", [_cleared, _exchanged, _momentum_begins, _momentum_ends, _a_parameter_is_taken_away]
)
def test_a_compiled_pass_with_other_states_than_the_optimizers_is_refused_once(change):
    """It would write to those that are no longer anybody's."""
    nets = [network() for _ in range(2)]
    numbers = {"lr": 0.1, "momentum": 0.0 if change is _momentum_begins else 0.9}
    optimizers = [torch.optim.SGD(nets[0].parameters(), **numbers)]
    optimizers.append(dfa.optim.SGD(nets[1], update="backward", **numbers))
    runs = [_compiled(nets[0], optimizers[0]), _compiled(nets[1], optimizers[1])]
    for net, optimizer in zip(nets, optimizers, strict=True):
        change(net, optimizer)
    ((x, y),) = batches(1)
    optimizers[1].zero_grad()
    loss = F.cross_entropy(runs[1](x), y)
    written = unchanged(nets[1])
    with pytest.raises(RuntimeError, match="the compiled forward pass knows those before"):
        loss.backward()
    assert written() == []
    for run, optimizer in zip(runs, optimizers, strict=True):
        for x, y in batches(3):
            optimizer.zero_grad()
            F.cross_entropy(run(x), y).backward()
            optimizer.step()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@COMPILES
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_whole_step_in_one_compiled_function(name):
    """What the optimizer counts and keeps is no part of a graph."""
    nets = [network() for _ in range(2)]
    numbers = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {"eps": 1e-3}
    optimizers = [
        getattr(torch.optim, name)(nets[0].parameters(), **numbers),
        getattr(dfa.optim, name)(nets[1], update="backward", **numbers),
    ]

    def taking(net, optimizer):
        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    torch._dynamo.reset()
    plain, ours = map(taking, nets, optimizers)
    ours = torch.compile(ours, backend="aot_eager")
    for x, y in batches(6):
        torch.testing.assert_close(ours(x, y), plain(x, y), rtol=1e-9, atol=1e-12)
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=COMPILES)])
def test_what_was_applied_is_no_gradient_to_clip(compiles):
    """Until the step, after which there is none."""
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    run = _compiled(net, optimizer) if compiles else net
    for x, y in batches(3):
        F.cross_entropy(run(x), y).backward()
        with pytest.raises(RuntimeError, match="gradient of '0'.*: leave clipping"):
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        assert all(p.grad is None for p in net.parameters())
    F.cross_entropy(run(x), y).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    optimizer.step()
