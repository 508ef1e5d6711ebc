"""A checkpoint on disk: written whole or not at all."""

from __future__ import annotations

import os
import pickle
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
        InputError: there is none, or it is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: there is nothing to resume") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as broken:
        why = (str(broken) or "it ends too early").splitlines()[0]
        raise InputError(f"{path} cannot be read: {why}") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != _FORMAT:
        raise InputError(f"{path} is a checkpoint of format {found}, and this reads {_FORMAT}")
    return state
