"""What fused updates cannot do is refused in one sentence, before anything has changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network

import dfa_kernels as dfa
from dfa_kernels import in_backward


def after_backward(**kwargs):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, momentum=0.9, **kwargs)
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    return net, optimizer, [p.detach().clone() for p in net.parameters()]


LOOKS = {
    "clip_grad_norm_": lambda net, o: torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0),
    "clip_grad_value_": lambda net, o: torch.nn.utils.clip_grad_value_(net.parameters(), 1.0),
    "norm": lambda net, o: net.module[0].weight.grad.norm(),
    "scale": lambda net, o: net.module[0].weight.grad.mul_(0.5),
    "isnan": lambda net, o: net.module[0].weight.grad.isnan().any(),
    "another optimizer": lambda net, o: torch.optim.Adam(net.parameters()).step(),
    "unscale": lambda net, o: _scaler(o).unscale_(o),
    "GradScaler": lambda net, o: _scaler(o).step(o),
}


def _scaler(optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    return scaler


@pytest.mark.parametrize("update", dfa.optim.UPDATES)
@pytest.mark.parametrize("look", LOOKS)
def test_nothing_looks_at_a_gradient_that_was_never_made(look, update):
    net, optimizer, before = after_backward(update=update)
    with pytest.raises(RuntimeError, match=r"gradient of '0'.*fused update never makes"):
        LOOKS[look](net, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    optimizer.step()  # by the records, which are still there; or they have been stepped before
    same = [torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert same == [update == "backward"] * len(same)


@pytest.mark.parametrize("kind", [dfa.optim.SGD, dfa.optim.AdamW])
def test_a_fused_step_of_torchs_unscales_no_gradient_that_was_never_made(kind):
    net = network()
    optimizer = kind(net, fused=True)
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    with pytest.raises(RuntimeError, match="fused update never makes"):
        _scaler(optimizer).step(optimizer)
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda net: dfa.optim.SGD(net.parameters(), lr=0.1), TypeError, "names a DFA module"),
        (lambda net: dfa.optim.SGD(net.module, lr=0.1), TypeError, "DFA module|not iterable"),
        (lambda net: dfa.optim.SGD(net, lr=-1.0), ValueError, "-1.0"),
        (lambda net: dfa.optim.SGD(net, lr=0.1, nesterov=True), ValueError, "[Nn]esterov"),
        (lambda net: dfa.optim.SGD(net, lr=0.1, update="never"), ValueError, "'never'.*backward"),
        (lambda net: dfa.optim.AdamW(net, betas=(0.9, 1.5)), ValueError, "1.5"),
        (lambda net: dfa.optim.AdamW(net, amsgrad=True), ValueError, "amsgrad"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make(network())


def test_a_compiled_forward_must_update_in_backward():
    net, optimizer, _ = after_backward()
    optimizer.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    ((x, _),) = batches(1)
    with pytest.raises(Exception, match='construct it with update="backward"'):
        compiled(x)


def test_an_older_compiler_is_refused(monkeypatch):
    """Whose AOTAutograd cannot update a parameter in a backward pass."""
    monkeypatch.setattr(in_backward, "UPDATES_COMPILE", False)
    net, optimizer, _ = after_backward(update="backward")
    optimizer.step()
    torch._dynamo.reset()
    ((x, _),) = batches(1)
    with pytest.raises(Exception, match="under torch.compile needs torch 2.12, and this is"):
        torch.compile(net, backend="aot_eager", fullgraph=True)(x)


def test_update_in_backward_refuses_a_second_forward_pass():
    net, optimizer, before = after_backward(update="backward")
    ((x, y),) = batches(1)
    with pytest.raises(RuntimeError, match="one forward pass a step.*second since SGD.step"):
        net(x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with torch.no_grad():
        net(x)
    optimizer.step()
    F.cross_entropy(net(x), y).backward()


def test_update_in_backward_refuses_a_second_backward():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update="backward")
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    loss.backward(retain_graph=True)
    after = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="one backward pass a step|modified by an inplace"):
        loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(after, net.parameters(), strict=True))
    optimizer.step()


def test_state_left_on_another_device():
    net, optimizer, _ = after_backward()
    optimizer.step()
    name = tuple(net.module[0].weight.shape)
    state = optimizer.state[net.module[0].weight]
    state["momentum_buffer"] = state["momentum_buffer"].to("meta")
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=rf"\({name[0]}, {name[1]}\) is on cpu.*meta"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_copy_belongs_to_no_optimizer():
    net, optimizer, _ = after_backward()
    optimizer.zero_grad()
    with pytest.raises(TypeError, match="cannot be copied or pickled: save its state_dict"):
        copy.deepcopy(optimizer)
    twin = copy.deepcopy(net)
    ((x, y),) = batches(1)
    F.cross_entropy(twin(x), y).backward()
    assert all(type(p.grad) is torch.Tensor for p in twin.parameters())
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
