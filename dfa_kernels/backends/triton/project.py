"""`project`: the error's projection for every point and fused layer, in one launch.

    δh = e·B·scale / √k                 an opaque point's
    δ  = (e·B·scale / √k) ⊙ f′(saved)   a fused layer's

k: a target's rows for each row of the error.

Everything that reads the same columns of the same B is one *group*: a program makes a tile of e·B
once, B's part of it in registers, and serves every *target* of the group from it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.grouped.layout import VECTOR, aligned
from dfa_kernels.backends.grouped.plan import Group, Target, of_one_dtype
from dfa_kernels.backends.triton import candidates, rules, tuning
from dfa_kernels.backends.triton.activation import derivative
from dfa_kernels.backends.triton.constants import DTYPES, CompileTime
from dfa_kernels.backends.triton.launch import Launch
from dfa_kernels.backends.triton.philox import feedback as feedback_tile
from dfa_kernels.backends.triton.table import as_float, at, bits, halves, size
from dfa_kernels.feedback import Feedback

# The table: number of groups, seed, a user's B and its columns; then the groups' rows; then the
# targets'.
#   group    0 first tile   1 tiles along N   2 error   3 row stride   4 N   5 E   6 stream
#            7 scale        8 first target    9 targets
#   target   0 out   1 row stride   2 saved   3 row stride   4 width to write   5 width
#            6 activation   7 k     8 aligned
HEADER, GROUP, TARGET = 4, 10, 9
_HEADER, _GROUP, _TARGET = tl.constexpr(HEADER), tl.constexpr(GROUP), tl.constexpr(TARGET)


@dataclass(frozen=True, eq=False)
class ProjectConstants(CompileTime):
    """What `project_kernel` is compiled for: dtypes are Triton's, tiles powers of 2."""

    groups: int  # of the table, rounded up to a power of 2
    distribution: str  # or "matrix"
    codes: int  # bits of the activations
    error: Any  # dtypes: of e,
    matrix: Any  # of a user's B,
    compute: Any  # of the product's operands,
    out: Any  # of saved and out
    aligned: bool  # e and a user's B have rows of whole vectors
    whole: str  # and "all" targets have, "none", or "some", which say so themselves
    n: int
    d: int
    e: int
    at_once: int  # columns of δ that are made together
    unit_error: int  # elements of e in a vector,
    unit_matrix: int  # of a user's B,
    unit_out: int  # of out
    precision: str


