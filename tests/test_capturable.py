"""Steps that a graph replays: they go on counting, follow a tensor lr, and wait for nothing."""

import pytest
import torch
import torch.nn.functional as F
from graph import Graph
from test_optim import ADAMW, LR, SGD, Mixed, Tied, batches, network, train
from torch import nn

import dfa_kernels as dfa
from dfa_kernels import capturable
from dfa_kernels.backends.contract import RULES
from dfa_kernels.backends.device_steps import DeviceScratch
from dfa_kernels.in_backward import UPDATES_COMPILE

CASES = [("SGD", kw) for kw in SGD] + [("AdamW", kw) for kw in ADAMW]
IDS = [f"{name}-{'-'.join(kw) or 'plain'}" for name, kw in CASES]
UPDATES = ["step", "backward"]


def make(name, net, lr=None, **kwargs):
    lr = torch.tensor(LR[name], dtype=torch.float64) if lr is None else lr
    return getattr(dfa.optim, name)(net, lr=lr, capturable=True, **kwargs)


def one(net, optimizer, x, y):
    F.cross_entropy(net(x).double(), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def replayed(net, optimizer, steps=6, schedule=None, dtype=torch.float64):
    """Two steps as they are, then one that is captured and replayed for the rest."""
    data = list(batches(steps, dtype))
    x, y = (t.clone() for t in data[0])
    graph = Graph()
    for i, batch in enumerate(data):
        x.copy_(batch[0]), y.copy_(batch[1])
        if i < 2:
            one(net, optimizer, x, y)
        elif i == 2:
            before = [t.clone() for t in kept(net, optimizer)]
            with graph:
                one(net, optimizer, x, y)
            with torch.no_grad():  # a capture runs nothing
                for t, old in zip(kept(net, optimizer), before, strict=True):
                    t.copy_(old)
        if i >= 2:
            graph.replay()
        if schedule is not None:
            schedule.step()
    return graph


def kept(net, optimizer):
    """All that a step changes and the next one reads."""
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return [p.detach() for p in net.parameters()] + states


def agree(ours, net, theirs, plain, tolerance=1e-11):
    """To fp64's rounding, which AdamW magnifies where a gradient is nearly nothing."""
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        for key, value in theirs.state[b].items():
            if torch.is_tensor(value):
                torch.testing.assert_close(
                    ours.state[a][key], value, rtol=100 * tolerance, atol=tolerance
                )


# Without a graph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_the_numbers_are_torchs(name, kwargs, number, update):
    plain, net = network(), network()
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs)
    ours = make(name, net, LR[name] if number else None, update=update, **kwargs)
    train(plain, theirs), train(net, ours)
    agree(ours, net, theirs, plain)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_the_numbers_are_torchs_in_fp32(name, kwargs):
    if name == "AdamW":
        kwargs = {**kwargs, "eps": 1e-3}
    plain, net = network(torch.float32), network(torch.float32)
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs)
    ours = make(name, net, **kwargs)
    train(plain, theirs, dtype=torch.float32), train(net, ours, dtype=torch.float32)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_16_bit_parameters_are_stepped_in_fp32_and_rounded_once(rule):
    row = torch.tensor([0.1, 0.9, 0.3, 1e-3, 0.2, 0, 3], dtype=torch.float64)
    narrow = [torch.rand(40, 30).bfloat16() for _ in range(2 + len(RULES[rule].states))]
    wide = [t.float() for t in narrow]
    for p, g, *states in (narrow, wide):
        DeviceScratch(rule).add((p, g, states), row)
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b.bfloat16())


@pytest.mark.parametrize("name", LR)
def test_sums_that_become_gradients_and_opaque_layers(name):
    def model():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(13, 13), nn.LayerNorm(13), nn.Tanh(), Tied(True))
        return dfa.DFA(layers.double(), points=["2", "3.a", "3.b"])

    plain, net = model(), model()
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name])
    ours = make(name, net)
    train(plain, theirs), train(net, ours)
    agree(ours, net, theirs, plain)
    assert all(group.get("capturable", True) for group in ours.param_groups)


