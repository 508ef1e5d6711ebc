import contextlib
import sys
import weakref

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def not_compiled_before():
    """dynamo counts what it has compiled of a function, our `forward` say, over all tests of a
    process, and stops at 8."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def allow_tf32():
    """Say whether products of fp32 may be computed in tf32."""

    def allow(allowed):
        torch.backends.cuda.matmul.allow_tf32 = allowed

    yield allow
    allow(False)


@pytest.fixture
def devices(monkeypatch):
    """torch's current device, the last, and those before it: GPUs that nobody has."""
    entered = [0]

    @contextlib.contextmanager
    def device(chosen):
        entered.append(chosen.index)
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: entered[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


@pytest.fixture
def repeated(monkeypatch):
    """The records whose step was a repeated one."""
    from dfa_kernels.repeat import Repeat

    records = []
    step = Repeat.step_

    def spy(self, record, rows):
        records.append(weakref.ref(record))
        step(self, record, rows)

    monkeypatch.setattr(Repeat, "step_", spy)
    return records
