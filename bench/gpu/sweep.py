"""Tiles that `rules` could pick, timed on the large shapes; opt-in, for the defaults there are
counted and were never timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from bench.gpu import counting, kernels
from bench.gpu.context import Context
from bench.gpu.rows import timed
from bench.gpu.timing import Run, kernel
from dfa_kernels.backends.triton import rules

BEST = 5

#: Fields of `rules.Tiles` and what they are changed to.
Change = dict[str, int]


def sweep(context: Context) -> None:
    n, d = context.pick((8192, 4096), (16, 128))
    layers = context.pick(*kernels.LAYERS)
    device, bf16 = context.device, torch.bfloat16
    x = [torch.randn(n, d, device=device, dtype=bf16) for _ in range(layers)]
    h = [torch.randn(n, d, device=device, dtype=bf16).tanh_() for _ in range(layers)]
    sizes = [(d, d)] * layers
    half = context.seconds / 2
    work = counting.update(n, sizes, 2, 4, 2)
    _try(
        context,
        "update_tiles",
        f"update with adamw, {layers} × {d}², N {n}",
        _of_update(),
        lambda: kernels.of_weights("adamw", torch.float32, x, h),
        work,
        context.left() - half,
    )
    for e in context.pick((32, 512), (32,)):
        error = torch.randn(n, e, device=device, dtype=bf16)
        work = counting.project(n, e, [d] * layers, True, 2)
        _try(
            context,
            "project_tiles",
            f"project, {layers} layers of {d}, N {n}, E {e}",
            _of_project(e),
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
    candidates: Iterator[Change],
    make: Callable[[], Run],
    work: counting.Work,
    seconds: float,
) -> None:
    """Time what ``make`` makes under each of the candidates, as many as fit; emit the best."""
    end = context.clock() + seconds
    picked = getattr(rules, rule)
    found: list[tuple[float, Change, list[float]]] = []
    refused = 0
    for change in itertools.islice(candidates, context.pick(None, 2)):
        if context.clock() >= end:
            break
        changed = lambda *given, change=change: picked(*given)._replace(**change)  # noqa: E731
        with mock.patch.object(rules, rule, changed):
            try:
                times = kernel(make(), context.device, 0.0, context.pick(5, 1))
            except Exception as failed:  # more shared memory or registers than there are
                if context.tiny:
                    raise
                refused += 1
                if context.device.type == "cuda":
                    torch.cuda.synchronize()  # raises where the device itself has failed
                reason = str(failed).strip().splitlines() or [""]
                context.say(f"sweep: {name}: {_shown(change)}: {reason[0][:120]}")
                continue
        found.append((sorted(times)[len(times) // 2], change, times))
    found.sort(key=lambda entry: entry[0])
    for _, change, times in found[:BEST]:
        context.emit(timed(f"{name}: {_shown(change)}", times, work))
    context.say(f"sweep: {name}: {len(found)} of the tiles were timed, {refused} refused.")


def _shown(change: Change) -> str:
    return ", ".join(f"{field} {value}" for field, value in change.items())


def _of_update() -> Iterator[Change]:
    """First those near today's."""
    shapes = [(64, 128, 128), (64, 128, 256), (128, 128, 128), (64, 256, 128), (32, 128, 256)]
    for (n, d, k), stages, warps in itertools.product(shapes, (3, 4, 2), (8, 4)):
        sums = d * k // (32 * warps)  # registers of a thread that hold the tile's sums
        if sums <= 128:
            yield _change(n=n, d=d, k=k, warps=warps, stages=stages, crowded=sums > 64)


def _of_project(error: int) -> Iterator[Change]:
    depth = max(16, min(64, error))
    for n, k, warps, stages in itertools.product(
        (128, 64, 256), (depth, 2 * depth), (8, 4), (3, 2, 4)
    ):
        if k <= max(16, error):
            crowded = n * 128 // (32 * warps) > 64
            yield _change(n=n, k=k, warps=warps, stages=stages, crowded=crowded)


def _change(crowded: bool, **fields: int) -> Change:
    """Of what `rules` picks; a crowded tile may have all registers."""
    if crowded and "registers" in rules.Tiles._fields:
        fields["registers"] = 255
    return fields
