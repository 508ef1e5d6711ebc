"""`update`: what its launches are told. A gradient is never in memory.

The list, as csrc/binding.cpp reads it: compute, distribution, seed, whether δ is made on the fly,
rule, dtypes of x, error, parameter, state and copy, rows of hyperparameters and those rows (none
where they are in memory, and the entries of weight and bias have addresses of theirs), layers;
of each layer D, K, row stride, five entries each of weight and bias, segments; of each segment N,
x, row stride, and either δ and its row stride, or k, activation, saved, row stride, E, error,
row stride, stream, scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.cuda.launch import Launch
from dfa_kernels.backends.grouped.hyper import COLUMNS, columns
from dfa_kernels.backends.grouped.plan import Applied, Grouped, Term
from dfa_kernels.feedback import Feedback

#: The most of one launch: csrc/tables.h.
LAYERS, SEGMENTS, ROWS = 64, 128, 32

_Rows = dict[tuple[float, ...], int]

#: Most parameters of a step have the same hyperparameters.
columns_of = functools.lru_cache(maxsize=ROWS)(columns)


def launches(
    rule: str, feedback: Feedback, updates: Sequence[Grouped], device: rules.Device
) -> list[Launch]:
    """One for all updates of the same dtypes, unless they exceed a table."""
    classes: dict[tuple, list[Grouped]] = {}
    for update in updates:
        fly, in_memory = update.terms[0].error is not None, type(update.weight.hyper) is Tensor
        classes.setdefault((in_memory, fly, *_dtypes(update)), []).append(update)
    return [
        _launch(rule, feedback, chunk, rows, fly, dtypes, device)
        for (_, fly, *dtypes), kept in classes.items()
        for chunk, rows in _chunks(rule, kept)
    ]


def _dtypes(update: Grouped) -> tuple[torch.dtype, ...]:
    """Of x, the error that δ is made from on the fly, the parameter, its states and its copy."""
    parameter, states, copy, _ = update.weight
    term, own = update.terms[0], parameter.dtype
    return (
        term.inputs.dtype,
        term.inputs.dtype if term.error is None else term.error.dtype,
        own,
        states[0].dtype if states and states[0].numel() else own,
        own if copy is None else copy.dtype,
    )


def _chunks(rule: str, updates: list[Grouped]) -> Iterator[tuple[list[Grouped], _Rows]]:
    """The updates of each launch, and the place of every row of hyperparameters in its table."""
    chunk: list[Grouped] = []
    rows: _Rows = {}
    segments = 0
    for update in updates:
        if len(update.terms) > SEGMENTS:
            update = update._replace(terms=_joined(update.terms))
        own = _own_rows(rule, update)
        segments += len(update.terms)
        full = len(chunk) == LAYERS or segments > SEGMENTS
        if chunk and (full or len(rows.keys() | own.keys()) > ROWS):
            yield chunk, rows
            chunk, rows, segments = [], {}, len(update.terms)
        for row in own:
            rows.setdefault(row, len(rows))
        chunk.append(update)
    if chunk:
        yield chunk, rows


def _joined(terms: list[Term]) -> list[Term]:
    """Fewer terms of the same sum: those that differ in nothing but their rows become one.

    Raises:
        ValueError: too many are left.
    """
    alike: dict[tuple, list[Term]] = {}
    for term in terms:
        alike.setdefault((term.error is None, *term[3:]), []).append(term)
    made = []
    for same in alike.values():
        errors = [t.error for t in same if t.error is not None]
        inputs, width = torch.cat([t.inputs for t in same]), min(t.delta.shape[1] for t in same)
        delta = torch.cat([t.delta[:, :width] for t in same])
        made.append(same[0]._replace(inputs=inputs, delta=delta))
        if errors:
            made[-1] = made[-1]._replace(error=torch.cat(errors))
    if len(made) > SEGMENTS:
        raise ValueError(
            f"the CUDA backend sums at most {SEGMENTS} kinds of terms into a gradient, "
            f"and {len(made)} differ in their scale, stream or activation"
        )
    return made


def _launch(
    rule: str,
    feedback: Feedback,
    updates: list[Grouped],
    rows: _Rows,
    fly: bool,
    dtypes: Sequence[torch.dtype],
    device: rules.Device,
) -> Launch:
    table: list[Any] = [
        rules.compute(dtypes[0]),
        rules.DISTRIBUTIONS[feedback.distribution],
        feedback.seed,
        fly,
        rules.RULES[rule],
        *[rules.DTYPES[d] for d in dtypes],
        len(rows),
        *[value for row in rows for value in row],
        len(updates),
    ]
    for weight, bias, terms in updates:
        parameter = weight.parameter
        table += [*parameter.shape, parameter.stride()[0]]
        table += _entries(rule, weight, rows)
        table += (0, 0, 0, 0, 0) if bias is None else _entries(rule, bias, rows)
        table.append(len(terms))
        for inputs, delta, error, scale, stream, activation, k in terms:
            table += [inputs.shape[0], inputs.data_ptr(), inputs.stride()[0]]
            if error is None:
                table += [delta.data_ptr(), delta.stride()[0]]
                continue
            scale = 1.0 if stream == HEAD else scale / math.sqrt(k)
            table += [
                k, CODES[activation], delta.data_ptr(), delta.stride()[0],
                error.shape[1], error.data_ptr(), error.stride()[0], stream, scale,
            ]  # fmt: skip
    return Launch("update", device.ordinal, device.multiprocessors, table, updates)


def _own_rows(rule: str, update: Grouped) -> _Rows:
    """What the table must hold for the update: nothing where its rows are in memory."""
    if type(update.weight.hyper) is Tensor:
        return {}
    return {_row(rule, a): 0 for a in (update.weight, update.bias) if a is not None}


def _row(rule: str, applied: Applied) -> tuple[float, ...]:
    return (0.0,) * COLUMNS if rule == "store" else columns_of(rule, tuple(applied.hyper))


def _entries(rule: str, applied: Applied, rows: _Rows) -> list[int]:
    """A parameter, its two states, its low-precision copy, and its row of hyperparameters or, where
    that is in memory, its address."""
    parameter, states, copy, hyper = applied
    first, second, *_ = [s.data_ptr() if s.numel() else 0 for s in states] + [0, 0]
    copied = 0 if copy is None else copy.data_ptr()
    place = hyper.data_ptr() if type(hyper) is Tensor else rows[_row(rule, applied)]
    return [parameter.data_ptr(), first, second, copied, place]
