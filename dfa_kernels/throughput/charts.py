"""What the page shows of results and profiles, as numbers, places and words for its template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.plots import STYLES, Axis, Canvas, Plot, linear, logarithmic, short
from dfa_kernels.throughput.result import (
    AXES,
    BASELINE,
    Curve,
    Prediction,
    Row,
)
from dfa_kernels.throughput.source import Source, is_ours, kind, where
from dfa_kernels.training import InputError

# Ratios -----------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """A contestant's ratio to the baseline: percent of the track, with its quartiles, or a sentence
    where there is none."""

    contestant: str
    colour: str
    ours: bool
    source: Source
    width: float
    low: float
    high: float
    value: str
    verdict: str
    time: str
    title: str
    error: str


class Group(NamedTuple):
    """The bars of a shape and dtype."""

    title: str
    bars: list[Bar]


class Ratios(NamedTuple):
    """``one``: where the baseline's line stands; ``ticks``: of the axis; ``baseline``: its name."""

    groups: list[Group]
    one: float
    ticks: list[tuple[float, str]]
    baseline: str


def ratios(sources: Sequence[Source]) -> Ratios:
    """Bars of everything that has a ratio, or died; all on one axis."""
    rows = [(s, r) for s in sources if s.result for r in s.result.rows if r.contestant != BASELINE]
    most = max((r.ratio_quartiles[1] for _, r in rows if r.ratio_quartiles), default=1.0)
    axis = linear(min(max(1.15, 1.04 * most), 4.0), 0.5 if most > 1.6 else 0.25)
    groups: dict[tuple, list[tuple[Source, Row]]] = {}
    for source, row in rows:
        groups.setdefault((row.shape, row.dtype), []).append((source, row))
    made = []
    for own in groups.values():
        names = list(dict.fromkeys(row.contestant for _, row in own))
        own.sort(key=lambda pair: (names.index(pair[1].contestant), pair[0].number))
        bars = [_bar(source, row, axis, len(sources) > 1) for source, row in own]
        made.append(Group(where(own[0][1]), bars))
    return Ratios(made, axis.at(1.0), [(axis.at(v), label) for v, label in axis.ticks], BASELINE)


def _bar(source: Source, row: Row, axis: Axis, several: bool) -> Bar:
    colour = source.colour if several else kind(row)
    if row.ratio is None or row.ratio_quartiles is None:
        why = row.error or f"no ratio: {BASELINE} has no time here"
        return Bar(row.contestant, colour, is_ours(row), source, 0, 0, 0, "–", "", "", why, why)
    low, high = row.ratio_quartiles
    time = "" if row.ms is None else f"{row.ms:.3g} ms"
    title = f"{row.contestant}: {row.ratio:.3f} ({low:.3f} to {high:.3f}), {row.rounds} rounds"
    return Bar(
        row.contestant, colour, is_ours(row), source, axis.at(row.ratio), axis.at(low),
        axis.at(high), f"{row.ratio:.2f}", row.verdict or "", time, title, row.error or "",
    )  # fmt: skip


class Changes(NamedTuple):
    """From the first result to another: ``rows`` of contestant, shape, new time by old, its
    interval, and what `compare` says."""

    old: Source
    new: Source
    rows: Sequence[tuple[str, ...]]
    notes: list[str]


def changes(sources: Sequence[Source]) -> list[Changes]:
    """Each result beside the first, where both are of one device."""
    from dfa_kernels.throughput import compare

    made = []
    for new in sources[1:]:
        old = sources[0]
        assert old.result is not None and new.result is not None
        if old.result.environment.get("device") != new.result.environment.get("device"):
            continue
        try:
            found, notes = compare.compare(old.result, new.result)
        except InputError:  # other optimizers: their bars stand side by side
            continue
        rows = [
            (
                c.row.contestant,
                where(c.row),
                f"{c.factor:.3f}" if math.isfinite(c.factor) else "–",
                f"{c.low:.3f} to {c.high:.3f}" if math.isfinite(c.high) else "too few rounds",
                c.verdict,
            )
            for c in found
        ]
        made.append(Changes(old, new, rows, notes))
    return made


# Scaling ----------------------------------------------------------------------------------------


def curves(sources: Sequence[Source]) -> list[Plot]:
    """Time and memory along each axis; a chart for each axis, shape and dtype, time first."""
    groups: dict[tuple, list[tuple[Source, Curve]]] = {}
    for source in sources:
        assert source.result is not None
        for curve in source.result.scaling:
            others = tuple(n for a, n in zip(AXES, curve.shape, strict=True) if a != curve.axis)
            groups.setdefault((curve.axis, others, curve.dtype), []).append((source, curve))
    made = []
    for memory in (False, True):
        for own in groups.values():
            plot = _curves(own, memory, len(sources) > 1)
            if plot is not None:
                made.append(plot)
    return made


