"""The grouped backend with the kernels of csrc/.

What is made of plain tensors, as most steps are, is planned by csrc/plain.h in microseconds;
whatever else there is, and all that must be refused, by dfa_kernels/backends/grouped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import (
    Layer,
    LayerUpdate,
    Repeated,
    Segment,
    Update,
    distinct_rows,
    written,
)
from dfa_kernels.backends.cuda import project, rules, update
from dfa_kernels.backends.cuda.launch import Launcher, stream_of
from dfa_kernels.backends.grouped import backend
from dfa_kernels.backends.grouped.hyper import COLUMNS
from dfa_kernels.backends.tf32 import tf32_allowed
from dfa_kernels.feedback import Feedback

_COLUMNS = {
    "store": lambda _: (0.0,) * COLUMNS,
    **{rule: functools.partial(update.columns_of, rule) for rule in ("sgd", "adamw")},
}
_NONE: tuple[()] = ()


class Kernels(backend.Kernels):
    """The three functions of `contract.Backend`; ``core``: the compiled module."""

    def __init__(self, core: Any) -> None:
        super().__init__(project, update, rules, Launcher(core))
        self._plain = core.plain_step
        self._exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.10

    def gradients(
        self,
        error: Tensor,
        feedback: Feedback,
        scale: float,
        layers: Sequence[Layer],
        dtype: torch.dtype,
    ) -> list[tuple[Tensor, Tensor]]:
        made: list[tuple[Tensor, Tensor]] = []
        updates: list[LayerUpdate] = []
        for layer in layers:
            height, width = layer.saved.shape[1], layer.inputs.shape[1]
            weight = error.new_empty((height, width), dtype=dtype)
            bias = error.new_empty(height, dtype=dtype)
            made.append((weight, bias))
            segment = Segment(error, scale, layer)
            stored = Update(weight, (), _NONE), Update(bias, (), _NONE)
            updates.append(LayerUpdate(*stored, [segment]))
        if updates and self._start(_known(feedback, "store", updates), updates):
            return made
        del made, updates  # what was for nothing shall not lie beside what is made now
        return super().gradients(error, feedback, scale, layers, dtype)

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        counted: list[Tensor] = []
        if updates and self._start(_known(feedback, rule, updates), updates, None, counted):
            increment_version(counted)
        else:
            super().step_(feedback, rule, updates)

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> Callable[..., None] | None:
        """As in `contract.Backend`: csrc/plain.h reads each step's tensors and rows beside the
        updates that hold none."""
        if not updates or any(type(row) is Tensor for row in distinct_rows(updates)[0]):
            return None
        known, by_python = Repeated.of(updates), super().step_
        shared, counted = _known(feedback, rule, updates), written(updates)

        def run(
            error: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor], rows: list
        ) -> None:
            given = error, tuple(inputs), tuple(saved), rows
            if self._start(shared, known.updates, given):
                increment_version(counted)
            else:
                by_python(feedback, rule, known.whole(*given))

        return run

    def _start(
        self,
        known: tuple,
        updates: Sequence[LayerUpdate],
        repeated: tuple | None = None,
        counted: list[Tensor] | None = None,
    ) -> bool:
        """Whether C++ has taken ``updates`` as they are, of which `_known` knows the rest.
        ``counted``: what it has written to is added to it."""
        if self._exchange is None:
            return False
        (device, ordinal, multiprocessors, is_gpu), values, codes, columns, full = known
        stream = stream_of(ordinal) if is_gpu else 0
        numbers = [
            ordinal, stream, multiprocessors, not is_gpu, *codes,
            full and tf32_allowed(), rules.widest_input(),
        ]  # fmt: skip
        scratch = self._launcher.scratch(device, ordinal, stream)
        given = (
            numbers, self._exchange, values, updates, CODES, columns, scratch, repeated, counted,
        )  # fmt: skip
        if is_gpu and torch.cuda.current_device() != ordinal:  # as `current`, for less
            with torch.cuda.device(device):
                return self._plain(*given)
        return self._plain(*given)


def _known(feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> tuple:
    """What a step has in common with its repetitions, as `Kernels._start` takes it: where it runs,
    a user's B, the codes of what else B and the rule are, its rows' columns, and whether the error
    is of fp32."""
    weight, _, segments = updates[0]
    device = weight.parameter.device
    ordinal, multiprocessors, is_gpu = rules.device_of(device)
    return (
        (device, ordinal, multiprocessors, is_gpu),
        feedback.values,
        (rules.DISTRIBUTIONS[feedback.distribution], feedback.seed, rules.RULES[rule]),
        _COLUMNS[rule],
        bool(segments) and segments[0].error.dtype is torch.float32,
    )
