"""A step that repeats the last one: the same layers, states and numbers, other tensors beside them.

A training loop takes one and the same step, and between the products of a small network whatever
is looked up and planned anew waits for cold memory. So an optimizer keeps what it found, and uses
it again after it has compared all that anybody may have changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import RULES, LayerUpdate
from dfa_kernels.chain import ChainRecord
from dfa_kernels.pending import PendingGradient, Record

#: A parameter group's hyperparameters.
Row = tuple[Any, ...]


def repeatable(
    records: list[Record], updates: Sequence[LayerUpdate], rows: Sequence[Row]
) -> TypeGuard[list[ChainRecord]]:
    """Whether a step of these records was that of one whole chain, and of nothing but numbers."""
    record = records[0]
    if len(records) > 1 or type(record) is not ChainRecord:
        return False
    if len(updates) < len(record.links) or ops.traced(record.error):
        return False
    return not any(isinstance(number, Tensor) for row in rows for number in row)


class Repeat:
    """The step that was taken for ``record``, the only one then, with ``updates``.

    ``states``: the optimizer's; ``groups``: those of the parameters; ``rows``: their
    hyperparameters.
    """

    def __init__(
        self,
        record: ChainRecord,
        rule: str,
        updates: Sequence[LayerUpdate],
        states: Mapping[Tensor, dict[str, Any]],
        groups: Sequence[dict[str, Any]],
        rows: Sequence[Row],
    ) -> None:
        self.parameters, self.groups, self._rows = record.parameters, groups, rows
        self._links, self._feedback = record.links, record.feedback
        self._rule = rule
        self._updates = [(weight, bias) for weight, bias, _ in updates]
        first = self.parameters[0]
        self._device, self._dtype = first.device, first.dtype
        self._every = list(states.values())
        self._states: list[tuple[dict[str, Any], str, Tensor]] = []
        for p in self.parameters:
            own = states.get(p, {})
            self._states += [(own, name, own[name]) for name in RULES[rule].states if name in own]
        self._step = backends.function("step_", self._device, self._dtype)
        prepare = backends.repeated(self._step)
        self._run: Callable | None = prepare and prepare(self._feedback, rule, updates)

    def fits(
        self, record: Record, states: Mapping[Tensor, dict[str, Any]], rows: Sequence[Row]
    ) -> TypeGuard[ChainRecord]:
        """Whether ``record``, the only one, asks for this step, and nothing has changed."""
        if type(record) is not ChainRecord or record.links is not self._links:
            return False
        error, device, dtype = record.error, self._device, self._dtype
        if record.feedback is not self._feedback or rows != self._rows:
            return False
        if error.dtype is not dtype or error.device != device:
            return False
        for p, known in zip(record.parameters, self.parameters, strict=True):
            pending = p.grad
            if p is not known or type(pending) is not PendingGradient:
                return False
            if pending.start or pending.dense is not None:
                return False
        if len(states) != len(self._every) or not all(map(is_, states.values(), self._every)):
            return False
        for own, name, state in self._states:
            if own.get(name) is not state:
                return False
        if torch.compiler.is_compiling():  # which must see an op
            return False
        return backends.function("step_", device, dtype) is self._step

    def step_(self, record: ChainRecord) -> None:
        """Take it, with the tensors of ``record``."""
        if self._run is not None:
            self._run(record.error, record.inputs, record.saved)
            return
        updates = [
            LayerUpdate(weight, bias, [layer.segment])
            for (weight, bias), layer in zip(self._updates, record.layers, strict=True)
        ]
        self._step(self._feedback, self._rule, updates)
