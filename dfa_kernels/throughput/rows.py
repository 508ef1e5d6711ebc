"""From what a `Job` measured to the rows of a result: ratios, rates, shares of the ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dfa_kernels.backends.contract import RULES
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.throughput.counting import Work
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.memory import Memory
from dfa_kernels.throughput.result import (
    BASELINE,
    FASTER,
    SLOWER,
    UNDECIDED,
    Ceilings,
    Row,
)
from dfa_kernels.throughput.spread import Spread, spread


def verdict(ratio: Spread) -> str:
    """Of a time by another: undecided where the quartiles straddle 1."""
    if ratio.high < 1:
        return FASTER
    return SLOWER if ratio.low > 1 else UNDECIDED


def work(job: Job, method: str) -> Work:
    """What a step must do at the least, and move: see `counting.step`."""
    parameter = PRECISIONS[job.precision].itemsize
    size = 2 if job.precision == "autocast" else parameter
    states = len(RULES[job.rule].states)
    return counting.step(method, job.task.batch, job.task.sizes(), size, parameter, states)


def rows(
    job: Job,
    methods: Mapping[str, str],
    events: Sequence[Mapping[str, Any]],
    ceilings: Ceilings,
) -> list[Row]:
    """In the order of the job's contestants; those that are not installed have none. ``events``: of
    one process after another."""
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event["event"] == "measured":
            measured.setdefault(event["contestant"], []).append(event)
    deaths = {e["contestant"]: e["why"] for e in events if e["event"] == "died"}
    base = _samples(measured.get(BASELINE, []))
    made = []
    for name in job.contestants:
        found = measured.get(name, [])
        if not found and name not in deaths:
            continue
        row = Row(
            contestant=name,
            method=methods[name],
            shape=job.shape,
            dtype=job.precision,
            device=job.device,
            launches=found[0]["launches"] if found else None,
            processes=tuple(len(each["samples_ms"]) for each in found),
            error=deaths.get(name),
        )
        made.append(_timed(row, _samples(found), base, work(job, methods[name]), ceilings))
    return made


def _samples(measured: Sequence[Mapping[str, Any]]) -> list[float]:
    return [ms for each in measured for ms in each["samples_ms"]]


def _timed(
    row: Row, samples: Sequence[float], base: Sequence[float], work: Work, ceilings: Ceilings
) -> Row:
    row = replace(row, flops=work.flops, bytes=work.bytes)
    if not samples:
        return row
    ms, low, high = spread(samples)
    rate, copy = ceilings.tflops.get(row.dtype), ceilings.gbps
    tflops, gbps = work.flops / ms / 1e9, work.bytes / ms / 1e6
    launching = None
    if row.launches is not None and ceilings.launch_us is not None:
        launching = 100 * row.launches * ceilings.launch_us / 1e3 / ms
    row = replace(
        row,
        ms=ms,
        quartiles=(low, high),
        samples_per_s=row.shape[0] / ms * 1e3,
        tflops=tflops,
        gbps=gbps,
        percent_of_matrix_rate=None if rate is None else 100 * tflops / rate,
        percent_of_bandwidth=None if copy is None else 100 * gbps / copy,
        percent_of_launches=launching,
        rounds=len(samples),
        samples_ms=tuple(samples),
    )
    ratios = [own / theirs for own, theirs in zip(samples, base, strict=False)]
    if not ratios:
        return row
    ratio = spread(ratios)
    decided = None if row.contestant == BASELINE or row.error else verdict(ratio)
    return replace(
        row, ratio=ratio.median, ratio_quartiles=(ratio.low, ratio.high), verdict=decided
    )


def with_memory(rows: Sequence[Row], found: Memory, dtype: str) -> list[Row]:
    """``rows``, the one that was measured having its memory."""
    return [
        replace(row, peak_memory_bytes=found.peak, feedback_bytes=found.feedback)
        if (row.contestant, row.shape, row.dtype) == (found.contestant, found.shape, dtype)
        else row
        for row in rows
    ]
