"""A file that the page shows, and what its rows are called and coloured by."""

from __future__ import annotations

from dataclasses import dataclass

from dfa_kernels.profiling.report import Log
from dfa_kernels.throughput.result import Ceilings, Curve, Result, Row

#: DFA that is nobody's backend.
_OTHERS = ("tinydfa", "biotorch", "hand-written-dfa")


@dataclass(frozen=True)
class Source:
    """A file: ``result`` of dfa-kernels bench, or ``log`` of dfa-kernels profile. ``label`` tells
    it from the others, as does ``number``, by which it has its colour."""

    number: int
    label: str
    name: str
    text: str
    result: Result | None = None
    log: Log | None = None

    @property
    def environment(self) -> dict[str, str | int | float]:
        return self._whole.environment

    @property
    def ceilings(self) -> Ceilings:
        return self._whole.ceilings

    @property
    def _whole(self) -> Result | Log:
        whole = self.result or self.log
        assert whole is not None
        return whole

    @property
    def colour(self) -> str:
        return f"s{self.number % 6}"


def is_ours(row: Row | Curve) -> bool:
    """Whether a registered backend ran it."""
    return row.method == "dfa" and row.contestant not in _OTHERS


def kind(row: Row | Curve) -> str:
    """By what a single source's contestants are coloured."""
    return "ours" if is_ours(row) else row.method


def where(row: Row | Curve) -> str:
    batch, depth, width, outputs = row.shape
    return f"{depth} × {width}, batch {batch:,}, {outputs:,} outputs, {row.dtype}"
