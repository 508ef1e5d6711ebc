"""How many bytes are in use, and were at the most: torch's own count of its allocations on a GPU,
else the process's resident set, which Linux alone tells."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def reset(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        _RESET.write_text("5")  # VmHWM ← VmRSS


def in_use(device: torch.device) -> int | None:
    """Bytes now; None where the system does not tell."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")


def peak(device: torch.device) -> int | None:
    """Bytes at the most since `reset`."""
    # Not getrusage's ru_maxrss: a child begins with its parent's, and no process can reset it.
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int | None:
    if not _RESET.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
