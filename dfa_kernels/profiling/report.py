"""What a profile says, as JSON and as a table on a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfa_kernels.profiling import PYTHON
from dfa_kernels.profiling.parts import Line
from dfa_kernels.throughput.result import Ceilings, checked
from dfa_kernels.training import InputError

FORMAT = 1
KIND = "dfa-kernels profile"

#: How many layers the table shows: those with the largest gaps.
_LAYERS = 8


@dataclass(frozen=True)
class Profile:
    """A method's step. ``ms`` and ``quartiles``: not profiled; ``profiled_ms``: the same under the
    profiler, whose own work is not in ``ms``. ``fused``: the optimizer's step is in the update.
    ``python_ms``: what is left of ``ms`` when nothing of ``parts`` runs; on a GPU, the time that it
    waits."""

    method: str
    backend: str
    optimizer: str
    fused: bool
    ms: float
    quartiles: tuple[float, float]
    profiled_ms: float
    python_ms: float
    parts: tuple[Line, ...]
    layers: tuple[Line, ...]
    notes: tuple[str, ...]

    def label(self, part: str) -> str:
        return "update + optimizer" if part == "update" and self.fused else part

    @property
    def floor_ms(self) -> float | None:
        """Of the step; a part that beat its floor counts with its own time."""
        floors = [line.ms if line.beaten else line.floor_ms for line in self.parts]
        return None if None in floors else sum(f for f in floors if f is not None)


@dataclass(frozen=True)
class Log:
    """What profile.json holds: milliseconds, bytes, flops. ``subject``: what was profiled, in
    words; ``options``: as they would be typed; ``failed``: a sentence for each method that could
    not be profiled."""

    environment: dict[str, str | int | float]
    options: dict[str, str]
    subject: str
    ceilings: Ceilings
    methods: dict[str, Profile]
    failed: dict[str, str]


def parse(found: Mapping[str, Any], where: str) -> Log:
    """From the JSON of the file ``where``.

    Raises:
        InputError: it is damaged, or of another format.
    """
    if found.get("format") != FORMAT:
        raise InputError(
            f"{where} is a profile of format {found.get('format')!r}, and this reads {FORMAT}: "
            "profile again, or read it with the version that wrote it"
        )
    return checked(Log, {k: v for k, v in found.items() if k not in ("kind", "format")}, where)


def as_json(log: Log) -> dict[str, Any]:
    return {"kind": KIND, "format": FORMAT, **asdict(log)}


def write(path: Path, found: Any) -> None:
    """JSON; beside ``path`` first, then moved there.

    Raises:
        InputError: it cannot be written there.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        beside.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(beside, path)
    except OSError as refused:
        raise InputError(f"{path} cannot be written: {refused.strerror}") from None


def print_tables(console: Console, profile: Profile, ceilings: Ceilings, title: str) -> None:
    """The parts, the layers with the largest gaps, and what to read them with."""
    console.print(Text(title, style="bold"))
    console.print(_parts(profile))
    gaps = [line for line in profile.layers if line.gap_ms is not None and line.gap_ms > 0]
    if gaps:
        gaps.sort(key=lambda line: -(line.gap_ms or 0))
        console.print(_layers(profile, gaps[:_LAYERS]))
    console.print("ms a step; floor: bytes by the copy's rate, or flops by the products'")
    if any(line.beaten for line in profile.parts):
        console.print("gap –: it took less than its floor, which is none then", highlight=False)
    rates = ", ".join(f"{rate:.3g} TFLOP/s {dtype}" for dtype, rate in ceilings.tflops.items())
    copy = "no copy" if ceilings.gbps is None else f"copy {ceilings.gbps:.3g} GB/s"
    console.print(f"ceilings: {copy}, products {rates or 'not measured'}", highlight=False)
    cost = 100 * (profile.profiled_ms / profile.ms - 1)
    console.print(
        f"the profiled steps took {_ms(profile.profiled_ms)} ms ({cost:+.0f} %): the difference is "
        "the profiler's own, and not in the table",
        highlight=False,
    )
    for note in profile.notes:
        console.print(note, highlight=False)


def _parts(profile: Profile) -> Table:
    table = _table("part", ("ms", "quartiles", "%", "GFLOP", "MB", "floor", "by", "gap"))
    for line in profile.parts:
        low, high = line.quartiles
        table.add_row(
            profile.label(line.part),
            _ms(line.ms),
            f"{_ms(low)}–{_ms(high)}",
            _percent(line.ms, profile.ms),
            f"{line.flops / 1e9:.2f}" if line.flops else "",
            f"{line.bytes / 1e6:.1f}",
            *_against(line),
        )
    python = profile.python_ms
    table.add_row(
        PYTHON, _ms(python), "", _percent(python, profile.ms), "", "", "", "", _ms(python),
        end_section=True,
    )  # fmt: skip
    low, high = profile.quartiles
    least = profile.floor_ms
    table.add_row(
        "step", _ms(profile.ms), f"{_ms(low)}–{_ms(high)}", "", "", "",
        "" if least is None else _ms(least), "",
        "" if least is None else _ms(max(0.0, profile.ms - least)), style="bold",
    )  # fmt: skip
    return table


def _layers(profile: Profile, lines: Sequence[Line]) -> Table:
    table = _table("the largest gaps", ("layer", "ms", "floor", "by", "gap"))
    for line in lines:
        name = profile.label(line.part)
        table.add_row(name, Text(line.layer), _ms(line.ms), *_against(line))
    return table


def _table(first: str, others: Sequence[str]) -> Table:
    """Narrow: nine columns must fit in eighty characters."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name in ("by", "layer") else "right", no_wrap=True)
    return table


def _against(line: Line) -> tuple[str, str, str]:
    """Floor, what it is bound by, and gap."""
    if line.floor_ms is None:
        return "?", "", ""
    return _ms(line.floor_ms), line.bound or "", "–" if line.gap_ms is None else _ms(line.gap_ms)


def _ms(ms: float) -> str:
    """Three digits, and no more than three behind the point."""
    return f"{ms:.3f}" if abs(ms) < 10 else f"{ms:.2f}" if abs(ms) < 100 else f"{ms:.0f}"


def _percent(ms: float, whole: float) -> str:
    return f"{100 * ms / whole:.0f}"
