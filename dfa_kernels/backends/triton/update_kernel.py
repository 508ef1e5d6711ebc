"""The kernel of `update`: a program makes one tile of a weight's gradient, and applies it.

    dW = Σ δᵀ·x     db = Σ δ = δᵀ·1     over the rows of every segment
    W, b and their states ← the rule's step with dW, db

Where the sum over N is split, whoever finishes a tile last adds the parts in their order: the same
bits in every run, without float atomics. δ is read as `project` stored it, or made on the fly
from the error (`UpdateConstants.fly`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from dfa_kernels.backends.triton.activation import derivative
from dfa_kernels.backends.triton.constants import CompileTime
from dfa_kernels.backends.triton.optimizer import COLUMNS, adamw, columns_of, sgd
from dfa_kernels.backends.triton.philox import feedback as feedback_tile
from dfa_kernels.backends.triton.table import as_float, at, halves, size

# The table: number of updates, splits, seed, 0; then the updates' rows; then the segments'.
#   update   0 first tile     1 tiles along D   2-6 weight: itself, two states, low-precision copy,
#            row of `hyper` or its address    7-11 bias: the same, or 0
#            12 row stride    13 D             14 K
#            15 first segment 16 segments       17 blocks of BN rows   18 aligned
#   segment  0 x   1 row stride   2 rows   3 δ, or saved   4 row stride
#            5 error   6 row stride   7 E   8 stream   9 activation   10 k   11 scale
HEADER, UPDATE, SEGMENT = 4, 20, 12
_HEADER, _UPDATE, _SEGMENT = tl.constexpr(HEADER), tl.constexpr(UPDATE), tl.constexpr(SEGMENT)
_WEIGHT, _BIAS = tl.constexpr(2), tl.constexpr(7)
_COLUMNS = tl.constexpr(COLUMNS)
# Tiles along D that are neighbours in time: they read the same x.
_NEIGHBOURS = tl.constexpr(8)


@dataclass(frozen=True, eq=False)
class UpdateConstants(CompileTime):
    """What `update_kernel` is compiled for: dtypes are Triton's, tiles powers of 2."""

    updates: int  # of the table, rounded up to a power of 2
    rows: int  # of hyper
    in_memory: bool  # rows are float64, at addresses, and hyper is nothing
    rule: str  # "store", "sgd" or "adamw"
    fly: bool  # δ is made here,
    distribution: str  # from this B,
    codes: int  # these activations (bits),
    error: Any  # and dtypes: of e,
    compute: Any  # of the projection
    x: Any  # of x and δ,
    parameter: Any  # of the parameter (the gradient for "store"),
    state: Any  # of its states,
    copy: Any  # and of its low-precision copy,
    copied: bool  # which some have: address 0 is none
    split: bool
    awaits: str  # `rules.Device.awaits`, where that is split
    bulk: bool  # copies by TMA, where rows are aligned
    aligned: str  # "all" updates, "none", or "some", which say so themselves
    n: int
    d: int
    k: int
    e: int
    at_once: int  # columns of the weight that are stepped together
    unit: int  # elements of x in a vector
    precision: str


@triton.jit
def update_kernel(table, hyper, partial, partial_bias, arrived, C: tl.constexpr):
    """A tile (d, k) of a weight, and at its first columns the bias.

    table         int64, as above
    hyper         C.rows · 7 floats, as `optimizer.columns` makes them
    partial       fp32 (tiles · splits, d, k), partial_bias (tiles · splits, d)   split
    arrived       int32 (tiles,), zeros before and after                             split
    """
    number = tl.load(table)
    splits = tl.load(table + 1).to(tl.int32)
    slot = tl.program_id(0)
    tile = slot // splits if C.split else slot
    i = tl.arange(0, C.updates)
    starts = tl.load(table + _HEADER + i * _UPDATE, mask=i < number, other=0x7FFFFFFF)
    u = tl.sum((starts <= tile).to(tl.int32), axis=0) - 1
    update = table + _HEADER + u * _UPDATE
    segments = table + _HEADER + number * _UPDATE

    blocks = tl.load(update + 17).to(tl.int32)
    begin, end = 0, blocks
    if C.split:
        share = tl.cdiv(blocks, splits)
        begin = (slot % splits) * share
        end = min(begin + share, blocks)
    d0, k0 = _place(update, tile - tl.load(update).to(tl.int32), C)

    aligned = C.aligned == "all"  # a constant, unless there are both
    if C.aligned == "some":
        aligned = tl.load(update + 18) != 0
    if aligned:
        _tile(
            table, update, segments, hyper, partial, partial_bias, arrived,
            slot, tile, splits, d0, k0, begin, end, True, C,
        )  # fmt: skip
    else:
        _tile(
            table, update, segments, hyper, partial, partial_bias, arrived,
            slot, tile, splits, d0, k0, begin, end, False, C,
        )  # fmt: skip


