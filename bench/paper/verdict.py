"""What the rows say: whether a method beats shallow, and how much of the way to bp it goes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from bench.paper.rows import Row

Group = tuple[str, str, str, str]  # task, model, data, metric


class Verdict(NamedTuple):
    """Of one method beside shallow and backpropagation.

    ``errors``: how many standard errors of the difference it is better than shallow (negative:
    worse; infinite where neither varies); None where either has one seed alone. ``share``: of the
    way from shallow's mean to bp's; None where bp is no better than shallow, or not by more than
    two standard errors. ``behind``: bp's mean less its own, in the direction in which more is
    better.
    """

    errors: float | None
    share: float | None
    behind: float | None

    @property
    def sentence(self) -> str:
        if self.errors is None:
            return "one seed: nothing to say"
        if self.errors > 2:
            return f"above shallow ({self.errors:.1f} standard errors)"
        if self.errors < -2:
            return f"below shallow ({-self.errors:.1f} standard errors)"
        return f"not told from shallow ({self.errors:+.1f} standard errors)"


def grouped(rows: Iterable[Row]) -> dict[Group, dict[str, Row]]:
    """By (task, model, data, metric), then by method."""
    found: dict[Group, dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.task, row.model, row.data, row.metric), {})[row.method] = row
    return found


def of(method: str, rows: dict[str, Row]) -> Verdict:
    """``rows``: a group's, by method."""
    row, shallow, bp = rows[method], rows.get("shallow"), rows.get("bp")
    sign = 1.0 if row.higher_is_better else -1.0
    errors = None if shallow is None else _errors(row, shallow)
    share = behind = None
    if bp is not None:
        behind = sign * (bp.mean - row.mean)
        if shallow is not None and _is_above(bp, shallow):
            share = (row.mean - shallow.mean) / (bp.mean - shallow.mean)
    return Verdict(errors, share, behind)


def _errors(row: Row, other: Row) -> float | None:
    """How many standard errors of the difference ``row`` is better than ``other``."""
    if min(row.seeds, other.seeds) < 2:
        return None
    ahead = (row.mean - other.mean) * (1.0 if row.higher_is_better else -1.0)
    error = math.sqrt(row.std**2 / row.seeds + other.std**2 / other.seeds)
    return ahead / error if error else math.copysign(math.inf, ahead) if ahead else 0.0


def _is_above(row: Row, other: Row) -> bool:
    """Whether it is, and by more than chance where that can be told."""
    errors = _errors(row, other)
    if errors is not None:
        return errors > 2
    return row.mean > other.mean if row.higher_is_better else row.mean < other.mean
