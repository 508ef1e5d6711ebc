"""What a kernel is compiled for, as one parameter instead of twenty."""

from __future__ import annotations

from dataclasses import fields

import torch
import triton.language as tl

#: Triton's names.
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class CompileTime:
    """A base for frozen dataclasses whose fields a kernel reads as compile-time constants."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, tl.constexpr(getattr(self, field.name)))

    def mangle(self) -> str:
        """In the names of the functions that are compiled for it."""
        return type(self).__name__
