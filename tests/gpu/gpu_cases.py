"""How a test under tests/gpu says over what it runs: read by conftest.py, and by `bench.gpu`, which
needs no pytest and rehearses them on a CPU, in Triton's interpreter."""

import functools
import unittest
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from bench.gpu.build import cuda_backend
from dfa_kernels import backends

_T = TypeVar("_T")

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BACKENDS = "triton", "cuda"


def use(name: str) -> backends.use:
    """The named backend, in a rehearsal the emulated CUDA one; where that is not built, the test is
    skipped and says why."""
    if name == "cuda":
        built = cuda_backend(DEVICE)
        if built is None:
            raise unittest.SkipTest(backends.get("cuda").unavailable(DEVICE) or "there is no g++")
        name = built
    return backends.use(name)


def pick(full: _T, tiny: _T) -> _T:
    """A size, or the one that stands in for it in a rehearsal."""
    return full if ON_GPU else tiny


def over(cases: Iterable) -> Callable:
    """The decorated test takes a ``case``, and runs once for each."""

    def mark(test: Callable) -> Callable:
        test.cases = tuple(cases)
        return test

    return mark


def on_gpu(test: Callable) -> Callable:
    """The decorated test asks CUDA itself for something: no rehearsal runs it."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        if not ON_GPU:
            raise unittest.SkipTest("torch sees no GPU here")
        test(*args, **kwargs)

    return run


def label(case: object) -> str:
    """A case's name, without spaces."""
    return str(case).replace("torch.", "").replace(" ", "_")
