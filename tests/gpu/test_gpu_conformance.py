"""`dfa.testing.check_backend("triton", "cuda")`, in shares that run beside each other: most of its
time goes into compiling a kernel for each of its checks."""

import os
import unittest.mock

import torch
from gpu_cases import DEVICE, on_gpu, over, pick

from dfa_kernels import backends
from dfa_kernels.testing import _checks

SHARES = 16


@over(range(SHARES))
def test_the_suite(case):
    with backends.use("triton"):
        run_share(case, "")


@over(range(SHARES))
def test_the_suite_with_stored_delta(case):
    """The default makes δ on the fly in most of the suite's shapes."""
    with (
        backends.use("triton"),
        unittest.mock.patch.dict(os.environ, {"DFA_KERNELS_TRITON_DELTA": "stored"}),
    ):
        run_share(case, "gradients ", "step_ ", "layouts")


def run_share(share, *prefixes):
    """Neighbours go together: they share kernels. A rehearsal runs the first of each share."""
    checks = [(n, check) for n, check in _checks(DEVICE) if n.startswith(prefixes)]
    size = -(-len(checks) // SHARES)
    mine = checks[share * size : (share + 1) * size]
    for name, check in mine[: pick(size, 1)]:
        torch.manual_seed(0)
        try:
            check()
        except AssertionError as failed:
            raise AssertionError(f"{name}: {failed}") from None


@on_gpu
def test_triton_is_chosen_where_nobody_names_a_backend():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.chosen(DEVICE, dtype)[0] == "triton"
    assert backends.chosen(DEVICE, torch.float64)[0] == "reference"
