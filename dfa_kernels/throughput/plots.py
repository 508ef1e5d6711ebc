"""The geometry of the page's charts: values become percentages of a plotting area.

In percentages a chart is as wide as the reader's screen, and its text, which is HTML, keeps its
size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers, logarithmic or from zero on. ``ticks``: where labels stand."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Percent of the way from ``low`` to ``high``, kept inside."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def linear(high: float, step: float | None = None) -> Axis:
    """From 0 to ``high``, with a tick at every ``step``."""
    step = step or _round(high / 4)
    count = int(high / step + 1e-9)
    ticks = tuple((i * step, short(i * step)) for i in range(count + 1))
    return Axis(0.0, high, False, ticks)


def logarithmic(values: Iterable[float], room: float = 1.25) -> Axis:
    """Around every positive value; ticks at powers of ten, or at 1, 2 and 5 times those where the
    values span less than two of them."""
    positive = [v for v in values if v > 0]
    low, high = (min(positive) / room, max(positive) * room) if positive else (1.0, 10.0)
    factors = (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [f * 10.0**p for p in powers for f in factors]
    inside = [m for m in marks if low <= m <= high]
    every = max(1, math.ceil(len(inside) / 7))
    return Axis(low, high, True, tuple((m, short(m)) for m in inside[::every]))


def _round(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= value * (1 - 1e-9))


def short(value: float) -> str:
    """Whole numbers up to five digits as they are; else three, and a letter for thousands."""
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


#: How lines of one colour are told apart.
STYLES = ("solid", "dashed", "dotted")
#: How points of one colour are.
KINDS = ("diamond", "square", "triangle")


@dataclass(frozen=True)
class Mark:
    """A point: percent from the left and from the top, with whiskers up and down where it has
    noise. ``kind``: "dot" or of
    `KINDS`; ``title``: all that is known of it."""

    x: float
    y: float
    colour: str
    kind: str = "dot"
    title: str = ""
    top: float | None = None
    bottom: float | None = None


@dataclass(frozen=True)
class Line:
    """From point to point, percent from the left and from the top; ``style``: of `STYLES`."""

    points: tuple[tuple[float, float], ...]
    colour: str
    style: str = "solid"

    @property
    def segments(self) -> list[tuple[float, float, float, float]]:
        return [(*a, *b) for a, b in zip(self.points, self.points[1:], strict=False)]


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    label: str
    colour: str
    kind: str = "dot"


@dataclass(frozen=True)
class Plot:
    """A chart of two axes."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    legend: Sequence[Entry] = ()
    note: str = ""


@dataclass
class Canvas:
    """Draws on two axes; `plot` is what came of it."""

    title: str
    x_label: str
    y_label: str
    x: Axis
    y: Axis
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    legend: list[Entry] = field(default_factory=list)

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, style: str = "solid"
    ) -> None:
        placed = tuple((self.x.at(x), round(100 - self.y.at(y), 3)) for x, y in points)
        self.lines.append(Line(placed, colour, style))

    def mark(
        self,
        x: float,
        y: float,
        colour: str,
        *,
        kind: str = "dot",
        title: str = "",
        noise: tuple[float, float] | None = None,
    ) -> None:
        top = bottom = None
        if noise is not None:
            bottom, top = (round(100 - self.y.at(v), 3) for v in sorted(noise))
        y = round(100 - self.y.at(y), 3)
        self.marks.append(Mark(self.x.at(x), y, colour, kind, title, top, bottom))

    def entry(self, label: str, colour: str, kind: str = "dot") -> None:
        entry = Entry(label, colour, kind)
        if entry not in self.legend:
            self.legend.append(entry)

    def plot(self, note: str = "") -> Plot:
        return Plot(
            self.title,
            self.x_label,
            self.y_label,
            tuple((self.x.at(v), label) for v, label in self.x.ticks),
            tuple((self.y.at(v), label) for v, label in self.y.ticks),
            self.lines,
            self.marks,
            self.legend,
            note,
        )
