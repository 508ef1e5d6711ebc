"""A step that repeats the last one: the same layers and states, other numbers and tensors.

A training loop takes one and the same step, and between the products of a small network whatever
is looked up and planned anew waits for cold memory. So an optimizer keeps what it found, and uses
it again after it has compared all that anybody may have changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import RULES, LayerUpdate, Repeated, distinct_rows
from dfa_kernels.capturable import capturing
from dfa_kernels.master import MASTER
from dfa_kernels.pending import PendingGradient, Record

if TYPE_CHECKING:
    from dfa_kernels.fused_update import FusedUpdate

#: A row of a rule's table.
Row = tuple[float, ...]


def repeatable(
    records: list[Record], stepped: list[Tensor], updates: Sequence[LayerUpdate]
) -> bool:
    """Whether a step of these records was of one, of layers that ran once each, and stepped all of
    its parameters."""
    record = records[0]
    if len(records) > 1 or ops.traced(record.error) or len(updates) < len(record.plans):
        return False
    return len(stepped) == len(record.parameters)


def kind(updates: Sequence[LayerUpdate]) -> list[Row]:
    """What steps that repeat each other have in common of their hyperparameters: all but the
    learning rate, which a schedule changes, and the rule's last, which may count."""
    rows, _ = distinct_rows(updates)
    return [tuple(row[1:-1]) for row in rows]


class Repeat:
    """The step of ``optimizer`` that was taken for ``record``, the only one then, with
    ``updates``."""

    def __init__(
        self, optimizer: FusedUpdate, record: Record, updates: Sequence[LayerUpdate]
    ) -> None:
        self.parameters = record.parameters
        self.counts = optimizer._counts_of(record.parameters)
        self._plans, self._feedback = record.plans, record.feedback
        self._known = Repeated.of(updates)
        self._device, self._dtype = record.error.device, record.error.dtype
        self._on_gpu = self._device.type == "cuda"
        self._stepped = updates[0].weight.parameter.dtype
        self._dtypes = [p.dtype for p in self.parameters]

        #: What the parameters have in the place of their gradients.
        self._gradient = PendingGradient if optimizer.update == "step" else type(None)

        # Whose row each distinct one is, and which of them each parameter has.
        self._rows, row_of = distinct_rows(updates)
        self._kind = kind(updates)
        self._owners = [row_of.index(r) for r in range(len(self._rows))]
        self._owner_of = [self._owners[r] for r in row_of]
        # What the rows were made from last.
        self._given: list[tuple[Any, ...]] | None = None
        self._lasts: list[float] = []
        self._groups = [optimizer._groups[id(self.parameters[i])] for i in self._owners]

        states = optimizer.state
        self._every = list(states.values())
        self._states: list[tuple[dict[str, Any], str, Tensor]] = []
        names = (*RULES[optimizer.rule].states, "step", MASTER)
        for p in self.parameters:
            own = states.get(p, {})
            self._states += [(own, name, own[name]) for name in names if name in own]

        self._rule = optimizer.rule
        self._step = backends.function("step_", self._device, self._stepped)
        prepare = backends.repeated(self._step)
        self._run: Callable | None = prepare and prepare(self._feedback, self._rule, updates)

    def rows(self, record: Record, optimizer: FusedUpdate) -> list[Row] | None:
        """The distinct rows of the step that ``record``, the only one, asks for; None where that
        is not this step, or anything has changed."""
        if record.plans is not self._plans or record.feedback is not self._feedback:
            return None
        device = self._device
        if record.error.device != device or record.error.dtype is not self._dtype:
            return None
        if not optimizer.ledger.plain:
            return None
        for p, known, dtype in zip(record.parameters, self.parameters, self._dtypes, strict=True):
            if p is not known or p.dtype is not dtype or type(p.grad) is not self._gradient:
                return None
        states = optimizer.state
        if len(states) != len(self._every) or not all(map(is_, states.values(), self._every)):
            return None
        for own, name, state in self._states:
            if own.get(name) is not state:
                return None
        masters = optimizer._masters
        if masters is not None and not masters.are_true(self.parameters):
            return None
        record.check()
        if self._on_gpu and capturing(device):  # a graph whose replays would count no steps
            return None
        if backends.function("step_", device, self._stepped) is not self._step:
            return None
        given = [optimizer._row(group) for group in self._groups]
        lasts = optimizer._lasts(self.parameters, self.counts)
        if lasts == self._lasts and given == self._given:
            return self._rows
        return self._rows_of(given, lasts)

    def _rows_of(self, given: list[tuple[Any, ...]], lasts: list[float]) -> list[Row] | None:
        """The rows of the groups' numbers and each parameter's last; None where others share them
        now, or more of them has changed than may."""
        if lasts != [lasts[i] for i in self._owner_of]:
            return None
        rows = []
        for numbers, i, before in zip(given, self._owners, self._kind, strict=True):
            row = tuple(map(float, (*numbers, lasts[i])))
            if row[1:-1] != before:
                return None
            rows.append(row)
        # A tensor may have other values next time.
        tensors = any(isinstance(number, Tensor) for numbers in given for number in numbers)
        self._given, self._lasts = None if tensors else given, lasts
        return self._rows if rows == self._rows else rows

    def step_(self, record: Record, rows: list[Row]) -> None:
        """Take it, with the tensors of ``record`` and its `rows`."""
        self._rows = rows
        given = record.error, record.inputs, record.saved, rows
        if self._run is not None:
            self._run(*given)
        else:
            self._step(self._feedback, self._rule, self._known.whole(*given))