@triton.jit
def _place(update, tile, C: tl.constexpr):
    """Where the ``tile``-th tile of a weight lies: a few tiles along D, then the next along K."""
    tiles_d = tl.load(update + 1).to(tl.int32)
    tiles_k = tl.cdiv(tl.load(update + 14).to(tl.int32), C.k)
    band = tile // (_NEIGHBOURS * tiles_k)
    height = min(tiles_d - band * _NEIGHBOURS, _NEIGHBOURS)
    inside = tile % (_NEIGHBOURS * tiles_k)
    return (band * _NEIGHBOURS + inside % height) * C.d, (inside // height) * C.k


@triton.jit
def _tile(
    table, update, segments, hyper, partial, partial_bias, arrived,
    slot, tile, splits, d0, k0, begin, end, ALIGNED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Sum the tile's part, bring the parts together, apply."""
    if k0 == 0:
        weight, bias = _sum(table, update, segments, d0, k0, begin, end, True, ALIGNED, C)
    else:
        weight, bias = _sum(table, update, segments, d0, k0, begin, end, False, ALIGNED, C)
    whole = True
    if C.split:
        i = tl.arange(0, C.d)
        inside = i[:, None] * C.k + tl.arange(0, C.k)[None, :]
        tl.store(partial + slot.to(tl.int64) * (C.d * C.k) + inside, weight)
        tl.store(partial_bias + slot * C.d + i, bias)
        if C.awaits != "":
            tl.inline_asm_elementwise(C.awaits, "=v,v", [i], tl.int32, is_pure=False, pack=1)
        tl.debug_barrier()  # every thread's part is written before one says so
        whole = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
        if whole:
            tl.store(arrived + tile, 0)
            weight = tl.zeros((C.d, C.k), tl.float32)
            bias = tl.zeros((C.d,), tl.float32)
            for s in range(splits):
                part = (tile * splits + s).to(tl.int64)
                weight += tl.load(partial + part * (C.d * C.k) + inside, cache_modifier=".cg")
                bias += tl.load(partial_bias + part * C.d + i, cache_modifier=".cg")
    if whole:
        height = tl.load(update + 13).to(tl.int32)
        own = hyper
        if C.in_memory:
            own = columns_of(at(update, 6, tl.float64, False), C.rule)
        _apply_columns(update, weight, own, d0, k0, height, ALIGNED, C)
        if k0 == 0:
            if tl.load(update + _BIAS) != 0:
                if C.in_memory:
                    own = columns_of(at(update, 11, tl.float64, False), C.rule)
                i = tl.arange(0, C.d)
                _apply(update + _BIAS, d0, i, d0 + i < height, bias, own, False, C)


@triton.jit
def _apply_columns(update, gradient, hyper, d0, k0, height, ALIGNED: tl.constexpr, C: tl.constexpr):
    """The rule's step on the columns of the weight that ``gradient`` covers from (d0, k0): a few
    at a time, for parameter, states and gradient of a whole tile exceed the registers."""
    COLUMNS: tl.constexpr = gradient.shape[1]
    if C.at_once < COLUMNS:
        left, right = halves(gradient)
        _apply_columns(update, left, hyper, d0, k0, height, ALIGNED, C)
        _apply_columns(update, right, hyper, d0, k0 + COLUMNS // 2, height, ALIGNED, C)
    else:
        UNIT: tl.constexpr = C.unit if ALIGNED else 1
        stride = size(update, 12, UNIT)
        width = size(update, 14, UNIT).to(tl.int32)
        i = tl.arange(0, gradient.shape[0])
        j = tl.arange(0, COLUMNS)
        offsets = (i * stride.to(tl.int32))[:, None] + j[None, :]
        mask = (d0 + i < height)[:, None] & (k0 + j < width)[None, :]
        start = d0.to(tl.int64) * stride + k0
        _apply(update + _WEIGHT, start, offsets, mask, gradient, hyper, ALIGNED, C)


@triton.jit
def _sum(
    table, update, segments, d0, k0, begin, end,
    BIAS: tl.constexpr, ALIGNED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """δᵀ·x (d, k) and, with BIAS, Σ δ (d,) over the blocks [begin, end) of all segments."""
    BULK: tl.constexpr = C.bulk and ALIGNED
    UNIT: tl.constexpr = C.unit if ALIGNED else 1
    seed = tl.load(table + 2)
    height = tl.load(update + 13).to(tl.int32)
    width = size(update, 14, UNIT).to(tl.int32)
    weight = tl.zeros((C.d, C.k), tl.float32)
    ones = tl.full((C.n, 16), 1.0, tl.float32).to(C.x)
    bias = tl.zeros((C.d, 16), tl.float32)
    first = tl.load(update + 15).to(tl.int32)
    last = first + tl.load(update + 16).to(tl.int32)
    done = 0
    for s in range(first, last):
        segment = segments + s * _SEGMENT
        rows = tl.load(segment + 2).to(tl.int32)
        blocks = tl.cdiv(rows, C.n)
        low, high = max(begin - done, 0), min(end - done, blocks)
        done += blocks
        x = at(segment, 0, C.x, ALIGNED)
        x_stride = size(segment, 1, UNIT)
        if BULK:
            xs = tl.make_tensor_descriptor(x, [rows, width], [x_stride, 1], [C.n, C.k])
        if C.fly:
            b = _columns(segment, seed, d0, C)
        else:  # rows of whole vectors, with zeros beyond the width
            delta = at(segment, 3, C.x, True)
            delta_stride = size(segment, 4, C.unit)
            padded = tl.cdiv(height, C.unit) * C.unit
            if BULK:
                deltas = tl.make_tensor_descriptor(
                    delta, [rows, padded], [delta_stride, 1], [C.n, C.d]
                )
        for block in range(low, high):
            n0 = block * C.n
            if BULK:
                seen = xs.load([n0, k0])
            else:
                seen = _rows(x, x_stride, n0, k0, rows, width, C.n, C.k)
            if C.fly:
                turned = tl.trans(_fly(segment, b, n0, rows, d0, height, ALIGNED, C))
            elif BULK:
                turned = tl.trans(deltas.load([n0, d0]))
            else:
                turned = _turned(delta, delta_stride, n0, d0, rows, padded, C.n, C.d)
            weight = tl.dot(turned, seen, weight, input_precision=C.precision)
            if BIAS:  # Σ δ is δᵀ·1
                bias = tl.dot(turned, ones, bias, input_precision=C.precision)
    return weight, tl.sum(bias, axis=1) * 0.0625


@triton.jit
def _rows(matrix, stride, n0, k0, rows, width, BN: tl.constexpr, BK: tl.constexpr):
    """The tile (BN, BK) at (n0, k0) of a matrix (rows, width), zeros outside."""
    i = tl.arange(0, BN)
    j = tl.arange(0, BK)
    start = matrix + n0.to(tl.int64) * stride + k0
    mask = (n0 + i < rows)[:, None] & (k0 + j < width)[None, :]
    return tl.load(start + (i * stride.to(tl.int32))[:, None] + j[None, :], mask=mask, other=0.0)


@triton.jit
def _turned(matrix, stride, n0, d0, rows, width, BN: tl.constexpr, BD: tl.constexpr):
    """The transpose (BD, BN) of such a tile, loaded so: what is transposed after its load is not
    copied asynchronously."""
    i = tl.arange(0, BN)
    j = tl.arange(0, BD)
    start = matrix + n0.to(tl.int64) * stride + d0
    mask = (d0 + j < width)[:, None] & (n0 + i < rows)[None, :]
    return tl.load(start + j[:, None] + (i * stride.to(tl.int32))[None, :], mask=mask, other=0.0)


@triton.jit
def _columns(segment, seed, d0, C: tl.constexpr):
    """The tile (e, d) of B, all of its rows; the head, which reads none, gets any."""
    stream = tl.load(segment + 8).to(tl.int32)
    k = tl.arange(0, C.e)[:, None]
    return feedback_tile(C.distribution, seed, stream, k, d0, C.d, C.compute)


@triton.jit
def _fly(segment, b, n0, rows, d0, height, ALIGNED: tl.constexpr, C: tl.constexpr):
    """δ = (e·B·scale) ⊙ f′(saved), rounded as a stored one would be; the head's: e ⊙ f′."""
    UNIT: tl.constexpr = C.unit if ALIGNED else 1
    error = at(segment, 5, C.error, False)
    stride = tl.load(segment + 6)
    width = tl.load(segment + 7).to(tl.int32)
    repeat = tl.load(segment + 10).to(tl.int32)
    n = n0 + tl.arange(0, C.n)
    d = d0 + tl.arange(0, C.d)
    inside = (n < rows)[:, None]
    row = error + (n // repeat).to(tl.int64)[:, None] * stride
    if tl.load(segment + 8) < 0:
        mask = inside & (d < width)[None, :]
        made = tl.load(row + d[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        i = tl.arange(0, C.e)
        e = tl.load(row + i[None, :], mask=inside & (i < width)[None, :], other=0.0)
        made = tl.dot(e.to(C.compute), b, input_precision=C.precision) * as_float(
            tl.load(segment + 11)
        )
    if C.codes != 1:
        code = tl.load(segment + 9).to(tl.int32)
        if code != 0:
            saved = at(segment, 3, C.x, ALIGNED)
            stride = size(segment, 4, UNIT)
            padded = tl.cdiv(height, UNIT) * UNIT
            s = _rows(saved, stride, n0, d0, rows, padded, C.n, C.d).to(tl.float32)
            made = derivative(made, s, code, C.codes)
    return tl.where((d < height)[None, :], made, 0.0).to(C.x)


@triton.jit
def _apply(
    parameter, start, offsets, mask, gradient, hyper, ALIGNED: tl.constexpr, C: tl.constexpr
):
    """The rule's step on what lies ``offsets`` from ``start``; ``parameter``: its five entries."""
    target = at(parameter, 0, C.parameter, ALIGNED) + start + offsets
    if C.rule == "store":
        tl.store(target, gradient.to(C.parameter), mask=mask)
    else:
        row = 0 if C.in_memory else tl.load(parameter + 4).to(tl.int32)
        h0 = _pick(hyper, row, 0, C)
        h1 = _pick(hyper, row, 1, C)
        h2 = _pick(hyper, row, 2, C)
        h3 = _pick(hyper, row, 3, C)
        h4 = _pick(hyper, row, 4, C)
        h5 = _pick(hyper, row, 5, C)
        h6 = _pick(hyper, row, 6, C)
        p = tl.load(target, mask=mask, other=0.0).to(tl.float32)
        first = at(parameter, 1, C.state, ALIGNED) + start + offsets
        if C.rule == "sgd":
            buffer = tl.zeros_like(p)
            if h6 != 0.0:
                buffer = tl.load(first, mask=mask, other=0.0).to(tl.float32)
            p, buffer = sgd(p, gradient, buffer, h0, h1, h2, h3, h4, h5, h6)
            if h6 != 0.0:
                tl.store(first, buffer.to(C.state), mask=mask)
        else:
            second = at(parameter, 2, C.state, ALIGNED) + start + offsets
            mean = tl.load(first, mask=mask, other=0.0).to(tl.float32)
            square = tl.load(second, mask=mask, other=0.0).to(tl.float32)
            p, mean, square = adamw(p, gradient, mean, square, h0, h1, h2, h3, h4, h5, h6)
            tl.store(first, mean.to(C.state), mask=mask)
            tl.store(second, square.to(C.state), mask=mask)
        tl.store(target, p.to(C.parameter), mask=mask)
        if C.copied and tl.load(parameter + 3) != 0:
            tl.store(at(parameter, 3, C.copy, ALIGNED) + start + offsets, p.to(C.copy), mask=mask)


@triton.jit
def _pick(hyper, row, COLUMN: tl.constexpr, C: tl.constexpr):
    """hyper[row, COLUMN]: kernel parameters cannot be indexed by what is not a constant."""
    value = 0.0
    for r in tl.static_range(C.rows):
        value = tl.where(row == r, hyper[r * _COLUMNS + COLUMN], value)
    return value
