"""The device that `--device` names, or a sentence on why there is none."""

from __future__ import annotations

import re

import torch

from dfa_kernels.training import InputError


def usable(name: str | None = None) -> torch.device:
    """A GPU if there is one, where none is named.

    Raises:
        InputError: it cannot be used here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"--device {name!r} cannot be used: it is no device of torch's, as cpu, cuda and "
            "cuda:1 are"
        ) from None
    try:
        torch.empty(1, device=device)
    except Exception as refused:  # each kind of device has its own way to refuse
        raise InputError(f"--device {name!r} cannot be used: {_why(refused, device)}") from None
    return device


def _why(refused: Exception, device: torch.device) -> str:
    """In our words where torch speaks of its own insides, else its first sentence."""
    if not isinstance(refused, (NotImplementedError, ImportError)):
        said = re.split(r"\. |\n", str(refused).strip())[0].removesuffix(".")
        if said and "INTERNAL ASSERT" not in said:
            return said
    return f"torch {torch.__version__} can compute nothing on {device.type} here"
