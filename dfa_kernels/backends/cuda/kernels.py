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
from dfa_kernels.backends.current import current
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
        if self._run_plainly(feedback, "store", updates):
            return made
        del made, updates  # what was for nothing shall not lie beside what is made now
        return super().gradients(error, feedback, scale, layers, dtype)

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        counted: list[Tensor] = []
        if self._run_plainly(feedback, rule, updates, counted=counted):
            increment_version(counted)
        else:
            super().step_(feedback, rule, updates)

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> Callable[..., None] | None:
        """As in `contract.Backend`: csrc/plain.h reads each step's tensors and rows beside the
        updates that hold none."""
        if any(type(row) is Tensor for row in distinct_rows(updates)[0]):
            return None
        known, by_python = Repeated.of(updates), super().step_
        counted = written(updates)

        def run(
            error: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor], rows: list
        ) -> None:
            given = error, tuple(inputs), tuple(saved), rows
            if self._run_plainly(feedback, rule, known.updates, given):
                increment_version(counted)
            else:
                by_python(feedback, rule, known.whole(*given))

        return run

    def _run_plainly(
        self,
        feedback: Feedback,
        rule: str,
        updates: Sequence[LayerUpdate],
        repeated: tuple | None = None,
        counted: list[Tensor] | None = None,
    ) -> bool:
        """Whether it could be. ``counted``: what it has written to is added to it."""
        if not updates or self._exchange is None:
            return False
        weight, _, segments = updates[0]
        device = weight.parameter.device
        if repeated is not None:
            full = repeated[0].dtype is torch.float32
        else:
            full = bool(segments) and segments[0].error.dtype is torch.float32
        ordinal, multiprocessors, is_gpu = rules.device_of(device)
        stream = stream_of(ordinal) if is_gpu else 0
        numbers = [
            ordinal, stream, multiprocessors, not is_gpu,
            rules.DISTRIBUTIONS[feedback.distribution], feedback.seed, rules.RULES[rule],
            full and tf32_allowed(), rules.widest_input(),
        ]  # fmt: skip
        scratch = self._launcher.scratch(device, stream)
        given = numbers, self._exchange, feedback.values, updates
        with current(device):
            return self._plain(*given, CODES, _COLUMNS[rule], scratch, repeated, counted)
