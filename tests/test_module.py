"""Passes, methods, frozen layers and precisions."""

import copy
import gc
import pickle
import weakref

import definition
import pytest
import torch
from definition import by_hand
from models import assert_same, both, gradients, mlp, trained_once, wrap
from torch import nn
from torch.nn import functional as F

import dfa_kernels as dfa


@both
def test_several_forward_passes_before_one_backward(fused):
    """Each keeps its own records: the sum of two losses has the sum of their gradients."""
    net = wrap(mlp(), fused)
    xs, errors = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    one, two = net(xs[0]), net(xs[1][:3])
    ((one * errors[0]).sum() + (two * errors[1][:3]).sum()).backward()
    first = by_hand(net, xs[0], errors[0])
    second = by_hand(net, xs[1][:3], errors[1][:3])
    wanted = [(a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True)]
    definition.assert_gradients(net, wanted)


@both
def test_accumulation(fused):
    net = wrap(mlp(), fused)
    x, error = torch.randn(8, 5), torch.randn(8, 3)
    for part in (slice(0, 3), slice(3, 8)):
        net(x[part]).backward(error[part])
    definition.assert_gradients(net, by_hand(net, x, error))


@both
def test_a_second_backward_over_a_retained_graph(fused):
    net = wrap(mlp(), fused)
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    y = net(x)
    y.backward(error, retain_graph=True)
    once = gradients(net)
    y.backward(error)
    assert_same(gradients(net), [2 * g for g in once], rtol=0, atol=0)


@both
def test_methods_switch_between_passes(fused):
    """A pass keeps the method that it began with."""
    net = wrap(mlp(), fused)
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted = {}
    for method in dfa.module.METHODS:
        net.method = method
        wanted[method] = trained_once(net, x, error)
    assert not torch.allclose(wanted["dfa"][0], wanted["bp"][0])
    outputs = {}
    for method in dfa.module.METHODS:
        net.method = method
        outputs[method] = net(x)
    for method in dfa.module.METHODS:
        net.zero_grad()
        outputs[method].backward(error)
        assert_same(gradients(net), wanted[method], rtol=0, atol=0)


def test_outputs_do_not_depend_on_the_method():
    net = dfa.DFA(dfa.fuse(mlp()))
    x = torch.randn(4, 5)
    with torch.no_grad():
        plain = net(x)
    for method in dfa.module.METHODS:
        net.method = method
        assert torch.equal(net(x), plain)
        assert torch.equal(net.eval()(x), plain)


@both
def test_frozen_layers(fused):
    """The others learn as before: not even the scale changes, nor where the head is the widest."""
    model = mlp((5, 7, 13, 11, 20))
    net = wrap(model, fused)
    x, error = torch.randn(4, 5), torch.randn(4, 20)
    wanted = trained_once(net, x, error)
    for frozen in (["0."], ["4."], ["6."], ["0.", "2.", "4."], ["0.weight"], ["2.bias"]):
        for name, p in model.named_parameters():
            p.requires_grad_(not any(name.startswith(f) for f in frozen))
        net.zero_grad()
        net(x).backward(error)
        for (name, p), g in zip(model.named_parameters(), wanted, strict=True):
            if any(name.startswith(f) for f in frozen):
                assert p.grad is None
            else:
                torch.testing.assert_close(p.grad, g)
    model.requires_grad_(False)
    assert not net(x).requires_grad


@both
@pytest.mark.parametrize("points", [None, []])
def test_models_without_a_point(fused, points):
    model = nn.Sequential(nn.Linear(5, 3)) if points is None else mlp()
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    model(x).backward(error)
    wanted = gradients(model)
    net = wrap(model, fused, points=points)
    assert_same(trained_once(net, x, error), wanted)


# Precision ------------------------------------------------------------------------------------


