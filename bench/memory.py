"""Peak memory of a training step over the bare process: `python -m bench.memory NAME SHAPE`.

Runs in a process of its own, since a peak cannot be taken back. Bare means: everything imported,
a step of the same contestant made at a tiny shape, and one large matrix product, so that threads,
autograd and the buffers of the BLAS library are up; what is counted is the network, the
optimizer's state, B, activations and gradients.

Two figures: the process's own peak, the median of several runs, for what malloc keeps of freed
blocks differs from run to run by tens of megabytes; and the peak of what is in use, with malloc
told to give every large block back at once, which repeats to 1 %.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import NamedTuple

import torch

from bench.contestants import CONTESTANTS, Shape
from dfa_kernels.throughput import memory, resident

_CPU = torch.device("cpu")
_STEPS = 4
_TINY = (2, 2, 8, 3)
_RUNS = 3


class Peak(NamedTuple):
    """Bytes: the median of the runs' peaks, the lowest and highest, and the peak in use."""

    bytes: int
    range: tuple[int, int]
    in_use: int


def peak(name: str, shape: tuple[int, ...], threads: int) -> Peak | None:
    """None where the system does not tell (it needs Linux's /proc)."""
    if resident.in_use(_CPU) is None:
        return None
    runs = sorted(_run(name, shape, threads, {}) for _ in range(_RUNS))
    in_use = _run(name, shape, threads, memory.THRESHOLD)
    return Peak(round(statistics.median(runs)), (runs[0], runs[-1]), in_use)


def _run(name: str, shape: tuple[int, ...], threads: int, malloc: dict[str, str]) -> int:
    command = [sys.executable, "-m", "bench.memory", name, ",".join(map(str, shape)), str(threads)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **malloc}
    )
    return json.loads(ran.stdout.splitlines()[-1])


def _measure(name: str, shape: tuple[int, ...]) -> int:
    make = CONTESTANTS[name]
    make(Shape(*_TINY))()
    memory.warm_up()
    memory.trim()
    bare = resident.in_use(_CPU)
    step = make(Shape(*shape))
    resident.reset(_CPU)  # what building took and gave back is not training's
    for _ in range(_STEPS):
        step()
    peak = resident.peak(_CPU)
    assert bare is not None and peak is not None
    return peak - bare


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(_measure(sys.argv[1], tuple(map(int, sys.argv[2].split(","))))))
