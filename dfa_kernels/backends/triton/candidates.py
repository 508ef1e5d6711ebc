"""Tiles that may be faster than those of `rules`: what tuning tries, and the sweep of `bench.gpu`.

A tile has 128 rows at the most, for `layout.STRIDE` counts on it, and 128 columns of B, or a
multiple: what a Philox call makes of ±1. Those near today's defaults come first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dfa_kernels.backends.triton.rules import ALL_REGISTERS, Tiles


def update(default: Tiles, half: bool) -> Iterator[Tiles]:
    """Of `update`, ``default`` first; ``half``: 16-bit operands."""
    shapes = [(default.n, default.k), (64, 128), (64, 256), (128, 128), (32, 128), (64, 64)]
    stages: tuple[int, ...] = (default.stages, 3, 4, 2)
    if not half:  # products without tensor cores, or in tf32: smaller tiles
        shapes = [(default.n, default.k), (16, 64), (32, 64), (16, 128), (32, 128)]
        stages = (default.stages, 2, 3)
    tried = itertools.product(shapes, stages, (default.warps, 8, 4))
    return _within(default, ((n, k, w, s, default.d * k) for (n, k), s, w in tried))


def project(default: Tiles, half: bool, width: int) -> Iterator[Tiles]:
    """Of `project`, ``default`` first; ``width``: E."""
    rows = (default.n, 128, 64, 32) if half else (default.n, 64, 32)
    depths = [k for k in (default.k, 2 * default.k) if k < 2 * max(16, width)]
    tried = itertools.product(rows, depths, (default.stages, 3, 2, 4), (default.warps, 8, 4))
    return _within(default, ((n, k, w, s, n * default.d) for n, k, s, w in tried))


def _within(default: Tiles, tried: Iterator[tuple[int, int, int, int, int]]) -> Iterator[Tiles]:
    """Each of (n, k, warps, stages, sums in fp32) once, whose sums fit a thread's registers."""
    seen = set()
    for n, k, warps, stages, sums in tried:
        tiles = default._replace(n=n, k=k, warps=warps, stages=stages)
        each = sums // (32 * warps)
        if each > 64:
            tiles = tiles._replace(registers=ALL_REGISTERS)
        if tiles not in seen and (each <= 128 or tiles == default):
            seen.add(tiles)
            yield tiles
