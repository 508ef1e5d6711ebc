"""dfa_kernels.optim against torch.optim fed with the same network's gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE

SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "maximize": True},
]
ADAMW = [
    {},
    {"betas": (0.7, 0.8), "eps": 1e-6, "weight_decay": 0.2},
    {"weight_decay": 0.0, "maximize": True},
]
CASES = [("SGD", kw) for kw in SGD] + [("AdamW", kw) for kw in ADAMW]
IDS = [f"{name}-{'-'.join(kw) or 'plain'}" for name, kw in CASES]
# lr 1e-3 for AdamW: where a gradient is near its eps of 1e-8, a rounding error of 1e-17 in it
# moves the step by lr·1e-17/1e-8.
LR = {"SGD": 0.1, "AdamW": 1e-3}


def network(dtype=torch.float64, seed=0, **kwargs):
    torch.manual_seed(seed)
    sizes = (13, 31, 17, 5)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return dfa.DFA(dfa.fuse(nn.Sequential(*layers[:-1]).to(dtype)), **kwargs)


def batches(count, dtype=torch.float64, rows=11):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(rows, 13, generator=generator, dtype=dtype)
        yield x, torch.randint(5, (rows,), generator=generator)


def train(net, optimizer, steps=5, accumulate=1, dtype=torch.float64, forward=None):
    forward = net if forward is None else forward
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    for i, (x, y) in enumerate(batches(steps * accumulate, dtype)):
        F.cross_entropy(forward(x), y).backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return [p.detach().clone() for p in net.parameters()]


def both(name, kwargs, dtype=torch.float64, **how):
    plain, fused = network(dtype), network(dtype)
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs)
    ours = getattr(dfa.optim, name)(fused, lr=LR[name], **kwargs)
    wanted = train(plain, theirs, dtype=dtype, **how)
    made = train(fused, ours, dtype=dtype, **how)
    return made, wanted, ours, theirs


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_the_numbers_are_torchs_in_fp64(name, kwargs, accumulate):
    made, wanted, ours, theirs = both(name, kwargs, accumulate=accumulate)
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    state, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    for i, entry in expected.items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(state[i][key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_the_numbers_are_torchs_in_fp32(name, kwargs):
    """Five steps, each of which rounds the same sums in another order: 2⁻²⁴ of weights and
    gradients below 1, a dozen times. AdamW divides a gradient's rounding error by √v + eps, so
    its eps is 1e-3 here: with 1e-8, where a gradient is all rounding error, so is the step."""
    if name == "AdamW":
        kwargs = {**kwargs, "eps": 1e-3}
    made, wanted, _, _ = both(name, kwargs, dtype=torch.float32)
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_update_in_backward_gives_the_same_numbers(name, kwargs):
    plain, fused = network(), network()
    wanted = train(plain, getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs))
    optimizer = getattr(dfa.optim, name)(fused, lr=LR[name], update="backward", **kwargs)
    for a, b in zip(train(fused, optimizer), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not UPDATES_COMPILE, reason="needs torch 2.12")
@pytest.mark.parametrize(("name", "kwargs"), [CASES[3], CASES[-2]], ids=[IDS[3], IDS[-2]])
def test_update_in_backward_compiles_whole_and_follows_the_schedule(name, kwargs):
    plain, fused = network(), network()
    wanted = train(plain, getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs))
    optimizer = getattr(dfa.optim, name)(fused, lr=LR[name], update="backward", **kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for a, b in zip(train(fused, optimizer, forward=compiled), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_two_forward_passes_before_one_backward():
    plain, fused = network(), network()
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    ours = dfa.optim.SGD(fused, lr=0.1, momentum=0.9)
    for net, optimizer in ((plain, theirs), (fused, ours)):
        (x, y), (u, v) = batches(2)
        (F.cross_entropy(net(x), y) + 0.5 * F.cross_entropy(net(u), v)).backward()
        optimizer.step()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_bf16_activations_step_fp32_weights():
    plain, fused = network(torch.float32), network(torch.float32)
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-3)
    ours = dfa.optim.AdamW(fused, lr=1e-3, eps=1e-3)
    start = [p.detach().clone() for p in fused.parameters()]
    for net, optimizer in ((plain, theirs), (fused, ours)):
        for x, y in batches(3, torch.float32):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b, before in zip(fused.parameters(), plain.parameters(), start, strict=True):
        assert a.dtype == torch.float32
        # a bf16 gradient differs by 2⁻⁸ of itself between two orders of summing it
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert (a - before).abs().max() > 5e-4


class Mixed(nn.Module):
    """Fused layers below one of torch's, whose penalty is on a fused one too where asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.below = dfa.Linear(13, 11, activation="tanh")
        self.above = nn.Linear(11, 5)

    def forward(self, x):
        return self.above(self.below(x))


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("how", ["fused", "foreach"])
@pytest.mark.parametrize("name", LR)
def test_torchs_implementation_of_the_rest_may_be_named(name, how, penalty, monkeypatch):
    """Where a fused layer's parameter is among it, whose count is on the host, no fused one."""
    kind = getattr(dfa.optim, name)
    asked, step = [], kind._plain_step

    def spy(optimizer):
        asked.append([group[how] for group in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(kind, "_plain_step", spy)
    plain, fused = (dfa.DFA(Mixed().double()) for _ in range(2))
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name])
    ours = kind(fused, lr=LR[name], **{how: True})
    for net, optimizer in ((plain, theirs), (fused, ours)):
        for i, (x, y) in enumerate(batches(4)):
            loss = F.cross_entropy(net(x), y)
            if penalty and i == 2:
                loss = loss + net.module.below.weight.square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    among = penalty and how == "fused"
    assert asked == [[True], [True], [not among], [True]]
    assert ours.param_groups[0][how]


