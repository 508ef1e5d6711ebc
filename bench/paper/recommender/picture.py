"""Two pictures: how far predictions can be believed, and every model by every method.

python -m bench.paper.recommender.picture results.json FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.calibration import calibration_curve

from bench.paper.rows import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = {"bp": "#1b1b1b", "dfa": "#c23b22", "frozen": "#2a6f97", "shallow": "#8a8a8a"}
_MARKS = {"bp": "o", "dfa": "D", "frozen": "s", "shallow": "v"}


def draw_calibration(
    path: Path, title: str, predicted: Mapping[str, np.ndarray], labels: np.ndarray
) -> Path:
    """The observed share of positives over the predicted one, in tenths of the test rows."""
    figure, axes = plt.subplots(figsize=(4.4, 4), layout="constrained")
    top = 0.0
    for method, probabilities in predicted.items():
        if not np.isfinite(probabilities).all():
            continue
        seen, said = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
        axes.plot(
            said, seen, label=method, lw=1, ms=4, color=_COLOURS.get(method),
            marker=_MARKS.get(method, "."),
            ls="--" if method == "frozen" else "-",  # shallow may lie exactly below it
        )  # fmt: skip
        top = max(top, said.max(), seen.max())
    axes.plot([0, top], [0, top], color="#cccccc", lw=1, zorder=0)
    axes.set(xlabel="predicted probability", ylabel="observed share", title=title)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_methods(path: Path, rows: list[Row]) -> Path:
    """The test AUC of each model by each method, mean and deviation over seeds, a panel a data
    set; the line is the factorization machine, without any tower."""
    rows = [row for row in rows if row.metric == "AUC"]
    data = list(dict.fromkeys(row.data for row in rows))
    models = [m for m in dict.fromkeys(row.model for row in rows) if m != "fm"]
    figure, all_axes = plt.subplots(
        1, len(data), figsize=(4.6 * len(data), 3.4), layout="constrained", squeeze=False
    )
    for axes, name in zip(all_axes[0], data, strict=True):
        methods = list(_COLOURS)
        for row in (r for r in rows if r.data == name):
            if row.model == "fm":
                axes.axhline(row.mean, color="#bbbbbb", lw=1, zorder=0)
                axes.text(
                    0.99, row.mean, "fm", transform=axes.get_yaxis_transform(), ha="right",
                    va="bottom", color="#888888",
                )  # fmt: skip
                continue
            at = models.index(row.model) + 0.15 * (methods.index(row.method) - 1.5)
            axes.errorbar(
                at, row.mean, row.std, fmt=_MARKS[row.method], color=_COLOURS[row.method], ms=5,
                lw=1, label=row.method if row.model == models[0] else None,
            )  # fmt: skip
        axes.set(title=name, ylabel="test AUC")
        axes.set_xticks(range(len(models)), models)
    all_axes[0][0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
