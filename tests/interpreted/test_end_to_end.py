"""From the public call to the kernels: training, the custom ops, torch.compile."""

import copy
from itertools import pairwise

import pytest
import torch
from oracle import SGD, record
from torch import nn
from torch.library import opcheck

import dfa_kernels as dfa
from dfa_kernels import backends
from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD, RULES

WIDTHS = 9, 20, 17, 5


def _net(activation=nn.Tanh, fused=True, **options):
    torch.manual_seed(3)
    layers = []
    for k, d in pairwise(WIDTHS):
        layers += [nn.Linear(k, d), activation()]
    net = nn.Sequential(*layers[:-1])
    return dfa.DFA(dfa.fuse(net) if fused else net, **options)


OPTIMIZERS = {
    "dfa SGD": lambda net: dfa.optim.SGD(net, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dfa nesterov": lambda net: dfa.optim.SGD(net, lr=0.1, momentum=0.9, nesterov=True),
    "dfa AdamW": lambda net: dfa.optim.AdamW(net, lr=0.01, weight_decay=0.1),
    "dfa AdamW, in the backward pass": lambda net: dfa.optim.AdamW(net, lr=0.01, update="backward"),
    "torch SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "torch AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01),
}


def _train(net, optimizer, backend, forwards=1, steps=4):
    net = copy.deepcopy(net)
    opt = optimizer(net)
    generator = torch.Generator().manual_seed(1)
    losses = []
    with backends.use(backend):
        for _ in range(steps):
            for _ in range(forwards):
                x = torch.randn(21, WIDTHS[0], generator=generator)
                y = torch.randint(0, WIDTHS[-1], (21,), generator=generator)
                loss = nn.functional.cross_entropy(net(x), y) / forwards
                loss.backward()
                losses.append(loss.item())
            opt.step()
            opt.zero_grad()
    return [p.detach() for p in net.parameters()], losses


def _agree(net, optimizer, launched, **options):
    ours, losses = _train(net, optimizer, "triton", **options)
    assert launched
    count = len(launched)
    wanted, known = _train(net, optimizer, "reference", **options)
    assert len(launched) == count
    torch.testing.assert_close(losses, known, rtol=1e-5, atol=1e-6)
    for a, b, p in zip(ours, wanted, net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
        assert not torch.equal(a, p)
    return count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_references(name, launched, either_delta):
    count = _agree(_net(), OPTIMIZERS[name], launched)
    assert count == 4 * (1 if either_delta == "on-the-fly" else 2)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid])
def test_other_activations(activation, launched):
    _agree(_net(activation), OPTIMIZERS["dfa SGD"], launched)


@pytest.mark.parametrize("name", ["dfa SGD", "torch AdamW"])
def test_accumulation_over_two_forward_passes(name, launched):
    _agree(_net(), OPTIMIZERS[name], launched, forwards=2)


@pytest.mark.parametrize(
    "feedback",
    [
        dfa.Feedback("uniform", seed=5, shared=False),
        dfa.Feedback("normal", seed=5),
        dfa.Feedback.from_matrix(torch.randn(5, 20)),
    ],
    ids=["uniform", "normal", "matrix"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_other_feedbacks(fused, feedback, launched):
    name = "dfa AdamW" if fused else "torch SGD"
    _agree(_net(fused=fused, feedback=feedback), OPTIMIZERS[name], launched)


# The custom ops ---------------------------------------------------------------------------------


def test_project_passes_opcheck():
    args = (torch.randn(6, 5), None, "normal", 3, 0.5, [9, 4, 4], [0, 0, 1], [1, 2, 1], [0, 1, 0])
    opcheck(torch.ops.dfa_kernels.project, args)


def _records():
    layers = [record(6, 3, 7), record(6, 7, 5, "identity", HEAD)]
    return layers, [x.inputs for x in layers], [x.saved for x in layers]


def test_gradients_passes_opcheck(either_delta):
    layers, inputs, saved = _records()
    codes = [CODES[x.activation] for x in layers]
    args = (torch.randn(6, 5), None, "uniform", 3, 0.5, inputs, saved, codes, [0, HEAD], [1, 1])
    opcheck(torch.ops.dfa_kernels.gradients, (*args, torch.float32))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_step_passes_opcheck(rule, copied, on_device, either_delta):
    layers, inputs, saved = _records()
    parameters = [torch.randn(7, 3), torch.randn(5, 7), torch.randn(7)]
    states = [torch.rand_like(p) for p in parameters for _ in RULES[rule].states]
    copies = [p.bfloat16() for p in parameters if copied]
    hyper = torch.full((3, len(SGD["plain"])), 0.5, dtype=torch.float64)
    codes = [CODES[x.activation] for x in layers]
    args = (
        parameters, states, copies, [copied] * 3, hyper, on_device, rule, [True, False], [1, 1],
        [torch.randn(6, 5)], None,
        "rademacher", 3, [0, 0], [0.1, 0.1], inputs, saved, codes, [0, HEAD], [1, 1],
    )  # fmt: skip
    opcheck(torch.ops.dfa_kernels.step_, args)


@pytest.mark.parametrize("fused", [True, False])
def test_a_compiled_network_is_the_eager_one(fused, launched):
    net, x = _net(fused=fused), torch.randn(6, WIDTHS[0])
    gradients = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert len(launched) == 2 * (2 if fused else 1)  # fp32: δ is stored, then read
    for eager, compiled in zip(*gradients, strict=True):
        assert torch.equal(eager, compiled)
