"""How much of the way from shallow to backpropagation a method goes, in log perplexity.

    share = (shallow − method) / (shallow − bp)

0: no better than training the last layer alone; 1: as good as backpropagation. The paper's
WikiText-103 perplexities (29.8, macro 52.0, shallow above 400) are a share of 0.79 or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.paper.rows import over_seeds

METRIC = "log perplexity"


class Share(NamedTuple):
    """Of the means over seeds; and the sample standard deviation of each seed's own share."""

    mean: float
    std: float


def shares(scores: Mapping[str, Sequence[float]]) -> dict[str, Share]:
    """``scores``: method → log perplexity, seed by seed. {} where shallow or bp is not among them,
    or bp is no better than shallow: there is no gap to close."""
    if "shallow" not in scores or "bp" not in scores:
        return {}
    bottom, top = (over_seeds(list(scores[name]))[0] for name in ("shallow", "bp"))
    if not top < bottom:
        return {}
    found = {}
    for method, values in scores.items():
        if method in ("shallow", "bp"):
            continue
        each = [
            (s - v) / (s - b)
            for s, v, b in zip(scores["shallow"], values, scores["bp"], strict=False)
            if s != b
        ]
        mean = (bottom - over_seeds(list(values))[0]) / (bottom - top)
        found[method] = Share(mean, over_seeds(each)[1] if each else 0.0)
    return found
