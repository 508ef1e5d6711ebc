"""fp32 masters: torch.optim's numbers on fp32 copies of the weights, rounded after each step."""

import itertools
import types

import pytest
import torch
import torch.nn.functional as F
from test_optim import CASES, IDS, LR, Tied, batches
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE

LOW = [torch.bfloat16, torch.float16]
UPDATES = ["step", "backward"]


def network(dtype=torch.bfloat16, bias=False, seed=0, **kwargs):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise((13, 31, 17, 5)):
        layers += [nn.Linear(a, b, bias=bias), nn.Tanh()]
    return dfa.DFA(dfa.fuse(nn.Sequential(*layers[:-1]).to(dtype)), **kwargs)


class ByHand:
    """A torch.optim optimizer on fp32 copies, which are fed with the network's gradients."""

    def __init__(self, name, net, **kwargs):
        self.parameters = list(net.parameters())
        self.copies = [p.detach().float() for p in self.parameters]
        self.optimizer = getattr(torch.optim, name)(self.copies, **kwargs)

    @torch.no_grad()
    def step(self):
        for copy, p in zip(self.copies, self.parameters, strict=True):
            copy.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        for copy, p in zip(self.copies, self.parameters, strict=True):
            p.copy_(copy)

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


def train(net, optimizer, steps=4, accumulate=1, forward=None, shape=(13,)):
    inner = getattr(optimizer, "optimizer", optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(inner, 0.7)
    forward = net if forward is None else forward
    dtype = next(net.module.parameters()).dtype
    for i, (x, y) in enumerate(batches(steps * accumulate, dtype)):
        F.cross_entropy(forward(x.reshape(-1, *shape)).float(), y).backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def masters(net, optimizer):
    """Of every parameter; an fp32 one is its own."""
    return [optimizer.state[p].get("master", p.detach()) for p in net.parameters()]


def agree(net, optimizer, hand, rtol=1e-6, atol=1e-6):
    for master, p, copy in zip(masters(net, optimizer), net.parameters(), hand.copies, strict=True):
        assert master.dtype == torch.float32
        torch.testing.assert_close(master, copy, rtol=rtol, atol=atol)
        assert torch.equal(p, master.to(p.dtype))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_the_numbers_are_torchs_on_an_fp32_copy(name, kwargs, update):
    nets = network(), network()
    hand = ByHand(name, nets[0], lr=LR[name], **kwargs)
    ours = getattr(dfa.optim, name)(
        nets[1], lr=LR[name], update=update, master_weights=True, **kwargs
    )
    train(nets[0], hand), train(nets[1], ours)
    agree(nets[1], ours, hand)
    for p, copy in zip(nets[1].parameters(), hand.copies, strict=True):
        for key, value in hand.optimizer.state[copy].items():
            if isinstance(value, torch.Tensor):
                assert ours.state[p][key].dtype == torch.float32
                torch.testing.assert_close(ours.state[p][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", LR)
def test_biases_and_accumulation(name, dtype):
    """By hand a bias's gradient is rounded before it is applied, and so is each of two; ours is
    not: 2⁻⁸ of a gradient below 1."""
    nets = network(dtype, bias=True), network(dtype, bias=True)
    extra = {"eps": 1e-3} if name == "AdamW" else {}
    hand = ByHand(name, nets[0], lr=LR[name], **extra)
    ours = getattr(dfa.optim, name)(nets[1], lr=LR[name], master_weights=True, **extra)
    train(nets[0], hand, accumulate=2), train(nets[1], ours, accumulate=2)
    agree(nets[1], ours, hand, atol=4 * LR[name] * 2**-8)


@pytest.mark.parametrize("update", UPDATES)
def test_steps_too_small_for_the_parameter_add_up(update):
    """60 of 2·10⁻⁵ the same way; bf16 below ¼ is 10⁻³ apart."""
    ((x, y),) = batches(1, torch.bfloat16)
    moved = []
    for master_weights in (False, True):
        net = network()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = dfa.optim.AdamW(
            net, lr=2e-5, weight_decay=0.0, update=update, master_weights=master_weights
        )
        for _ in range(60):
            F.cross_entropy(net(x).float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        pairs = zip(before, net.parameters(), strict=True)
        moved.append(sum(int((a != b).sum()) for a, b in pairs))
    every = sum(p.numel() for p in net.parameters())
    assert moved[0] < every / 10
    assert moved[1] > every * 0.7


def test_an_fp32_network_has_no_masters():
    made = []
    for master_weights in (False, True):
        net = network(torch.float32, bias=True)
        optimizer = dfa.optim.AdamW(net, lr=1e-3, master_weights=master_weights)
        train(net, optimizer)
        assert all("master" not in state for state in optimizer.state.values())
        made.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *made))


# What is no fused layer's ------------------------------------------------------------------------


def mixed():
    """Opaque layers in bf16, fused ones in bf16, and an fp32 scale at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(33), nn.Linear(33, 8, bias=False),
        nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 5, bias=False),
    ).bfloat16()  # fmt: skip
    net = dfa.DFA(dfa.fuse(model), error_at="8")
    net.scale = nn.Parameter(torch.ones(5))
    return net


@pytest.mark.parametrize("name", LR)
def test_opaque_layers_have_masters_too(name):
    nets = mixed(), mixed()
    hand = ByHand(name, nets[0], lr=LR[name])
    ours = getattr(dfa.optim, name)(nets[1], lr=LR[name], master_weights=True)
    for net, optimizer in zip(nets, (hand, ours), strict=True):
        train(net, optimizer, forward=lambda x, net=net: net(x) * net.scale, shape=(1, 13))
    agree(nets[1], ours, hand)
    with_masters = [p.dtype for p in nets[1].parameters() if "master" in ours.state[p]]
    assert with_masters == [torch.bfloat16] * 7
    assert [len(g["params"]) for g in ours.param_groups] == [8]


@pytest.mark.parametrize("name", LR)
@pytest.mark.parametrize("opaque", [False, True])
def test_tied_weights(opaque, name):
    """Sums that become gradients after all are applied to the master."""
    nets = [dfa.DFA(Tied(opaque).bfloat16(), points=["a", "b"]) for _ in range(2)]
    extra = {"eps": 1e-3} if name == "AdamW" else {"momentum": 0.9}
    hand = ByHand(name, nets[0], lr=LR[name], **extra)
    ours = getattr(dfa.optim, name)(nets[1], lr=LR[name], master_weights=True, **extra)
    train(nets[0], hand), train(nets[1], ours)
    agree(nets[1], ours, hand, atol=8 * LR[name] * 2**-8)
    assert all("master" in state for state in ours.state.values())


@pytest.mark.parametrize("name", LR)
def test_a_method_that_makes_gradients(name):
    nets = network(method="bp"), network(method="bp")
    hand = ByHand(name, nets[0], lr=LR[name])
    ours = getattr(dfa.optim, name)(nets[1], lr=LR[name], master_weights=True)
    for method in ("bp", "dfa"):
        for net, optimizer in zip(nets, (hand, ours), strict=True):
            net.method = method
            train(net, optimizer)
    agree(nets[1], ours, hand)


# Checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_first", [False, True])
@pytest.mark.parametrize("into", UPDATES)
@pytest.mark.parametrize("name", LR)
def test_a_checkpoint_goes_on_to_the_bit(name, into, model_first, tmp_path):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    first = network(bias=True)
    make = getattr(dfa.optim, name)
    optimizer = make(first, lr=LR[name], master_weights=True, **kwargs)
    train(first, optimizer, steps=3)
    torch.save({"net": first.state_dict(), "opt": optimizer.state_dict()}, tmp_path / "c.pt")
    stored = torch.load(tmp_path / "c.pt", weights_only=True)
    second = network(bias=True, seed=7)
    made = make(second, lr=1.0, update=into, master_weights=True, **kwargs)
    for what in (second, made) if model_first else (made, second):
        what.load_state_dict(stored["net" if what is second else "opt"])
    assert all(s["master"].dtype == torch.float32 for s in made.state.values())
    train(first, optimizer), train(second, made)
    for a, b in zip(masters(first, optimizer), masters(second, made), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LR)
def test_checkpoints_without_masters_fit_both_ways(name):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    for ours_first in (False, True):
        nets = network(), network()
        theirs = getattr(torch.optim, name)(nets[0].parameters(), lr=LR[name], **kwargs)
        ours = getattr(dfa.optim, name)(nets[1], lr=LR[name], master_weights=True, **kwargs)
        order = [(nets[1], ours), (nets[0], theirs)][:: 1 if ours_first else -1]
        (one, first), (two, second) = order
        train(one, first)
        two.load_state_dict(one.state_dict())
        second.load_state_dict(first.state_dict())
        train(two, second)
        assert all(p.isfinite().all() for p in two.parameters())
        if not ours_first:
            for p, state in ours.state.items():
                assert {t.dtype for t in state.values() if torch.is_tensor(t)} == {torch.float32}
                assert torch.equal(p, state["master"].to(p.dtype))
    plain = dfa.optim.SGD(nets[1], lr=0.1)
    plain.load_state_dict({**ours.state_dict(), "param_groups": plain.state_dict()["param_groups"]})
    assert all("master" not in state for state in plain.state.values())


# Parameters that somebody else writes to ----------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
def test_a_master_follows_a_parameter_that_was_written_to(update):
    """Only where it was: what was left keeps what is below the parameter's precision."""
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, update=update, master_weights=True)
    train(net, optimizer)
    before = [m.clone() for m in masters(net, optimizer)]
    with torch.no_grad():
        for p in net.parameters():
            p[0] = 3.0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    ((x, y),) = batches(1, torch.bfloat16)
    F.cross_entropy(net(x).float(), y).backward()
    optimizer.step()
    for p, master, old in zip(net.parameters(), masters(net, optimizer), before, strict=True):
        assert (master[0] == 3.0).all()
        assert (p[0] == 3.0).all()
        assert torch.equal(master[1:], old[1:])
        assert not torch.equal(master[1:], p[1:].float())


@pytest.mark.parametrize("update", UPDATES)
def test_a_master_follows_what_was_written_to_between_the_backward_pass_and_the_step(update):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.0, update=update, master_weights=True)
    for x, y in batches(2, torch.bfloat16):
        F.cross_entropy(net(x).float(), y).backward()
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(3.0)
        optimizer.step()
        optimizer.zero_grad()
    assert all((master == 3.0).all() for master in masters(net, optimizer))


