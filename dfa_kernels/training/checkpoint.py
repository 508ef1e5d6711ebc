"""A checkpoint on disk: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dfa_kernels.training import InputError

_FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write beside ``path``, then move there: an interruption leaves the old one or the new."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        torch.save({"format": _FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        InputError: there is none, or it cannot be read, is damaged, or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: there is nothing to resume") from None
    except OSError as refused:
        raise InputError(f"{path} cannot be read: {refused.strerror}") from None
    except Exception:  # of many kinds; torch's words on them are advice to those who wrote the file
        state = None
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"{path} is not a checkpoint of dfa-kernels train, or is damaged")
    found = state["format"]
    if found != _FORMAT:
        raise InputError(f"{path} is a checkpoint of format {found}, and this reads {_FORMAT}")
    return state
