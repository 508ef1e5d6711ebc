"""Where the error enters: points by module, name and glob, the error point, rows and features."""

import math

import definition
import pytest
import torch
from models import Classifier, Residual, assert_same, mlp, trained_once, wrap
from torch import nn

import dfa_kernels as dfa


class Capture(nn.Module):
    """Names a place in a model, and keeps the gradient that arrives there."""

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda g: setattr(self, "gradient", g))
        return x


def captured(*parts, **options):
    """A model whose points are the `Capture`s among ``parts``."""
    model = nn.Sequential(*parts)
    places = [m for m in model if isinstance(m, Capture)]
    return dfa.DFA(model, points=places, **options), places


# Choosing -------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Residual(4) for _ in range(12))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def every(model):
    return tuple(f"layers.{i}" for i in range(12))


@pytest.mark.parametrize(
    ("points", "names"),
    [
        (None, tuple(f"layers.{i}.act" for i in range(12))),
        ("layers.*", tuple(f"layers.{i}" for i in range(12))),
        (["layers.*"], tuple(f"layers.{i}" for i in range(12))),
        ("layers.?", tuple(f"layers.{i}" for i in range(10))),
        ("layers.*.act", tuple(f"layers.{i}.act" for i in range(12))),
        (["layers.10", "layers.2"], ("layers.2", "layers.10")),
        (["layers.2", "layers.[12]"], ("layers.1", "layers.2")),
        ([], ()),
    ],
)
def test_names_and_globs(points, names):
    assert dfa.DFA(Encoder(), points=points).point_names == names


def test_modules():
    model = Encoder()
    by_module = dfa.DFA(model, points=[model.layers[3], "layers.1"])
    assert by_module.point_names == ("layers.1", "layers.3")
    assert dfa.DFA(model, points=model.layers[3]).point_names == ("layers.3",)
    assert dfa.DFA(model, points=model.layers).point_names == every(model)


def test_default_points_of_a_fused_model():
    assert dfa.DFA(dfa.fuse(mlp())).point_names == ("0", "2", "4", "6")
    assert dfa.DFA(mlp()).point_names == ("1", "3", "5")


def test_only_what_is_named_is_cut():
    """Between two points autograd carries the gradient on, through a layer that is no point."""
    net = dfa.DFA(mlp((5, 7, 9, 11, 3)), points=["3"])
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    net(x).backward(error)
    w = [m.weight.detach().double() for m in net.module[::2]]
    b = [m.bias.detach().double() for m in net.module[::2]]
    h1 = torch.tanh(x.double() @ w[0].T + b[0])
    h2 = torch.tanh(h1 @ w[1].T + b[1])
    h3 = torch.tanh(h2 @ w[2].T + b[2])
    e = error.double()
    d2 = e @ definition.matrix(3, 9) * definition.default_scale(9) * (1 - h2**2)
    d1 = d2 @ w[1] * (1 - h1**2)  # true inside the block below the point
    d3 = e @ w[3] * (1 - h3**2)  # true above the point
    for layer, delta, inputs in ((0, d1, x.double()), (2, d2, h1), (4, d3, h2), (6, e, h3)):
        wanted = (delta.T @ inputs).float()
        torch.testing.assert_close(net.module[layer].weight.grad, wanted, rtol=1e-5, atol=1e-6)


# What arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "k"),
    [((6,), 1), ((1,), 1), ((2, 3), 1), ((7,), 4), ((1,), 3), ((0,), 3), ((0, 3), 1)],
    ids=str,
)
@pytest.mark.parametrize("features", [(5,), (1,)])
def test_rows(batch, k, features):
    """(…, k) rows of a point for each row of the error: the projection, k times, over √k."""
    net, (place,) = captured(nn.Linear(4, features[0]), Capture(), Mean(k), nn.Linear(*features, 3))
    inside = (*batch, k) if k > 1 else batch
    error = torch.randn(*batch, 3)
    net(torch.randn(*inside, 4)).backward(error)
    b = definition.matrix(3, *features)
    wanted = error.double() @ b * definition.default_scale(*features) / math.sqrt(k)
    wanted = wanted.unsqueeze(-2).expand(*inside, *features) if k > 1 else wanted
    assert place.gradient.shape == (*inside, *features)
    torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


