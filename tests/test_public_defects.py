"""What public implementations of DFA (TinyDFA, BioTorch, FDFA) were found to get wrong: one test
for each defect, named by it and by whom it was seen in."""

import copy
import gc
import io
import weakref

import pytest
import torch
from definition import assert_gradients, by_hand
from models import assert_same, both, gradients, mlp, trained_once, wrap
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dfa_kernels as dfa

X = torch.linspace(-2, 2, 30).reshape(6, 5)
Y = torch.tensor([0, 1, 2, 2, 1, 0])


def the_loss(net):
    return F.cross_entropy(net(X), Y)


def the_error(net):
    with torch.no_grad():
        return (net(X).softmax(1) - F.one_hot(Y)) / 6


@both
def test_two_forward_passes_before_a_backward(fused):
    """Silently wrong gradients (TinyDFA, BioTorch)."""
    net = wrap(mlp(), fused)
    loss = the_loss(net)
    net(torch.randn(9, 5))  # whatever comes between: another batch, an evaluation with gradients
    loss.backward()
    assert_gradients(net, by_hand(net, X, the_error(net)))


@both
@pytest.mark.parametrize("factor", [1024.0, 0.25])
def test_a_scaled_loss(fused, factor):
    """Hidden layers keep the unscaled error (BioTorch). Powers of two scale exactly."""
    net = wrap(mlp(), fused)
    the_loss(net).backward()
    wanted = [factor * g for g in gradients(net)]
    net.zero_grad()
    (factor * the_loss(net)).backward()
    assert_same(gradients(net), wanted, rtol=0, atol=0)


@both
def test_a_gradient_scaler(fused):
    """The same through torch's own (GradScaler): unscaled, the step is the unscaled one's."""
    made = []
    for scaled in (False, True):
        torch.manual_seed(0)
        net = wrap(mlp(), fused)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        scaler.scale(the_loss(net)).backward()
        scaler.step(optimizer)
        scaler.update()
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made, rtol=1e-6, atol=1e-7)


