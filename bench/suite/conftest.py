"""`python -m pytest bench/suite`: pytest-benchmark's times of operations and of whole steps.

Beside `dfa-kernels bench`, which takes turns: here each runs on its own. `bench.agreement` holds
the two against each other. Threads: DFA_SUITE_THREADS (1).
"""

import os

import pytest
import torch

from dfa_kernels import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNNING = [name for name, reason in backends.available(DEVICE).items() if reason is None]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("DFA_SUITE_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=RUNNING)
def backend(request):
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def finished(benchmark):
    """``finished(run)``: the benchmark of a run, its work on the device included."""

    def timed(run):
        if DEVICE.type != "cuda":
            return benchmark(run)

        def synchronised():
            made = run()
            torch.cuda.synchronize(DEVICE)
            return made

        return benchmark(synchronised)

    return timed
