"""A Triton kernel that does nothing, to time a launch with."""

from __future__ import annotations

import torch
import triton

from dfa_kernels.throughput.timing import Run


@triton.jit
def _nothing(pointer):
    pass


def empty(device: torch.device) -> Run:
    """A launch of it."""
    pointer = torch.zeros(16, device=device)
    return lambda: _nothing[(1,)](pointer)
