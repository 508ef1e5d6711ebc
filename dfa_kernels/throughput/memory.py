"""Peak memory of training steps over the bare process: `python -m dfa_kernels.throughput.memory`
reads jobs in JSON from standard input, a list, and writes a line for each contestant.

In a process of its own, for a peak has to be told from what timing left behind. Bare means:
everything imported, a step made at a tiny shape, a large matrix product done, so that threads,
autograd and the buffers of the BLAS library are up. What is counted: the network, the optimizer's
state, B, activations and gradients. On a CPU malloc is told to give every large block back at once:
what it would keep of freed blocks differs from run to run by tens of megabytes, and what is in use
repeats to 1 %. On a GPU it is the count of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple, cast

import torch

from dfa_kernels import backends
from dfa_kernels.backends.reference import Reference
from dfa_kernels.throughput import contestants, lineup
from dfa_kernels.throughput.contestants import Setting
from dfa_kernels.throughput.job import Job, ready
from dfa_kernels.throughput.networks import MLP
from dfa_kernels.throughput.resident import in_use, peak, reset
from dfa_kernels.throughput.result import BASELINE

#: The optimizer makes its state in the first step; the second has it beside the gradients.
_STEPS = 2
_TINY = MLP(2, 4, 2, 8, 3)
#: glibc's: from how many bytes on a block is mapped by itself, and unmapped when it is freed.
THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)}


class Memory(NamedTuple):
    """Bytes. ``peak``: None where the system does not tell; ``feedback``: held for B."""

    contestant: str
    shape: tuple[int, int, int, int]
    peak: int | None
    feedback: int | None


def measured(jobs: Sequence[Job]) -> Iterator[Memory]:
    """`measure` of each contestant of each job, as they come. One that dies there is left out, and
    so are those behind one that ends the process."""
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-m", "dfa_kernels.throughput.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **THRESHOLD},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps([asdict(job) for job in jobs]))
        process.stdin.close()
        for line in process.stdout:
            name, shape, peak, feedback = json.loads(line)
            yield Memory(name, tuple(shape), peak, feedback)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def measure(job: Job) -> Iterator[Memory]:
    """Of each contestant that can be built and steps."""
    with ready(job):
        device = torch.device(job.device)
        for name in job.contestants:
            if name == BASELINE and device.type != "cuda":
                # What a compiler leaves behind cannot be told from what training holds.
                yield Memory(name, job.shape, None, 0)
                continue
            build = lineup.named(name).build
            try:
                build(_TINY, Setting(device, job.precision, job.rule, compiler="eager")).run()
                found = _of(partial(build, job.task, job.setting), device)
            except Exception:  # its row of times says what is wrong with it
                continue
            yield Memory(name, job.shape, *found)


def _of(
    build: Callable[[], contestants.Built], device: torch.device
) -> tuple[int | None, int | None]:
    cast(Reference, backends.get("reference")).matrices.clear()
    trim()
    bare = in_use(device)
    built = build()
    reset(device)  # what building took and gave back is not training's
    for _ in range(_STEPS):
        built.run()
    told = peak(device)
    return (None if told is None or bare is None else max(0, told - bare)), built.feedback_bytes()


def warm_up() -> None:
    """Threads and the BLAS library's buffers."""
    import torch._dynamo  # torch.optim imports it in the first step: not the network's memory

    product = torch.ones(1024, 1024)
    for a, b in ((product, product), (product.T, product), (product, product.T)):
        torch.addmm(product[0], a, b)


def trim() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def main() -> int:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", module="torch")
    warm_up()
    for given in json.load(sys.stdin):
        for memory in measure(Job.of(given)):
            channel.write(json.dumps(memory) + "\n")
            channel.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
