"""Training by the kernels of csrc/ is training by the reference."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import dfa_kernels as dfa
from dfa_kernels import backends

WIDTHS = 9, 24, 17, 5

OPTIMIZERS = {
    "SGD": lambda net: dfa.optim.SGD(net, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda net: dfa.optim.SGD(net, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda net: dfa.optim.AdamW(net, lr=0.01, weight_decay=0.1),
    "AdamW, in the backward pass": lambda net: dfa.optim.AdamW(net, lr=0.01, update="backward"),
    "torch AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01),
}


def network(fused=True, **options):
    layers = []
    for k, d in pairwise(WIDTHS):
        layers += [nn.Linear(k, d), nn.Tanh()]
    net = nn.Sequential(*layers[:-1])
    return dfa.DFA(dfa.fuse(net) if fused else net, **options)


def trained(net, optimizer, backend, forwards):
    net = copy.deepcopy(net)
    opt = optimizer(net)
    generator = torch.Generator().manual_seed(1)
    with backends.use(backend):
        for _ in range(3):
            for _ in range(forwards):
                x = torch.randn(21, WIDTHS[0], generator=generator)
                y = torch.randint(0, WIDTHS[-1], (21,), generator=generator)
                (nn.functional.cross_entropy(net(x), y) / forwards).backward()
            opt.step()
            opt.zero_grad()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training(name, forwards):
    if forwards == 2 and name.endswith("backward pass"):
        pytest.skip("one forward pass a step")
    net = network(feedback=dfa.Feedback("uniform", seed=5))
    ours, wanted = (
        trained(net, OPTIMIZERS[name], backend, forwards)
        for backend in ("cuda-emulated", "reference")
    )
    for a, b, p in zip(ours, wanted, net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
        assert not torch.equal(a, p)


def test_opaque_points_and_a_matrix():
    net = network(fused=False, feedback=dfa.Feedback.from_matrix(torch.randn(5, 24)))
    ours, wanted = (
        trained(net, OPTIMIZERS["torch AdamW"], backend, 1)
        for backend in ("cuda-emulated", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