@pytest.mark.parametrize("name", LR)
def test_groups_each_with_their_own_arguments(name):
    def groups(net, rest):
        biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
        own = {"params": biases, "weight_decay": 0.0, "lr": LR[name] / 2}
        return [own, {"params": rest(net)}]

    plain, net = network(), network()
    weights = lambda net: [p for n, p in net.named_parameters() if not n.endswith("bias")]  # noqa: E731
    theirs = getattr(torch.optim, name)(groups(plain, weights), lr=LR[name], weight_decay=0.3)
    ours = make(name, groups(net, lambda net: net), weight_decay=0.3)
    train(plain, theirs), train(net, ours)
    agree(ours, net, theirs, plain)


@pytest.mark.skipif(not UPDATES_COMPILE, reason="needs torch 2.12")
@pytest.mark.parametrize("name", LR)
def test_the_whole_step_compiles(name):
    plain, net = network(), network()
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name])
    ours = make(name, net, update="backward")
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    train(plain, theirs), train(net, ours, forward=compiled)
    agree(ours, net, theirs, plain)


# Replayed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_replays_go_on_counting_and_follow_the_schedule(name, kwargs, update):
    plain, net = network(), network()
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name], **kwargs)
    ours = make(name, net, update=update, **kwargs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(ours, 0.7)
    graph = replayed(net, ours, schedule=schedule)
    train(plain, theirs, steps=6)
    agree(ours, net, theirs, plain)
    assert graph.waits() == []


def test_the_graph_here_repeats_numbers_as_a_real_one_does():
    """A step count that is known on the host stays what it was: so the test above tests it."""
    plain, net = network(), network()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    ours = dfa.optim.AdamW(net, lr=1e-3)
    graph = replayed(net, ours)
    train(plain, theirs, steps=6)
    with pytest.raises(AssertionError):
        agree(ours, net, theirs, plain)
    assert graph.waits()


@pytest.mark.parametrize("name", LR)
def test_a_number_is_what_it_was_at_the_capture(name):
    """As in torch; the next step that is not a replay has the new one."""
    plain, net = network(), network()
    theirs = getattr(torch.optim, name)(plain.parameters(), lr=LR[name])
    ours = make(name, net, LR[name])
    schedule = torch.optim.lr_scheduler.ConstantLR(ours, 1.0, total_iters=3)
    assert replayed(net, ours, schedule=schedule).waits() == []
    for x, y in batches(6):
        one(plain, theirs, x, y)
    agree(ours, net, theirs, plain)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["lr"] = LR[name] / 3
    train(plain, theirs), train(net, ours)
    agree(ours, net, theirs, plain)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", LR)
def test_masters_are_replayed_too(name, update):
    nets = [network(torch.bfloat16) for _ in range(2)]
    optimizers = [make(name, net, update=update, master_weights=True) for net in nets]
    graph = replayed(nets[0], optimizers[0], dtype=torch.bfloat16)
    assert graph.waits() == []
    for x, y in batches(6, torch.bfloat16):
        one(nets[1], optimizers[1], x, y)
    for a, b in zip(*(kept(n, o) for n, o in zip(nets, optimizers, strict=True)), strict=True):
        assert torch.equal(a, b)


def test_torchs_own_step_is_asked_for_what_it_can_do():
    """On a GPU its SGD reads a tensor lr in its fused form alone; on a CPU it knows no graphs."""
    sgd = make("SGD", network().to("meta"))
    with capturable.as_torch_steps(sgd, counted=False):
        assert [(g["fused"], g["foreach"]) for g in sgd.param_groups] == [(True, False)]
    assert [(g["fused"], g["foreach"]) for g in sgd.param_groups] == [(None, None)]
    for device, wanted in (("meta", True), ("cpu", False)):
        adamw = make("AdamW", network().to(device))
        with capturable.as_torch_steps(adamw, counted=True):
            assert adamw.param_groups[0]["capturable"] is wanted
        assert adamw.param_groups[0]["capturable"]


# Checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ours to torch's", "torch's to ours", "ours to ours"])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_state_dict_fits_capturable_or_not(order, wanted, tmp_path):
    """Of an AdamW; whether it is capturable is the optimizer's own, not the checkpoint's."""
    nets = [network(), network(), network()]
    reference = torch.optim.AdamW(nets[2].parameters(), lr=1e-3)
    train(nets[2], reference, steps=3)

    def of(whose, net, capturable):
        if whose == "ours":
            return dfa.optim.AdamW(net, lr=1e-3, capturable=capturable)
        # torch's own does not step on a CPU where it is capturable
        return torch.optim.AdamW(net.parameters(), lr=1e-3)

    first, second = order.split(" to ")
    before = of(first, nets[0], not wanted)
    train(nets[0], before, steps=3)
    torch.save(before.state_dict(), tmp_path / "o.pt")
    after = of(second.removesuffix("'s").strip(), nets[1], wanted)
    after.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    nets[1].load_state_dict(nets[0].state_dict())
    if second == "ours":
        assert {group["capturable"] for group in after.param_groups} == {wanted}
    else:
        after.param_groups[0]["capturable"] = False
    assert all(s["step"].dtype == torch.float32 for s in after.state.values())
    train(nets[1], after, steps=2), train(nets[2], reference, steps=2)
    agree(after, nets[1], reference, nets[2])


def test_a_loaded_step_count_lies_where_it_is_read():
    first = network()
    optimizer = dfa.optim.AdamW(first, lr=1e-3)
    train(first, optimizer)
    for wanted, device in ((True, "meta"), (False, "cpu")):
        second = dfa.optim.AdamW(network().to("meta"), lr=1e-3, capturable=wanted)
        second.load_state_dict(optimizer.state_dict())
        assert {s["step"].device.type for s in second.state.values()} == {device}


def test_a_count_that_torchs_fused_step_had_on_its_device_is_read_on_the_host():
    """Of a fused layer; another parameter's stays where torch's fused step reads it."""
    theirs = torch.optim.AdamW(Mixed().parameters(), fused=True)
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    theirs.step()
    net = dfa.DFA(Mixed())
    net.module.above.to("meta")
    ours = dfa.optim.AdamW(net, fused=True)
    ours.load_state_dict(theirs.state_dict())
    places = {n: ours.state[p]["step"].device.type for n, p in net.module.named_parameters()}
    assert {name.split(".")[0]: place for name, place in places.items()} == {
        "below": "cpu", "above": "meta",
    }  # fmt: skip
    assert ours._counts.read(ours._counts.each) == [1, 1]


# Refused -----------------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch):
    """Have the optimizers believe that a CUDA graph is being captured."""

    def believe():
        monkeypatch.setattr(capturable, "capturing", lambda device: True)
        monkeypatch.setattr("dfa_kernels.fused_update.capturing", lambda device: True)

    return believe


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LR)
def test_a_first_step_is_not_captured(name, dtype, captured):
    """What it makes, each replay would make again."""
    net = network(dtype)
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = make(name, net, master_weights=True, **kwargs)
    before = [p.detach().clone() for p in net.parameters()]
    captured()
    what = "master" if dtype == torch.bfloat16 else {"SGD": "momentum", "AdamW": "state"}[name]
    message = rf"the {what} of a parameter of shape \(31, 13\) is made in its first.*run a step"
    with pytest.raises(RuntimeError, match=message):
        train(net, optimizer, steps=1, dtype=dtype)
    assert all(map(torch.equal, before, net.parameters()))