def test_parameter_groups_each_with_their_own_arguments():
    def groups(net):
        biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
        return {"params": biases, "weight_decay": 0.0, "lr": 0.05}

    plain, fused = network(), network()
    rest = [p for n, p in plain.named_parameters() if not n.endswith("bias")]
    theirs = torch.optim.SGD([groups(plain), {"params": rest}], lr=0.1, weight_decay=0.3)
    ours = dfa.optim.SGD([groups(fused), {"params": fused}], lr=0.1, weight_decay=0.3)
    assert [len(g["params"]) for g in ours.param_groups] == [3, 3]
    for a, b in zip(train(fused, ours), train(plain, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("into", ["step", "backward", "torch"])
def test_state_dict_round_trip_also_with_torch(name, into, tmp_path):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    first = network()
    optimizer = getattr(dfa.optim, name)(first, lr=LR[name], **kwargs)
    train(first, optimizer, steps=3)
    torch.save({"net": first.state_dict(), "opt": optimizer.state_dict()}, tmp_path / "c.pt")
    stored = torch.load(tmp_path / "c.pt", weights_only=True)
    second = network(seed=7)
    second.load_state_dict(stored["net"])
    if into == "torch":
        made = getattr(torch.optim, name)(second.parameters(), lr=1.0, **kwargs)
    else:
        made = getattr(dfa.optim, name)(second, lr=1.0, update=into, **kwargs)
    made.load_state_dict(stored["opt"])
    assert made.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for a, b in zip(train(second, made, steps=2), train(first, optimizer, steps=2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_opaque_layers_and_heads_are_stepped_by_torch():
    def model():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(33), nn.Linear(33, 8),
            nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 5),
        ).double()  # fmt: skip

    nets = [dfa.DFA(dfa.fuse(model())) for _ in range(2)]
    optimizers = [
        torch.optim.AdamW(nets[0].parameters(), lr=1e-3),
        dfa.optim.AdamW(nets[1], lr=1e-3),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(4):
            F.cross_entropy(net(x[:, None]), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# Sums that the grouped call cannot express ----------------------------------------------------


class Tied(nn.Module):
    """One weight under two biases, and once more outside any fused layer."""

    def __init__(self, opaque):
        super().__init__()
        torch.manual_seed(0)
        self.a = dfa.Linear(13, 13, activation="tanh")
        self.b = dfa.Linear(13, 13, activation="tanh")
        self.b.weight = self.a.weight
        self.head = dfa.Linear(13, 5)
        self.opaque = opaque

    def forward(self, x):
        h = self.b(self.a(self.a(x)))
        if self.opaque:
            h = h + F.linear(x, self.a.weight)
        return self.head(h)


def with_a_shared_bias():
    torch.manual_seed(0)
    layers = [nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 11), nn.Tanh(), nn.Linear(11, 3)]
    layers[2].bias = layers[0].bias
    return dfa.DFA(dfa.fuse(nn.Sequential(*layers).double()))


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_a_bias_that_layers_of_different_weights_share_is_stepped_once(name, kwargs):
    ours, theirs = with_a_shared_bias(), with_a_shared_bias()
    x, y = torch.randn(19, 7, dtype=torch.float64), torch.randint(3, (19,))
    optimizers = (
        getattr(dfa.optim, name)(ours, lr=LR[name], **kwargs),
        getattr(torch.optim, name)(theirs.parameters(), lr=LR[name], **kwargs),
    )
    for _ in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_shared_bias_is_refused_where_the_backward_pass_steps():
    net = with_a_shared_bias()
    optimizer = dfa.optim.SGD(net, update="backward")
    assert optimizer.update == "backward"
    with pytest.raises(RuntimeError, match="fused layers of different weights share one"):
        net(torch.randn(2, 7, dtype=torch.float64))


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_with_two_biases_is_refused_where_the_backward_pass_steps(bias):
    """The one that is left out of the sum would never be stepped."""
    layers = [nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3)]
    layers[2].weight = layers[0].weight
    net = dfa.DFA(dfa.fuse(nn.Sequential(*layers).double()))
    optimizer = dfa.optim.SGD(net, update="backward")
    assert optimizer.update == "backward"
    with pytest.raises(RuntimeError, match="fused layers of one weight have different biases"):
        net(torch.randn(2, 7, dtype=torch.float64))


@pytest.mark.parametrize("opaque", [False, True])
def test_tied_weights(opaque):
    nets = [dfa.DFA(Tied(opaque).double(), points=["a", "b"]) for _ in range(2)]
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), lr=0.1, momentum=0.9),
        dfa.optim.SGD(nets[1], lr=0.1, momentum=0.9),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for x, y in batches(3):
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [("dfa", "bp"), ("bp", "dfa"), ("dfa", "shallow", "bp", "dfa")])
def test_methods_switched_between_accumulated_backwards(order):
    nets = [network() for _ in range(2)]
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), lr=0.1, momentum=0.9),
        dfa.optim.SGD(nets[1], lr=0.1, momentum=0.9),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for _ in range(2):
            for method, (x, y) in zip(order, batches(len(order)), strict=True):
                net.method = method
                F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# `step` itself ---------------------------------------------------------------------------------


