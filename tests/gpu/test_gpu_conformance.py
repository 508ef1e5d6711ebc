"""`dfa.testing.check_backend` of both backends on the device, in shares that run beside each other:
most of Triton's time goes into compiling a kernel for each of its checks. In a rehearsal, the CUDA
backend is the emulated one."""

import os
import unittest.mock

import torch
from gpu_cases import BACKENDS, DEVICE, on_gpu, over, pick, use

from bench.gpu import sanitized
from bench.gpu.build import cuda_backend
from dfa_kernels import backends
from dfa_kernels.testing import _checks

#: Of few checks each: one process compiles their kernels, 3 s of a core for one.
SHARES = pick(48, 16)
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
    """A rehearsal runs the first of each share."""
    for name, check in dealt(share, *prefixes)[: pick(None, 1)]:
        torch.manual_seed(0)
        try:
            check()
        except AssertionError as failed:
            raise AssertionError(f"{name}: {failed}") from None


def dealt(share, *prefixes):
    """Checks by turns, not neighbours together, of which some compile much and others nothing."""
    return [(n, check) for n, check in _checks(DEVICE) if n.startswith(prefixes)][share::SHARES]


@on_gpu
def test_the_case_for_compute_sanitizer():
    """It leaves its kernels in Triton's cache: the sanitizer's time is short for compiling them."""
    sanitized.main()


@on_gpu
def test_both_are_chosen_where_nobody_names_a_backend():
    """Or Triton, where csrc/ was not built."""
    wanted = "triton" if cuda_backend(DEVICE) is None else "triton+cuda"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.chosen(DEVICE, dtype)[0] == wanted
    assert backends.chosen(DEVICE, torch.float64)[0] == "reference"
