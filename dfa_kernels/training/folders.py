"""The folder that a command writes to."""

from __future__ import annotations

import os
from pathlib import Path

from dfa_kernels.training import InputError


def check(folder: Path, option: str = "--out") -> None:
    """Make nothing yet.

    Raises:
        InputError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} {folder} is a file, not a folder")


def make(folder: Path, option: str = "--out") -> None:
    """Make it where it is missing.

    Raises:
        InputError: it is a file, cannot be made, or cannot be written to.
    """
    check(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise InputError(f"{option} {folder} cannot be made: {refused.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {folder} cannot be written to")
