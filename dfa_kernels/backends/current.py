"""Starting kernels on a device that may not be torch's current one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Within, a GPU is torch's current device, which is where kernels are started. torch itself
    goes back after it: on another GPU that nobody has used, that must not make a CUDA context."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _AS_IT_IS
    return torch.cuda.device(device)


_AS_IT_IS = nullcontext()
