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

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_STEPS = 4
_TINY = (2, 2, 8, 3)
_RUNS = 3
#: glibc's: from how many bytes on a block is mapped by itself, and unmapped when it is freed.
_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)}


class Peak(NamedTuple):
    """Bytes: the median of the runs' peaks, the lowest and highest, and the peak in use."""

    bytes: int
    range: tuple[int, int]
    in_use: int


def peak(name: str, shape: tuple[int, ...], threads: int) -> Peak | None:
    """None where the system does not tell (it needs Linux's /proc)."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    runs = sorted(_run(name, shape, threads, {}) for _ in range(_RUNS))
    in_use = _run(name, shape, threads, _THRESHOLD)
    return Peak(round(statistics.median(runs)), (runs[0], runs[-1]), in_use)


def _run(name: str, shape: tuple[int, ...], threads: int, malloc: dict[str, str]) -> int:
    command = [sys.executable, "-m", "bench.memory", name, ",".join(map(str, shape)), str(threads)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **malloc}
    )
    return json.loads(ran.stdout.splitlines()[-1])


def _measure(name: str, shape: tuple[int, ...]) -> int:
    import torch
    import torch._dynamo  # torch.optim imports it in the first step: not the network's memory

    from bench.contestants import CONTESTANTS, Shape

    make = CONTESTANTS[name]
    make(Shape(*_TINY))()
    product = torch.ones(1024, 1024)
    for a, b in ((product, product), (product.T, product), (product, product.T)):
        torch.addmm(product[0], a, b)
    del product, a, b
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    bare = _status("VmRSS")
    step = make(Shape(*shape))
    for _ in range(_STEPS):
        step()
    return _status("VmHWM") - bare


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(_measure(sys.argv[1], tuple(map(int, sys.argv[2].split(","))))))
