"""Models of blocks: dropout, norms, branches, shared weights, activation checkpointing."""

import copy

import definition
import pytest
import torch
from definition import by_hand
from models import (
    Branching,
    Classifier,
    Residual,
    assert_same,
    both,
    gradients,
    mlp,
    trained_once,
    wrap,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dfa_kernels as dfa


def test_dropout_between_layers():
    """What a fused layer was given is what was left of the layer before it."""
    first = dfa.Linear(5, 64, activation="tanh")
    second = dfa.Linear(64, 7, activation="tanh")
    net = dfa.DFA(nn.Sequential(first, nn.Dropout(0.5), second, dfa.Linear(7, 3)))
    seen = {}
    net.module[1].register_forward_hook(lambda m, i, o: seen.update(before=i[0], after=o))
    x, error = torch.randn(6, 5), torch.randn(6, 3)
    net(x).backward(error)
    assert (seen["after"] == 0).any()
    h1, kept = seen["before"].double(), seen["after"].double()
    h2 = torch.tanh(kept @ second.weight.double().T + second.bias.double())
    b = definition.matrix(3, 64) * definition.default_scale(64)
    d2 = error.double() @ b[:, :7] * (1 - h2**2)
    d1 = error.double() @ b * (1 - h1**2)
    torch.testing.assert_close(second.weight.grad.double(), d2.T @ kept, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.weight.grad.double(), d1.T @ x.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_norms_learn_inside_their_block(norm):
    """linear → norm → tanh is one block: autograd carries the projection through it alone."""
    model = nn.Sequential(
        *(nn.Linear(5, 7), norm(7), nn.Tanh()), *(nn.Linear(7, 6), norm(6), nn.Tanh()),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    x, error = torch.randn(9, 5).double(), torch.randn(9, 3).double()
    ours = trained_once(dfa.DFA(dfa.fuse(model)), x, error)
    model.zero_grad()
    first = model[:3](x)
    second = model[3:6](first.detach())
    b = definition.matrix(3, 7) * definition.default_scale(7)
    first.backward(error @ b)
    second.backward(error @ b[:, :6])
    model[6](second.detach()).backward(error)
    assert_same(ours, gradients(model), rtol=1e-10, atol=1e-12)


def test_a_norm_between_fused_layers_learns():
    """The layer after it is an opaque point then, and so hands the norm its gradient."""
    norm = nn.LayerNorm(7)
    model = nn.Sequential(
        dfa.Linear(5, 7, activation="tanh"), norm, dfa.Linear(7, 6, activation="tanh"),
        nn.LayerNorm(6), dfa.Linear(6, 3),
    ).double()  # fmt: skip
    x, error = torch.randn(9, 5).double(), torch.randn(9, 3).double()
    ours = trained_once(dfa.DFA(model), x, error)
    model.zero_grad()
    h1 = model[0](x)
    h2 = model[2](norm(h1.detach()))
    b = definition.matrix(3, 7) * definition.default_scale(7)
    h1.backward(error @ b)
    h2.backward(error @ b[:, :6])
    model[3:](h2.detach()).backward(error)
    assert_same(ours, gradients(model), rtol=1e-10, atol=1e-12)


def test_branches_and_skips():
    model = Branching().double()
    x, error = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    ours = trained_once(dfa.DFA(model), x, error)
    model.zero_grad()
    b = definition.matrix(3, 6) * definition.default_scale(6)
    pa = model.a(x)
    pb = model.b(pa.detach())
    h = x + pb.detach()
    pc, pa2 = model.c(h), model.a(h)
    for point in (pa, pb, pc, pa2):
        point.backward(error @ b)
    model.head(torch.cat([h + pc.detach(), pa2.detach()], -1)).backward(error)
    assert_same(ours, gradients(model), rtol=1e-10, atol=1e-12)


@both
def test_weight_sharing(fused):
    """Two layers of one weight, each with its own point: the sum of both gradients."""
    tied = nn.Linear(7, 7)
    parts = [nn.Linear(5, 7), nn.Tanh(), tied, nn.Tanh(), tied, nn.Tanh(), nn.Linear(7, 3)]
    net = wrap(nn.Sequential(*parts), fused).double()
    apart = copy.deepcopy(nn.Sequential(*parts))
    apart[4] = copy.deepcopy(apart[2])
    x, error = torch.randn(4, 5).double(), torch.randn(4, 3).double()
    net(x).backward(error)
    first, second, third, head = by_hand(apart, x, error)
    both_uses = second[0] + third[0], second[1] + third[1]
    for layer, wanted in zip(
        (net.module[0], net.module[2], net.module[6]), (first, both_uses, head), strict=True
    ):
        torch.testing.assert_close(layer.weight.grad, wanted[0])
        torch.testing.assert_close(layer.bias.grad, wanted[1])


@both
def test_hooks_that_look(fused):
    """Whoever watches a point's module changes nothing."""
    net = wrap(mlp(), fused)
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted = trained_once(net, x, error)
    seen = []
    for m in net.module:
        m.register_forward_hook(lambda m, i, o: seen.append(o))
    assert_same(trained_once(net, x, error), wanted, rtol=0, atol=0)
    assert len(seen) == len(net.module)


def test_hooks_that_replace_a_points_output():
    """The point is what leaves the module: the error goes back through the hook."""
    net = dfa.DFA(mlp())
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    first = trained_once(net, x, error)[:2]
    net.module[1].register_forward_hook(lambda m, i, o: 2 * o)
    assert_same(trained_once(net, x, error)[:2], [2 * g for g in first], rtol=0, atol=0)


def test_points_that_want_the_same_get_tensors_of_their_own():
    """A parameter of a point's own shape takes the projection as its gradient, and adds to it."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(4, 5))

        def forward(self, x):
            return x + self.by

    net = dfa.DFA(nn.Sequential(Shift(), Shift(), nn.Linear(5, 3)), points=["0", "1"])
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    net(x).backward(error)
    once = gradients(net)
    net(x).backward(error)
    assert_same(gradients(net), [2 * g for g in once], rtol=0, atol=0)


def test_a_classifier_that_is_no_sequential_learns():
    net = dfa.DFA(Classifier())
    ids = torch.arange(11)
    wanted = ids % 3
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(ids), wanted)
        loss.backward()
        optimizer.step()
    assert (net(ids).argmax(1) == wanted).all()


# Checkpointing --------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Where ``on``, each block runs again in the backward pass."""

    def __init__(self, blocks, head, reentrant=False, on=True):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.reentrant, self.on = reentrant, on

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.on else block(x)
        return self.head(x)


def residual_block():
    return Residual(6)


def opaque_block():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid())


def fused_block():
    return dfa.fuse(nn.Sequential(*opaque_block(), nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()))


@pytest.mark.parametrize("block", [residual_block, opaque_block, fused_block])
@pytest.mark.parametrize("points", [None, "blocks.*"])
def test_checkpointed_blocks(block, points):
    """6 rows of 6 features: recomputing another graph would find its tensors to be of the right
    shapes, and torch would not notice."""
    model = Checkpointed(
        [block(6) if block is Residual else block() for _ in range(3)], nn.Linear(6, 2)
    )
    net = dfa.DFA(model, points=points)
    x, error = torch.randn(6, 6), torch.randn(6, 2)
    ours = trained_once(net, x, error)
    model.on = False
    assert_same(ours, trained_once(net, x, error), rtol=0, atol=0)


@both
@pytest.mark.parametrize("reentrant", [True, False])
def test_the_whole_net_checkpointed_in_a_bigger_model(fused, reentrant):
    below, net, above = nn.Linear(4, 5), wrap(mlp(), fused), nn.Linear(3, 2)
    whole = nn.ModuleList([below, net, above])
    x, error = torch.randn(6, 4), torch.randn(6, 2)
    made = []
    for run in (net, lambda h: checkpoint(net, h, use_reentrant=reentrant)):
        whole.zero_grad()
        above(run(below(x))).backward(error)
        made.append(gradients(whole))
    assert all(g is not None for g in made[0])
    assert_same(*made, rtol=0, atol=0)