def test_a_first_momentum_is_not_captured_where_it_was_made_beforehand(captured):
    net = network()
    optimizer = make("SGD", net, update="backward", momentum=0.9)
    parameters = list(net.parameters())
    optimizer._hypers(parameters, [optimizer._groups[id(p)] for p in parameters])
    captured()
    with pytest.raises(RuntimeError, match="the momentum of a parameter.*run a step"):
        train(net, optimizer, steps=1)


def test_a_lr_on_another_device():
    net = network()
    lr = torch.tensor(0.1)
    optimizer = make("SGD", net, lr)
    train(net, optimizer)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[0]["lr"] = lr.to("meta")
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    with pytest.raises(ValueError, match="tensor on meta, and capturable=True reads it on cpu"):
        optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))


class Somewhere:
    """A parameter on a GPU, as far as a refusal looks."""

    is_cuda, device = True, torch.device("cuda", 0)


def test_an_adamw_that_is_not_capturable_is_not_captured(captured):
    adamw = dfa.optim.AdamW(network(), lr=0.1)
    sgd = dfa.optim.SGD(network(), lr=0.1, momentum=0.9)
    captured()
    with pytest.raises(RuntimeError, match="repeat its step count.*capturable=True"):
        adamw._write_rows([Somewhere()])
    sgd._write_rows([Somewhere()])  # as torch.optim's, whose momentum is there


def test_nothing_is_captured_on_a_cpu():
    assert not capturable.capturing(torch.device("cpu"))