def test_rows_may_be_flat():
    """(N·k, D) beside (N, E), as where a graph's nodes or an image's patches are pooled."""

    class Pool(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3, x.shape[-1]).sum(1)

    net, (place,) = captured(nn.Linear(4, 5), Capture(), Pool(), nn.Linear(5, 2))
    error = torch.randn(7, 2)
    net(torch.randn(21, 4)).backward(error)
    wanted = error.double() @ definition.matrix(2, 5) * definition.default_scale(5) / math.sqrt(3)
    wanted = wanted.repeat_interleave(3, 0)
    torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


class Mean(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x.mean(-2) if self.k > 1 else x


def test_sequences():
    """(T, N, E): every position has its own error."""
    net, (place,) = captured(nn.Linear(4, 5), Capture(), nn.Linear(5, 3))
    error = torch.randn(7, 2, 3)
    net(torch.randn(7, 2, 4)).backward(error)
    wanted = error.double() @ definition.matrix(3, 5) * definition.default_scale(5)
    torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_images(stride):
    """(N, C, H, W): one row of C·H·W features, in that order."""
    size = 6 // stride
    net, (place,) = captured(
        nn.Conv2d(2, 3, 3, stride, padding=1), Capture(), nn.Flatten(), nn.Linear(3 * size**2, 5)
    )
    error = torch.randn(4, 5)
    net(torch.randn(4, 2, 6, 6)).backward(error)
    width = 3 * size * size
    wanted = error.double() @ definition.matrix(5, width) * definition.default_scale(width)
    wanted = wanted.reshape(4, 3, size, size)
    torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


def test_batch_dims_says_what_is_a_row():
    """A Conv1d's (N, C, L) is one row of C·L features where batch_dims=1."""
    parts = nn.Conv1d(2, 3, 3), Capture(), nn.Flatten(), nn.Linear(12, 5)
    net, (place,) = captured(*parts, batch_dims=1)
    error = torch.randn(4, 5)
    net(torch.randn(4, 2, 6)).backward(error)
    wanted = (error.double() @ definition.matrix(5, 12) * definition.default_scale(12)).view(
        4, 3, 4
    )
    torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


def test_no_batch():
    net = dfa.DFA(dfa.fuse(mlp()), batch_dims=0)
    batched = dfa.DFA(net.module)
    x, error = torch.randn(5), torch.randn(3)
    net(x).backward(error)
    one = [p.grad for p in net.parameters()]
    net.zero_grad()
    batched(x[None]).backward(error[None])
    for p, wanted in zip(net.parameters(), one, strict=True):
        torch.testing.assert_close(p.grad, wanted)


@pytest.mark.parametrize("shared", [True, False])
def test_widths_share_one_matrix_and_one_scale(shared):
    net, places = captured(
        *(nn.Linear(4, 6), Capture(), nn.Linear(6, 2), Capture(), nn.Linear(2, 3)),
        feedback=dfa.Feedback(seed=5, shared=shared),
    )
    error = torch.randn(4, 3)
    net(torch.randn(4, 4)).backward(error)
    for i, (place, width) in enumerate(zip(places, (6, 2), strict=True)):
        b = definition.matrix(3, width, seed=5, stream=0 if shared else i)
        wanted = error.double() @ b * definition.default_scale(6)  # D_max for both
        torch.testing.assert_close(place.gradient.double(), wanted, rtol=1e-6, atol=1e-6)


def test_streams_do_not_depend_on_what_is_frozen():
    gradients = []
    for frozen in (False, True):
        torch.manual_seed(0)
        net, places = captured(
            *(nn.Linear(4, 6), Capture(), nn.Linear(6, 2), Capture(), nn.Linear(2, 3)),
            feedback=dfa.Feedback(shared=False),
        )
        net.module[0].requires_grad_(not frozen)
        net(torch.ones(4, 4)).backward(torch.ones(4, 3))
        gradients.append(places[1].gradient)
    assert torch.equal(*gradients)


# The error point ------------------------------------------------------------------------------


class Vocabulary(nn.Module):
    """The error point before a wide projection, as in the paper's language model."""

    def __init__(self, fused):
        super().__init__()
        self.body = dfa.fuse(mlp((5, 7, 6, 4))) if fused else mlp((5, 7, 6, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 50))

    def forward(self, x):
        return {"logits": self.decoder(self.body(x)), "unused": None}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "opaque"])
