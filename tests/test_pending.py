"""The `.grad` of parameters whose gradients are never made: cleared, dropped and asked for as in
torch."""

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.pending import PendingGradient


def _by_hand(net):
    for p in net.parameters():
        p.grad = None


CLEARING = {
    "optimizer": lambda net, optimizer: optimizer.zero_grad(),
    "to zero": lambda net, optimizer: optimizer.zero_grad(set_to_none=False),
    "module": lambda net, optimizer: net.zero_grad(),
    "inner module": lambda net, optimizer: net.module.zero_grad(),
    "by hand": lambda net, optimizer: _by_hand(net),
    "not": lambda net, optimizer: None,
}


@pytest.mark.parametrize("where", ["before backward", "after step", "dropped"])
@pytest.mark.parametrize("how", CLEARING)
def test_gradients_are_cleared_as_in_torch(how, where):
    nets = [network() for _ in range(2)]
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), lr=0.1),
        dfa.optim.SGD(nets[1], lr=0.1),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for i, (x, y) in enumerate(batches(4)):
            loss = F.cross_entropy(net(x), y)
            if where == "before backward":
                CLEARING[how](net, optimizer)
            loss.backward()
            if where == "dropped" and i == 2:  # a batch that somebody thinks better of
                CLEARING[how](net, optimizer)
            optimizer.step()
            if where == "after step":
                CLEARING[how](net, optimizer)
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_one_parameters_gradient_dropped_between_two_backwards():
    nets = [network() for _ in range(2)]
    optimizers = [torch.optim.SGD(nets[0].parameters(), lr=0.1), dfa.optim.SGD(nets[1], lr=0.1)]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(2):
            net.module[0].weight.grad = None
            net.module[2].bias.grad = None
            F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Pair(nn.Module):
    """Two chains, one of which each forward pass runs: a coarse and a fine field, say."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.chains = nn.ModuleList(
            nn.Sequential(nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 5))
            for _ in range(2)
        ).double()

    def forward(self, x, which):
        return self.chains[which](x)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 1, 0)])
@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_forward_passes_that_reach_different_layers(order, clear, at_once):
    nets = [dfa.DFA(dfa.fuse(Pair())) for _ in range(2)]
    optimizers = [torch.optim.SGD(nets[0].parameters(), lr=0.1), dfa.optim.SGD(nets[1], lr=0.1)]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for _ in range(2):
            drawn = zip(batches(len(order)), order, strict=True)
            losses = [F.cross_entropy(net(x, which), y) for (x, y), which in drawn]
            for loss in [sum(losses)] if at_once else losses:
                loss.backward()
            optimizer.step()
            if clear:
                net.zero_grad()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    hidden = [net.module.chains[w][0].weight.grad for net in nets for w in (0, 1)]
    if not clear:  # and no gradient was made for it
        assert [type(g) is PendingGradient for g in hidden] == [False, False, True, True]


def test_autograd_grad_leaves_no_record():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    ((x, y),) = batches(1)
    x.requires_grad_()
    net.method = "bp"
    torch.autograd.grad(F.cross_entropy(net(x), y), x)
    net.method = "dfa"
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(F.cross_entropy(net(x.detach()), y), net.module[0].weight)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_backward_pass_for_other_leaves_alone_leaves_no_record():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(13, 7), nn.LayerNorm(7), nn.Tanh(), dfa.Linear(7, 7, activation="tanh"),
        dfa.Linear(7, 5),
    ).double()  # fmt: skip
    net = dfa.DFA(model)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward(inputs=[model[0].weight])
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["0.weight"]
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved == ["0.weight"]


def test_the_pending_gradient_says_what_it_is():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    gradient = net.module[0].weight.grad
    assert type(gradient) is PendingGradient
    assert "'0'" in repr(gradient)
    assert "never made" in repr(gradient)
    optimizer.zero_grad()
    assert net.module[0].weight.grad is None


# By hand ------------------------------------------------------------------------------------------


def with_torch(change, steps=4):
    """Trained beside torch.optim, ``change`` being called between backward and step."""
    nets = [network() for _ in range(2)]
    optimizers = [torch.optim.SGD(nets[0].parameters(), lr=0.1), dfa.optim.SGD(nets[1], lr=0.1)]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(steps):
            F.cross_entropy(net(x), y).backward()
            change(net)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [1, 0.01, -2])
def test_a_penalty_added_by_hand_has_its_factor(alpha):
    def decay(net):
        with torch.no_grad():
            for p in net.parameters():
                p.grad.add_(p, alpha=alpha)
                p.grad.add_(torch.ones_like(p), alpha=alpha)
                p.grad.add_(0.1, alpha=alpha)

    with_torch(decay)


@pytest.mark.parametrize("how", ["share_memory", "half", "double"])
def test_a_model_is_not_cast_or_shared_under_pending_gradients(how):
    net = network(torch.float32)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1, torch.float32)
    F.cross_entropy(net(x), y).backward()
    with pytest.raises(RuntimeError, match=r"step\(\) and zero_grad\(\) before the model is"):
        getattr(net, how)()
    optimizer.zero_grad()
    getattr(net, how)()


def test_a_penaltys_backward_first_leaves_no_record_behind():
    """Its dense gradients stand where the pending ones of the step before were cleared."""
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    for x, y in batches(4):
        sum(p.square().sum() for p in net.parameters()).backward()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        net.zero_grad()
        assert len(optimizer.ledger.records) == 1


# Several optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [dfa.optim.SGD, dfa.optim.AdamW])
def test_the_one_that_was_constructed_first_steps_nothing(later):
    """And says so: the module's fused layers are the later one's."""
    net = network()
    first, second = dfa.optim.SGD(net, lr=0.1), later(net, lr=0.1)
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    with pytest.raises(RuntimeError, match=r"gradient of '0' is pending for another.*this SGD"):
        first.step()
    before = net.module[0].weight.detach().clone()
    second.step()
    assert not torch.equal(before, net.module[0].weight)


def test_a_group_that_names_a_module_later_is_refused():
    optimizer = dfa.optim.SGD(network(), lr=0.1)
    with pytest.raises(TypeError, match="named when the optimizer is constructed"):
        optimizer.add_param_group({"params": network()})
