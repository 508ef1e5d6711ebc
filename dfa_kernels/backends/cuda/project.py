"""`project`: what its launches are told.

    δh = e·B·scale / √k                 an opaque point's
    δ  = (e·B·scale / √k) ⊙ f′(saved)   a fused layer's

k: a target's rows for each row of the error.

The list, as csrc/binding.cpp reads it: compute, distribution, seed, dtypes of the error and of δ, a
user's B and its columns, groups; of each group N, E, error, row stride, stream, scale, targets; of
each target k, D, padded D, out, row stride, activation, saved, row stride.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.cuda.launch import Launch
from dfa_kernels.backends.grouped.plan import Group, of_one_dtype
from dfa_kernels.feedback import Feedback

#: The most of one launch: csrc/tables.h.
GROUPS, TARGETS = 32, 64


def launches(groups: Sequence[Group], feedback: Feedback, device: rules.Device) -> list[Launch]:
    """One for all groups whose dtypes are the same, unless they exceed a table."""
    return [
        _launch(chunk, feedback, device, *dtypes)
        for dtypes, kept in of_one_dtype(groups).items()
        for chunk in _chunks(kept)
    ]


def _chunks(groups: list[Group]) -> Iterator[list[Group]]:
    """The groups of each launch."""
    chunk: list[Group] = []
    room = TARGETS
    for group in groups:
        targets = group.targets
        while targets:
            if len(chunk) == GROUPS or room == 0:
                yield chunk
                chunk, room = [], TARGETS
            chunk.append(group._replace(targets=targets[:room]))
            targets = targets[room:]
            room -= len(chunk[-1].targets)
    if chunk:
        yield chunk


def _launch(
    groups: list[Group],
    feedback: Feedback,
    device: rules.Device,
    error_dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Launch:
    compute = error_dtype
    if error_dtype != out_dtype:
        compute = torch.promote_types(error_dtype, out_dtype)
        wide = {id(g.error): g.error.to(compute) for g in groups}
        groups = [g._replace(error=wide[id(g.error)]) for g in groups]
    values, matrix, columns = feedback.values, 0, 0
    if values is not None:
        values = values.to(compute).contiguous()
        matrix, columns = values.data_ptr(), values.shape[1]
    table: list[Any] = [
        rules.compute(compute), rules.DISTRIBUTIONS[feedback.distribution], feedback.seed,
        rules.DTYPES[compute], rules.DTYPES[out_dtype], matrix, columns, len(groups),
    ]  # fmt: skip
    for error, scale, stream, targets in groups:
        height, width = error.shape
        scale = 1.0 if stream == HEAD else scale
        table += [
            height, width, error.data_ptr(), error.stride()[0], stream, scale, len(targets),
        ]  # fmt: skip
        for out, narrow, k, saved, activation in targets:
            code, address, stride = CODES[activation], 0, 0
            if code:
                assert saved is not None, f"{activation} has no saved tensor"
                address, stride = saved.data_ptr(), saved.stride()[0]
            table += [
                k, narrow, out.shape[1], out.data_ptr(), out.stride()[0], code, address, stride,
            ]  # fmt: skip
    return Launch("project", device.ordinal, device.multiprocessors, table, (groups, values))