@both
def test_autocast(fused):
    """bf16 operands, fp32 gradients: as far from the fp64 truth as plain autograd under autocast
    would be, times two."""
    torch.manual_seed(2)
    model = mlp((20, 33, 31, 4))
    net = wrap(model, fused)
    x, error = torch.randn(64, 20), torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    y.backward(error.bfloat16())
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    wanted = by_hand(model, x, error)
    for layer, (weight, bias) in zip(model[::2], wanted, strict=True):
        for ours, truth in ((layer.weight.grad, weight), (layer.bias.grad, bias)):
            # a sum over 64 rows of terms of order 1, each rounded three times to 2⁻⁸
            assert (ours - truth).abs().max() < 2 * 3 * 2**-8 * 64**0.5
            assert F.cosine_similarity(ours.flatten(), truth.flatten().float(), dim=0) > 0.999


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype(fused, dtype):
    net = wrap(mlp(), fused, feedback=dfa.Feedback.from_matrix(torch.ones(3, 13))).to(dtype)
    assert net.feedback_matrix.dtype == dtype
    x, error = torch.randn(4, 5).to(dtype), torch.randn(4, 3).to(dtype)
    net(x).backward(error)
    assert all(p.grad.dtype == dtype for p in net.parameters())
    layers, ones = definition.stack(net), [torch.ones(3, d) for d in (7, 13, 11)]
    wanted = definition.dfa_gradients(layers, x, error, ones, 1.0)
    eps = torch.finfo(dtype).eps
    definition.assert_gradients(net, wanted, rtol=20 * eps, atol=30 * eps)


@both
def test_autocast_leaves_fp64_alone(fused):
    net = wrap(mlp(), fused).double()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(4, 5).double())
    assert y.dtype == torch.float64
    y.sum().backward()


# Lives -----------------------------------------------------------------------------------------


@both
def test_a_wrapper_that_nobody_holds_is_gone(fused):
    """And its hooks with it, when one model is wrapped again and again."""
    model = dfa.fuse(mlp()) if fused else mlp()
    wrapped = []
    for seed in range(5):
        net = dfa.DFA(model, feedback=dfa.Feedback(seed=seed), error_at="6")
        net(torch.ones(2, 5)).sum().backward()
        wrapped.append(weakref.ref(net))
    gc.collect()
    assert [one() is None for one in wrapped] == [True] * 4 + [False]
    assert sum(len(m._forward_hooks) for m in model.modules()) == (1 if fused else 4)


@both
@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_cuts_for_itself(fused, how):
    net = wrap(mlp(), fused, error_at="6")
    made = how(net)
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted = trained_once(net, x, error)
    del net
    gc.collect()
    assert_same(trained_once(made, x, error), wanted)


@both
def test_a_copy_of_the_model_alone_trains_by_backpropagation(fused):
    net = wrap(mlp(), fused)
    model, plain = copy.deepcopy(net.module), mlp()
    plain.load_state_dict(model.state_dict())
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    assert_same(trained_once(model, x, error), trained_once(plain, x, error))


class Holder(nn.Module):
    """Holds a model before the DFA module around it, so that a copy meets the model first."""

    def __init__(self, fused):
        super().__init__()
        self.model = dfa.fuse(mlp()) if fused else mlp()
        self.net = dfa.DFA(self.model, points=["1", "2", "3"] if not fused else None, error_at="6")


@both
@pytest.mark.parametrize("how", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
def test_a_copy_of_what_holds_the_model_first(fused, how):
    held = Holder(fused)
    made = how(held)
    assert made.net.module is made.model
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted = trained_once(held.net, x, error)
    assert_same(trained_once(made.net, x, error), wanted)


@both
def test_a_model_that_is_saved_without_its_wrapper(fused):
    """It is a plain model then."""
    net = wrap(mlp(), fused)
    model, plain = pickle.loads(pickle.dumps(net.module)), mlp()
    plain.load_state_dict(model.state_dict())
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    assert_same(trained_once(model, x, error), trained_once(plain, x, error))


@pytest.mark.parametrize("name", ["1", "6"])
def test_a_hook_that_takes_the_key_of_ours(name):
    """Keys are counted anew in every process: of a model that was loaded they may be taken."""
    net = dfa.DFA(mlp(), error_at="6")
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted = trained_once(net, x, error)
    hooks, called = net.module.get_submodule(name)._forward_hooks, []
    (key,) = hooks
    hooks[key] = lambda *_: called.append(1)
    assert_same(trained_once(net, x, error), wanted)
    assert called
