"""update="backward": which backward pass steps, and with which states."""

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network

import dfa_kernels as dfa


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
