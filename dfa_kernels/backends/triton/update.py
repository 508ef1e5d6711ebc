"""`update`: every fused layer's dW and db, or the optimizer's step with them, in one launch.

A gradient is never in memory: see `update_kernel`. Here is what it is started with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.grouped.layout import VECTOR, aligned
from dfa_kernels.backends.grouped.plan import Applied, Grouped
from dfa_kernels.backends.triton import candidates, rules, tuning
from dfa_kernels.backends.triton.constants import DTYPES
from dfa_kernels.backends.triton.launch import Launch, Split
from dfa_kernels.backends.triton.optimizer import COLUMNS, columns
from dfa_kernels.backends.triton.table import bits
from dfa_kernels.backends.triton.update_kernel import SEGMENT, UpdateConstants, update_kernel
from dfa_kernels.feedback import Feedback


def launches(
    rule: str, feedback: Feedback, updates: Sequence[Grouped], device: rules.Device
) -> list[Launch]:
    """One for all updates of the same dtypes, unless their hyperparameters differ too widely."""
    classes: dict[tuple, list[_Chunk]] = {}
    for update in updates:
        here = classes.setdefault((_in_memory(update), *_dtypes(update)), [_Chunk([], set())])
        rows = {_row(rule, a) for a in (update.weight, update.bias) if a}
        if not rows <= here[-1].rows:
            if len(rows | here[-1].rows) > _ROWS and here[-1].updates:
                here.append(_Chunk([], set()))
            here[-1].rows.update(rows)
        here[-1].updates.append(update)
    return [
        _launch(rule, feedback, chunk.updates, dtypes, device)
        for (_, *dtypes), chunks in classes.items()
        for chunk in chunks
    ]


class _Chunk(NamedTuple):
    """Updates of one launch, and their rows of hyperparameters."""

    updates: list[Grouped]
    rows: set[tuple[float, ...]]


_constants = functools.cache(UpdateConstants)

#: Bytes of a row of the weight that are stepped together.
_AT_ONCE = 32

#: The most rows of hyperparameters in one launch: they are kernel parameters.
_ROWS = 32


def _row(rule: str, applied: Applied) -> tuple[float, ...]:
    if rule == "store" or type(applied.hyper) is Tensor:
        return (0.0,) * COLUMNS
    return _columns(rule, tuple(applied.hyper))


def _in_memory(update: Grouped) -> bool:
    return type(update.weight.hyper) is Tensor


#: Most parameters of a step have the same hyperparameters.
_columns = functools.lru_cache(maxsize=_ROWS)(columns)


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
    dtypes: Sequence[torch.dtype | None],
    device: rules.Device,
    tiles: rules.Tiles | None = None,
) -> Launch:
    x, parameter, state, copy, error = dtypes
    assert x is not None and parameter is not None and state is not None
    half, fly = x.itemsize == 2, error is not None
    compute = torch.promote_types(error or x, x)
    sizes: list[tuple[int, int]] = [tuple(u.weight.parameter.shape) for u in updates]  # type: ignore[misc]
    whole = [_whole(u) for u in updates]
    trial = None
    if tiles is None:
        tf32 = rules.precision(x) == "tf32"
        tiles = rules.update_tiles(device, half, tf32, fly, all(whole), sizes)
        if tuning.ENABLED:
            again = functools.partial(_launch, rule, feedback, updates, dtypes, device)
            tiles, trial = _settled(rule, feedback, updates, dtypes, tiles, again)
    rows: dict[tuple[float, ...], int] = {}
    table: list[int] = []
    segments: list[int] = []
    grid = number = most = codes = widest = 0
    for (weight, bias, terms), (height, width), rows_whole in zip(
        updates, sizes, whole, strict=True
    ):
        entries, stride = _entries(rule, weight, rows), weight.parameter.stride()[0]
        blocks = 0
        for t in terms:
            code = CODES[t.activation] if t.error is not None else 0
            codes |= 1 << code
            address, apart, n = t.inputs.data_ptr(), t.inputs.stride()[0], t.inputs.shape[0]
            blocks += -(-n // tiles.n)
            segments += [address, apart, n, t.delta.data_ptr(), t.delta.stride()[0]]
            if t.error is None:
                segments += [0] * (SEGMENT - 5)
                continue
            error_width = t.error.shape[1]
            widest = max(widest, error_width)
            scale = 1.0 if t.stream == HEAD else t.scale / math.sqrt(t.rows)
            segments += [
                t.error.data_ptr(), t.error.stride()[0], error_width, t.stream, code, t.rows,
                bits(scale),
            ]  # fmt: skip
        along_d = -(-height // tiles.d)
        table += [
            grid, along_d, *entries, *_entries(rule, bias, rows), stride, height, width, number,
            len(terms), blocks, rows_whole, 0,
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
        in_memory=_in_memory(updates[0]),
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
        awaits=device.awaits if parts > 1 else "",
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
        trial,
    )


def _settled(
    rule: str,
    feedback: Feedback,
    updates: list[Grouped],
    dtypes: Sequence[torch.dtype | None],
    default: rules.Tiles,
    again: Callable[[rules.Tiles], Launch],
) -> tuple[rules.Tiles, tuning.Trial | None]:
    """The launch's tiles where they have been tried, or the trial."""
    x, error = dtypes[0], dtypes[-1]
    assert x is not None
    weights = [u.weight.parameter for u in updates]
    terms = [t for u in updates for t in u.terms]
    widths = [t.error.shape[1] for t in terms if t.error is not None]
    sizes = tuning.rounded(
        sum(t.inputs.shape[0] for t in updates[0].terms),
        len(updates),
        sum(w.shape[0] for w in weights),
        max(w.shape[1] for w in weights),
        max(widths, default=0),
    )
    whole = all(w.shape[1] * x.itemsize % VECTOR == 0 for w in weights)
    stepped = [a for u in updates for a in (u.weight, u.bias) if a and rule != "store"]
    return tuning.settled(
        "update",
        weights[0].device,
        (rule, *dtypes, feedback.distribution if error else "", rules.precision(x), whole, sizes),
        candidates.update(default, x.itemsize == 2),
        again,
        [t for a in stepped for t in (a.parameter, *a.states, a.copy) if t is not None],
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
    """The parameter's five entries in the table, addresses and its row of hyperparameters, which
    joins ``rows`` unless it is in memory; a state that does not exist is an empty tensor, of
    address 0."""
    if applied is None:
        return [0] * 5
    parameter, states, copy, _ = applied
    addresses = [parameter.data_ptr(), *[s.data_ptr() for s in states], 0, 0][:3]
    row = rows.setdefault(_row(rule, applied), len(rows))
    place = applied.hyper.data_ptr() if type(applied.hyper) is Tensor else row
    return [*addresses, 0 if copy is None else copy.data_ptr(), place]
