"""What the page shows of a profile: its step as a bar, part after part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dfa_kernels.profiling import PARTS, PYTHON
from dfa_kernels.throughput.source import Source


class Stretch(NamedTuple):
    """A part of a step: percent of the longest step's time from its beginning."""

    part: str
    start: float
    width: float
    floor: float | None
    label: str
    cells: tuple[str, ...]


class Taken(NamedTuple):
    """A method's step taken apart."""

    source: Source
    method: str
    title: str
    stretches: list[Stretch]
    notes: Sequence[str]


def steps(sources: Sequence[Source]) -> list[Taken]:
    """Every profile, all on one axis."""
    found = [(s, m, p) for s in sources if s.log for m, p in s.log.methods.items()]
    longest = max((max(p.ms, sum(x.ms for x in p.parts)) for _, _, p in found), default=1.0)
    made = []
    for source, method, profile in found:
        assert source.log is not None
        start, stretches = 0.0, []
        for line in sorted(
            profile.parts, key=lambda x: PARTS.index(x.part) if x.part in PARTS else 99
        ):
            least = None if line.floor_ms is None else 100 * min(line.floor_ms, line.ms) / longest
            cells = (
                f"{line.ms:.3f}",
                f"{100 * line.ms / profile.ms:.0f} %",
                "?" if line.floor_ms is None else f"{line.floor_ms:.3f}",
                line.bound or "",
                "–" if line.beaten else "" if line.gap_ms is None else f"{line.gap_ms:.3f}",
            )
            width = 100 * line.ms / longest
            label = profile.label(line.part)
            stretches.append(
                Stretch(line.part, round(start, 3), round(width, 3), least, label, cells)
            )
            start += width
        python = 100 * profile.python_ms / longest
        share = f"{100 * profile.python_ms / profile.ms:.0f} %"
        cells = (f"{profile.python_ms:.3f}", share, "0", "", f"{profile.python_ms:.3f}")
        stretches.append(Stretch(PYTHON, round(start, 3), round(python, 3), None, PYTHON, cells))
        title = f"{method}, {source.log.subject}: {profile.ms:.3g} ms a step, {profile.backend}"
        made.append(Taken(source, method, title, stretches, profile.notes))
    return made
