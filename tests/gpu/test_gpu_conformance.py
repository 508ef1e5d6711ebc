"""`dfa.testing.check_backend` of both backends on the device, in shares that run beside each other:
most of Triton's time goes into compiling a kernel for each of its checks. In a rehearsal, the CUDA
backend is the emulated one."""

import os
import unittest.mock

import torch
from gpu_cases import BACKENDS, DEVICE, on_gpu, over, pick, use

from bench.gpu.build import cuda_backend
from dfa_kernels import backends
from dfa_kernels.testing import _checks

SHARES = 16
EVERY = [(backend, share) for backend in BACKENDS for share in range(SHARES)]


@over(EVERY)
def test_the_suite(case):
    backend, share = case
    with use(backend):
        run_share(share, "")


@over(EVERY)
def test_the_suite_with_stored_delta(case):
    """The default makes δ on the fly in most of the suite's shapes."""
    backend, share = case
    stored = {f"DFA_KERNELS_{backend.upper()}_DELTA": "stored"}
    with use(backend), unittest.mock.patch.dict(os.environ, stored):
        run_share(share, "gradients ", "step_ ", "layouts")


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
def test_both_are_chosen_where_nobody_names_a_backend():
    """Or Triton, where csrc/ was not built."""
    wanted = "triton" if cuda_backend(DEVICE) is None else "triton+cuda"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.chosen(DEVICE, dtype)[0] == wanted
    assert backends.chosen(DEVICE, torch.float64)[0] == "reference"
