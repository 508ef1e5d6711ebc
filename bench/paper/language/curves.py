"""One picture of a study: validation perplexity while training, and DFA's alignment by point."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.paper.language.gap import METRIC, shares
from dfa_kernels.training.plot import COLOURS, STYLE

_COLOURS = {**COLOURS, "micro": "#009E73"}  # Okabe and Ito's green
_BELOW: Any = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.14)}  # an axis, not on its lines

Records = Mapping[str, list[dict[str, Any]]]  # method → what `training.train` recorded, by seed


def draw(path: Path, title: str, names: Mapping[str, str], records: Records) -> None:
    """Lines are means over seeds, bands ± a standard deviation.

    Args:
        names: how a method is labelled.
    """
    aligned = {m: runs for m, runs in records.items() if runs[0]["alignment"]}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6 if aligned else 4.8, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes = figure.subplots(1, 2 if aligned else 1, squeeze=False)[0]
        _perplexity(axes[0], names, records)
        if aligned:
            _alignment(axes[1], names, aligned)
        beside = path.with_name(path.name + ".partial")
        figure.savefig(beside, format="png", dpi=150)
    os.replace(beside, path)


def _perplexity(axis: Axes, names: Mapping[str, str], records: Records) -> None:
    axis.set_title("validation perplexity per word")
    share = shares({m: [run["test"][METRIC] for run in runs] for m, runs in records.items()})
    for method, runs in records.items():
        steps = [step for step, _ in runs[0]["validation"]]
        curves = np.array([[scores[METRIC] for _, scores in run["validation"]] for run in runs])
        middle = curves.mean(axis=0)
        label = f"{names[method]}  {np.mean([run['test']['perplexity'] for run in runs]):.5g}"
        if method in share:
            label += f", {100 * share[method].mean:.0f} % of the gap"
        marker = "o" if len(steps) == 1 else None
        axis.plot(steps, np.exp(middle), color=_COLOURS[method], label=label, marker=marker)
        if len(runs) > 1:
            spread = curves.std(axis=0, ddof=1)
            low, high = np.exp(middle - spread), np.exp(middle + spread)
            axis.fill_between(steps, low, high, color=_COLOURS[method], alpha=0.18, linewidth=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("step")
    axis.legend(title="test perplexity", alignment="left", **_BELOW)


def _alignment(axis: Axes, names: Mapping[str, str], records: Records) -> None:
    axis.set_title("cosine with backpropagation's gradient")
    points = max((list(runs[0]["alignment"]) for runs in records.values()), key=len)
    for method, runs in records.items():
        measured = {
            point: [run["alignment"][point] for run in runs] for point in runs[0]["alignment"]
        }
        at = [points.index(point) for point in measured]
        each = np.array(list(measured.values()))
        spread = each.std(axis=1, ddof=1) if each.shape[1] > 1 else None
        axis.errorbar(
            each.mean(axis=1), at, xerr=spread, fmt="o", color=_COLOURS[method], label=names[method]
        )
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_yticks(range(len(points)), points)
    axis.margins(y=0.15)
    axis.invert_yaxis()
    axis.legend(ncols=len(records), **_BELOW)
