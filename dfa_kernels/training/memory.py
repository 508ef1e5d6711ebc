"""Peak memory of training by one method, measured in a fresh process of its own.

What is counted: weights, gradients, optimizer state, activations, feedback and scratch of a few
steps on one minibatch, above a process that has imported everything and made a step of a toy
network. On a GPU that is torch's own count of its allocations; else the growth of the resident set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dfa_kernels import backends
from dfa_kernels.backends.reference import Reference
from dfa_kernels.throughput.resident import in_use, reset
from dfa_kernels.throughput.resident import peak as peak_of
from dfa_kernels.training.model import Learner
from dfa_kernels.training.options import DTYPES, Options

_STEPS = 3  # the optimizer makes its state in the first


class Memory(NamedTuple):
    """Bytes. ``peak``: None where this system cannot tell. ``feedback``: of B, materialised."""

    peak: int | None
    feedback: int


class MeasurementError(RuntimeError):
    """The process that measures failed; the message is its last line."""


def measured(options: Options, method: str, features: int, classes: int) -> Memory:
    """`measure`, in a fresh process: what other methods left in this one does not count.

    Raises:
        MeasurementError: that process failed.
    """
    asked = {
        "options": options.as_dict(),
        "method": method,
        "features": features,
        "classes": classes,
        "threads": torch.get_num_threads(),
    }
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", "dfa_kernels.training.memory"],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasurementError(f"the peak memory of {method} could not be measured: {said[-1]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure(options: Options, method: str, features: int, classes: int) -> Memory:
    """Train for a few steps on random data and look. Meant for a process that did nothing else."""
    # torch.optim imports this when first used: tens of MB that are nobody's.
    import torch._dynamo

    device = torch.device(options.device)
    toy = replace(options, hidden=(8,), compile=False)
    _train(Learner(toy, method, 0, 4, 2), *_batch(toy, 4, 2))
    matrices = cast(Reference, backends.get("reference")).matrices
    matrices.clear()
    batch = _batch(options, features, classes)
    reset(device)
    before = in_use(device)
    _train(Learner(options, method, options.seed, features, classes), *batch)
    # What a compiler leaves behind on the host cannot be told from what training holds.
    peak = None if options.compile and device.type != "cuda" else peak_of(device)
    grown = None if peak is None or before is None else max(0, peak - before)
    return Memory(grown, matrices.bytes())


def _batch(options: Options, features: int, classes: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(options.batch, features, dtype=DTYPES[options.dtype])
    y = torch.randint(classes, (options.batch,))
    return x.to(options.device), y.to(options.device)


def _train(learner: Learner, x: Tensor, y: Tensor) -> None:
    for _ in range(_STEPS):
        learner.step(x, y)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked.pop("threads"))
    options = Options.resolve(asked.pop("options"))
    print(json.dumps(measure(options, **asked)._asdict()))
