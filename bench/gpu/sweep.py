"""Tiles that `rules` could pick, timed on the large shapes; opt-in, for the defaults there are
counted and were never timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from bench.gpu import kernels
from bench.gpu.context import Context
from bench.gpu.rows import timed
from dfa_kernels.backends.triton import candidates, rules
from dfa_kernels.backends.triton.rules import Tiles
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.timing import Run, kernel

BEST = 5


def sweep(context: Context) -> None:
    n, d = context.pick((8192, 4096), (16, 128))
    layers = context.pick(*kernels.LAYERS)
    device, bf16 = context.device, torch.bfloat16
    x = [torch.randn(n, d, device=device, dtype=bf16) for _ in range(layers)]
    h = [torch.randn(n, d, device=device, dtype=bf16).tanh_() for _ in range(layers)]
    sizes = [(d, d)] * layers
    half = context.seconds / 2
    work = counting.update(n, sizes, 2, 4, 2)
    default = rules.update_tiles(rules.device_of(device), True, False, False, True, sizes)
    _try(
        context,
        "update_tiles",
        f"update with adamw, {layers} × {d}², N {n}",
        candidates.update(default, True),
        lambda: kernels.of_weights("adamw", torch.float32, x, h),
        work,
        context.left() - half,
    )
    for e in context.pick((32, 512), (32,)):
        error = torch.randn(n, e, device=device, dtype=bf16)
        work = counting.project(n, e, [d] * layers, True, 2)
        default = rules.project_tiles(rules.device_of(device), True, False, True, n, d, e)
        _try(
            context,
            "project_tiles",
            f"project, {layers} layers of {d}, N {n}, E {e}",
            candidates.project(default, True, e),
            lambda error=error: kernels.prepared(
                kernels.of_layers(error, h, x, True, device), device
            ),
            work,
            half / 2,
        )


def _try(
    context: Context,
    rule: str,
    name: str,
    tried: Iterator[Tiles],
    make: Callable[[], Run],
    work: counting.Work,
    seconds: float,
) -> None:
    """Time what ``make`` makes by each of the tiles, as many as fit; emit the best, and what is
    picked without being asked."""
    end = context.clock() + seconds
    found: list[tuple[float, str, list[float]]] = []
    refused = 0
    for number, tiles in enumerate(itertools.islice(tried, context.pick(None, 2))):
        if context.clock() >= end:
            break
        shown = _shown(tiles) + (", the default" if number == 0 else "")
        with mock.patch.object(rules, rule, lambda *_, tiles=tiles: tiles):
            try:
                times = kernel(make(), context.device, 0.0, context.pick(5, 1))
            except Exception as failed:  # more shared memory or registers than there are
                if context.tiny:
                    raise
                refused += 1
                if context.device.type == "cuda":
                    torch.cuda.synchronize()  # raises where the device itself has failed
                reason = str(failed).strip().splitlines() or [""]
                context.say(f"sweep: {name}: {shown}: {reason[0][:120]}")
                continue
        found.append((sorted(times)[len(times) // 2], shown, times))
    found.sort(key=lambda entry: entry[0])
    for place, (_, shown, times) in enumerate(found):
        if place < BEST or shown.endswith("the default"):
            context.emit(timed(f"{name}: {shown}", times, work))
    context.say(f"sweep: {name}: {len(found)} of the tiles were timed, {refused} refused.")


def _shown(tiles: Tiles) -> str:
    return ", ".join(f"{field} {value}" for field, value in tiles._asdict().items())
