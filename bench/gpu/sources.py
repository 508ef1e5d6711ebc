"""What is measured, by its content: where there is no git, a name of it says little."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Of what a figure or a test of `bench.gpu` may depend on.
FOLDERS = ("bench", "csrc", "dfa_kernels", "tests/gpu", "tests/vectors", "setup.py")
SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h")


def digest(root: Path = ROOT) -> str:
    """Of names and contents."""
    total = hashlib.sha256()
    for file in sorted(_files(root)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    for name in FOLDERS:
        where = root / name
        found = where.rglob("*") if where.is_dir() else [where]
        yield from (file for file in found if file.suffix in SUFFIXES and file.is_file())