@triton.jit
def project_kernel(table, C: tl.constexpr):
    """A tile (n, d) of e·B for a group, and of δ for each of its targets.

    table      int64, as above
    e          (N, E), row stride in elements
    B          made in registers; a user's: (E, D_max)
    saved, out (N·k, D), row strides in elements
    """
    number = tl.load(table)
    seed = tl.load(table + 1)
    tile = tl.program_id(0)
    i = tl.arange(0, C.groups)
    starts = tl.load(table + _HEADER + i * _GROUP, mask=i < number, other=0x7FFFFFFF)
    g = tl.sum((starts <= tile).to(tl.int32), axis=0) - 1
    group = table + _HEADER + g * _GROUP
    tile -= tl.load(group).to(tl.int32)
    tiles_n = tl.load(group + 1).to(tl.int32)
    rows = tl.load(group + 4).to(tl.int32)
    stream = tl.load(group + 6).to(tl.int32)
    scale = as_float(tl.load(group + 7))
    n0 = (tile % tiles_n) * C.n
    d0 = (tile // tiles_n) * C.d

    product = _product(table, group, n0, rows, d0, stream, seed, C) * scale

    first = tl.load(group + 8).to(tl.int32)
    last = first + tl.load(group + 9).to(tl.int32)
    targets = table + _HEADER + number * _GROUP
    for t in range(first, last):
        target = targets + t * _TARGET
        if d0 < tl.load(target + 4):
            aligned = C.whole == "all"  # a constant, unless there are both
            if C.whole == "some":
                aligned = tl.load(target + 8) != 0
            if aligned:
                _serve(target, product, n0, rows, d0, True, C)
            else:
                _serve(target, product, n0, rows, d0, False, C)


@triton.jit
def _product(table, group, n0, rows, d0, stream, seed, C: tl.constexpr):
    """e·B, or e itself at the error point: a tile (n, d) in fp32."""
    UNIT: tl.constexpr = C.unit_error if C.aligned else 1
    error = at(group, 2, C.error, C.aligned)
    stride = size(group, 3, UNIT)
    width = size(group, 5, UNIT).to(tl.int32)
    i = tl.arange(0, C.n)
    n = n0 + i
    here = error + n0.to(tl.int64) * stride + (i * stride.to(tl.int32))[:, None]
    product = tl.zeros((C.n, C.d), tl.float32)
    if stream < 0:
        d = d0 + tl.arange(0, C.d)
        mask = (n < rows)[:, None] & (d < width)[None, :]
        product = tl.load(here + d[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        for k0 in range(0, width, C.e):
            k = k0 + tl.arange(0, C.e)
            mask = (n < rows)[:, None] & (k < width)[None, :]
            e = tl.load(here + k[None, :], mask=mask, other=0.0).to(C.compute)
            if C.distribution == "matrix":
                b = _given(table, k, width, d0, C).to(C.compute)
            else:
                b = feedback_tile(C.distribution, seed, stream, k[:, None], d0, C.d, C.compute)
            product = tl.dot(e, b, product, input_precision=C.precision)
    return product


@triton.jit
def _given(table, k, width, d0, C: tl.constexpr):
    """The tile of a user's B: the header has its address, and its stride and columns in one."""
    matrix = at(table, 2, C.matrix, C.aligned)
    columns = size(table, 3, C.unit_matrix if C.aligned else 1)
    d = d0 + tl.arange(0, C.d)
    mask = (k < width)[:, None] & (d < columns)[None, :]
    return tl.load(matrix + k.to(tl.int64)[:, None] * columns + d[None, :], mask=mask, other=0.0)


@triton.jit
def _serve(target, product, n0, rows, d0, ALIGNED: tl.constexpr, C: tl.constexpr):
    """A few columns at a time: their product, saved, addresses and δ must fit in registers."""
    COLUMNS: tl.constexpr = product.shape[1]
    if C.at_once < COLUMNS:
        left, right = halves(product)
        _serve(target, left, n0, rows, d0, ALIGNED, C)
        _serve(target, right, n0, rows, d0 + COLUMNS // 2, ALIGNED, C)
    else:
        _serve_columns(target, product, n0, rows, d0, ALIGNED, C)


@triton.jit
def _serve_columns(target, product, n0, rows, d0, ALIGNED: tl.constexpr, C: tl.constexpr):
    """out = (product / √k) ⊙ f′(saved), in each of the k rows of an error row."""
    UNIT: tl.constexpr = C.unit_out if ALIGNED else 1
    repeat = tl.load(target + 7).to(tl.int32)
    code = tl.load(target + 6).to(tl.int32)
    width = tl.load(target + 5).to(tl.int32)
    padded = size(target, 4, UNIT).to(tl.int32)
    out_stride = size(target, 1, UNIT)
    saved_stride = size(target, 3, UNIT)
    i = tl.arange(0, product.shape[0])
    j = tl.arange(0, product.shape[1])
    shrunk = product * tl.div_rn(1.0, tl.sqrt_rn(repeat.to(tl.float32)))  # k = 1 changes no bit
    inside = (n0 + i < rows)[:, None]
    written = inside & (d0 + j < padded)[None, :]
    read = inside & (d0 + j < width)[None, :]
    if ALIGNED:  # where saved is aligned its width is whole vectors, and is what is written
        read = written
    for r in range(repeat):
        first = n0.to(tl.int64) * repeat + r
        delta = shrunk
        if C.codes != 1:
            if code != 0:
                saved = at(target, 2, C.out, ALIGNED) + first * saved_stride + d0
                rows_apart = repeat * saved_stride.to(tl.int32)
                s = tl.load(saved + (i * rows_apart)[:, None] + j[None, :], mask=read, other=0.0)
                delta = derivative(shrunk, s.to(tl.float32), code, C.codes)
        delta = tl.where((d0 + j < width)[None, :], delta, 0.0).to(C.out)
        out = at(target, 0, C.out, ALIGNED) + first * out_stride + d0
        rows_apart = repeat * out_stride.to(tl.int32)
        tl.store(out + (i * rows_apart)[:, None] + j[None, :], delta, mask=written)


_constants = functools.cache(ProjectConstants)

#: The fewest elements of δ that are made together: each of 256 threads stores a vector.
_AT_ONCE = 256 * 8

#: The fewest columns of it, where all rows are whole vectors and where not, which takes an address
#: for every element, in registers.
_WHOLE, _OTHER = 32, 16


def launches(groups: Sequence[Group], feedback: Feedback, device: rules.Device) -> list[Launch]:
    """One for all groups whose dtypes are the same: the error's and the targets'."""
    return [
        _launch(kept, feedback, device, error, out)
        for (error, out), kept in of_one_dtype(groups).items()
    ]


def _launch(
    groups: list[Group],
    feedback: Feedback,
    device: rules.Device,
    error_dtype: torch.dtype,
    out_dtype: torch.dtype,
    tiles: rules.Tiles | None = None,
) -> Launch:
    compute = torch.promote_types(error_dtype, out_dtype)
    matrix = None if feedback.values is None else feedback.values.contiguous()
    widths = [max(t.out.shape[1] for t in g.targets) for g in groups]
    rows = max(g.error.shape[0] for g in groups)
    half, error_width = compute.itemsize == 2, max(g.error.shape[1] for g in groups)
    whole_read = aligned(*[g.error for g in groups], *([] if matrix is None else [matrix]))
    whole = [[_whole(target) for target in g.targets] for g in groups]
    kinds = {one for each in whole for one in each}
    trial = None
    if tiles is None:
        tf32 = rules.precision(compute) == "tf32"
        tiles = rules.project_tiles(
            device, half, tf32, whole_read, rows, sum(widths), error_width, len(kinds) == 2
        )
        if tuning.ENABLED:
            tiles, trial = tuning.settled(
                "project",
                groups[0].error.device,
                (
                    feedback.distribution, error_dtype, out_dtype, rules.precision(compute),
                    aligned(*[g.error for g in groups]), sum(len(g.targets) for g in groups) > 1,
                    tuning.rounded(rows, sum(widths), error_width, len(groups)),
                ),
                candidates.project(tiles, half, error_width),
                functools.partial(_launch, groups, feedback, device, error_dtype, out_dtype),
                [],  # what it writes it does not read
            )  # fmt: skip
    table = [len(groups), feedback.seed]
    table += [0, 0] if matrix is None else [matrix.data_ptr(), matrix.shape[1]]
    targets: list[int] = []
    grid = number = codes = 0
    for (error, scale, stream, served), width, each in zip(groups, widths, whole, strict=True):
        along_n = -(-error.shape[0] // tiles.n)
        table += [
            grid, along_n, error.data_ptr(), error.stride(0), *error.shape, stream,
            bits(1.0 if stream == HEAD else scale), number, len(served),
        ]  # fmt: skip
        grid += along_n * -(-width // tiles.d)
        number += len(served)
        for (out, narrow, k, saved, activation), rows_whole in zip(served, each, strict=True):
            code = CODES[activation]
            codes |= 1 << code
            address, stride = 0, 0
            if code:
                assert saved is not None, f"{activation} has no saved tensor"
                address, stride = saved.data_ptr(), saved.stride(0)
            targets += [
                out.data_ptr(), out.stride(0), address, stride, out.shape[1], narrow, code, k,
                rows_whole,
            ]  # fmt: skip
    given = torch.float32 if matrix is None else matrix.dtype
    constants = _constants(
        groups=triton.next_power_of_2(len(groups)),
        distribution=feedback.distribution,
        codes=codes,
        error=DTYPES[error_dtype],
        matrix=DTYPES[given],
        compute=DTYPES[compute],
        out=DTYPES[out_dtype],
        aligned=whole_read,
        n=tiles.n,
        d=tiles.d,
        e=tiles.k,
        at_once=_at_once(tiles.n, kinds),
        whole="some" if len(kinds) == 2 else "all" if True in kinds else "none",
        unit_error=VECTOR // error_dtype.itemsize,
        unit_matrix=VECTOR // given.itemsize,
        unit_out=VECTOR // out_dtype.itemsize,
        precision=rules.precision(compute),
    )
    options = tiles.options(device)
    table += targets
    return Launch(project_kernel, grid, table, constants, options, trial=trial, kept=matrix)


def _whole(target: Target) -> bool:
    """Whether rows of δ, and of what f′ is read from, are whole vectors."""
    out, _, _, saved, activation = target
    if saved is None or not CODES[activation]:
        return aligned(out)
    return aligned(out, saved)


def _at_once(rows: int, whole: set[bool]) -> int:
    """Columns of δ that a program makes together of its ``rows``."""
    if True not in whole:
        return _OTHER
    return max(_OTHER if False in whole else _WHOLE, _AT_ONCE // rows)
