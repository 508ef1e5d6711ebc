"""The texts: WikiText's files, or the source of Python's own standard library.

A text is lines, a line is words between white space. WikiText-2 and -103 come as three files,
named either way that they are published under. The library's source needs no files: every Python
has it. Its modules are told into training, validation and test by a checksum of their names, so
that the same Python gives the same split everywhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dfa_kernels.training import InputError

DATA = {
    "python": "the source of Python's own standard library",
    "wikitext-2": "train.txt, valid.txt, test.txt under --root, or wiki.train.tokens and so on",
    "wikitext-103": "the same files, fifty times the text",
}

_NAMES = {
    "train": ("train.txt", "wiki.train.tokens"),
    "validation": ("valid.txt", "wiki.valid.tokens"),
    "test": ("test.txt", "wiki.test.tokens"),
}
# Not the library itself: what is installed beside it, its tests, and programs that come along.
_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3",
    "turtledemo", "ensurepip",
}  # fmt: skip
_SHARE = 16  # one module in so many is for validation, another one for test
_BLOCK = 1 << 20


class Text(NamedTuple):
    """One split: its files, read one after the other."""

    name: str
    files: tuple[Path, ...]

    def lines(self) -> Iterator[str]:
        """Streamed.

        Raises:
            InputError: bytes that are not UTF-8, with file and line.
        """
        for path in self.files:
            for number, line in enumerate(_opened(path), 1):
                try:
                    yield line.decode()
                except UnicodeDecodeError as bad:
                    raise InputError(
                        f"{path}, line {number}: byte {line[bad.start]:#04x} in column "
                        f"{bad.start + 1} is not UTF-8"
                    ) from None

    def describe(self) -> str:
        """The file, or how many there are and where, for a message."""
        if len(self.files) == 1:
            return str(self.files[0])
        folder = os.path.commonpath([path.parent for path in self.files])
        return f"the {self.name} split of {len(self.files)} files under {folder}"


class Corpus(NamedTuple):
    train: Text
    validation: Text
    test: Text

    def digest(self) -> str:
        """A checksum of all bytes: what was made from other texts is not this corpus's."""
        seen = hashlib.sha256()
        for text in self:
            seen.update(f"{text.name} {len(text.files)}".encode())
            for path in text.files:
                seen.update(b"\0")
                with _opened(path) as file:
                    while block := file.read(_BLOCK):
                        seen.update(block)
        return seen.hexdigest()[:16]


def load(name: str, root: Path | None, limit: int | None = None) -> Corpus:
    """The files of the data set ``name``, which are not read yet.

    Args:
        limit: at most so many bytes of Python's library, in the order of its checksums.

    Raises:
        InputError: a file is missing, or ``root`` is or should not be given.
    """
    if name == "python":
        if root is not None:
            raise InputError("--data python needs no --root: it reads Python's own library")
        return library(Path(sysconfig.get_path("stdlib")), limit)
    if root is None:
        raise InputError(f"--data {name} needs --root DIR, the folder of its train.txt and others")
    return Corpus(*(Text(split, (_find(root, split),)) for split in _NAMES))


def library(folder: Path, limit: int | None = None) -> Corpus:
    """The modules below ``folder``, told into splits by a checksum of their names.

    Raises:
        InputError: there are too few of them.
    """
    splits: dict[str, list[Path]] = {name: [] for name in _NAMES}
    size = 0
    for order, name in sorted(_modules(folder)):
        size += (folder / name).stat().st_size
        if limit is not None and size > limit and all(splits.values()):
            break
        split = {0: "validation", 1: "test"}.get(order % _SHARE, "train")
        splits[split].append(folder / name)
    for split, files in splits.items():
        if not files:
            raise InputError(
                f"Python {platform.python_version()} has no source for the {split} split under "
                f"{folder}: name another --data"
            )
    return Corpus(*(Text(split, tuple(files)) for split, files in splits.items()))


def _modules(folder: Path) -> Iterator[tuple[int, str]]:
    for path in folder.rglob("*.py"):
        name = path.relative_to(folder)
        if not _LEFT_OUT.intersection(name.parts):
            yield zlib.crc32(name.as_posix().encode()), name.as_posix()


def _find(root: Path, split: str) -> Path:
    for name in _NAMES[split]:
        if (root / name).is_file():
            return root / name
    raise InputError(f"{root} holds neither {' nor '.join(_NAMES[split])}")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as refused:
        raise InputError(f"{path} cannot be read: {refused.strerror}") from None