def test_a_master_that_is_loaded_alone_follows_its_parameter():
    first, second = network(), network(seed=7)
    optimizers = [dfa.optim.SGD(net, lr=0.1, master_weights=True) for net in (first, second)]
    for net, optimizer in zip((first, second), optimizers, strict=True):
        train(net, optimizer)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for group in optimizers[1].param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in second.parameters()]
    ((x, y),) = batches(1, torch.bfloat16)
    F.cross_entropy(second(x).float(), y).backward()
    optimizers[1].step()
    assert all(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))


def test_a_master_left_on_another_device():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1, master_weights=True)
    train(net, optimizer)
    state = optimizer.state[net.module[0].weight]
    state["master"] = state["master"].to("meta")
    before = [p.detach().clone() for p in net.parameters()]
    ((x, y),) = batches(1, torch.bfloat16)
    F.cross_entropy(net(x).float(), y).backward()
    with pytest.raises(RuntimeError, match=r"\(31, 13\) is on cpu.*state is on meta"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# Passes -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not UPDATES_COMPILE, reason="needs torch 2.12")
@pytest.mark.parametrize("name", LR)
def test_it_compiles_whole(name):
    nets = network(bias=True), network(bias=True)
    optimizers = [
        getattr(dfa.optim, name)(net, lr=LR[name], update="backward", master_weights=True)
        for net in nets
    ]
    torch._dynamo.reset()
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    train(nets[0], optimizers[0]), train(nets[1], optimizers[1], forward=compiled)
    for a, b in zip(*map(masters, nets, optimizers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not UPDATES_COMPILE, reason="needs torch 2.12")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", LR)
def test_a_compiled_updates_master_follows_a_parameter_that_was_written_to(name, backend):
    nets = network(bias=True), network(bias=True)
    optimizers = [
        getattr(dfa.optim, name)(net, lr=LR[name], update="backward", master_weights=True)
        for net in nets
    ]
    torch._dynamo.reset()
    runs = nets[0], torch.compile(nets[1], backend=backend, fullgraph=True)
    for _ in range(3):
        for net, optimizer, run in zip(nets, optimizers, runs, strict=True):
            train(net, optimizer, steps=2, forward=run)
            with torch.no_grad():
                for p in net.parameters():
                    p.clamp_(-0.05, 0.05)
    for net, optimizer, run in zip(nets, optimizers, runs, strict=True):
        train(net, optimizer, steps=1, forward=run)
    for a, b in zip(*map(masters, nets, optimizers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert b.abs().max() < 0.2


@pytest.mark.parametrize("name", LR)
def test_a_fused_layers_copy_is_written_by_the_backends_step(name, monkeypatch):
    """No pass over the weights after it: the optimizer itself copies nothing."""
    net = network()
    optimizer = getattr(dfa.optim, name)(net, lr=0.1, master_weights=True)
    train(net, optimizer)
    given = []
    fake = types.SimpleNamespace(step_=lambda feedback, rule, updates: given.extend(updates))
    monkeypatch.setattr(dfa.backends, "function", lambda name, *_: getattr(fake, name))
    before = [p.detach().clone() for p in net.parameters()]
    ((x, y),) = batches(1, torch.bfloat16)
    F.cross_entropy(net(x).float(), y).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    for p, master, update in zip(net.parameters(), masters(net, optimizer), given, strict=True):
        assert update.weight.copy is p
        assert update.weight.parameter is master
