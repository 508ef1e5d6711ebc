"""The paper's own figures, as far as they are printed there: Launay et al., NeurIPS 2020, and its
code. Other data or sizes than ours: beside ours, never instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Figure(NamedTuple):
    """``text``: as printed, where that is no number alone ("> 400")."""

    task: str
    model: str
    data: str
    method: str
    metric: str
    text: str


#: Criteo: AUC and log loss of backpropagation, DFA and shallow.
_CRITEO = {
    "fm": {"bp": ("0.79148", "0.46870")},
    "deepfm": {
        "bp": ("0.79536", "0.46104"),
        "dfa": ("0.79558", "0.46238"),
        "shallow": ("0.79202", "0.46824"),
    },
    "dcn": {
        "bp": ("0.81036", "0.44141"),
        "dfa": ("0.80090", "0.45017"),
        "shallow": ("0.73240", "0.50102"),
    },
    "autoint": {
        "bp": ("0.79367", "0.46200"),
        "dfa": ("0.79055", "0.45996"),
        "shallow": ("0.78603", "0.46864"),
    },
    "afn": {
        "bp": ("0.79331", "0.46299"),
        "dfa": ("0.79240", "0.46210"),
        "shallow": ("0.78593", "0.46853"),
    },
}

#: WikiText-103: perplexity; macro is one point a block, micro three.
_LANGUAGE = {"bp": "29.8", "dfa": "52.0", "micro": "93.3", "shallow": "> 400"}


def _figures() -> Iterator[Figure]:
    for model, methods in _CRITEO.items():
        for method, (auc, loss) in methods.items():
            yield Figure("recommender", model, "Criteo", method, "auc", auc)
            yield Figure("recommender", model, "Criteo", method, "log loss", loss)
    for method, perplexity in _LANGUAGE.items():
        yield Figure("language", "transformer", "WikiText-103", method, "perplexity", perplexity)


FIGURES = tuple(_figures())


def of(task: str, model: str, metric: str) -> dict[str, Figure]:
    """By method; a small configuration, "nerf-small" say, stands beside the whole one's."""
    base = model.removesuffix("-small")
    return {
        f.method: f
        for f in FIGURES
        if (f.task, f.metric) == (task, metric.lower().replace("_", " ")) and f.model == base
    }
