"""Copies, checkpoints, wrappers, threads: nothing is left behind or left out."""

import copy
import io
import threading

import pytest
import torch
from models import assert_same, both, gradients, mlp, trained_once, wrap
from torch import nn

import dfa_kernels as dfa


def through_pickle(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
@both
def test_copies(duplicate, after, fused):
    net = wrap(mlp(), fused, feedback=dfa.Feedback("uniform", seed=3, shared=False))
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    if after:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(x).backward(error)
        optimizer.step()
    other = duplicate(net)
    wanted = trained_once(net, x, error)
    assert_same(trained_once(other, x, error), wanted, rtol=0, atol=0)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert_same(trained_once(net, x, error), wanted, rtol=0, atol=0)


def test_states_go_both_ways():
    plain, model = mlp(), mlp()
    net = dfa.DFA(dfa.fuse(model))
    net.module.load_state_dict(plain.state_dict())
    assert torch.equal(net(torch.ones(2, 5)), plain(torch.ones(2, 5)))
    with torch.no_grad():
        net.module[0].weight.add_(1)
    plain.load_state_dict(net.module.state_dict())
    assert torch.equal(net(torch.ones(2, 5)), plain(torch.ones(2, 5)))


@pytest.mark.parametrize(
    "feedback",
    [
        dfa.Feedback("normal", seed=2**40, scale=0.1, shared=False),
        dfa.Feedback.from_matrix(torch.randn(3, 13)),
    ],
)
def test_a_checkpoint_is_the_whole_description(feedback):
    net = dfa.DFA(dfa.fuse(mlp()), feedback)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = dfa.DFA(dfa.fuse(mlp()), feedback)
    other.load_state_dict(state)
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    assert_same(trained_once(other, x, error), trained_once(net, x, error), rtol=0, atol=0)


def test_two_wrappers_over_one_model():
    model = mlp()
    one = dfa.DFA(model, dfa.Feedback(seed=1))
    two = dfa.DFA(dfa.fuse(model), dfa.Feedback(seed=2), points=["1", "3"])
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    first, second = trained_once(one, x, error), trained_once(two, x, error)
    alone = dfa.DFA(copy.deepcopy(mlp()), dfa.Feedback(seed=1))
    alone.module.load_state_dict(model.state_dict())
    assert_same(trained_once(alone, x, error), first, rtol=0, atol=0)
    assert not torch.equal(first[0], second[0])
    assert_same(first[-2:], second[-2:])


def test_inside_a_bigger_model_and_in_functional_calls():
    net = dfa.DFA(dfa.fuse(mlp()))
    bigger = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), net, nn.Softplus(), nn.Linear(3, 1))
    bigger(torch.randn(4, 5)).sum().backward()
    assert all(p.grad is not None for p in bigger.parameters())
    other = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    torch.func.functional_call(net, other, (x,)).backward(error)
    assert_same([p.grad for p in other.values()], trained_once(net, x, error))


def test_another_thread_may_evaluate():
    """A forward pass under way belongs to its thread: the other's is a plain evaluation."""
    net = dfa.DFA(dfa.fuse(mlp()))
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    wanted, plain = trained_once(net, x, error), net(x).detach()
    wrong, stop = [], threading.Event()

    def evaluate():
        while not stop.is_set():
            with torch.no_grad():
                if not torch.equal(net(x), plain):
                    wrong.append("output")

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        for _ in range(50):
            assert_same(trained_once(net, x, error), wanted, rtol=0, atol=0)
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_an_exception_leaves_nothing_behind():
    model = mlp()
    net = dfa.DFA(model)
    hook = model[4].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(torch.ones(2, 5))
    hook.remove()
    assert dfa.recording.active.recording is None
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    model(x).backward(error)  # the plain model is plain
    truth = gradients(model)
    net.method = "bp"
    assert_same(trained_once(net, x, error), truth)
