"""The page's rooflines: what steps and their parts reach, under what the device can at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dfa_kernels.profiling.report import Log
from dfa_kernels.throughput.plots import KINDS, Canvas, Plot, logarithmic, short
from dfa_kernels.throughput.result import BASELINE, Ceilings, Result, Row
from dfa_kernels.throughput.source import Source, is_ours, kind, where


class _Spot(NamedTuple):
    """A step or a part of one: flops, bytes and milliseconds."""

    flops: int
    bytes: int
    ms: float
    colour: str
    kind: str
    label: str
    title: str


def rooflines(sources: Sequence[Source]) -> list[Plot]:
    """Whole steps of a result, and the parts of the profiles of the same device and commit; what
    profiles are left have roofs of their own."""
    made: list[Plot | None] = []
    taken: set[int] = set()
    logs = [s for s in sources if s.log is not None]
    for source in sources:
        if source.result is None:
            continue
        beside = [s for s in logs if _same(s, source) and s.number not in taken]
        taken.update(s.number for s in beside)
        spots = _steps_of(source.result) + [spot for s in beside for spot in _parts_of(s.log)]
        made.append(_roofline(_named(source, sources), source.ceilings, spots))
    for source in logs:
        if source.number not in taken and source.log is not None:
            made.append(_roofline(_named(source, sources), source.ceilings, _parts_of(source.log)))
    return [plot for plot in made if plot is not None]


def _named(source: Source, sources: Sequence[Source]) -> str:
    return f"Roofline: {source.label}" if len(sources) > 1 else "Roofline"


def _same(one: Source, other: Source) -> bool:
    ours, theirs = one.environment, other.environment
    return all(ours.get(n) == theirs.get(n) for n in ("device", "commit", "threads", "torch"))


def _steps_of(found: Result) -> list[_Spot]:
    """Of every shape: backpropagation, and the fastest backend of ours."""
    best: dict[tuple, Row] = {}
    for row in found.rows:
        if row.ms and row.flops and row.bytes and (is_ours(row) or row.contestant == BASELINE):
            key = (row.shape, row.dtype, is_ours(row))
            if key not in best or row.ms < (best[key].ms or math.inf):
                best[key] = row
    return [
        _Spot(
            row.flops or 0, row.bytes or 0, row.ms or 0.0, kind(row), "dot",
            "our step" if is_ours(row) else BASELINE,
            f"{row.contestant}, {where(row)}",
        )
        for row in best.values()
    ]  # fmt: skip


def _parts_of(log: Log | None) -> list[_Spot]:
    if log is None:
        return []
    return [
        _Spot(
            line.flops, line.bytes, line.ms, f"part-{line.part}", KINDS[i % len(KINDS)],
            f"{profile.label(line.part)}, {method}",
            f"{profile.label(line.part)} of {method}, {log.subject}",
        )
        for i, (method, profile) in enumerate(log.methods.items())
        for line in profile.parts
        if line.flops and line.bytes and line.ms > 0
    ]  # fmt: skip


def _roofline(title: str, ceilings: Ceilings, spots: Sequence[_Spot]) -> Plot | None:
    if not ceilings.gbps or not ceilings.tflops or not spots:
        return None
    slope, roofs = ceilings.gbps / 1e3, ceilings.tflops  # TFLOP/s for a flop a byte; TFLOP/s
    rates = [(s.flops / s.bytes, s.flops / s.ms / 1e9) for s in spots]
    ridges = [rate / slope for rate in roofs.values()]
    x = logarithmic([i for i, _ in rates] + ridges, 2.0)
    y = logarithmic([r for _, r in rates] + list(roofs.values()), 1.6)
    canvas = Canvas(title, "flop per byte", "TFLOP/s", x, y)
    for dtype, rate in roofs.items():
        ridge = rate / slope
        start = max(x.low, y.low / slope)
        canvas.line([(start, start * slope), (ridge, rate), (x.high, rate)], "roof")
        canvas.entry(
            f"{dtype}: {short(rate)} TFLOP/s, {short(ceilings.gbps)} GB/s", "roof", "solid"
        )
    for spot, (intensity, rate) in zip(spots, rates, strict=True):
        told = f"{spot.title}: {short(rate)} TFLOP/s at {short(intensity)} flop per byte"
        canvas.mark(intensity, rate, spot.colour, kind=spot.kind, title=told)
        canvas.entry(spot.label, spot.colour, spot.kind)
    return canvas.plot(
        "Work is counted from the mathematics: each operand once through memory. Above the slope "
        "operands came from a cache; above the flat, it was measured on a busier machine."
    )
