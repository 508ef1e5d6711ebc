"""Criteo's click logs: tab-separated, no header; a label, 13 integers, 26 categories a row.

Integers are binned by ⌊log²⌋, categories are 8 hexadecimal digits, either may be empty. The file
is read once, block by block, into memory-mapped arrays beside each other in a cache:

    text ──pandas──► keys (rows, 39) int64 ──vocabularies──► ids (rows, 39) int32, for each split

so that memory is that of one block and of the distinct values of the training rows, 16 bytes each
and a few times that while one field's are merged. Measured by `loading`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from math import floor, log
from pathlib import Path
from typing import IO, NamedTuple, cast

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

INTEGERS, CATEGORIES = 13, 26
FIELDS = tuple([f"I{i + 1}" for i in range(INTEGERS)] + [f"C{i + 1}" for i in range(CATEGORIES)])
_COLUMNS = 1 + len(FIELDS)
_BLOCK = 32 << 20  # bytes of text at a time
_LINE = 1 << 20  # bytes that no line has
_ROWS = 100_000  # rows at a time, once they are numbers
_FORMAT = 1  # of the cache
_TAB, _NEWLINE = ord("\t"), ord("\n")


class Block(NamedTuple):
    """Whole lines, the first of which is line ``line`` of the file."""

    line: int
    rows: int
    text: bytes


def load(
    path: Path, cache: Path, min_count: int, name: str = "criteo",
    watch: Callable[[float], None] = lambda share: None,
) -> Data:  # fmt: skip
    """The file's three splits, read from ``cache`` where it was put there before.

    Args:
        watch: told the share of the file that is read.

    Raises:
        InputError: the file is missing, a line is not Criteo's, a vocabulary is empty, or the
            cache cannot be written.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except OSError as failed:
        raise InputError(f"{path} cannot be read: {failed.strerror}") from None
    identity = {
        "format": _FORMAT, "file": path.name, "bytes": found.st_size, "changed": found.st_mtime_ns,
        "min_count": min_count,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    folder = cache / f"{path.stem}-{digest}"
    if not (folder / "cache.json").exists():
        beside = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            described = {**identity, **_build(path, beside, min_count, watch)}
            (beside / "cache.json").write_text(json.dumps(described, indent=1) + "\n")
            os.replace(beside, folder)
        except OSError as failed:
            raise InputError(f"cache {folder} cannot be written: {failed.strerror}") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    described = json.loads((folder / "cache.json").read_text())
    rows = described["rows"]
    splits = {split: _opened(folder, split, rows[split]) for split in SPLITS}
    return Data(name, FIELDS, tuple(described["sizes"]), splits)


def _opened(folder: Path, split: str, rows: int) -> Split:
    if not rows:  # nothing cannot be mapped
        return Split(np.empty((0, len(FIELDS)), np.int32), np.empty(0, np.uint8))
    ids = np.memmap(folder / f"{split}.ids", np.int32, "r", shape=(rows, len(FIELDS)))
    return Split(ids, np.memmap(folder / f"{split}.labels", np.uint8, "r", shape=(rows,)))


# Building ---------------------------------------------------------------------------------------


def _build(
    path: Path, folder: Path, min_count: int, watch: Callable[[float], None]
) -> dict[str, object]:
    """The files of every split; how many rows each has, and how many values each field."""
    counts = [Counts() for _ in FIELDS]
    keys_path, labels_path = folder / "keys", folder / "labels"
    rows = training = read = 0
    size = path.stat().st_size
    with keys_path.open("wb") as keys_file, labels_path.open("wb") as labels_file:
        for block in blocks(path):
            is_training = split_of(rows, block.rows) == 0
            columns = parse(path, block)
            labels = columns[0].keys[columns[0].codes].astype(np.uint8)
            keys = np.empty((block.rows, len(FIELDS)), np.int64)
            for f, (codes, distinct) in enumerate(columns[1:]):
                keys[:, f] = distinct[codes]
                counts[f].add(distinct, np.bincount(codes[is_training], minlength=len(distinct)))
            keys.tofile(keys_file)
            labels.tofile(labels_file)
            rows += block.rows
            training += int(is_training.sum())
            read += len(block.text)
            watch(read / size)
    if not rows:
        raise InputError(f"{path} is empty: a label and {len(FIELDS)} fields a line are needed")
    known = vocabularies(counts, FIELDS, min_count, path, training)
    made = _encode(folder, rows, known)
    keys_path.unlink()
    labels_path.unlink()
    return {"rows": made, "sizes": sizes_of(known)}


def _encode(folder: Path, rows: int, known: list[NDArray[np.int64]]) -> dict[str, int]:
    """From keys and labels to a pair of files for each split; the rows in each."""
    made = dict.fromkeys(SPLITS, 0)
    with ExitStack() as files:

        def opened(name: str, mode: str) -> IO[bytes]:
            return cast(IO[bytes], files.enter_context((folder / name).open(mode)))

        keys_file, labels_file = opened("keys", "rb"), opened("labels", "rb")
        targets = [(s, opened(f"{s}.ids", "wb"), opened(f"{s}.labels", "wb")) for s in SPLITS]
        for first in range(0, rows, _ROWS):
            count = min(_ROWS, rows - first)
            keys = np.fromfile(keys_file, np.int64, count * len(FIELDS)).reshape(count, -1)
            labels = np.fromfile(labels_file, np.uint8, count)
            ids = np.empty(keys.shape, np.int32)
            for f, vocabulary in enumerate(known):
                ids[:, f] = encode(keys[:, f], vocabulary)
            place = split_of(first, count)
            for number, (split, ids_file, split_labels) in enumerate(targets):
                here = place == number
                ids[here].tofile(ids_file)
                labels[here].tofile(split_labels)
                made[split] += int(here.sum())
    return made


# Reading ----------------------------------------------------------------------------------------


def blocks(path: Path, size: int = _BLOCK) -> Iterator[Block]:
    """The file in whole lines of 40 fields, at most ``size`` bytes and a line at a time.

    Raises:
        InputError: a line has another number of fields.
    """
    line, rest = 1, b""
    with path.open("rb") as file:
        while True:
            read = file.read(size)
            text = rest + read
            if not read and not text:
                return
            end = text.rfind(b"\n") + 1 if read else len(text)
            text, rest = text[:end], text[end:]
            if not text:
                if len(rest) > _LINE:
                    raise InputError(
                        f"{path}, line {line}: no end in {_LINE} bytes, so it is no row of "
                        f"{_COLUMNS} fields"
                    )
                continue
            if not text.endswith(b"\n"):
                text += b"\n"
            text = text.replace(b"\r\n", b"\n")
            block = Block(line, _check_lines(path, line, text), text)
            line += block.rows
            yield block


def _check_lines(path: Path, line: int, text: bytes) -> int:
    """How many lines, each of 40 fields: pandas would fill a short one up without a word."""
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(characters == _NEWLINE)
    tabs = np.flatnonzero(characters == _TAB)
    fields = np.diff(np.searchsorted(tabs, ends), prepend=0) + 1
    wrong = np.flatnonzero(fields != _COLUMNS)
    if len(wrong):
        raise InputError(
            f"{path}, line {line + wrong[0]}: {fields[wrong[0]]} tab-separated fields, but a row "
            f"has {_COLUMNS}: a label, {INTEGERS} integers and {CATEGORIES} categories"
        )
    return len(ends)


class Column(NamedTuple):
    """A value a row, ``keys[codes]``; the last key is `MISSING`."""

    codes: NDArray[np.int64]
    keys: NDArray[np.int64]


def parse(path: Path, block: Block) -> list[Column]:
    """The label, the integers and the categories of a block.

    pandas finds the distinct strings of each column, and only those are looked at in Python.

    Raises:
        InputError: a label that is neither 0 nor 1, an integer or a category that is none.
    """
    frame = pd.read_csv(
        BytesIO(block.text), sep="\t", header=None, names=range(_COLUMNS), dtype=object,
        quoting=csv.QUOTE_NONE, keep_default_na=False, na_values=[""], lineterminator="\n",
        skip_blank_lines=False, encoding="latin-1",
    )  # fmt: skip
    columns = []
    for position in range(_COLUMNS):
        codes, distinct = pd.factorize(frame[position])
        missing = len(distinct)
        codes[codes < 0] = missing
        if position == 0:
            name, meaning = "the label", _LABEL
        else:
            name, meaning = FIELDS[position - 1], _INTEGER if position <= INTEGERS else _CATEGORY
        keys = np.full(missing + 1, MISSING)
        texts = [*distinct, ""] if position == 0 else distinct
        for code, text in enumerate(texts):
            try:
                keys[code] = meaning.key(text)
            except ValueError:
                if (rows := np.flatnonzero(codes == code)).size:
                    raise InputError(
                        f"{path}, line {block.line + rows[0]}: {name} {meaning.wanted}, got "
                        f"{text!r}"
                    ) from None
        columns.append(Column(codes, keys))
    return columns


class _Meaning(NamedTuple):
    key: Callable[[str], int]
    wanted: str


def bin_of(text: str) -> int:
    """⌊ln² v⌋ above 2, the integer itself up to there; the two do not meet."""
    if not text.removeprefix("-").isdecimal():  # int() takes spaces, signs, underscores too
        raise ValueError
    value = max(int(text), -(1 << 62))
    return value if value <= 2 else 2 + floor(log(value) ** 2)


def _category(text: str) -> int:
    if len(text) != 8 or not text.isalnum():
        raise ValueError
    return int(text, 16)


_LABEL = _Meaning(lambda text: ("0", "1").index(text), "must be 0 or 1")
_INTEGER = _Meaning(bin_of, "must be an integer or empty")
_CATEGORY = _Meaning(_category, "must be 8 hexadecimal digits or empty")
