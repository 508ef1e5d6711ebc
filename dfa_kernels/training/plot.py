"""The curves of a run, as a PNG: test accuracy, training loss, and alignment by layer."""

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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dfa_kernels.training.report import accuracy, title

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {"dfa": "#0072B2", "bp": "#D55E00", "shallow": "#7F7F7F"}
STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def draw(path: Path, log: Mapping[str, Any]) -> None:
    """The PNG that shows ``log``: lines are means over seeds, bands ± a standard deviation."""
    aligned = log["methods"].get("dfa")
    panels = 3 if aligned else 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * panels, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title(log), x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes = figure.subplots(1, panels)
        _accuracy(axes[0], log["methods"])
        _loss(axes[1], log["methods"])
        if aligned:
            _alignment(axes[2], aligned)
        for axis in axes:
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.margins(x=0.02)
        beside = path.with_name(path.name + ".partial")
        figure.savefig(beside, format="png", dpi=160)
    os.replace(beside, path)


def _accuracy(axis: Axes, methods: Mapping[str, Any]) -> None:
    axis.set_title("test accuracy (%)")
    late = []
    for method, measured in methods.items():
        curves = 100 * _curves(measured, "test_accuracy")
        label = f"{method}  {accuracy(measured['summary'])}"
        _band(axis, curves, COLOURS[method], label)
        late.append(np.nanmin(curves[:, curves.shape[1] // 8 :]))
    # The first epochs' climb would flatten the differences that matter.
    low, high = min(late), axis.get_ylim()[1]
    axis.set_ylim(max(0, low - 0.15 * (high - low)), high)
    axis.legend(loc="lower right")


def _loss(axis: Axes, methods: Mapping[str, Any]) -> None:
    axis.set_title("training loss (cross-entropy)")
    for method, measured in methods.items():
        _band(axis, _curves(measured, "train_loss"), COLOURS[method], method)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _alignment(axis: Axes, measured: Mapping[str, Any]) -> None:
    axis.set_title("alignment of dfa with backpropagation (cosine)")
    runs = [run["curves"]["alignment"] for run in measured["seeds"].values()]
    layers = list(runs[0])
    shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, len(layers)))
    for layer, shade in zip(layers, shades, strict=True):
        curves = np.array([[mean for mean, _ in run[layer]] for run in runs], dtype=float)
        _band(axis, curves, shade, layer)
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
    axis.legend(loc="best", ncols=1 + len(layers) // 7)


def _curves(measured: Mapping[str, Any], name: str) -> np.ndarray:
    """(seeds, epochs); NaN where a run diverged."""
    return np.array([run["curves"][name] for run in measured["seeds"].values()], dtype=float)


def _band(axis: Axes, curves: np.ndarray, colour: Any, label: str) -> None:
    epochs = np.arange(1, curves.shape[1] + 1)
    middle = curves.mean(axis=0)
    marker = "o" if len(epochs) == 1 else None
    axis.plot(epochs, middle, color=colour, label=label, marker=marker)
    if len(curves) > 1:
        spread = curves.std(axis=0, ddof=1)
        axis.fill_between(
            epochs, middle - spread, middle + spread, color=colour, alpha=0.18, linewidth=0
        )
