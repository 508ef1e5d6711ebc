"""What the device can do at most, measured in the same run: a large copy, large products."""

from __future__ import annotations

import torch

from bench.gpu import launches
from bench.gpu.context import Context
from bench.gpu.rows import Row, fact, timed
from dfa_kernels.throughput import ceilings, counting
from dfa_kernels.throughput.timing import host, kernel

#: The products' ceilings, by their names in the rows.
RATES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


def measure(context: Context) -> None:
    """Copy from device to device, bytes read and written; 8192³ products of random data; and a
    launch of nothing."""
    device, share = context.device, context.share(5)
    _copy(context, share)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for name in RATES:
            _product(context, name, share)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    empty = launches.empty(device)
    context.emit(
        _microseconds("empty Triton kernel, host time", host(empty, device, context.pick(200, 3)))
    )
    times = kernel(empty, device, share, context.least)
    context.emit(_microseconds("empty Triton kernel, device time", [t * 1e3 for t in times]))


def _copy(context: Context, seconds: float) -> None:
    elements = context.pick(1 << 31, 1 << 12)  # 4 GiB of bf16: many times the cache
    source = torch.randn(elements, device=context.device, dtype=torch.bfloat16)
    times = ceilings.copying(source, torch.empty_like(source), seconds, context.least)
    moved = counting.Work(0, 2 * source.nbytes)
    context.emit(timed("copy, device to device", times, moved))


def _product(context: Context, name: str, seconds: float) -> None:
    n, dtype = context.pick(8192, 16), RATES[name]
    times = ceilings.multiplying(context.device, n, dtype, seconds, context.least)
    work = counting.Work(2 * n**3, 3 * n * n * dtype.itemsize)
    context.emit(timed(f"product {n}³, {name}", times, work, name))


def _microseconds(name: str, samples: list[float]) -> Row:
    return fact(name, round(sorted(samples)[len(samples) // 2], 2), unit="µs")
