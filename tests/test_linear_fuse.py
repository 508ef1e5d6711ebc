"""`Linear` outside and inside a DFA module, and what `fuse` makes of a model."""

import copy
import gc

import definition
import pytest
import torch
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.linear import Passed

NAMES = [f.name for f in ACTIVATIONS]


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (7, 5), (2, 3, 5)])
def test_alone_it_is_an_ordinary_layer(activation, shape):
    layer = dfa.Linear(5, 3, activation=activation).double()
    x = torch.randn(shape).double().requires_grad_()
    y = layer(x)
    f, slope = definition.ACTIVATIONS[activation]
    a = (x @ layer.weight.T + layer.bias).detach()
    torch.testing.assert_close(y, f(a))
    g = torch.randn_like(y)
    y.backward(g)
    delta = g * slope(a)
    torch.testing.assert_close(x.grad, delta @ layer.weight.detach())
    rows, inputs = delta.reshape(-1, 3), x.detach().reshape(-1, 5)
    torch.testing.assert_close(layer.weight.grad, rows.T @ inputs)
    torch.testing.assert_close(layer.bias.grad, rows.sum(0))


@pytest.mark.parametrize("activation", NAMES)
def test_both_paths_return_the_same(activation):
    model = nn.Sequential(dfa.Linear(5, 9, activation=activation), dfa.Linear(9, 2))
    x = torch.randn(4, 5)
    assert torch.equal(dfa.DFA(model)(x), model(x))


def test_it_says_what_it_is():
    text = repr(dfa.Linear(5, 3, bias=False, activation="silu"))
    assert text == "Linear(in_features=5, out_features=3, bias=False, activation=silu)"
    assert dfa.Linear(5, 3).activation == "identity"


def fused_kinds(model):
    return {name: m.activation for name, m in model.named_modules() if isinstance(m, dfa.Linear)}


def test_fuse_pairs_and_the_last():
    model = nn.Sequential(
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.Dropout(0.1),
        nn.Linear(5, 5),
        nn.GELU("tanh"),
        nn.Sequential(nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 5)),
        nn.Sequential(nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 2)),
    )
    wanted = {
        "0": "relu",
        "4": "gelu_tanh",
        "6.0": "silu",
        "7.0": "sigmoid",
        "7.2": "identity",
    }
    assert fused_kinds(dfa.fuse(model)) == wanted


class Doubling(nn.Sequential):
    """A Sequential by name only: its forward is its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


def weight_normed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))


def hooked():
    linear = nn.Linear(5, 5)
    linear.register_forward_hook(lambda m, i, o: o * 2)
    return linear


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (nn.Linear(5, 2), {}),
        (nn.Sequential(), {}),
        (nn.Sequential(nn.ReLU()), {}),
        (nn.Sequential(nn.Linear(5, 2)), {"0": "identity"}),
        (nn.Sequential(nn.Linear(5, 5), nn.LeakyReLU(), nn.Linear(5, 2)), {"2": "identity"}),
        (nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True)), {"0": "relu"}),
        (Doubling(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), {}),
        (Custom(), {"body.0": "tanh"}),
        (nn.Sequential(weight_normed(), nn.ReLU(), nn.Linear(5, 2)), {"2": "identity"}),
        (nn.Sequential(hooked(), nn.ReLU(), nn.Linear(5, 2)), {"2": "identity"}),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_fuse_takes_only_what_it_can(model, fused):
    made = dfa.fuse(model)
    assert fused_kinds(made) == fused
    made.eval(), model.eval()
    if len(list(model.parameters())):
        x = torch.randn(3, 5)
        assert torch.equal(made(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
def test_fuse_shares_parameters_and_keys(bias):
    model = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, 2))
    before = repr(model)
    made = dfa.fuse(model)
    assert repr(model) == before  # left as it is
    assert list(made.state_dict()) == list(model.state_dict())
    assert [id(p) for p in made.parameters()] == [id(p) for p in model.parameters()]
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in model.named_parameters()]
    net = dfa.DFA(made)
    net(torch.randn(4, 5)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fusing_twice_is_fusing_once():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    once = dfa.fuse(model)
    assert fused_kinds(dfa.fuse(once)) == fused_kinds(once) == {"0": "tanh", "2": "identity"}


def test_a_layer_used_twice_stays_one_parameter():
    linear = nn.Linear(5, 5)
    made = dfa.fuse(nn.Sequential(linear, nn.Tanh(), linear, nn.Tanh(), nn.Linear(5, 2)))
    assert made[0].weight is made[2].weight is linear.weight
    assert len(list(made.parameters())) == 4


def test_training_mode_is_kept():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).eval()
    assert not any(m.training for m in dfa.fuse(model)[::2])


@pytest.mark.parametrize(
    ("input", "error", "said"),
    [
        (torch.ones(2, 4), ValueError, r"Linear\(5, 3\).*shape \(2, 4\).*should be 5"),
        (torch.tensor(1.0), ValueError, r"Linear\(5, 3\).*shape \(\).*should be 5"),
        (torch.ones(2, 5, dtype=torch.int64), TypeError, "input of torch.int64"),
        (torch.ones(2, 5) * 1j, TypeError, "input of torch.complex64"),
        (torch.ones(2, 5, device="meta"), RuntimeError, "weight on cpu.*an input on meta"),
    ],
)
@pytest.mark.parametrize("inside", [True, False], ids=["in a DFA", "alone"])
def test_inputs_refused(input, error, said, inside):
    layer = dfa.Linear(5, 3, activation="relu")
    module = dfa.DFA(nn.Sequential(layer, dfa.Linear(3, 2))) if inside else layer
    with pytest.raises(error, match=said):
        module(input)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'swish': known are identity, relu"):
        dfa.Linear(5, 3, activation="swish")
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        dfa.Linear.from_linear(nn.Linear(5, 3), "swish")


def _with_a_backward_hook(layer):
    layer.register_full_backward_pre_hook(lambda *_: None)


def _with_a_forward_of_its_own(layer):
    layer.forward = lambda x: x


def _with_a_buffer(layer):
    layer.register_buffer("mask", torch.ones(3))


def _with_a_parameter(layer):
    layer.register_parameter("gain", nn.Parameter(torch.ones(3)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "change",
    [_with_a_backward_hook, _with_a_forward_of_its_own, _with_a_buffer, _with_a_parameter],
)
def test_a_layer_that_somebody_has_changed_is_left_alone(change, which):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    change(model[which])
    fused = dfa.fuse(model)
    assert fused[which] is model[which]
    assert list(fused.state_dict()) == list(model.state_dict())


def test_a_copy_of_a_wrapped_model_is_fused_whole():
    """It has the wrapper's hooks, which are nobody's there; in the model itself they cut."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net = dfa.DFA(model, error_at="2")
    kinds = [[type(m) for m in dfa.fuse(m)] for m in (net.module, copy.deepcopy(net.module))]
    assert kinds == [
        [nn.Linear, nn.Tanh, nn.Linear], [dfa.Linear, Passed, dfa.Linear],
    ]  # fmt: skip
    copied = copy.deepcopy(net)
    assert [type(m) for m in dfa.fuse(copied.module)] == kinds[0]
    del net, copied
    gc.collect()
    assert [type(m) for m in dfa.fuse(model)] == kinds[1]
