"""`check_backend("triton", "cpu")`, a test for each of its checks, with δ stored and on the fly."""

import pytest
import torch

from dfa_kernels import testing
from dfa_kernels.backends.triton import rules

CHECKS = dict(testing._checks(torch.device("cpu")))
# What makes δ; an error of 33 columns is too wide for the fly.
WITH_DELTA = [n for n in CHECKS if n.startswith(("gradients", "step_", "layouts"))]
ON_THE_FLY = [n for n in WITH_DELTA if " E=33 " not in n]


@pytest.mark.parametrize("name", [n for n in CHECKS if n not in WITH_DELTA])
def test_projections(name):
    CHECKS[name]()


@pytest.mark.parametrize("name", WITH_DELTA)
def test_delta_stored(name, delta):
    delta(rules.STORED)
    CHECKS[name]()


@pytest.mark.parametrize("name", ON_THE_FLY)
def test_delta_on_the_fly(name, delta):
    delta(rules.ON_THE_FLY)
    CHECKS[name]()
