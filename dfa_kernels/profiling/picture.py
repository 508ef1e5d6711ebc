"""A step on a time axis, as a PNG: its parts, its layers and its operations, and floors beside."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dfa_kernels.profiling import PARTS, PYTHON
from dfa_kernels.profiling.parts import Line
from dfa_kernels.profiling.report import Profile
from dfa_kernels.profiling.trace import Span, Step

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = {
    "forward": "#0072B2",
    "error": "#CC79A7",
    "projection": "#D55E00",
    "backward": "#56B4E9",
    "update": "#009E73",
    "optimizer": "#E69F00",
    PYTHON: "#BBBBBB",
}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}

#: A label is drawn in a block of at least this share of the axis for each of its letters.
_LETTER = 0.0082
#: The length of the bars' axis by that of the longest bar: its label stands behind it.
_ROOM = 1.65
#: Milliseconds: what must take less than the clock can tell is not compared with it.
_LEAST = 1e-3


def draw(path: Path, shown: Mapping[str, tuple[Profile, Step]], title: str) -> None:
    """The picture of each method's profile, and of the step that was disturbed the least."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 0.9 + 2.5 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        grid = figure.add_gridspec(len(shown), 2, width_ratios=(3.2, 1))
        end = max(
            max(step.whole, *(s.start + s.ms for s in step.spans)) for _, step in shown.values()
        )
        every = [line for profile, _ in shown.values() for line in profile.parts]
        widest = _ROOM * max(max(line.quartiles[1], line.floor_ms or 0) for line in every)
        for row, (profile, step) in enumerate(shown.values()):
            time = figure.add_subplot(grid[row, 0])
            _time(time, profile, step, end)
            bars = figure.add_subplot(grid[row, 1])
            _bars(bars, profile, widest)
            if row == len(shown) - 1:
                time.set_xlabel("ms since the step began, under the profiler")
                bars.set_xlabel("ms a step, × the floor (the line)")
        used = {s.part for _, step in shown.values() for s in step.spans}
        patches = [Patch(color=_COLOURS[part], label=part) for part in PARTS if part in used]
        figure.legend(handles=patches, loc="upper right", ncols=len(patches), borderaxespad=0.1)
        beside = path.with_name(path.name + ".partial")
        figure.savefig(beside, format="png", dpi=150)
    os.replace(beside, path)


def _time(axis: Axes, profile: Profile, step: Step, end: float) -> None:
    axis.set_title(f"{profile.method}: {profile.ms:.3g} ms a step, backend {profile.backend}")
    axis.set_xlim(0, end)
    axis.set_ylim(2.5, -0.5)
    axis.set_yticks(range(3), ["part", "layer", "operation"])
    axis.tick_params(axis="y", length=0)
    for part, run in groupby(step.spans, key=lambda s: s.part):
        spans = list(run)
        _block(axis, 0, spans, part, profile.label(part), end, 1.0)
        for layer, inner in groupby(spans, key=lambda s: s.layer):
            _block(axis, 1, list(inner), part, layer, end, 0.45)
        for span in spans:
            _block(axis, 2, [span], part, span.name.rpartition("::")[2], end, 0.8)


def _block(
    axis: Axes, row: int, spans: Sequence[Span], part: str, label: str, end: float, alpha: float
) -> None:
    """From the first of ``spans`` to the end of the last."""
    start, stop = spans[0].start, max(s.start + s.ms for s in spans)
    colour = _COLOURS[part]
    axis.barh(
        row, stop - start, left=start, height=0.86, color=colour, alpha=alpha,
        edgecolor="white", linewidth=0.3,
    )  # fmt: skip
    if label and (stop - start) / end > _LETTER * (len(label) + 1):
        ink = "white" if alpha == 1.0 else "black"
        axis.text(
            (start + stop) / 2, row, label, ha="center", va="center", fontsize=7.5, color=ink,
            clip_on=True,
        )  # fmt: skip


def _bars(axis: Axes, profile: Profile, widest: float) -> None:
    names = [profile.label(line.part) for line in profile.parts] + [PYTHON]
    times = [line.ms for line in profile.parts] + [profile.python_ms]
    colours = [_COLOURS[line.part] for line in profile.parts] + [_COLOURS[PYTHON]]
    errors = [[max(0.0, line.ms - line.quartiles[0]) for line in profile.parts] + [0.0]]
    errors.append([max(0.0, line.quartiles[1] - line.ms) for line in profile.parts] + [0.0])
    axis.barh(names, times, color=colours, height=0.7, xerr=errors, ecolor="#555555")
    for i, line in enumerate(profile.parts):
        if line.floor_ms is not None:
            axis.plot([line.floor_ms] * 2, [i - 0.42, i + 0.42], color="black", linewidth=2)
        right = max(line.quartiles[1], line.floor_ms or 0)
        axis.text(right + 0.02 * widest, i, caption(line), va="center", fontsize=7.5)
    right = profile.python_ms + 0.02 * widest
    axis.text(right, len(names) - 1, f"{profile.python_ms:.2f} ms", va="center", fontsize=7.5)
    axis.set_xlim(0, max(widest, _ROOM * profile.python_ms))
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)


def caption(line: Line) -> str:
    """A part's time, and how many times its floor that is, where it has one worth the name."""
    said = f"{line.ms:.2f} ms"
    if line.floor_ms is None or line.floor_ms < _LEAST or line.beaten:
        return said
    return f"{said} · {line.ms / line.floor_ms:.1f}×"