def _curves(own: Sequence[tuple[Source, Curve]], memory: bool, several: bool) -> Plot | None:
    def value(point: Any) -> float | None:
        bytes_ = point.peak_memory_bytes
        return point.ms if not memory else None if bytes_ is None else bytes_ / 1e6

    points = [(p.value, value(p)) for _, c in own for p in c.points]
    known = [(x, y) for x, y in points if y]
    if not known:
        return None
    first = own[0][1]
    others = [f"{a} {n:,}" for a, n in zip(AXES, first.shape, strict=True) if a != first.axis]
    what = "Peak memory" if memory else "Time of a step"
    canvas = Canvas(
        f"{what} by {first.axis}: {', '.join(others)}, {first.dtype}",
        first.axis,
        "MB" if memory else "ms",
        logarithmic((x for x, _ in known), 1.15),
        logarithmic((y for _, y in known), 1.3),
    )
    alike: dict[str, list[str]] = {}  # the contestants of each colour
    for source, curve in own:
        colour = source.colour if several else kind(curve)
        named = alike.setdefault(colour, [])
        if curve.contestant not in named:
            named.append(curve.contestant)
        style = STYLES[min(named.index(curve.contestant), len(STYLES) - 1)]
        placed = [(p, y) for p in curve.points if (y := value(p))]
        canvas.line([(p.value, y) for p, y in placed], colour, style)
        for p, y in placed:
            noise = p.quartiles if not memory else None
            title = f"{curve.contestant}, {curve.axis} {p.value:,}: {short(y)} {canvas.y_label}"
            canvas.mark(p.value, y, colour, title=title, noise=noise)
        fitted = curve.memory_exponent if memory else curve.ms_exponent
        power = "" if fitted is None else f", exponent {fitted[0]:.2f} ± {fitted[1]:.2f}"
        whose = f"{curve.contestant}, {source.label}" if several else curve.contestant
        canvas.entry(whose + power, colour, style)
    return canvas.plot()


# Tables -----------------------------------------------------------------------------------------


def predictions(sources: Sequence[Source]) -> list[tuple[str, ...]]:
    """The cost model beside what was measured."""
    return [
        (source.label, p.contestant, str(Shape(*p.shape)), p.dtype, *_foreseen(p))
        for source in sources
        if source.result is not None
        for p in source.result.predictions
    ]


def _foreseen(made: Prediction) -> tuple[str, str, str, str]:
    """Predicted, measured, the difference, and whether the model had seen it."""
    predicted, fitted = f"{made.predicted_ms:.3g}", "yes" if made.fitted else "no"
    if not made.measured_ms:
        return predicted, "–", "", fitted
    off = 100 * (made.predicted_ms / made.measured_ms - 1)
    return predicted, f"{made.measured_ms:.3g}", f"{off:+.0f} %", fitted


def details(sources: Sequence[Source]) -> list[tuple[Source, list[tuple[str, ...]]]]:
    """Every figure of every row."""
    made = []
    for source in sources:
        assert source.result is not None
        if source.result.rows:
            made.append((source, [_detail(row) for row in source.result.rows]))
    return made


def _detail(row: Row) -> tuple[str, ...]:
    def of(value: float | None, form: str = ".3g", scale: float = 1.0) -> str:
        return "–" if value is None else format(value / scale, form)

    low, high = row.quartiles or (None, None)
    return (
        row.contestant, str(Shape(*row.shape)), row.dtype,
        of(row.ms), f"{of(low)}–{of(high)}", of(row.ratio, ".2f"),
        row.verdict or ("died" if row.error else ""), of(row.samples_per_s, ",.0f"), of(row.tflops),
        of(row.percent_of_matrix_rate, ".0f"), of(row.gbps), of(row.percent_of_bandwidth, ".0f"),
        of(row.launches, ".0f"),
        of(row.percent_of_launches, ".0f"), of(row.peak_memory_bytes, ".1f", 1e6),
        of(row.feedback_bytes, ".3f", 1e6), str(row.rounds),
    )  # fmt: skip


#: The heads of `details`.
DETAILS = (
    "contestant", "shape", "dtype", "ms", "quartiles", "ratio", "verdict", "samples/s", "TFLOP/s",
    "% of products", "GB/s", "% of copy", "launches", "% of launches", "peak MB", "feedback MB",
    "rounds",
)  # fmt: skip
