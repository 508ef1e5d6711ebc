"""Rows of categorical fields as integers: vocabularies, and which rows are for what.

In every field 0 stands for a missing value and 1 for one that is not in the vocabulary, which holds
what the training rows have at least ``min_count`` times.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfa_kernels.training import InputError

SPLITS = ("train", "validation", "test")
MISSING = np.iinfo(np.int64).min  # a key: what a value is before it has its place in a vocabulary
_RESERVED = 2


class Split(NamedTuple):
    """``ids`` (rows, fields) int32 and ``labels`` (rows,) uint8, in memory or on disk."""

    ids: NDArray[np.int32]
    labels: NDArray[np.uint8]


class Data(NamedTuple):
    """``sizes``: the values that each field can have, the reserved two among them."""

    name: str
    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    splits: dict[str, Split]

    def describe(self) -> dict[str, object]:
        labels = self.splits["train"].labels
        return {
            "fields": len(self.fields),
            "values": int(sum(self.sizes)),
            "rows": {name: len(split.labels) for name, split in self.splits.items()},
            "positive": round(float(np.mean(labels, dtype=np.float64)), 4),
        }


def split_of(first: int, rows: int) -> NDArray[np.uint8]:
    """The place in `SPLITS` of each of ``rows`` rows from row ``first`` on: eight, one and one in
    ten, by a hash of the row's number (SplitMix64), so that nothing has to be kept or drawn."""
    x = np.arange(first + 1, first + rows + 1, dtype=np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) % np.uint64(10)
    return np.where(x < 8, 0, x - np.uint64(7)).astype(np.uint8)


class Counts:
    """How often each key was seen, in memory for the distinct ones: pairs of sorted arrays, merged
    whenever what came since is as much as what there was."""

    def __init__(self) -> None:
        self._keys: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._counts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]

    def add(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """``counts[i]`` more of ``keys[i]``; a key may stand there more than once."""
        seen = counts > 0
        self._keys.append(keys[seen])
        self._counts.append(counts[seen])
        if sum(map(len, self._keys[1:])) > len(self._keys[0]):
            self._merge()

    def _merge(self) -> None:
        keys, counts = np.concatenate(self._keys), np.concatenate(self._counts)
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        if len(keys):
            first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
            keys, counts = keys[first], np.add.reduceat(counts, first)
        self._keys, self._counts = [keys], [counts]

    def vocabulary(self, min_count: int) -> NDArray[np.int64]:
        """The keys seen at least ``min_count`` times, sorted; a missing value is none of them."""
        self._merge()
        keys = self._keys[0]
        return keys[(self._counts[0] >= min_count) & (keys != MISSING)]


def vocabularies(
    counts: list[Counts], fields: tuple[str, ...], min_count: int, path: Path, rows: int
) -> list[NDArray[np.int64]]:
    """Each field's vocabulary.

    Raises:
        InputError: one is empty.
    """
    made = [each.vocabulary(min_count) for each in counts]
    for name, vocabulary in zip(fields, made, strict=True):
        if not len(vocabulary):
            raise InputError(
                f"{path}: field {name} has no value that its {rows} training rows hold at least "
                f"{min_count} times, which leaves its vocabulary empty: lower --min-count"
            )
    return made


def encode(keys: NDArray[np.int64], vocabulary: NDArray[np.int64]) -> NDArray[np.int32]:
    """The integers that stand for ``keys``."""
    place = np.searchsorted(vocabulary, keys)
    known = vocabulary[np.minimum(place, len(vocabulary) - 1)] == keys
    ids = np.where(known, place + _RESERVED, 1)
    ids[keys == MISSING] = 0
    return ids.astype(np.int32)


def sizes_of(vocabularies: list[NDArray[np.int64]]) -> tuple[int, ...]:
    return tuple(len(each) + _RESERVED for each in vocabularies)


def check_classes(data: Data, path: Path) -> None:
    """Raises:
    InputError: a split without rows of both classes, of which no metric can be told.
    """
    for name, split in data.splits.items():
        positive = int(np.sum(split.labels, dtype=np.int64))
        rows = len(split.labels)
        if positive in (0, rows):
            raise InputError(
                f"{path}: the {name} split has {rows} rows, {positive} of them positive, but both "
                "classes are needed in it"
            )
