"""Bad input: one sentence with the names and numbers in it, before anything is changed."""

import copy

import pytest
import torch
from models import both, mlp, wrap
from torch import nn
from torch.utils.checkpoint import checkpoint

import dfa_kernels as dfa


def unchanged(net, before):
    """Nothing has a gradient, nothing is under way, and every number is what it was."""
    assert dfa.recording.active.recording is None
    assert all(p.grad is None for p in net.parameters())
    after = net.state_dict()
    return all(torch.equal(after[k], v) for k, v in before.items() if isinstance(v, torch.Tensor))


# Construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"points": "encoder.*"}, ValueError, "'encoder.*' matches none of the 7 modules: '0', "),
        ({"points": ["1", "9"]}, ValueError, "'9' matches none of the 7 modules"),
        ({"points": [nn.Tanh()]}, ValueError, "Tanh is not a module inside the model"),
        ({"points": [3]}, TypeError, "a point must be a module or a name, got int"),
        ({"points": 3}, TypeError, "not iterable"),
        ({"error_at": "body"}, ValueError, "no module is named 'body': there are '0', '1'"),
        ({"error_at": nn.Tanh()}, ValueError, "Tanh is not a module inside the model"),
        ({"error_at": 3}, TypeError, "error_at must be a module or a name, got int"),
        ({"method": "sgd"}, ValueError, "unknown method 'sgd': known are dfa, bp, shallow"),
        ({"batch_dims": -1}, ValueError, "got -1"),
        ({"batch_dims": "a"}, TypeError, "batch_dims must be None or an int, got 'a'"),
        ({"feedback": "normal"}, TypeError, r"got 'normal': give Feedback\('normal'\)"),
    ],
)
def test_construction(options, error, said):
    model = mlp()
    with pytest.raises(error, match=said):
        dfa.DFA(model, **options)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_second_wrapper_inside():
    with pytest.raises(ValueError, match="already holds a DFA module"):
        dfa.DFA(nn.Sequential(dfa.DFA(mlp()), nn.ReLU()))


def test_what_is_no_module():
    with pytest.raises(TypeError, match="DFA trains a module, got a str"):
        dfa.DFA("model")
    with pytest.raises(TypeError, match="fuse needs a module, got a list"):
        dfa.fuse([nn.Linear(2, 2)])


def test_another_feedback_later():
    """Streams, the scale and a checkpoint's description are the first one's."""
    net = dfa.DFA(mlp(), feedback=dfa.Feedback(seed=3))
    with pytest.raises(AttributeError, match=r"seed=3.*is chosen when a DFA module is constructed"):
        net.feedback = dfa.Feedback(seed=4)
    assert net.feedback.seed == 3


def test_an_unknown_method_later():
    net = dfa.DFA(mlp())
    with pytest.raises(ValueError, match="unknown method 'fa'"):
        net.method = "fa"
    assert net.method == "dfa"


# Shapes -------------------------------------------------------------------------------------


@both
def test_one_input_without_a_batch_dimension(fused):
    """Its features would be taken for rows, and learn from another projection."""
    net = wrap(mlp(), fused)
    with pytest.raises(ValueError, match="one dimension, the point of 7 elements: batch_dims=0"):
        net(torch.ones(5))
    assert all(p.grad is None for p in net.parameters())
    alone, one = wrap(mlp(), fused, batch_dims=0), wrap(mlp(), fused)
    one.load_state_dict(alone.state_dict())
    x = torch.randn(5)
    alone(x).sum().backward(), one(x[None]).sum().backward()
    for a, b in zip(alone.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@both
def test_an_input_of_another_dtype(fused):
    """Of a fused layer it is named."""
    net = wrap(mlp(), fused)
    said = r"Linear\(5, 7\) has its weight in float32, but was given an input in float64"
    with pytest.raises(RuntimeError, match=said if fused else "dtype"):
        net(torch.ones(2, 5).double())
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.ones(2, 5).bfloat16())


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def refused(net, x, error, said):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=said):
        net(x)
    assert unchanged(net, before)


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [(4, 13, "matrix has 4 rows, but the error has width 3"),
     (3, 12, "matrix has 12 columns, but the widest point has 13 features")],
)  # fmt: skip
@both
def test_a_matrix_of_another_width(fused, rows, columns, said):
    feedback = dfa.Feedback.from_matrix(torch.ones(rows, columns))
    refused(wrap(mlp(), fused, feedback=feedback), torch.ones(2, 5), ValueError, said)


