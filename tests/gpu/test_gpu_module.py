"""The public module on the device: compiled, captured in a graph, without a wait for the host."""

import itertools
import unittest
from functools import partial

import torch
import torch.nn.functional as F
from gpu_cases import BACKENDS, DEVICE, on_gpu, over, pick, use
from torch import nn

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE
from dfa_kernels.throughput.timing import WARM, graphed

INDUCTOR = pick("inductor", "aot_eager")
UPDATES = "step", "backward"

OPTIMIZERS = {
    "sgd": lambda net, lr=0.05, **more: dfa.optim.SGD(net, lr=lr, momentum=0.9, **more),
    "adamw": lambda net, lr=1e-3, **more: dfa.optim.AdamW(net, lr=lr, eps=1e-3, **more),
}


def network(fused=True):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)
    ).to(DEVICE)
    return dfa.DFA(dfa.fuse(model) if fused else model)


def batch():
    torch.manual_seed(1)
    rows = pick(200, 20)
    return torch.randn(rows, 40, device=DEVICE), torch.randint(10, (rows,), device=DEVICE)


def stepping(net, optimizer, compiled=None):
    x, y = batch()
    forward = net if compiled is None else compiled

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def close(a, b):
    for ours, wanted in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@over([(fused, compiler) for fused in (True, False) for compiler in ("aot_eager", INDUCTOR)])
def test_a_compiled_forward_gives_eager_gradients(case):
    fused, compiler = case
    torch.compiler.reset()
    net, eager = network(fused), network(fused)
    x, y = batch()
    compiled = torch.compile(net, fullgraph=True, backend=compiler)
    for run in (compiled, eager):
        F.cross_entropy(run(x), y).backward()
    for a, b in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@over([(fused, rows) for fused in (True, False) for rows in (64, 10)])
def test_a_compilers_own_graphs_leave_the_kernels_out(case):
    """Else they would read what the compiler's pool has given to somebody else meanwhile: the
    tensors between are what would overwrite it."""
    fused, rows = case
    torch.compiler.reset()
    net, eager = network(fused), network(fused)
    compiled = torch.compile(net, mode=pick("reduce-overhead", None))
    for step in range(5):
        torch.manual_seed(step)
        x = torch.randn(rows, 40, device=DEVICE)
        for run, model in ((compiled, net), (eager, eager)):
            model.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            run(x).square().sum().backward()
        for a, b in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@over(OPTIMIZERS)
def test_a_compiled_update_in_backward_gives_eager_steps(case):
    if not UPDATES_COMPILE:
        raise unittest.SkipTest(f"needs torch 2.12, and this is {torch.__version__}")
    torch.compiler.reset()
    net, eager = network(), network()
    compiled = torch.compile(net, fullgraph=True, backend=INDUCTOR)
    ours = stepping(net, OPTIMIZERS[case](net, update="backward"), compiled)
    theirs = stepping(eager, OPTIMIZERS[case](eager))
    for _ in range(4):
        ours(), theirs()
    close(net, eager)


@over(itertools.product(BACKENDS, OPTIMIZERS))
def test_the_steps_are_the_references_steps(case):
    """In fp32 throughout."""
    backend, rule = case
    ours, theirs = network(), network()
    step, their_step = (stepping(net, OPTIMIZERS[rule](net)) for net in (ours, theirs))
    for _ in range(4):
        with use(backend):
            step()
        with dfa.backends.use("reference"):
            their_step()
    close(ours, theirs)


AUTOCAST = None, torch.bfloat16


def trained(backend, optimizer_of, net, dtype, steps=5):
    """By a rate that is another from the fourth step on."""
    optimizer, (x, y) = optimizer_of(net), batch()
    for i in range(steps):
        if i == 3:
            optimizer.param_groups[0]["lr"] *= 0.5
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        with use(backend):
            optimizer.step()
        optimizer.zero_grad()
    return list(net.parameters())


