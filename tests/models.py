"""The small models that the tests train, and what training them once leaves behind."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import dfa_kernels as dfa

WIDTHS = (5, 7, 13, 11, 3)
ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}


both = pytest.mark.parametrize("fused", [True, False], ids=["fused", "opaque"])


def mlp(widths=WIDTHS, activation="tanh", bias=True):
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def wrap(model, fused, **options):
    return dfa.DFA(dfa.fuse(model) if fused else model, **options)


class Residual(nn.Module):
    """x + W₂·tanh(W₁·x): a block that backpropagates inside itself."""

    def __init__(self, width, inner=None):
        super().__init__()
        self.up = nn.Linear(width, inner or 2 * width)
        self.act = nn.Tanh()
        self.down = nn.Linear(inner or 2 * width, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Branching(nn.Module):
    """A skip past two points, two branches, and one layer in both of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (dfa.Linear(6, 6, activation="tanh") for _ in range(3))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = x + self.b(self.a(x))
        return self.head(torch.cat([h + self.c(h), self.a(h)], -1))


class Classifier(nn.Module):
    """Not a Sequential: embedding, fused layers, a fused head."""

    def __init__(self, outputs=3):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.first = dfa.Linear(5, 7, activation="tanh")
        self.second = dfa.Linear(7, 6, activation="relu")
        self.head = dfa.Linear(6, outputs)

    def forward(self, ids):
        return self.head(self.second(self.first(self.embedding(ids))))


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def trained_once(net, x, error):
    net.zero_grad()
    net(x).backward(error)
    return gradients(net)


def assert_same(ours, wanted, **tolerance):
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)