@pytest.mark.parametrize("error_at", ["body", "body.4"])
def test_error_inside_the_model(fused, error_at):
    model = Vocabulary(fused)
    x, g = torch.randn(8, 5), torch.randn(8, 50)
    inner = {}
    model(x)["logits"].backward(g)
    truth = [p.grad for p in model.decoder.parameters()]
    model.zero_grad()
    net = dfa.DFA(model, error_at=error_at)
    model.body.register_forward_hook(lambda m, i, o: inner.update(y=o))
    y = net(x)["logits"]
    (error,) = torch.autograd.grad(y, inner["y"], g, retain_graph=True)
    y.backward(g)
    for p, wanted in zip(model.decoder.parameters(), truth, strict=True):
        torch.testing.assert_close(p.grad, wanted)
    layers = definition.stack(model.body)
    bs = [definition.matrix(4, d) for d in (7, 6)]
    wanted = definition.dfa_gradients(layers, x, error, bs, definition.default_scale(7))
    definition.assert_gradients(model.body, wanted)


@pytest.mark.parametrize("squeezed", [True, False])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "opaque"])
def test_one_output(squeezed, fused):
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = dfa.fuse(mlp((5, 7, 6, 1))) if fused else mlp((5, 7, 6, 1))

        def forward(self, x):
            y = self.mlp(x)
            return y.squeeze(-1) if squeezed else y

    model = Scalar()
    net = dfa.DFA(model, error_at="mlp.4" if squeezed and fused else None)
    x, error = torch.randn(9, 5), torch.randn(9, 1)
    net(x).backward(error.squeeze(-1) if squeezed else error)
    bs = [definition.matrix(1, d) for d in (7, 6)]
    layers = definition.stack(model)
    wanted = definition.dfa_gradients(layers, x, error, bs, definition.default_scale(7))
    definition.assert_gradients(model, wanted)


def test_a_head_with_an_activation():
    model = nn.Sequential(*mlp((5, 7, 3)), nn.Sigmoid())
    x, error = torch.randn(9, 5), torch.randn(9, 3)
    for fused in (True, False):
        model.zero_grad()
        net = wrap(model, fused)
        y = net(x)
        y.backward(error)
        delta = (error * y * (1 - y)).detach()
        head = model[2]
        h = torch.tanh(model[0](x)).detach()
        torch.testing.assert_close(head.weight.grad, delta.T @ h)
        d = error @ definition.matrix(3, 7).float() * definition.default_scale(7) * (1 - h * h)
        torch.testing.assert_close(model[0].weight.grad, d.T @ x)


def test_an_embedding_learns_through_its_block():
    """What stands before the first fused layer gets its gradient: that layer is opaque then."""
    model = Classifier()
    net = dfa.DFA(model)
    ids, error = torch.randint(0, 11, (8,)), torch.randn(8, 3)
    net(ids).backward(error)
    e = error.double()
    x = model.embedding.weight.detach().double()[ids]
    w = {n: m.weight.detach().double() for n, m in model.named_children()}
    b = {n: m.bias.detach().double() for n, m in model.named_children() if n != "embedding"}
    h1 = torch.tanh(x @ w["first"].T + b["first"])
    h2 = (h1 @ w["second"].T + b["second"]).clamp(min=0)
    scale = definition.default_scale(7)
    d1 = e @ definition.matrix(3, 7) * scale * (1 - h1**2)
    d2 = e @ definition.matrix(3, 6) * scale * (h2 > 0)
    dx = torch.zeros(11, 5, dtype=torch.float64).index_add(0, ids, d1 @ w["first"])
    for layer, wanted in (
        (model.embedding, dx),
        (model.first, d1.T @ x),
        (model.second, d2.T @ h1),
        (model.head, e.T @ h2),
    ):
        torch.testing.assert_close(layer.weight.grad.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_cut_survives_that_somebody_clears_the_hooks():
    net = dfa.DFA(mlp())
    wanted = trained_once(net, torch.ones(4, 5), torch.ones(4, 3))
    net.module[1]._forward_hooks.clear()
    assert_same(trained_once(net, torch.ones(4, 5), torch.ones(4, 3)), wanted)
