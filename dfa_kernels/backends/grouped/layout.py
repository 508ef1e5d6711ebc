"""What the kernels can take: dtypes, and matrices whose elements follow each other in a row."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: What is loaded or stored at once, in bytes.
VECTOR = 16

#: Rows and widths have 32 bits; so have the offsets inside a tile, whose rows are 128 at the most.
LIMIT = 2**31 - 128
STRIDE = 2**31 // 128


def fits(tensor: Tensor, rows: int = 1) -> bool:
    """Whether the kernels can take it; see `check`, which says why not."""
    if tensor.dtype not in DTYPES:
        return False
    shape, strides = tensor.shape, tensor.stride()
    if len(shape) == 2:
        return shape[0] < LIMIT and shape[1] < LIMIT and strides[0] * rows < STRIDE
    return max(shape, default=0) < LIMIT


def check(tensor: Tensor, name: str, rows: int = 1) -> None:
    """Refuse what no kernel can take; ``rows``: k, of this tensor for each row of the error.

    Raises:
        TypeError: a dtype other than fp32, bf16 and fp16.
        ValueError: too many rows or columns, or too far a way from one row to the next.
    """
    if fits(tensor, rows):
        return
    if tensor.dtype not in DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(
            f"this backend takes {known}, but {name} is {tensor.dtype}: use the reference backend"
        )
    if max(tensor.shape, default=0) >= LIMIT:
        raise ValueError(
            f"this backend takes fewer than {LIMIT:,} rows or columns, but {name} has "
            f"shape {tuple(tensor.shape)}"
        )
    apart = tensor.stride(0) * rows
    raise ValueError(
        f"this backend takes rows that are fewer than {STRIDE:,} elements apart, but "
        f"{name} of shape {tuple(tensor.shape)} has them {apart:,} apart"
        + (f" ({rows} rows for each row of the error)" if rows > 1 else "")
    )


def as_rows(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix itself where the elements of a row are adjacent and no rows overlap, else a copy;
    in ``dtype``."""
    if dtype is not None and matrix.dtype != dtype:
        matrix = matrix.to(dtype)
    height, width = matrix.shape
    apart, beside = matrix.stride()
    if (width > 1 and beside != 1) or (height > 1 and apart < width):
        matrix = matrix.contiguous()
    return matrix


def padded(width: int, dtype: torch.dtype) -> int:
    """``width`` rounded up to whole vectors."""
    unit = VECTOR // dtype.itemsize
    return -(-width // unit) * unit


def aligned(*matrices: Tensor) -> bool:
    """Whether all their rows are whole vectors at whole-vector addresses."""
    for m in matrices:
        if (m.data_ptr() | (m.shape[-1] | m.stride(0)) * m.itemsize) % VECTOR:
            return False
    return True