@over(itertools.product(BACKENDS, OPTIMIZERS, AUTOCAST))
def test_steps_that_repeat_the_last_one_have_the_bits_of_others(case):
    backend, rule, dtype = case

    def planned_anew(net):
        optimizer = OPTIMIZERS[rule](net)
        optimizer._remember = lambda *_: None
        return optimizer

    ours = trained(backend, OPTIMIZERS[rule], network(), dtype)
    assert all(map(torch.equal, ours, trained(backend, planned_anew, network(), dtype)))


@over(itertools.product(BACKENDS, AUTOCAST))
def test_the_short_way_has_the_general_ways_bits(case):
    backend, dtype = case
    general = network()
    general.module.register_forward_hook(lambda *_: None)
    ours = trained(backend, OPTIMIZERS["adamw"], network(), dtype)
    assert all(map(torch.equal, ours, trained(backend, OPTIMIZERS["adamw"], general, dtype)))


@over(OPTIMIZERS)
def test_torchs_fused_step_of_the_rest_is_its_usual_one(case):
    """And where once a fused layer's own weight is among it, whose count is on the host."""

    def mixed():
        net = network()
        net.module.append(nn.Linear(10, 10, device=DEVICE))
        return dfa.DFA(net.module)

    nets = [mixed(), mixed()]
    x, y = batch()
    for net, how in zip(nets, ({"fused": True}, {}), strict=True):
        optimizer = OPTIMIZERS[case](net, **how)
        for i in range(4):
            loss = F.cross_entropy(net(x), y)
            if i == 2:
                loss = loss + net.module[0].weight.square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    close(*nets)


@over(itertools.product(BACKENDS, UPDATES))
@on_gpu
def test_a_graph_of_a_whole_step_replays_eager_steps(case):
    """SGD, whose hyperparameters do not change from step to step."""
    backend, update = case
    with use(backend):
        _replays_eager_steps([OPTIMIZERS["sgd"]] * 2, update=update)


@over(itertools.product(BACKENDS, OPTIMIZERS, UPDATES))
@on_gpu
def test_a_capturable_graph_counts_and_follows_its_rate(case):
    """Beside eager steps that are not capturable: a row in memory gives a number's bits."""
    backend, rule, update = case
    rate = torch.tensor(0.01, device=DEVICE, dtype=torch.float64)
    captured = partial(OPTIMIZERS[rule], lr=rate, capturable=True)
    plain = partial(OPTIMIZERS[rule], lr=0.01)
    with use(backend):
        _replays_eager_steps([captured, plain], halves=True, update=update)


def _replays_eager_steps(makes, halves=False, **more):
    net, eager = network(), network()
    optimizers = [make(n, **more) for make, n in zip(makes, (net, eager), strict=True)]
    step, eager_step = (stepping(n, o) for n, o in zip((net, eager), optimizers, strict=True))
    replay = graphed(step)
    for _ in range(WARM):
        eager_step()
    close(net, eager)  # a capture runs nothing
    for _ in range(5):
        if halves:
            for (group,) in (o.param_groups for o in optimizers):
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].mul_(0.5)
                else:
                    group["lr"] *= 0.5
        replay()
        eager_step()
    torch.cuda.synchronize()
    close(net, eager)


@over(itertools.product(BACKENDS, OPTIMIZERS, UPDATES, (False, True)))
@on_gpu
def test_a_step_never_waits_for_the_device(case):
    backend, rule, update, capturable = case
    with use(backend):
        _never_waits(rule, update, capturable)


def _never_waits(rule, update, capturable):
    net = network()
    more = {"lr": torch.tensor(0.01, device=DEVICE)} if capturable else {}
    optimizer = OPTIMIZERS[rule](net, update=update, capturable=capturable, **more)
    step = stepping(net, optimizer)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_mixed_precision_trains():
    net = network()
    x, y = batch()
    optimizer = dfa.optim.AdamW(net, lr=1e-3)
    losses = []
    for _ in range(pick(30, 5)):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in net.parameters())
