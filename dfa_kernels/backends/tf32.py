"""Whether products of fp32 may be computed in tf32."""

from __future__ import annotations

import torch

# What ``torch.backends.cuda.matmul.fp32_precision`` reads, for a sixth of its time.
_precision = torch._C._get_fp32_precision_getter


def tf32_allowed() -> bool:
    """Whether the user lets torch's own products on a GPU use tf32, by whichever of torch's
    settings: to ask for ``allow_tf32`` raises where one of the newer ones was used, and these
    follow it where it was."""
    return _precision("cuda", "matmul") == "tf32"
