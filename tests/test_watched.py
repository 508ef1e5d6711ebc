"""Whoever wants to see a gradient sees it, and what a step reads is what the backward pass saw."""

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network, train
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE

BOTH = [dfa.optim.SGD, dfa.optim.AdamW]
UPDATES = ["step", "backward"]


def general():
    """A network that does not go the short way, for a layer without a bias; tanh at its end."""
    torch.manual_seed(0)
    first = dfa.Linear(13, 7, bias=False, activation="relu")
    return dfa.DFA(nn.Sequential(first, dfa.Linear(7, 5, activation="tanh")).double())


def general_without_tanh():
    """Whose output nothing reads, and so may be written to."""
    torch.manual_seed(0)
    first = dfa.Linear(13, 7, bias=False, activation="relu")
    return dfa.DFA(nn.Sequential(first, dfa.Linear(7, 5)).double())


NETWORKS = [network, general]


# In place -----------------------------------------------------------------------------------------


def _the_input(x, y, error):
    x.mul_(2)


def _the_error(x, y, error):
    error.zero_()


def _the_output(x, y, error):
    y.detach().add_(1)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("change", [_the_input, _the_error])
@pytest.mark.parametrize("made", NETWORKS)
def test_what_a_step_reads_was_written_to(made, change, kind):
    """As where one buffer holds one batch after the other, and gradients are accumulated."""
    net = made()
    optimizer = kind(net, lr=0.1)
    for _ in range(3):
        ((x, _),) = batches(1)
        y, error = net(x), torch.ones(11, 5, dtype=torch.float64)
        y.backward(error)
        optimizer.step()
        optimizer.zero_grad()
    y = net(x)
    y.backward(error)
    change(x, y, error)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"of shape \(11, \d+\), or what it is a view"):
        optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))
    optimizer.zero_grad()
    net(x).backward(error)
    optimizer.step()


def test_an_output_that_the_update_reads_was_written_to():
    net = general()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    y = net(x)
    y.sum().backward()
    _the_output(x, y, None)
    with pytest.raises(RuntimeError, match="in place between"):
        optimizer.step()


def test_an_output_that_nothing_reads_may_be_written_to():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    y = net(x)
    y.sum().backward()
    _the_output(x, y, None)
    optimizer.step()


def test_an_update_in_the_backward_pass_has_read_them_before():
    nets = [network(), network()]
    optimizers = [torch.optim.SGD(nets[0].parameters(), lr=0.1)]
    optimizers.append(dfa.optim.SGD(nets[1], lr=0.1, update="backward"))
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(3):
            F.cross_entropy(net(x), y).backward()
            x.zero_()
            optimizer.step()
            optimizer.zero_grad()
    same(*nets)


def same(a, b):
    for ours, wanted in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [None, "step", "backward"])
@pytest.mark.parametrize("made", [network, general_without_tanh])
def test_the_output_may_be_written_to_before_the_backward_pass(made, fused):
    nets = [made(), made()]
    torch_net, net = nets
    optimizers = [torch.optim.SGD(torch_net.parameters(), lr=0.1)]
    if fused:
        optimizers.append(dfa.optim.SGD(net, lr=0.1, update=fused))
    else:
        optimizers.append(torch.optim.SGD(net.parameters(), lr=0.1))
    for i, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
        for x, target in batches(3):
            y = net(x)
            y = y.div_(2) if i else y / 2
            F.cross_entropy(y, target).backward()
            optimizer.step()
            optimizer.zero_grad()
    same(*nets)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", BOTH)
def test_a_graph_that_has_kept_a_weight_notices_the_step(kind, update):
    """The first steps are planned, those after them repeat the last."""
    net = network()
    optimizer = kind(net, update=update)
    for x, y in batches(5):
        net.method = "bp"
        stale = F.cross_entropy(net(x), y)
        net.method = "dfa"
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()
        optimizer.zero_grad()


# Hooks of parameters ------------------------------------------------------------------------------


def _halved(p):
    p.register_hook(lambda g: g / 2)


def _clipped(p):
    def clip(p):
        p.grad.clamp_(-0.01, 0.01)

    p.register_post_accumulate_grad_hook(clip)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("hook", [_halved, _clipped])
@pytest.mark.parametrize("made", NETWORKS)
def test_a_parameters_hook_sees_its_gradient(made, hook, update):
    nets = [made(), made()]
    for net in nets:
        hook(next(net.parameters()))
    train(nets[0], torch.optim.SGD(nets[0].parameters(), lr=0.1, momentum=0.9))
    train(nets[1], dfa.optim.SGD(nets[1], lr=0.1, momentum=0.9, update=update))
    same(*nets)


@pytest.mark.parametrize("update", UPDATES)
def test_a_hook_that_comes_and_goes(update):
    nets = [network(), network()]
    optimizers = [torch.optim.AdamW(nets[0].parameters(), eps=1e-3)]
    optimizers.append(dfa.optim.AdamW(nets[1], eps=1e-3, update=update))
    for net, optimizer in zip(nets, optimizers, strict=True):
        handle = None
        for i, (x, y) in enumerate(batches(9)):
            if i == 4:
                handle = net.module[2].weight.register_hook(lambda g: 2 * g)
            elif i == 6:
                handle.remove()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, wanted in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("hook", [_halved, _clipped])
@pytest.mark.parametrize("made", NETWORKS)
def test_a_hook_that_comes_after_the_forward_pass(made, hook, update):
    net = made()
    optimizer = dfa.optim.AdamW(net, update=update)
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    before = [p.detach().clone() for p in net.parameters()]
    hook(net.module[0].weight)
    with pytest.raises(RuntimeError, match=r"a parameter of shape \(\d+, 13\) has a hook"):
        loss.backward()
    optimizer.zero_grad()
    assert all(map(torch.equal, net.parameters(), before))
    F.cross_entropy(net(x), y).backward()
    assert net.module[0].weight.grad is not None


@pytest.mark.skipif(not UPDATES_COMPILE, reason="a compiled update needs torch 2.12")
@pytest.mark.parametrize("hook", [_halved, _clipped])
def test_a_compiled_backward_pass_refuses_a_hook(hook):
    """A compiled forward pass cannot see it."""
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    ((x, y),) = batches(1)
    F.cross_entropy(run(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    hook(net.module[0].weight)
    loss = F.cross_entropy(run(x), y)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="has a hook"):
        loss.backward()
    assert all(map(torch.equal, net.parameters(), before))
