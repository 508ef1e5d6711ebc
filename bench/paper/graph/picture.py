"""The embeddings that each method learned, side by side, as t-SNE lays them out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from bench.paper.task import Metric

_PERPLEXITY = 30


class Shown(NamedTuple):
    """``nodes``: which are drawn. ``y``: the classes of all."""

    nodes: Tensor
    y: Tensor


def draw(
    path: Path,
    title: str,
    panels: Mapping[str, tuple[Tensor, dict[str, float]]],
    metric: Metric,
    shown: Shown,
) -> None:
    """A panel for each method: its embedding (N, D), coloured by class, under its test score."""
    figure = Figure(figsize=(3.4 * len(panels), 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{title}: t-SNE of what each method makes of {len(shown.nodes)} test nodes",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    classes = shown.y[shown.nodes].numpy()
    colours = matplotlib.colormaps["tab10"].colors
    for axis, (method, (embedding, scores)) in zip(axes, panels.items(), strict=True):
        flat = layout(embedding[shown.nodes].numpy())
        for number in np.unique(classes):
            axis.scatter(*flat[classes == number].T, s=5, linewidths=0, color=colours[number % 10])
        score = f"{scores[metric.name]:.{metric.digits}f}"
        axis.set_title(f"{method}   {metric.name} {score}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color("#CCCCCC")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    figure.savefig(beside, format="png", dpi=110)
    os.replace(beside, path)


def layout(embedding: np.ndarray) -> np.ndarray:
    """(N, D) → (N, 2), the same for the same embedding."""
    perplexity = min(_PERPLEXITY, (len(embedding) - 1) / 3)
    if not embedding.std(axis=0).any():  # a network that tells no node from another
        return np.zeros((len(embedding), 2))
    made = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return made.fit_transform(embedding)
