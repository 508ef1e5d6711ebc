"""`check_backend("cuda-emulated", "cpu")`, a test for each of its checks; and the ops, compiled."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.library import opcheck

import dfa_kernels as dfa
from dfa_kernels import testing
from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD, RULES
from dfa_kernels.backends.cuda.rules import ON_THE_FLY, STORED

pytestmark = pytest.mark.usefixtures("on_cuda", "unwritten_is_nan")

CHECKS = dict(testing._checks(torch.device("cpu")))
# What makes δ; an error of 33 columns is too wide for the fly.
WITH_DELTA = [n for n in CHECKS if n.startswith(("gradients", "step_", "layouts"))]
FLYING = [n for n in WITH_DELTA if " E=33 " not in n]


@pytest.mark.parametrize("name", [n for n in CHECKS if n not in WITH_DELTA])
def test_projections(name):
    CHECKS[name]()


@pytest.mark.parametrize("name", WITH_DELTA)
def test_delta_stored(name, delta):
    delta(STORED)
    CHECKS[name]()


@pytest.mark.parametrize("name", FLYING)
def test_delta_on_the_fly(name, delta):
    delta(ON_THE_FLY)
    CHECKS[name]()


# The custom ops ---------------------------------------------------------------------------------


def test_project_passes_opcheck():
    args = (torch.randn(6, 5), None, "normal", 3, 0.5, [9, 4, 4], [0, 0, 1], [1, 2, 1], [0, 1, 0])
    opcheck(torch.ops.dfa_kernels.project, args)


INPUTS = [torch.randn(6, 3), torch.randn(6, 7)]
SAVED = [torch.rand(6, 7), torch.rand(6, 5)]
RECORDS = INPUTS, SAVED, [CODES["tanh"], CODES["identity"]], [0, HEAD], [1, 1]


@pytest.mark.parametrize("how", [STORED, ON_THE_FLY])
def test_gradients_passes_opcheck(how, delta):
    delta(how)
    args = (torch.randn(6, 5), None, "uniform", 3, 0.5, *RECORDS, torch.float32)
    opcheck(torch.ops.dfa_kernels.gradients, args)


@pytest.mark.parametrize("rule", RULES)
def test_step_passes_opcheck(rule):
    parameters = [torch.randn(7, 3), torch.randn(5, 7), torch.randn(7)]
    states = [torch.rand_like(p) for p in parameters for _ in RULES[rule].states]
    hyper = torch.full((3, len(RULES[rule].hyper)), 0.5, dtype=torch.float64)
    args = (
        parameters, states, [], [False] * 3, hyper, False, rule, [True, False], [1, 1],
        [torch.randn(6, 5)], None, "rademacher", 3, [0, 0], [0.1, 0.1], *RECORDS,
    )  # fmt: skip
    opcheck(torch.ops.dfa_kernels.step_, args)


@pytest.mark.parametrize("fused", [True, False])
def test_a_compiled_network_is_the_eager_one(fused):
    layers = []
    for k, d in pairwise((9, 20, 17, 5)):
        layers += [nn.Linear(k, d), nn.Tanh()]
    plain = nn.Sequential(*layers[:-1])
    net, x = dfa.DFA(dfa.fuse(plain) if fused else plain), torch.randn(6, 9)
    gradients = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        assert torch.equal(eager, compiled)
