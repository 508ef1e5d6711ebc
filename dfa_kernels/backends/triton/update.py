"""`update`: every fused layer's dW and db, or the optimizer's step with them, in one launch.

A gradient is never in memory: see `update_kernel`. Here is what it is started with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.triton import rules
from dfa_kernels.backends.triton.launch import Launch, Split
from dfa_kernels.backends.triton.layout import DTYPES, VECTOR, aligned
from dfa_kernels.backends.triton.optimizer import COLUMNS, columns
from dfa_kernels.backends.triton.table import bits
from dfa_kernels.backends.triton.update_kernel import SEGMENT, UpdateConstants, update_kernel
from dfa_kernels.feedback import Feedback


class Term(NamedTuple):
    """A segment of a gradient's sum: ``inputs`` x (N, K), and ``delta`` δ (N, ≥ D), zeros beyond D
    and of aligned rows; or, for δ made on the fly, ``saved`` (N, D) and where δ comes from."""

    inputs: Tensor
    delta: Tensor
    error: Tensor | None = None
    scale: float = 1.0
    stream: int = HEAD
    activation: str = "identity"
    rows: int = 1


class Applied(NamedTuple):
    """A parameter, its states and its low-precision copy; ``hyper``: its row of the rule's."""

    parameter: Tensor
    states: tuple[Tensor, ...] = ()
    copy: Tensor | None = None
    hyper: Sequence[float] = ()


class Grouped(NamedTuple):
    """A weight (D, K) with rows of adjacent elements, its bias (D,), and what their gradients sum;
    states and copies have the strides of their parameter."""

    weight: Applied
    bias: Applied | None
    terms: list[Term]


def launches(
    rule: str, feedback: Feedback, updates: Sequence[Grouped], device: rules.Device
) -> list[Launch]:
    """One for all updates of the same dtypes, unless their hyperparameters differ too widely."""
    classes: dict[tuple, list[list[Grouped]]] = {}
    for update in updates:
        here = classes.setdefault(_dtypes(update), [[]])
        rows = {_row(rule, a) for u in (*here[-1], update) for a in (u.weight, u.bias) if a}
        if len(rows) > _ROWS and here[-1]:
            here.append([])
        here[-1].append(update)
    return [
        _launch(rule, feedback, chunk, dtypes, device)
        for dtypes, chunks in classes.items()
        for chunk in chunks
    ]


_constants = functools.cache(UpdateConstants)

#: Bytes of a row of the weight that are stepped together.
_AT_ONCE = 32

#: The most rows of hyperparameters in one launch: they are kernel parameters.
_ROWS = 32


def _row(rule: str, applied: Applied) -> tuple[float, ...]:
    return (0.0,) * COLUMNS if rule == "store" else columns(rule, applied.hyper)


def _dtypes(update: Grouped) -> tuple[torch.dtype | None, ...]:
    """Of x, the parameter, its states, its copy, and the error that δ is made from on the fly."""
    parameter, states, copy, _ = update.weight
    state = states[0].dtype if states and states[0].numel() else parameter.dtype
    term = update.terms[0]
    return (
        term.inputs.dtype,
        parameter.dtype,
        state,
        None if copy is None else copy.dtype,
        None if term.error is None else term.error.dtype,
    )


