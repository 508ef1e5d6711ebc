"""A plain CSV file with a label column: numbers in quantile bins, everything else as it stands.

The label has two values; the one that sorts last is the positive one. What is empty, ``?`` or
``NA`` is missing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.paper.recommender.fields import (
    MISSING,
    SPLITS,
    Counts,
    Data,
    Split,
    encode,
    sizes_of,
    split_of,
    vocabularies,
)
from dfa_kernels.training import InputError

_MISSING = ("", "?", "NA")
_BINS = 32


@dataclass(frozen=True)
class Layout:
    """How a table is to be read. ``columns``: their names, where the file has no header."""

    file: str
    label: str
    drop: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    delimiter: str = ","


#: Two real tables of the UCI repository. In ``bank`` the call's duration is known only once the
#: answer is.
KNOWN = {
    "bank": Layout("bank-full.csv", "y", drop=("duration",)),
    "adult": Layout(
        "adult.data", "income",
        columns=(
            "age", "workclass", "fnlwgt", "education", "education-num", "marital-status",
            "occupation", "relationship", "race", "sex", "capital-gain", "capital-loss",
            "hours-per-week", "native-country", "income",
        ),
    ),
}  # fmt: skip


def load(root: Path, layout: Layout, min_count: int, name: str) -> Data:
    """The table's three splits.

    Raises:
        InputError: the file is missing, a line has too many or too few fields, a column is not
            there, the label has one value or more than two, a vocabulary is empty.
    """
    path = root / layout.file
    names, rows, lines = _read(path, layout)
    for wanted, option in ((layout.label, "--label"), *((d, "--drop") for d in layout.drop)):
        if wanted not in names:
            raise InputError(
                f"{path}, line 1: no column is named {wanted!r}, as {option} asks: there are "
                f"{', '.join(names)}"
            )
    frame = pd.DataFrame(rows, columns=list(names), dtype=object)
    labels = _labels(path, frame[layout.label], lines)
    fields = tuple(n for n in names if n != layout.label and n not in layout.drop)
    if not fields:
        raise InputError(f"{path}, line 1: no field is left beside the label {layout.label!r}")
    place = split_of(0, len(frame))
    training = place == 0
    keys = np.stack([_keys(frame[field], training) for field in fields], 1)
    counts = []
    for f in range(len(fields)):
        counts.append(Counts())
        counts[f].add(*np.unique(keys[training, f], return_counts=True))
    known = vocabularies(counts, fields, min_count, path, int(training.sum()))
    ids = np.stack([encode(keys[:, f], known[f]) for f in range(len(fields))], 1)
    splits = {s: Split(ids[place == i], labels[place == i]) for i, s in enumerate(SPLITS)}
    return Data(name, fields, sizes_of(known), splits)


def _read(path: Path, layout: Layout) -> tuple[Sequence[str], list[list[str]], list[int]]:
    """The columns' names, the rows, and the line that each row ends on."""
    rows: list[list[str]] = []
    lines: list[int] = []
    names: Sequence[str] = layout.columns
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=layout.delimiter, skipinitialspace=True)
            for row in reader:
                if not row:
                    continue
                if not names:
                    names = [name.strip() for name in row]
                    _check_names(path, names)
                    continue
                if len(row) != len(names):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but "
                        f"{len(names)} columns"
                    )
                rows.append([value.strip() for value in row])
                lines.append(reader.line_num)
    except OSError as failed:
        raise InputError(f"{path} cannot be read: {failed.strerror}") from None
    except UnicodeDecodeError as wrong:
        raise InputError(f"{path} is not UTF-8: {wrong.reason} at byte {wrong.start}") from None
    except csv.Error as wrong:
        raise InputError(f"{path}, line {reader.line_num}: {wrong}") from None
    if not rows:
        raise InputError(f"{path} has no rows")
    return names, rows, lines


def _check_names(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}, line 1: two columns are named {name!r}")


def _labels(path: Path, column: pd.Series, lines: list[int]) -> NDArray[np.uint8]:
    first = column.drop_duplicates()  # its index: where each value is seen first
    for row, value in first.items():
        if value in _MISSING:
            raise InputError(f"{path}, line {lines[int(str(row))]}: the label is missing")
    if len(first) == 1:
        raise InputError(
            f"{path}, lines {lines[0]} to {lines[-1]}: the label {column.name!r} is "
            f"{first.iloc[0]!r} in all {len(column)} rows, but two classes are needed"
        )
    if len(first) > 2:
        line = lines[int(str(first.index[2]))]
        raise InputError(
            f"{path}, line {line}: {first.iloc[2]!r} is a third value of the label "
            f"{column.name!r}, beside {first.iloc[0]!r} and {first.iloc[1]!r}"
        )
    return (column == max(first)).to_numpy().astype(np.uint8)


def _keys(column: pd.Series, training: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A key for each value: the bin of a number, the number of a distinct text.

    A column is of numbers where everything in it that is not missing is a finite one. Bins are
    quantiles of the training rows; where there are fewer distinct numbers, each has its own.
    """
    missing = column.isin(_MISSING).to_numpy()
    numbers = pd.to_numeric(column.where(~missing, None), errors="coerce").to_numpy(np.float64)
    if not missing.all() and np.isfinite(numbers[~missing]).all():
        seen = numbers[training & ~missing]
        edges = np.unique(seen)
        if len(edges) > _BINS:
            edges = np.unique(np.quantile(seen, np.arange(1, _BINS) / _BINS))
        keys = np.searchsorted(edges, numbers, side="right").astype(np.int64)
    else:
        keys = pd.factorize(column)[0].astype(np.int64)
    keys[missing] = MISSING
    return keys
