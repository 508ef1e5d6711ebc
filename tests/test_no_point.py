"""Models in which a point is not found, is not reached, or is no longer what it was."""

import pytest
import torch
from models import both, mlp, wrap
from test_errors import refused
from torch import nn

import dfa_kernels as dfa


class Functional(nn.Module):
    """Its activations are functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_model_in_which_no_point_is_found():
    said = "no point was found in Functional, whose 2 layers would all train by backpropagation"
    with pytest.raises(ValueError, match=said):
        dfa.DFA(Functional())
    assert dfa.DFA(Functional(), points="first").point_names == ("first",)
    assert dfa.DFA(nn.Linear(5, 3)).point_names == ()


class Listed(nn.Module):
    """What runs is in a list, which the modules that `fuse` makes are not."""

    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.steps = list(self.body)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def test_a_model_of_which_no_point_is_reached():
    refused(
        dfa.DFA(dfa.fuse(Listed())), torch.ones(2, 5), RuntimeError,
        "never reached 3 of 3 points: 'body.0', 'body.2', 'body.4'",
    )  # fmt: skip


@both
def test_a_point_that_was_replaced(fused):
    net = wrap(mlp(), fused)
    name = "2" if fused else "3"
    new = dfa.Linear(7, 13, activation="tanh") if fused else nn.Tanh()
    net.module[int(name)] = new
    said = f"point '{name}' was replaced after DFA was constructed"
    refused(net, torch.ones(2, 5), RuntimeError, said)


class Wrapped(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)


@both
def test_a_point_that_was_wrapped_or_taken_away_and_is_not_reached(fused):
    """It is the same module, or none: what is reached learns as before."""

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.other = mlp(), nn.Sequential(nn.Tanh())

        def forward(self, x):
            return self.body(x)

    for change in ("wrapped", "taken"):
        model = Skips()
        model.other = dfa.fuse(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Tanh()))
        net = dfa.DFA(dfa.fuse(model) if fused else model)
        other, x = net.module.other, torch.ones(2, 5)
        wanted = _gradients(net, x)
        if change == "wrapped":
            other[2] = Wrapped(other[2])
        else:
            del other[2]
        assert all(map(torch.equal, _gradients(net, x), wanted))


def _gradients(net, x):
    """Of the model's body."""
    net.zero_grad()
    net(x).sum().backward()
    return [p.grad.clone() for p in net.module.body.parameters()]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)),
        nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(5, 7).requires_grad_(False), nn.Linear(7, 3)),
    ],
)
def test_one_layer_that_learns_needs_no_point(model):
    assert dfa.DFA(model).point_names == ()
