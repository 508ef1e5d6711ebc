"""Fused layers whose weight torch.nn.utils computes from another parameter: that one learns, by the
gradient that the layer's weight has."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import dfa_kernels as dfa


class _Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def _masked(layer):
    prune.l1_unstructured(layer, "weight", 0.3)


CHANGES = {
    "weight norm": parametrizations.weight_norm,
    "a weight": lambda layer: parametrize.register_parametrization(layer, "weight", _Doubled()),
    "a bias": lambda layer: parametrize.register_parametrization(layer, "bias", _Doubled()),
    "pruning": _masked,
}


def networks(change, at):
    """The same network twice: changed after it was fused, and never fused."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(13, 31), nn.Tanh(), nn.Linear(31, 17), nn.GELU(), nn.Linear(17, 5)
    ).double()
    fused = dfa.fuse(copy.deepcopy(plain))
    net, truth = dfa.DFA(fused), dfa.DFA(plain)
    for model in (fused, plain):
        layers = [m for m in model if isinstance(m, (nn.Linear, dfa.Linear))]
        CHANGES[change](layers[at])
    return net, truth


def losses(net, optimizer):
    made = []
    for x, y in batches(4):
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.append(loss.item())
    return made


@pytest.mark.parametrize("how", ["torch.optim", "step", "backward"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_it_trains_as_an_opaque_layer_does(change, at, how):
    net, truth = networks(change, at)
    if how == "torch.optim":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    else:
        optimizer = dfa.optim.SGD(net, lr=0.1, update=how)
    ours = losses(net, optimizer)
    wanted = losses(truth, torch.optim.SGD(truth.parameters(), lr=0.1))
    assert ours == pytest.approx(wanted, rel=1e-12)
    assert ours[-1] != ours[0]


def test_to_construct_an_optimizer_computes_no_weight():
    """Of a spectral norm each look is an iteration."""
    layer = nn.utils.parametrizations.spectral_norm(dfa.Linear(5, 7, activation="tanh"))
    net = dfa.DFA(nn.Sequential(layer, nn.Linear(7, 3)))
    before = {k: v.clone() for k, v in net.state_dict().items() if torch.is_tensor(v)}
    dfa.optim.SGD(net, lr=0.1)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