@both
def test_rows_that_do_not_divide(fused):
    model = nn.Sequential(*mlp((5, 7, 7)), nn.Tanh(), Apply(lambda h: h[:4]), nn.Linear(7, 3))
    said = "point '.*' has 6 rows, which the error's 4 rows do not divide"
    refused(wrap(model, fused), torch.ones(6, 5), ValueError, said)


def test_rows_in_another_order():
    """(T, N) rows under an error of N: repeating rows would mix the examples."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), Apply(lambda h: h.mean(0)), nn.Linear(7, 3))
    said = r"point '1' has rows of shape \(3, 2\), which do not begin with the error's \(2,\)"
    refused(dfa.DFA(model), torch.ones(3, 2, 5), ValueError, said)


def test_a_scalar_output():
    model = nn.Sequential(*mlp(), Apply(lambda y: y.sum()))
    said = "the model's output is a scalar: does the model return its loss"
    refused(dfa.DFA(model), torch.ones(2, 5), ValueError, said)


def test_an_output_that_is_no_tensor():
    model = nn.Sequential(*mlp(), Apply(lambda y: {"logits": y}))
    said = "the model's output is a dict, not one tensor: name the module.*error_at"
    refused(dfa.DFA(model), torch.ones(2, 5), TypeError, said)


def test_a_point_that_returns_no_tensor():
    model = nn.Sequential(nn.LSTM(5, 7), Apply(lambda pair: pair[0]), nn.Linear(7, 3))
    said = "point '0' returned a tuple, but a point must return one tensor"
    refused(dfa.DFA(model, points="0"), torch.ones(2, 5), TypeError, said)


# Reaching -----------------------------------------------------------------------------------


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(self.a(x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"points": ["a", "b"]}, "never reached 1 of 2 points: 'b'"),
        ({"points": ["a"], "error_at": "b"}, "never reached the error point 'b'"),
        ({"points": ["a", "c"], "error_at": "a"}, "'c' was reached after the error point 'a'"),
    ],
)
def test_points_out_of_reach(options, said):
    refused(dfa.DFA(Skipping(), **options), torch.ones(2, 5), RuntimeError, said)


def test_an_error_point_reached_twice():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    twice = nn.Sequential(model, nn.Tanh(), model)
    refused(dfa.DFA(twice, error_at="0"), torch.ones(2, 5), RuntimeError, "'0' was reached twice")


@pytest.mark.parametrize("frozen_first", [False, True])
@both
def test_nothing_above_the_last_point(fused, frozen_first):
    """The head would learn from a random projection: refused, whatever is frozen below it."""
    model = mlp()
    if frozen_first:
        model[0].requires_grad_(False)
    whole = nn.Sequential(dfa.fuse(model) if fused else model[:-1], Apply(lambda y: y.squeeze(-1)))
    said = "no layer would learn from its true gradient: '0.[56]' is a point.*error_at='0.[56]'"
    refused(dfa.DFA(whole), torch.ones(2, 5), RuntimeError, said)


def test_a_frozen_head_is_no_reason_to_refuse():
    for model in (mlp(), dfa.fuse(mlp())):
        model[-1].requires_grad_(False)
        dfa.DFA(model)(torch.ones(2, 5)).sum().backward()
        assert model[4].weight.grad.any()
        assert model[-1].weight.grad is None


def test_an_error_point_inside_no_graph():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            with torch.no_grad():
                y = self.body(x)
            return self.head(y)

    net = dfa.DFA(Detached(), points=[], error_at="body")
    refused(net, torch.ones(2, 5), RuntimeError, "'body' is inside no graph: .* torch.no_grad")


# Dtypes and devices -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize(("at", "where"), [(2, "point '2'"), (5, "the model's output")])
def test_tensors_that_are_not_real(dtype, at, where):
    parts = list(mlp((5, 7, 6, 3)))
    parts.insert(at, Apply(lambda h: h.to(dtype)))
    net = dfa.DFA(nn.Sequential(*parts[: at + 1]), points=[str(at)] if at == 2 else None)
    said = f"{where} is {dtype}, but DFA needs a real floating dtype"
    refused(net, torch.ones(2, 5), TypeError, said)


def test_a_complex_layer():
    first = dfa.Linear(5, 7, activation="tanh", dtype=torch.complex64)
    net = dfa.DFA(nn.Sequential(first, Apply(torch.abs), nn.Linear(7, 3)))
    refused(net, torch.ones(2, 5) + 0j, TypeError, "layer '0' is torch.complex64")


@both
def test_a_layer_elsewhere(fused):
    """Its output never reaches the error point, whose error would not reach it either."""

    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.there = mlp((5, 7, 3)).to("meta")
            self.here = mlp((5, 7, 3))
            if fused:
                self.there, self.here = dfa.fuse(self.there), dfa.fuse(self.here)

        def forward(self, x):
            self.there(x.to("meta"))
            return self.here(x)

    net = dfa.DFA(Elsewhere())
    with pytest.raises(
        RuntimeError, match=r"'there.[01]' .*on meta, but the error point is on cpu"
    ):
        net(torch.ones(2, 5))
    assert all(p.grad is None for p in net.parameters())


def test_a_weight_elsewhere():
    net = dfa.DFA(dfa.fuse(mlp()))
    net.module[2].to("meta")
    with pytest.raises(RuntimeError, match=r"Linear\(7, 13\) has its weight on meta.*input on cpu"):
        net(torch.ones(2, 5))


# In place, and again ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["input", "output"])
def test_what_an_update_reads_must_stay(what):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = dfa.Linear(5, 5, activation="tanh")
            self.head = dfa.Linear(5, 3)

        def forward(self, x):
            h = self.a(x)
            (x if what == "input" else h).add_(1)
            return self.head(h)

    refused(dfa.DFA(InPlace()), torch.ones(2, 5), RuntimeError, "'a': .*changed in place after")


def test_what_no_update_reads_may_change():
    """f′ of the identity reads nothing, so what follows may overwrite it."""
    model = nn.Sequential(dfa.Linear(5, 7), nn.ReLU(inplace=True), dfa.Linear(7, 3))
    other = copy.deepcopy(model)
    other[1] = nn.ReLU()
    for m in (model, other):
        dfa.DFA(m, points=["0"])(torch.ones(2, 5)).backward(torch.ones(2, 3))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@both
def test_a_second_backward(fused):
    net = wrap(mlp(), fused)
    y = net(torch.ones(2, 5))
    y.sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    points, layers = (0, 4) if fused else (3, 0)
    said = f"second backward.*{points} points and {layers} fused layers.*retain_graph=True"
    with pytest.raises(RuntimeError, match=said if fused else "second"):
        y.sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


# Checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "here", "said"),
    [
        (dfa.Feedback(seed=1), dfa.Feedback(seed=2), "another feedback: seed 1, here 2"),
        (dfa.Feedback("normal"), dfa.Feedback(), "distribution 'normal', here 'rademacher'"),
        (dfa.Feedback(shared=False), dfa.Feedback(scale=2.0), "scale None, here 2.0, shared False"),
        (dfa.Feedback.from_matrix(torch.ones(3, 13)), dfa.Feedback(), "distribution 'matrix'"),
        (
            dfa.Feedback.from_matrix(torch.ones(3, 13)),
            dfa.Feedback.from_matrix(torch.zeros(3, 13)),
            r"another feedback matrix: \(3, 13\), here \(3, 13\), other values",
        ),
        (
            dfa.Feedback.from_matrix(torch.ones(3, 13)),
            dfa.Feedback.from_matrix(torch.ones(3, 14)),
            r"another feedback matrix: \(3, 13\), here \(3, 14\)",
        ),
    ],
)
def test_a_checkpoint_of_another_feedback(stored, here, said):
    state = dfa.DFA(mlp(), stored).state_dict()
    net = dfa.DFA(mlp(), here)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=said):
        net.load_state_dict(state)
    assert unchanged(net, before)


def test_a_plain_checkpoint_belongs_to_the_module():
    net = dfa.DFA(mlp())
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(mlp().state_dict())


# Activation checkpointing -------------------------------------------------------------------


@both
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_below_a_point(fused):
    """It would run the block under no_grad, and no layer in it would ever learn."""

    class Reentrant(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
            if fused:
                self.block = dfa.fuse(self.block)
            self.head = nn.Linear(7, 3)

        def forward(self, x):
            return self.head(checkpoint(self.block, x, use_reentrant=True))

    for points in (None, "block"):
        net = dfa.DFA(Reentrant(), points=points)
        said = "point 'block.*' ran under torch.no_grad.*use_reentrant=False"
        refused(net, torch.ones(2, 5), RuntimeError, said)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_inside_a_point():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp((5, 7, 7))

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=True)

    net = dfa.DFA(nn.Sequential(Block(), nn.Linear(7, 3)), points="0")
    said = "point '0' has 4 trainable parameters, but its output has no graph.*use_reentrant=False"
    refused(net, torch.ones(2, 5), RuntimeError, said)


def test_an_error_point_inside_a_checkpoint():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp((5, 7, 6)), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    net = dfa.DFA(Inside(), error_at="body")
    said = "error point 'body' is inside a checkpointed region"
    refused(net, torch.ones(2, 5), RuntimeError, said)
