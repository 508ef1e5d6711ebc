"""Hidden layers learn from the projected error, and from nothing else."""

from itertools import pairwise

import definition
import pytest
import torch
from definition import assert_gradients, dfa_gradients, stack
from models import ACTIVATIONS, WIDTHS, both, mlp, wrap
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dfa_kernels as dfa


def matrices(widths, **options):
    return [definition.matrix(widths[-1], d, **options) for d in widths[1:-1]]


@both
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_definition(fused, activation, bias):
    model = mlp(activation=activation, bias=bias)
    x, error = torch.randn(17, 5), torch.randn(17, 3)
    wrap(model, fused)(x).backward(error)
    scale = definition.default_scale(13)
    wanted = dfa_gradients(stack(model), x, error, matrices(WIDTHS), scale, activation)
    assert_gradients(model, wanted)


@both
@pytest.mark.parametrize("distribution", ["rademacher", "uniform", "normal", "matrix"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("scale", [None, 0.37])
def test_the_definition_of_every_feedback(fused, distribution, shared, scale):
    model = mlp()
    x, error = torch.randn(4, 5).double(), torch.randn(4, 3).double()
    if distribution == "matrix":
        own = torch.randn(3, 20).double()
        feedback = dfa.Feedback.from_matrix(own, scale=scale)
        bs = [own[:, :d] for d in WIDTHS[1:-1]]
        factor = 1.0 if scale is None else scale
    else:
        feedback = dfa.Feedback(distribution, seed=77, scale=scale, shared=shared)
        bs = [
            definition.matrix(3, d, distribution=distribution, seed=77, stream=0 if shared else i)
            for i, d in enumerate(WIDTHS[1:-1])
        ]
        factor = definition.default_scale(13, distribution) if scale is None else scale
    net = wrap(model, fused, feedback=feedback).double()
    net(x).backward(error)
    wanted = dfa_gradients(stack(model), x, error, bs, factor)
    assert_gradients(model, wanted, rtol=1e-11, atol=1e-12)


@both
def test_it_is_not_backpropagation(fused):
    model = mlp()
    x, error = torch.randn(17, 5), torch.randn(17, 3)
    model(x).backward(error)
    truth = [p.grad for p in model.parameters()]
    model.zero_grad()
    wrap(model, fused)(x).backward(error)
    ours = [p.grad for p in model.parameters()]
    for theirs, mine in list(zip(truth, ours, strict=True))[:-2]:
        assert torch.nn.functional.cosine_similarity(theirs.flatten(), mine.flatten(), dim=0) < 0.9
    for theirs, mine in list(zip(truth, ours, strict=True))[-2:]:
        torch.testing.assert_close(mine, theirs)  # the head's is true


@both
def test_weights_above_a_layer_do_not_matter(fused):
    """With the same error, a layer's gradient is the same whatever stands above it."""
    model = mlp()
    x, error = torch.randn(6, 5), torch.randn(6, 3)
    net = wrap(model, fused)
    gradients = []
    for _ in range(2):
        net.zero_grad()
        net(x).backward(error)
        gradients.append([m.weight.grad for m in model if isinstance(m, nn.Linear)])
        with torch.no_grad():  # everything above the second layer
            for p in list(model.parameters())[4:]:
                p.add_(torch.randn_like(p))
    first, second = gradients
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[3], second[3])


@both
def test_the_projection_is_linear_in_the_error(fused):
    """And so the gradients of two errors add up to those of their sum, exactly where it doubles."""
    model = mlp()
    net = wrap(model, fused)
    x, error = torch.randn(6, 5), torch.randn(6, 3)
    made = []
    for factor in (1.0, 2.0):
        net.zero_grad()
        net(x).backward(error * factor)
        made.append([p.grad for p in net.parameters()])
    for one, two in zip(*made, strict=True):
        assert torch.equal(one * 2, two)


@both
def test_shallow_and_bp_are_what_they_say(fused):
    model = mlp()
    x, error = torch.randn(6, 5), torch.randn(6, 3)
    model(x).backward(error)
    truth = [p.grad for p in model.parameters()]
    net = wrap(model, fused, method="bp")
    net.zero_grad()
    net(x).backward(error)
    for p, wanted in zip(model.parameters(), truth, strict=True):
        torch.testing.assert_close(p.grad, wanted)
    net.zero_grad()
    net.method = "shallow"
    net(x).backward(error)
    *hidden, weight, bias = model.parameters()
    assert all(p.grad is None or not p.grad.any() for p in hidden)
    torch.testing.assert_close(weight.grad, truth[-2])
    torch.testing.assert_close(bias.grad, truth[-1])


# Arithmetic -----------------------------------------------------------------------------------


def backward_flops(net, x, error):
    y = net(x)
    with FlopCounterMode(display=False) as counter:
        y.backward(error)
    return counter.get_total_flops()


@both
def test_no_transposed_weight_below_the_error_point(fused):
    """Exactly one shared projection, the weight gradients and the head's: no Wᵀδ anywhere."""
    rows, widths = 19, (23, 29, 31, 37, 5)
    net = wrap(mlp(widths), fused)
    projection = 2 * rows * 5 * 37  # as wide as the widest point
    weights = sum(2 * rows * a * b for a, b in pairwise(widths))
    counted = backward_flops(net, torch.randn(rows, 23), torch.randn(rows, 5))
    assert counted == projection + weights
    transposed = sum(2 * rows * a * b for a, b in pairwise(widths[1:]))
    net.method = "bp"
    counted = backward_flops(net, torch.randn(rows, 23), torch.randn(rows, 5))
    assert counted == weights + transposed


def test_a_block_backpropagates_inside_itself_alone():
    """A point of two linear layers pays one Wᵀδ, its own; the next block's input is cut."""
    n, d = 7, 11
    blocks = [nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)) for _ in range(3)]
    net = dfa.DFA(nn.Sequential(*blocks, nn.Linear(d, 2)), points=["0", "1", "2"])
    counted = backward_flops(net, torch.randn(n, d), torch.randn(n, 2))
    square = 2 * n * d * d
    assert counted == 3 * (2 + 1) * square + 2 * n * d * 2 + 2 * n * 2 * d


def test_hidden_outputs_carry_no_graph():
    seen = []
    model = dfa.fuse(mlp())
    for m in model:
        m.register_forward_hook(lambda m, i, o: seen.append(o.requires_grad))
    net = dfa.DFA(model)
    y = net(torch.randn(2, 5))
    assert not any(seen)
    assert type(y.grad_fn).__name__ == "ErrorNodeBackward"
    leaves = {type(f).__name__ for f, _ in y.grad_fn.next_functions if f is not None}
    assert leaves == {"AccumulateGrad"}  # one node, and the parameters


# Learning -------------------------------------------------------------------------------------


@both
def test_it_learns_what_shallow_cannot(fused):
    """The parity of two signs: nothing linear in random features of width 8 separates it as well
    as trained ones."""
    losses = {}
    x = torch.randn(256, 2)
    y = (x.prod(1, keepdim=True) > 0).float()
    for method in ("dfa", "shallow"):
        torch.manual_seed(1)
        net = wrap(mlp((2, 8, 8, 1)), fused, method=method)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net(x), y)
            loss.backward()
            optimizer.step()
        losses[method] = loss.item()
    assert losses["dfa"] < 0.6 * losses["shallow"]
