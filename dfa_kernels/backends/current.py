"""The GPU that kernels are started on: whether it is there, and that it is torch's current one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def absent(device: torch.device) -> str | None:
    """Why there is no such GPU, in one sentence; None where there is one."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        return f"there is no {device}: torch sees {count}"
    return None


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Within, a GPU is torch's current device, which is where kernels are started. torch itself
    goes back after it: on another GPU that nobody has used, that must not make a CUDA context."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _AS_IT_IS
    return torch.cuda.device(device)


_AS_IT_IS = nullcontext()
