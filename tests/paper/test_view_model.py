"""The fields, and how they learn by each method."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa
from bench.paper.view.model import SIZES, Field, NeRF, Query, Size, encode

SMALL = Size(depth=3, width=8, skip=1, position=2, direction=1, coarse=4, fine=3)
METHODS = ("dfa", "bp", "shallow")


def made(method="dfa", size=SMALL):
    """With heads as training leaves them: they begin at zero."""
    torch.manual_seed(3)
    model = NeRF(size)
    for field in (model.coarse, model.fine):
        nn.init.normal_(field.density.weight)
        nn.init.normal_(field.colour.weight)
    return dfa.DFA(model, dfa.Feedback(seed=5), method=method)


def query(rays=5, samples=4, fine=False):
    g = torch.Generator().manual_seed(9)
    positions = torch.randn(rays, samples, 3, generator=g)
    return Query(positions, F.normalize(torch.randn(rays, 3, generator=g), dim=1), fine)


def gradients(net):
    return {name: p.grad for name, p in net.module.named_parameters() if p.grad is not None}


def test_encoding():
    x = torch.tensor([[0.3, -1.0, 2.0]])
    parts = [x] + [f(2.0**k * x) for f in (torch.sin, torch.cos) for k in range(3)]
    torch.testing.assert_close(encode(x, 3), torch.cat(parts, 1))
    assert torch.equal(encode(x, 0), x)


def test_the_published_size_has_the_published_number_of_parameters():
    """63·256 + 256, 6 × (256² + 256) and 319·256 + 256 in the trunk; density 257; feature
    256² + 256; view 283·128 + 128; colour 387."""
    assert sum(p.numel() for p in Field(SIZES["nerf"]).parameters()) == 595_844


def test_every_layer_but_the_heads_is_a_point():
    net = made()
    layers = ["trunk.0", "trunk.1", "trunk.2", "feature", "view"]
    assert net.point_names == tuple(f"{f}.{n}" for f in ("coarse", "fine") for n in layers)


def test_position_comes_in_again_and_direction_changes_colour_alone():
    field = made().module.coarse
    positions, directions, _ = query()
    raw = field(positions, directions)
    turned = field(positions, -directions)
    assert torch.equal(raw[..., 3], turned[..., 3])
    assert (raw[..., :3] - turned[..., :3]).abs().max() > 1e-3
    with torch.no_grad():  # past the skip, a dead trunk still sees the position
        field.trunk[SMALL.skip].weight.zero_()
    assert field(positions, directions)[..., 3].std() > 1e-3


@pytest.mark.parametrize("fine", [False, True])
def test_methods_share_one_forward_pass(fine):
    outputs = [made(method)(query(fine=fine)) for method in METHODS]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])
    assert outputs[0].shape == (5, 4, 4)


def test_dfa_hands_each_layer_the_projected_error():
    """δ = (e·B·scale) ⊙ f′ at two layers, by hand; the error is 4 wide."""
    net, asked = made(), query()
    raw = net(asked)
    raw.retain_grad()
    (raw**3).sum().backward()
    error, field = raw.grad.reshape(-1, 4), net.module.coarse
    feedback = net.feedback.matrix(4, 8) * net.feedback.scale_for(8)
    where = encode(asked.positions.reshape(-1, 3), SMALL.position)
    with torch.no_grad():
        h = field.trunk[0](where)
        delta = (error @ feedback) * (h > 0)
    torch.testing.assert_close(field.trunk[0].weight.grad, delta.T @ where)
    torch.testing.assert_close(field.feature.bias.grad, (error @ feedback).sum(0))
    torch.testing.assert_close(field.density.bias.grad, error[:, 3].sum(0, keepdim=True))
    torch.testing.assert_close(field.colour.bias.grad, error[:, :3].sum(0))


@pytest.mark.parametrize("method", METHODS)
def test_forward_passes_add_up_in_one_backward(method):
    """Two chunks of each field before one backward: the gradients of the whole batch."""
    parts, whole = made(method), made(method)
    loss = torch.zeros(())
    for fine in (False, True):
        positions, directions, _ = query(rays=7, fine=fine)
        for rows in (slice(0, 3), slice(3, 7)):
            loss = loss + (parts(Query(positions[rows], directions[rows], fine)) ** 3).sum()
    loss.backward()
    sum((whole(query(rays=7, fine=fine)) ** 3).sum() for fine in (False, True)).backward()
    found, meant = gradients(parts), gradients(whole)
    assert found.keys() == meant.keys() and len(meant) > 4
    for name, gradient in meant.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_shallow_trains_the_heads_alone():
    net = made("shallow")
    net(query()).square().sum().backward()
    heads = {f"coarse.{h}.{p}" for h in ("density", "colour") for p in ("weight", "bias")}
    assert set(gradients(net)) == heads


def test_bp_is_plain_autograd():
    net = made("bp")
    plain = made().module
    net(query()).square().sum().backward()
    plain(query()).square().sum().backward()
    for name, p in plain.named_parameters():
        if name.startswith("coarse"):
            torch.testing.assert_close(gradients(net)[name], p.grad)


def test_a_fresh_field_is_grey_fog_everywhere():
    positions, directions, _ = query()
    assert Field(SMALL)(positions, directions).abs().max() == 0
