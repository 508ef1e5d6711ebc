"""`dfa-kernels bench --compare`: what is faster, slower or undecided between two results.

What is compared is a contestant's time by backpropagation's of the same round, where both results
have it: the machine's mood meets both alike and cancels. Eager backpropagation's, if it takes part,
for compiled one takes one of two times, up to 15 % apart, for as long as its process lives. The
change is the Hodges-Lehmann shift of the logarithms: the median of all differences between a new
round and an old one. Its confidence interval is that of the rank-sum test, which asks nothing of
the noise's distribution, widened where one round resembles the next (their lag-1 correlation), for
then there are fewer independent rounds than were counted.

No number of rounds averages away what a process has for as long as it lives: where its memory came
to lie, and what else the machine did in that minute, which does not meet all contestants alike.
Where several processes timed a row, the change is that of the means of their medians, and its
interval also as wide as Student's for what differs between processes of the same code.

Slower means that the interval lies beyond `MARGIN` as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from dfa_kernels.throughput import result, table
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import (
    BASELINE,
    EAGER,
    FASTER,
    SLOWER,
    UNDECIDED,
    Result,
    Row,
)
from dfa_kernels.training import InputError

#: Of one row, two-sided. 1 in 100 intervals misses the truth by chance; that one does so by more
#: than `MARGIN` is far rarer.
CONFIDENCE = 0.99
#: Times that differ by less are the same.
MARGIN = 0.03
#: What the others are measured by: the first that both results have.
YARDSTICKS = (EAGER, BASELINE)
#: Of times that no yardstick in the same rounds corrects for the machine's mood.
UNPAIRED = 0.15

#: What a row of the new result says beside `VERDICTS`: it died, or lived again.
DIED, ALIVE = "died", "alive again"

Key = tuple[str, tuple[int, int, int, int], str, str]


class Change(NamedTuple):
    """``factor``: new time by old, between ``low`` and ``high``; NaN where one of them has none.
    ``paired``: by the yardstick's rounds."""

    row: Row
    factor: float
    low: float
    high: float
    paired: bool
    verdict: str


def run(old: Path, new: Path) -> int:
    """Print the comparison.

    Returns:
        The exit status: 1 where a row is slower, or died.

    Raises:
        InputError: a file cannot be read, or nothing in them is comparable.
    """
    changes, notes = compare(result.read(old), result.read(new))
    if not changes:
        raise InputError(f"{old} and {new} have no row in common")
    _show(changes, notes)
    return 1 if any(c.verdict in (SLOWER, DIED) for c in changes) else 0


def compare(old: Result, new: Result) -> tuple[list[Change], list[str]]:
    """Every row that both have but the yardstick's, and sentences on what else differs.

    Raises:
        InputError: they time steps of different optimizers.
    """
    theirs, ours = (r.environment.get("optimizer") for r in (old, new))
    if theirs != ours:
        raise InputError(f"the old result steps by {theirs} and the new one by {ours}")
    before, after = _keyed(old), _keyed(new)
    notes = [
        f"{name}: {old.environment.get(name)} before, {new.environment.get(name)} now."
        for name in ("device", "threads", "torch", "dfa_kernels", "commit")
        if old.environment.get(name) != new.environment.get(name)
    ]
    for which, one, other in (("old", before, after), ("new", after, before)):
        alone = [f"{k[0]} at {Shape(*k[1])} {k[2]}" for k in one if k not in other]
        if alone:
            notes.append(f"Only the {which} result has {'; '.join(alone)}.")
        if any(row.rounds and len(row.processes) < 2 for row in one.values()):
            notes.append(
                f"One process timed rows of the {which} result: what differs between processes is "
                "not in their intervals."
            )
    changes = []
    for key, row in after.items():
        if key not in before:
            continue
        bases = _yardsticks(before, after, key)
        if row.contestant != (bases[0].contestant if bases else BASELINE):
            changes.append(_change(before[key], row, bases))
    return changes, notes


def _keyed(found: Result) -> dict[Key, Row]:
    return {(r.contestant, r.shape, r.dtype, r.device): r for r in found.rows}


def _yardsticks(before: dict[Key, Row], after: dict[Key, Row], key: Key) -> tuple[Row, ...]:
    """The old and the new row that a row of ``key`` is measured by; none where there are none."""
    for name in YARDSTICKS:
        found = [rows.get((name, *key[1:])) for rows in (before, after)]
        rows = tuple(row for row in found if row and row.samples_ms)
        if len(rows) == 2:
            return rows
    return ()