def _launch(
    rule: str,
    feedback: Feedback,
    updates: list[Grouped],
    dtypes: tuple[torch.dtype | None, ...],
    device: rules.Device,
) -> Launch:
    x, parameter, state, copy, error = dtypes
    assert x is not None and parameter is not None and state is not None
    half, fly = x.itemsize == 2, error is not None
    compute = torch.promote_types(error or x, x)
    sizes = [(u.weight.parameter.shape[0], u.weight.parameter.shape[1]) for u in updates]
    whole = [_whole(u) for u in updates]
    tf32 = rules.precision(x) == "tf32"
    tiles = rules.update_tiles(device, half, tf32, fly, all(whole), sizes)
    rows: dict[tuple[float, ...], int] = {}
    table: list[int] = []
    segments: list[int] = []
    grid = number = most = codes = widest = 0
    for (weight, bias, terms), (height, width), rows_whole in zip(
        updates, sizes, whole, strict=True
    ):
        blocks = sum(-(-t.inputs.shape[0] // tiles.n) for t in terms)
        for t in terms:
            code = CODES[t.activation] if t.error is not None else 0
            codes |= 1 << code
            segments += [
                t.inputs.data_ptr(), t.inputs.stride(0), t.inputs.shape[0],
                t.delta.data_ptr(), t.delta.stride(0),
            ]  # fmt: skip
            if t.error is None:
                segments += [0] * (SEGMENT - 5)
                continue
            widest = max(widest, t.error.shape[1])
            scale = 1.0 if t.stream == HEAD else t.scale / math.sqrt(t.rows)
            segments += [
                t.error.data_ptr(), t.error.stride(0), t.error.shape[1], t.stream, code, t.rows,
                bits(scale),
            ]  # fmt: skip
        along_d = -(-height // tiles.d)
        table += [
            grid, along_d, *_entries(rule, weight, rows), *_entries(rule, bias, rows),
            weight.parameter.stride(0), height, width, number, len(terms), blocks, rows_whole, 0,
        ]  # fmt: skip
        grid += along_d * -(-width // tiles.k)
        number += len(terms)
        most = max(most, blocks)
    parts = rules.splits(device, grid, most)
    flat = [value for row in rows for value in row]
    padding = triton.next_power_of_2(len(rows)) - len(rows)
    constants = _constants(
        updates=triton.next_power_of_2(len(updates)),
        rows=len(rows) + padding,
        rule=rule,
        fly=fly,
        distribution=feedback.distribution if fly else "",
        codes=codes,
        error=DTYPES[error or x],
        compute=DTYPES[compute],
        x=DTYPES[x],
        parameter=DTYPES[parameter],
        state=DTYPES[state],
        copy=DTYPES[copy or parameter],
        copied=copy is not None,
        split=parts > 1,
        bulk=device.bulk_copies,
        aligned="all" if all(whole) else "some" if any(whole) else "none",
        n=tiles.n,
        d=tiles.d,
        k=tiles.k,
        e=max(16, triton.next_power_of_2(widest)) if fly else 16,
        at_once=_AT_ONCE // parameter.itemsize,
        unit=VECTOR // x.itemsize,
        precision=rules.precision(x),
    )
    return Launch(
        update_kernel,
        grid * parts,
        [len(updates), parts, feedback.seed, 0, *table, *segments],
        constants,
        tiles.options(device),
        tuple(flat + [0.0] * (padding * COLUMNS)),
        Split(grid, parts, tiles.d, tiles.k),
    )


def _whole(update: Grouped) -> bool:
    """Whether all rows that the kernel reads of it are whole vectors."""
    read = [t.delta for t in update.terms if t.error is not None and CODES[t.activation]]
    return aligned(*_matrices(update.weight), *[t.inputs for t in update.terms], *read)


def _matrices(applied: Applied) -> list[Tensor]:
    parameter, states, copy, _ = applied
    made = [parameter, *(s for s in states if s.numel())]
    return made if copy is None else [*made, copy]


def _entries(rule: str, applied: Applied | None, rows: dict[tuple[float, ...], int]) -> list[int]:
    """The parameter's five entries in the table; its row of hyperparameters joins ``rows``."""
    if applied is None:
        return [0] * 5
    parameter, states, copy, _ = applied
    addresses = [s.data_ptr() if s.numel() else 0 for s in states] + [0, 0]
    row = rows.setdefault(_row(rule, applied), len(rows))
    return [
        parameter.data_ptr(), *addresses[:2], 0 if copy is None else copy.data_ptr(), row
    ]  # fmt: skip
