"""Rows in Criteo's format with a known best AUC, and 5 million of them in a minute.

    python -m bench.paper.recommender generate FILE --rows 5000000

The truth is a logit of everything that a recommender can learn, each part of a set deviation:

    first order      Σ_f ⟨w, u_f⟩                    1.0    u_f: four latent numbers of the value
    second order     Σ_{(f,g)} ⟨u_f, u_g⟩            0.7    over twelve random pairs
    beyond           v·tanh(U·[u_f …])               0.7    a random network

A label is a coin of that probability, so no score of these fields has a higher AUC, in
expectation, than the logit itself. Categories follow Zipf's law over 3 to 20,000 values a field, a
share of all fields is missing, and the integers are log-normal: as in Criteo, what is rare is known
only by its missing from a vocabulary. Every 50,000 rows have a random stream of their own, so a row
does not depend on how many are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.paper.recommender.criteo import CATEGORIES, INTEGERS

_CHUNK = 50_000
_LATENT = 4
_PAIRS, _HIDDEN, _SEEN = 12, 16, 10  # of the interactions: pairs, hidden units, fields seen
_SHARES = (1.0, 0.7, 0.7)  # the deviations of the three parts
_BIAS = -1.4  # about a quarter of the labels are positive, as in Criteo
_MISSING = 0.1
_FADING = 0.25
_HEXADECIMAL = np.frombuffer(b"0123456789abcdef", np.uint8)

Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """``integers`` (rows, 13) and ``categories`` (rows, 26), −1 for missing; ``labels``;
    ``probabilities``: the truth that the labels were drawn from."""

    integers: NDArray[np.int64]
    categories: NDArray[np.int64]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


class Truth:
    """The world that the rows come from, a function of ``seed``."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        draw = np.random.default_rng([seed])
        self.values = np.geomspace(3, 20_000, CATEGORIES).astype(int)
        # One more than there are values: the last is a missing one's. The more values a field
        # has, the less each says, or what is rare would decide everything.
        self.latents = [
            draw.normal(size=(n + 1, _LATENT)) * (3 / n) ** _FADING for n in self.values
        ]
        self.popularity = [_zipf(n) for n in self.values]
        self.slopes = draw.normal(size=(INTEGERS, _LATENT))
        self.bends = draw.normal(size=(INTEGERS, _LATENT)) / 2
        self.absent = draw.normal(size=(INTEGERS, _LATENT))
        self.spread = draw.uniform(0.8, 2.5, INTEGERS)
        fields = INTEGERS + CATEGORIES
        self.first = draw.normal(size=(fields, _LATENT))
        self.pairs = np.array([draw.choice(fields, 2, replace=False) for _ in range(_PAIRS)])
        self.seen = draw.choice(fields, _SEEN, replace=False)
        self.inner = draw.normal(size=(_SEEN * _LATENT, _HIDDEN)) * 1.5 / np.sqrt(_SEEN * _LATENT)
        self.outer = draw.normal(size=_HIDDEN)
        parts = self._parts(*self._values(np.random.default_rng([seed, 0, 1]), 20_000))
        self._centres = [part.mean() for part in parts]
        self._scales = [share / part.std() for part, share in zip(parts, _SHARES, strict=True)]

    def rows(self, count: int) -> Iterator[Rows]:
        for chunk, first in enumerate(range(0, count, _CHUNK)):
            draw = np.random.default_rng([self.seed, 1, chunk])
            integers, categories = self._values(draw, _CHUNK)
            parts = self._parts(integers, categories)
            logit = np.full(_CHUNK, _BIAS)
            for part, centre, scale in zip(parts, self._centres, self._scales, strict=True):
                logit += (part - centre) * scale
            probabilities = (1 / (1 + np.exp(-logit))).astype(np.float32)
            labels = (draw.random(_CHUNK) < probabilities).astype(np.uint8)
            end = count - first
            yield Rows(integers[:end], categories[:end], labels[:end], probabilities[:end])

    def _values(
        self, draw: np.random.Generator, rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        normal = draw.normal(size=(rows, INTEGERS)) * self.spread
        integers = np.floor(np.exp(1.5 + normal)).astype(np.int64)
        integers[draw.random((rows, INTEGERS)) < _MISSING] = -1
        categories = np.empty((rows, CATEGORIES), np.int64)
        for f, cumulated in enumerate(self.popularity):
            categories[:, f] = np.searchsorted(cumulated, draw.random(rows))
        categories[draw.random((rows, CATEGORIES)) < _MISSING] = -1
        return integers, categories

    def _parts(self, integers: NDArray[np.int64], categories: NDArray[np.int64]) -> list[Floats]:
        latents = [table[categories[:, f]] for f, table in enumerate(self.latents)]
        level = (np.log1p(np.maximum(integers, 0)) - 1.7) / self.spread
        known = level[:, :, None] * self.slopes + (level[:, :, None] ** 2 - 1) * self.bends
        numeric = np.where((integers < 0)[:, :, None], self.absent, known)
        u = np.concatenate((numeric, np.stack(latents, 1)), 1)  # (rows, fields, latent)
        second = sum((u[:, f] * u[:, g]).sum(1) for f, g in self.pairs)
        hidden = np.tanh(u[:, self.seen].reshape(len(u), -1) @ self.inner)
        return [np.einsum("nfk,fk->n", u, self.first), np.asarray(second), hidden @ self.outer]


def _zipf(values: int) -> Floats:
    weight = 1 / np.arange(1, values + 1) ** 1.05
    return np.cumsum(weight / weight.sum())[:-1]


def write(path: Path, count: int, seed: int = 0) -> NDArray[np.float32]:
    """``count`` rows into a file; the true probability of each."""
    probabilities = []
    with path.open("wb") as file:
        for rows in Truth(seed).rows(count):
            file.write(as_text(rows))
            probabilities.append(rows.probabilities)
    return np.concatenate(probabilities) if probabilities else np.empty(0, np.float32)


def as_text(rows: Rows) -> bytes:
    """Tab-separated lines: every field right of a tab in a column as wide as its widest, of which
    the empty bytes are dropped at the end."""
    count = len(rows.labels)
    tab = np.full((count, 1), ord("\t"), np.uint8)
    columns = [rows.labels[:, None] + np.uint8(ord("0"))]
    for f in range(INTEGERS):
        digits = rows.integers[:, f].astype("S20").view(np.uint8).reshape(count, 20)
        columns += [tab, np.where(rows.integers[:, f : f + 1] < 0, np.uint8(0), digits)]
    shifts = np.arange(28, -4, -4)
    for f in range(CATEGORIES):
        value = rows.categories[:, f : f + 1]
        # An odd factor permutes the integers below 2³²: every value of a field has its own digits.
        code = ((value + 1 + (f << 20)) * 0x9E3779B1) & 0xFFFFFFFF
        digits = _HEXADECIMAL[(code >> shifts) & 15]
        columns += [tab, np.where(value < 0, np.uint8(0), digits)]
    columns.append(np.full((count, 1), ord("\n"), np.uint8))
    text = np.concatenate(columns, 1)
    return text[text != 0].tobytes()
