"""Tables of pointers and sizes: all that a grouped kernel must know of its layers, on its device.

A table is int64, made from a flat list of Python integers. A step of training sees the same
addresses as the one before, for the allocator gives them out again, so `Tables` keeps what it
wrote and most steps copy nothing. A table that is not there yet is written by kernels that
carry it in their parameters: no host memory is read later, so nothing waits and a CUDA graph
holds it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS = 16


# Else it would be compiled again for every set of words that are 1, or multiples of 16.
@triton.jit(do_not_specialize=[f"w{i}" for i in range(_WORDS)])
def _write(
    table,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64,
    w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    w8: tl.int64, w9: tl.int64, w10: tl.int64, w11: tl.int64,
    w12: tl.int64, w13: tl.int64, w14: tl.int64, w15: tl.int64,
):  # fmt: skip
    """table[0:16] = w."""
    tl.store(table + 0, w0)
    tl.store(table + 1, w1)
    tl.store(table + 2, w2)
    tl.store(table + 3, w3)
    tl.store(table + 4, w4)
    tl.store(table + 5, w5)
    tl.store(table + 6, w6)
    tl.store(table + 7, w7)
    tl.store(table + 8, w8)
    tl.store(table + 9, w9)
    tl.store(table + 10, w10)
    tl.store(table + 11, w11)
    tl.store(table + 12, w12)
    tl.store(table + 13, w13)
    tl.store(table + 14, w14)
    tl.store(table + 15, w15)


class Tables:
    """The tables written last, least recently used dropped beyond ``limit``."""

    def __init__(self, limit: int = 128) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple, Tensor] = OrderedDict()

    def get(self, entries: list[int], device: torch.device) -> Tensor:
        """A device tensor that holds ``entries``, to be read on the current stream."""
        if device.type == "cpu":
            return torch.tensor(entries, dtype=torch.int64)
        if torch.cuda.is_current_stream_capturing():
            # A replay writes it again; what is kept was written once, or may be dropped.
            return _written(entries, device)
        key = (device.index, torch.cuda.current_stream(device).stream_id, *entries)
        table = self._kept.get(key)
        if table is None:
            table = self._kept[key] = _written(entries, device)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return table


def _written(entries: list[int], device: torch.device) -> Tensor:
    padded = entries + [0] * (-len(entries) % _WORDS)
    table = torch.empty(len(padded), dtype=torch.int64, device=device)
    for start in range(0, len(padded), _WORDS):
        _write[(1,)](table[start:], *padded[start : start + _WORDS], num_warps=1)
    return table


def bits(value: float) -> int:
    """An fp32 as the integer that a table holds; `as_float` reads it."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


@triton.jit
def as_float(entry):
    """The fp32 that `bits` put into a table."""
    return entry.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def at(table, offset, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer at ``offset``; ALIGNED: it is a multiple of 16 bytes."""
    pointer = tl.load(table + offset).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def size(table, offset, UNIT: tl.constexpr):
    """The integer at ``offset``, a multiple of ``UNIT``."""
    return tl.multiple_of(tl.load(table + offset), UNIT)


@triton.jit
def halves(tile):
    """A tile's left and right columns, without leaving the registers."""
    pair = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(pair, (0, 2, 1)))
