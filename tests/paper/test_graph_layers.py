"""The three layers of our own: the function of torch_geometric's, or of the definition."""

import pytest
import torch
import torch_geometric.nn as pyg
from scipy.interpolate import BSpline

from bench.paper.graph.layers import ChebConv, DNAConv, SplineConv

NODES = 23


def edges(seed=0):
    """Both directions of each, and an isolated last node."""
    pairs = torch.randint(NODES - 1, (2, 40), generator=torch.Generator().manual_seed(seed))
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)


def twins(ours, theirs):
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


def agree(ours, theirs, x):
    a, b = ours(x, edges()), theirs(x, edges())
    assert torch.allclose(a, b, atol=1e-12)
    direction = torch.randn_like(a)
    for layer, out in ((ours, a), (theirs, b)):
        (out * direction).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_chebyshev_polynomials_are_torch_geometrics(order, bias):
    made = (kind(9, 5, K=order, bias=bias) for kind in (ChebConv, pyg.ChebConv))
    agree(*twins(*made), torch.randn(NODES, 9, dtype=torch.float64))


@pytest.mark.parametrize(("heads", "groups", "states"), [(1, 1, 1), (4, 8, 3), (8, 2, 5)])
def test_dynamic_aggregation_is_torch_geometrics(heads, groups, states):
    made = (kind(16, heads=heads, groups=groups) for kind in (DNAConv, pyg.DNAConv))
    agree(*twins(*made), torch.randn(NODES, states, 16, dtype=torch.float64))


def test_attention_is_dropped_in_training_alone():
    layer = DNAConv(16, heads=4, groups=4, dropout=0.5).double()
    x = torch.randn(NODES, 3, 16, dtype=torch.float64)
    first, second = layer(x, edges()), layer(x, edges())
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(x, edges()), layer(x, edges()))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_spline_layer_is_its_definition(sparse):
    layer = SplineConv(6, 4).double()
    with torch.no_grad():
        layer.bias.normal_()
    pairs = edges()
    x = torch.randn(NODES, 6, dtype=torch.float64) * (torch.rand(NODES, 6) < 0.5)
    position = torch.rand(pairs.shape[1], 1, dtype=torch.float64)
    position[:2] = torch.tensor([[0.0], [1.0]])
    # A B-spline of degree 1 over the open knots 0 0 1 1 with the two weights as its control points.
    curve = BSpline([0, 0, 1, 1], layer.weight.detach().numpy(), 1)
    wanted = x @ layer.root.weight.T + layer.bias
    for i in range(NODES):
        incoming = [n for n in range(pairs.shape[1]) if pairs[1, n] == i]
        for n in incoming:
            weight = torch.as_tensor(curve(position[n].item()))
            wanted[i] = wanted[i] + x[pairs[0, n]] @ weight / len(incoming)
    given = x.to_sparse().coalesce() if sparse else x
    assert torch.allclose(layer(given, pairs, position), wanted, atol=1e-12)


def test_the_spline_layers_gradient_is_its_functions():
    layer = SplineConv(3, 2).double()
    pairs, x = edges(), torch.randn(NODES, 3, dtype=torch.float64)
    position = torch.rand(pairs.shape[1], 1, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def function(*values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (x, pairs, position))

    assert torch.autograd.gradcheck(function, tuple(parameters.values()))


def test_the_spline_layer_begins_where_torch_geometrics_does():
    layer = SplineConv(50, 40)
    bound = (2 * 50) ** -0.5
    assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert 0.98 * 50**-0.5 < layer.root.weight.abs().max() <= 50**-0.5
    assert (layer.bias == 0).all()
