"""Whole training steps of the contestants that `dfa-kernels bench` times in turns."""

import os

import pytest

from dfa_kernels import backends
from dfa_kernels.throughput import lineup
from dfa_kernels.throughput.contestants import Setting
from dfa_kernels.throughput.networks import MLP
from dfa_kernels.throughput.options import parse_shape

#: Overridden by `bench.agreement`.
SHAPES = os.environ.get("DFA_SUITE_SHAPES", "128,3,256,10 64,8,512,10").split()
CONTESTANTS = os.environ.get(
    "DFA_SUITE_CONTESTANTS", "bp-eager hand-written-bp hand-written-dfa reference"
).split()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_step(contestant, shape, device, finished):
    built = lineup.named(contestant).build(MLP.of(parse_shape(shape)), Setting(device))
    run = built.bare or built.run
    with backends.use(built.backend):
        for _ in range(3):
            run()
        loss = finished(run)
    assert loss.isfinite()