def _change(old: Row, new: Row, bases: tuple[Row, ...]) -> Change:
    if old.error or new.error:
        verdict = UNDECIDED if old.error and new.error else DIED if new.error else ALIVE
        return Change(new, math.nan, math.nan, math.nan, False, verdict)
    paired = bool(bases)
    samples, middles = [], []
    for i, row in enumerate((old, new)):
        by = bases[i].samples_ms if paired else (1.0,) * len(row.samples_ms)
        samples.append([a / b for a, b in zip(row.samples_ms, by, strict=False)])
        middles.append(_middles(samples[-1], row.processes))
    shift, half = difference(*samples)
    if min(map(len, middles)) > 1:
        shift, apart = between(*middles)
        half = max(half, apart)
    low, high = shift - half, shift + half
    margin = math.log1p(MARGIN if paired else UNPAIRED)
    verdict = SLOWER if low > margin else FASTER if high < -margin else UNDECIDED
    return Change(new, math.exp(shift), math.exp(low), math.exp(high), paired, verdict)


def difference(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Of the logarithms: the shift from old to new, and half of its confidence interval; infinite
    where there are too few samples to have one."""
    if len(old) < 2 or len(new) < 2:
        return 0.0, math.inf
    a, b = np.log(old), np.log(new)
    pairs = np.sort((b[:, None] - a[None, :]).ravel())
    shift = float(np.median(pairs))
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    spread = math.sqrt(len(a) * len(b) * (len(a) + len(b) + 1) / 12)
    # The rank of the interval's lower end, among the sorted differences.
    rank = math.floor(len(pairs) / 2 - z * spread)
    if rank < 0:
        return shift, math.inf
    half = float(pairs[len(pairs) - 1 - rank] - pairs[rank]) / 2
    return shift, half * _inflation(a, b)


def between(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """The same from one figure of each process, two or more on both sides, as if they varied alike:
    Student's interval for the difference of two means."""
    from scipy.stats import t

    a, b = np.log(old), np.log(new)
    free = len(a) + len(b) - 2
    variance = (a.var() * len(a) + b.var() * len(b)) / free
    error = math.sqrt(variance * (1 / len(a) + 1 / len(b)))
    return float(b.mean() - a.mean()), float(t.ppf(0.5 + CONFIDENCE / 2, free)) * error


def _middles(samples: Sequence[float], processes: Sequence[int]) -> list[float]:
    """The median of each process's samples, of those that have some."""
    middles, first = [], 0
    for count in processes:
        if samples[first : first + count]:
            middles.append(float(np.median(samples[first : first + count])))
        first += count
    return middles


def _inflation(a: np.ndarray, b: np.ndarray) -> float:
    """How much wider an interval must be for samples that resemble their neighbours: n of them
    with a lag-1 correlation ρ tell as much as n·(1 − ρ)/(1 + ρ) that do not."""
    widest = 1.0
    for samples in (a, b):
        apart = samples - np.median(samples)
        # An outlier must not decide what the others have in common.
        limit = 3 * 1.4826 * float(np.median(np.abs(apart)))
        kept = np.clip(apart, -limit, limit)
        power = float(kept @ kept)
        lag = float(kept[1:] @ kept[:-1]) / power if power > 0 else 0.0
        lag += (1 + 3 * lag) / len(samples)  # few samples show less than there is (Kendall 1954)
        lag = min(max(lag, 0.0), 0.9)
        widest = max(widest, math.sqrt((1 + lag) / (1 - lag)))
    return widest


def _show(changes: Sequence[Change], notes: Sequence[str]) -> None:
    console = table.console()
    made = table.plain(f"New time by old, {100 * CONFIDENCE:g} % intervals")
    for head in ("contestant", "shape", "dtype", "change", "interval", ""):
        made.add_column(head, justify="right" if head in ("change", "interval") else "left")
    colours = {SLOWER: "red", DIED: "red", FASTER: "green", ALIVE: "green"}
    for row, factor, low, high, paired, verdict in changes:
        known = math.isfinite(factor)
        wide = math.isfinite(high)
        colour = colours.get(verdict)
        made.add_row(
            row.contestant,
            str(Shape(*row.shape)),
            row.dtype,
            f"{factor:.3f}" if known else "–",
            f"{low:.3f}–{high:.3f}" if wide else "too few rounds" if known else "–",
            (f"[{colour}]{verdict}" if colour else verdict) + ("" if paired or not known else " *"),
        )
    console.print(made)
    if any(not c.paired and math.isfinite(c.factor) for c in changes):
        console.print(f"* without backpropagation beside it: held to {100 * UNPAIRED:g} %.")
    for note in notes:
        console.print(note, markup=False, highlight=False)
    counts = {
        v: sum(c.verdict == v for c in changes) for v in dict.fromkeys(c.verdict for c in changes)
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