@both
def test_autograd_grad(fused):
    """None for hidden layers, and `.grad` written on the side (TinyDFA)."""
    net = wrap(mlp(), fused)
    made = torch.autograd.grad(the_loss(net), list(net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    for p, g in zip(net.parameters(), made, strict=True):
        p.grad = g
    assert_gradients(net, by_hand(net, X, the_error(net)))


@both
def test_autograd_grad_of_some(fused):
    net = wrap(mlp(), fused)
    the_loss(net).backward()
    wanted = gradients(net)
    for i, p in enumerate(net.parameters()):
        (made,) = torch.autograd.grad(the_loss(net), p)
        torch.testing.assert_close(made, wanted[i], rtol=0, atol=0)


@both
def test_retain_graph(fused):
    """A second backward raises (TinyDFA)."""
    net = wrap(mlp(), fused)
    loss = the_loss(net)
    loss.backward(retain_graph=True)
    wanted = [2 * g for g in gradients(net)]
    loss.backward()
    assert_same(gradients(net), wanted, rtol=0, atol=0)


@both
def test_reentrant_checkpointing(fused):
    """Raises (TinyDFA)."""
    net = wrap(mlp(), fused)
    wanted = trained_once(net, X, torch.ones(6, 3))
    net.zero_grad()
    x = X.clone().requires_grad_()
    checkpoint(net, x, use_reentrant=True).backward(torch.ones(6, 3))
    assert_same(gradients(net), wanted, rtol=1e-6, atol=1e-7)
    assert x.grad.any()


@both
def test_deepcopy_after_a_step(fused):
    """Raises (TinyDFA)."""
    net = wrap(mlp(), fused)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    the_loss(net).backward()
    optimizer.step()
    other = copy.deepcopy(net)
    net.zero_grad()
    for n in (net, other):
        the_loss(n).backward()
    assert_same(gradients(other), gradients(net), rtol=0, atol=0)


@both
def test_a_frozen_first_layer(fused):
    """Raises (TinyDFA)."""
    net = wrap(mlp(), fused)
    the_loss(net).backward()
    wanted = gradients(net)
    net.zero_grad()
    net.module[0].requires_grad_(False)
    the_loss(net).backward()
    assert_same(gradients(net), [None, None, *wanted[2:]])


@both
def test_the_feedback_survives_a_restart(fused):
    """B is not in the state, so a reload trains against another matrix; or a fresh model cannot
    load a checkpoint (TinyDFA, BioTorch; FDFA)."""
    net = wrap(mlp(), fused, feedback=dfa.Feedback("uniform", seed=41))
    the_loss(net).backward()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    fresh = wrap(mlp(), fused, feedback=dfa.Feedback("uniform", seed=41))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    the_loss(fresh).backward()
    assert_same(gradients(fresh), gradients(net), rtol=0, atol=0)


def test_every_rank_has_the_same_feedback():
    """Every rank draws its own (all): ours does not read the global random state at all."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(dfa.Feedback("normal", seed=7).matrix(5, 33))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*made)


@both
@pytest.mark.parametrize("own", [True, False])
def test_moving_takes_the_feedback_along(fused, own):
    """`.to()` leaves it behind, and float64 raises (TinyDFA)."""
    feedback = dfa.Feedback.from_matrix(torch.randn(3, 13)) if own else dfa.Feedback()
    net = wrap(mlp(), fused, feedback=feedback).to(torch.float64)
    if own:
        assert net.feedback_matrix.dtype == torch.float64
        assert dict(wrap(mlp(), fused, feedback=feedback).to("meta").named_buffers())[
            "feedback_matrix"
        ].is_meta
    net(X.double()).sum().backward()
    assert all(p.grad.dtype == torch.float64 for p in net.parameters())


@both
def test_autocast(fused):
    """Raises (TinyDFA)."""
    net = wrap(mlp(), fused)
    with torch.autocast("cpu", torch.bfloat16):
        loss = the_loss(net)
    loss.backward()
    ours = gradients(net)
    net.zero_grad()
    the_loss(net).backward()
    for a, b in zip(ours, gradients(net), strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


@both
@pytest.mark.parametrize("shape", [(6, 4, 5), (2, 3, 4, 5)])
def test_inputs_of_more_dimensions(fused, shape):
    """(N, T, D) raises (BioTorch). Every row is an example of its own."""
    dims = len(shape) - 1
    net = wrap(mlp(), fused, batch_dims=dims)
    x, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    net(x).backward(error)
    assert_gradients(net, by_hand(net, x.reshape(-1, 5), error.reshape(-1, 3)))


@both
def test_one_output(fused):
    """Raises (BioTorch)."""
    net = wrap(mlp((5, 7, 6, 1)), fused)
    error = torch.randn(6, 1)
    net(X).backward(error)
    assert_gradients(net, by_hand(net, X, error))


@both
def test_eval_mode(fused):
    """Raises (BioTorch). Evaluation builds no graph, and training in eval mode trains."""
    net = wrap(mlp(), fused).eval()
    with torch.no_grad():
        assert not net(X).requires_grad
    with torch.inference_mode():
        assert torch.equal(net(X), net.module(X))
    the_loss(net).backward()
    assert_gradients(net, by_hand(net, X, the_error(net)))


@both
def test_fullgraph(fused):
    """None compiles with fullgraph=True."""
    net = wrap(mlp(), fused)
    the_loss(net).backward()
    wanted = gradients(net)
    net.zero_grad()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    F.cross_entropy(compiled(X), Y).backward()
    assert_same(gradients(net), wanted)


@both
def test_activations_go_with_the_backward_pass(fused):
    """All hold every activation after the step."""
    net = wrap(mlp(), fused)
    kept = []
    for m in net.module:
        m.register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o.untyped_storage())))
    y = net(X)
    del kept[-1]  # the output, which we hold
    gc.disable()  # freed by themselves, not by the collector
    try:
        assert any(ref() is not None for ref in kept)
        y.sum().backward()
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()


@both
def test_no_more_arithmetic_than_needed(fused):
    """1.004 to 1.014 × backpropagation's flop: every Wᵀδ made and thrown away (all)."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    for method in ("bp", "dfa"):
        net = wrap(mlp((64, 256, 256, 256, 10)), fused, method=method)
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(8, 64)).sum().backward()
        counted[method] = counter.get_total_flops()
    assert counted["dfa"] < 0.75 * counted["bp"]


def test_nothing_is_drawn_while_training():
    """No random numbers, no buffers, no attributes: two runs are the same bits."""
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        net = dfa.DFA(dfa.fuse(nn.Sequential(*mlp((5, 7, 7)), nn.Tanh(), nn.Linear(7, 3))))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            the_loss(net).backward()
            optimizer.step()
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made, rtol=0, atol=0)
