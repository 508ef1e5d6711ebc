"""What torch.autocast makes of a linear layer's operands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

# For a fifth of the time that to ask for one device takes.
_anywhere = torch._C._is_any_autocast_enabled


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """What a product of ``inputs`` is computed in by the autocast of its device, which leaves fp64
    as it is; None where there is none."""
    if not torch.compiler.is_compiling() and not _anywhere():
        return None
    device = inputs.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or inputs.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def lowered(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each in ``dtype``: on a GPU by one launch, where autocast starts one for each."""
    made = [t if t.dtype is dtype else torch.empty_like(t, dtype=dtype) for t in tensors]
    others = [t.dtype is not dtype for t in tensors]
    if any(others):
        torch._foreach_copy_(list(compress(made, others)), list(compress(tensors, others)))
    return made