def test_a_closure_is_called():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_step_hooks_run_once():
    net = network()
    torch.optim.SGD(network().parameters(), lr=0.1)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    net.method = "bp"
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert calls == ["before", "after"]


def test_the_profiler_sees_a_step():
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    with torch.autograd.profiler.profile() as seen:
        optimizer.step()
    assert "Optimizer.step#SGD.step" in {event.name for event in seen.function_events}


def test_the_same_bits_twice():
    made = []
    for _ in range(2):
        net = network(torch.float32)
        made.append(train(net, dfa.optim.AdamW(net, lr=1e-3), dtype=torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("update", ["step", "backward"])
def test_groups_exchanged_by_hand_are_followed_as_in_torch(update):
    """A group put in another's place without the last layer, and a list in another's with it."""
    nets = [network(), network()]
    ours = dfa.optim.SGD(nets[0], lr=0.1, update=update)
    theirs = torch.optim.SGD(nets[1].parameters(), lr=0.1)
    for net, optimizer in zip(nets, (ours, theirs), strict=True):
        train(net, optimizer, 2)
        group = optimizer.param_groups[0]
        optimizer.param_groups[0] = {**group, "lr": 0.3, "params": group["params"][:-2]}
        train(net, optimizer, 2)
        if update == "backward":  # which refuses what the last layer has kept meanwhile
            net.zero_grad()
        last = {**group, "params": group["params"][-2:]}
        optimizer.param_groups = [*optimizer.param_groups, last]
        train(net, optimizer, 2)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_group_added_later_is_stepped_too():
    nets = [network() for _ in range(2)]
    optimizers = []
    for net, module in zip(nets, (torch.optim, dfa.optim), strict=True):
        extra = nn.Parameter(torch.ones(5, dtype=torch.float64))
        optimizers.append(module.SGD(net if module is dfa.optim else net.parameters(), lr=0.1))
        optimizers[-1].add_param_group({"params": [extra], "lr": 0.5})
        for x, y in batches(2):
            F.cross_entropy(net(x) + extra, y).backward()
            optimizers[-1].step()
            optimizers[-1].zero_grad()
        net.extra = extra
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_network_that_is_cast_between_two_steps_goes_on():
    """A pending gradient is of its parameter's dtype."""
    net, wanted = network(), network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    train(net, optimizer, steps=2)
    wanted.load_state_dict(net.state_dict())
    plain = torch.optim.SGD(wanted.parameters(), lr=optimizer.param_groups[0]["lr"])
    for each in (net, wanted):
        each.float()
    ours = train(net, optimizer, dtype=torch.float32)
    for p, truth in zip(ours, train(wanted, plain, dtype=torch.float32), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, truth)
