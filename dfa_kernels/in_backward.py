"""The half of a fused optimizer that ``update="backward"`` is about.

An eager backward pass leaves its record with `Applied`, which steps by it at once. A compiled one
cannot: its error node asks `plan` in the forward pass what it needs, and in the backward pass
`hyper` for the numbers of the step.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels import ops
from dfa_kernels.autograd import Plan
from dfa_kernels.backends.contract import RULES
from dfa_kernels.master import MASTER, Masters
from dfa_kernels.pending import Ledger, PendingGradient, Receiver, Record, check_unhooked


class _Slot(NamedTuple):
    """What the node needs of a parameter: its master is None where it has none."""

    parameter: Tensor
    group: dict[str, Any]
    master: Tensor | None
    states: tuple[Tensor, ...]


#: Before torch 2.12, AOTAutograd copies what a backward pass has updated into a parameter that
#: requires a gradient, and fails.
UPDATES_COMPILE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)


class _Turn:
    """Where in a step an optimizer is: whether a forward pass has been made, and the parameters
    that its backward pass has updated, if it was a ``compiled`` one before anybody could look. An
    object of its own, since dynamo of torch 2.11 sets no attribute of an optimizer."""

    def __init__(self) -> None:
        self.awaiting = self.compiled = False
        self.applied: list[Tensor] = []


class Applied(Receiver):
    """Has ``optimizer`` step by each record when it comes."""

    def __init__(self, optimizer: UpdatesInBackward) -> None:
        super().__init__()
        self._optimizer = weakref.ref(optimizer)  # or it would live on in every graph

    def expect(self, parameters: list[Tensor]) -> list[int]:
        """How often each has been written to.

        Raises:
            RuntimeError: a second forward pass since the last `step` or `zero_grad`.
        """
        optimizer = self._optimizer()
        assert optimizer is not None, "an optimizer that claims parameters is there"
        optimizer.await_backward()
        return [p._version for p in parameters]

    def add(self, record: Record, expected: list[int]) -> None:
        """Step.

        Raises:
            RuntimeError: a parameter was written to since the forward pass; the optimizer is gone;
                a second backward pass since the last `step`; a parameter with a hook, or with a
                gradient.
        """
        if [p._version for p in record.parameters] != expected:
            raise RuntimeError(
                'update="backward" has stepped since this forward pass, or somebody has written to '
                "its parameters: have one forward and one backward pass a step, or use "
                'update="step"'
            )
        optimizer = self._optimizer()
        if optimizer is None:
            raise ops.no_optimizer()
        optimizer.apply(record)


def _has_momentum(group: dict[str, Any]) -> bool:
    """Whether the rule needs a momentum of its parameters."""
    return bool(group.get("momentum"))


class UpdatesInBackward(torch.optim.Optimizer):
    """See `fused_update.FusedUpdate`, which has the rest."""

    rule: str
    update: str
    capturable: bool
    ledger: Ledger
    _masters: Masters | None
    _fused: dict[Tensor, str]

    def _start_turns(self) -> None:
        self._turn = _Turn()
        self._handle = ops.provide_hyper(self)

    def _prepare_slots(self) -> None:
        """Made beforehand, so that a traced forward pass only reads them."""
        self._slots: list[_Slot] = []
        self._slot_by_id: dict[int, int] = {}
        if self.update != "backward":
            return
        self._slots = [
            self._slot_of(p, group)
            for group in self.param_groups
            for p in group["params"]
            if p in self._fused
        ]
        self._slot_by_id = {id(slot.parameter): i for i, slot in enumerate(self._slots)}
        states = self.state
        self._held = [
            (slot.parameter, name, states[slot.parameter][name])
            for slot in self._slots
            for name in (*RULES[self.rule].states, MASTER)
            if name in states.get(slot.parameter, ())
        ]
        groups = {id(slot.group): slot.group for slot in self._slots}
        self._momenta = [(group, _has_momentum(group)) for group in groups.values()]

    def _slot_of(self, parameter: Tensor, group: dict[str, Any]) -> _Slot:
        return _Slot(parameter, group, self._master(parameter), self._states(parameter, group))

    def _name_of(self, parameter: Tensor) -> str:
        """The name of the layer that it was of."""
        return self._fused[parameter]

    def _leave_turn(self) -> None:
        """No backward pass will come of the forward pass before: there may be another."""
        if not self._turn.applied:
            self._turn.awaiting = False

    def _end_turn(self) -> int:
        """This is the step of what the backward pass has updated: how many parameters.

        Raises:
            RuntimeError: one of them has got a gradient too.
        """
        turn = self._turn
        for p in turn.applied:
            if type(p.grad) is not PendingGradient or p.grad.dense is not None:
                _check_without_gradient([p])
        for p in turn.applied:
            p.grad = None
        applied, turn.applied = turn.applied, []
        self._advance(applied, self._counts_of(applied))
        if turn.compiled and self._masters is not None:
            self._masters.wrote(applied)
        turn.awaiting = turn.compiled = False
        return len(applied)

    def check_plan(self, plan: Plan) -> None:
        """Refuse a forward pass that this optimizer cannot update the parameters of.

        Raises:
            RuntimeError: under a compiler, with ``update="step"`` or a torch before 2.12; with
                ``update="backward"``, a weight that comes with two biases, or a bias with two
                weights.
        """
        if self.update == "step":
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    f"dfa_kernels.optim.{type(self).__name__} leaves records behind, which a "
                    'compiled backward cannot: construct it with update="backward", or use '
                    "torch.optim"
                )
            return
        if torch.compiler.is_compiling() and not UPDATES_COMPILE:
            raise RuntimeError(
                'update="backward" under torch.compile needs torch 2.12, and this is '
                f"{torch.__version__}: run it uncompiled, or use torch.optim"
            )
        pairs = {(layer.weight, layer.bias) for layer in plan.layers}
        biases = [bias for _, bias in pairs if bias >= 0]
        if len({weight for weight, _ in pairs}) < len(pairs) or len(set(biases)) < len(biases):
            raise RuntimeError(
                'update="backward" steps a bias with its weight, and here fused layers of '
                "different weights share one, or fused layers of one weight have different biases: "
                'use update="step"'
            )

    def await_backward(self) -> None:
        """A forward pass is made, whose backward pass may be the step's.

        Raises:
            RuntimeError: the second since the last `step` or `zero_grad`.
        """
        if self._turn.awaiting:
            raise RuntimeError(
                'update="backward" allows one forward pass a step, and this is the second since '
                f"{type(self).__name__}.step(): evaluate under torch.no_grad(), leave a pass by "
                'zero_grad(), or use update="step"'
            )
        self._turn.awaiting = True

    def apply(self, record: Record) -> None:
        """Step, in the backward pass, by what it leaves.

        Raises:
            RuntimeError: see `_check_turn`.
        """
        self._check_turn(record.parameters)
        recording = torch.is_grad_enabled()  # backward(create_graph=True)
        torch._C._set_grad_enabled(False)
        try:
            self._turn.applied = self._take([record])
        finally:
            torch._C._set_grad_enabled(recording)
        if self._masters is not None:
            self._masters.wrote(self._turn.applied)
        for p in self._turn.applied:
            self.ledger.put(p, record.name_of).dense = None

    def _check_turn(self, parameters: list[Tensor]) -> None:
        """Refuse a backward pass that cannot be the step's.

        Raises:
            RuntimeError: the second since the last `step`; a parameter with a hook, or with a
                gradient.
        """
        if self._turn.applied:
            raise RuntimeError(
                'update="backward" applies one backward pass a step, and this is the second '
                f"since {type(self).__name__}.step()"
            )
        check_unhooked(parameters)
        _check_without_gradient(parameters)

    # Under torch.compile ---------------------------------------------------------------------

    def plan(self, plan: Plan, parameters: list[Tensor]) -> tuple[Plan, list[Tensor | None]]:
        """What the node of a traced forward pass needs to update ``parameters`` in its backward.

        Raises:
            RuntimeError: see `await_backward`.
        """
        self.await_backward()
        slots: list[int] = []
        rest: list[Tensor | None] = []
        for p in parameters:
            slots.append(self._slot(p))
            _, _, master, states = self._slots[slots[-1]]
            if self._masters is None:
                rest += (p.detach(), *states)
            elif master is None:
                rest += (p.detach(), *states, None)
            else:
                rest += (master, *states, p.detach())
        plan = plan._replace(
            update="backward", rule=self.rule, handle=self._handle, slots=tuple(slots),
            copies=self._masters is not None, capturable=self.capturable,
        )  # fmt: skip
        return plan, rest

    def _slot(self, parameter: Tensor) -> int:
        slot = self._slot_by_id.get(id(parameter))
        if slot is not None:
            return slot
        raise RuntimeError(
            f"a fused parameter of shape {tuple(parameter.shape)} is none of those that "
            f"{type(self).__name__} was constructed with"
        )

    def _follow_states(self) -> bool:
        """Notice states that somebody has exchanged, and momentum that began or ended."""
        states = self.state
        none: dict[str, Any] = {}
        exchanged = any(states.get(p, none).get(name) is not held for p, name, held in self._held)
        if exchanged or any(_has_momentum(group) != had for group, had in self._momenta):
            self._prepare_slots()
            return True
        return False

    def hyper(self, slots: list[int]) -> list[Any]:
        """The rule's table for a compiled backward pass that steps these parameters now.

        Raises:
            RuntimeError: the groups or the states are no longer those that the forward pass knew;
                and see `_check_turn`.
        """
        if self._follow_groups() or self._follow_states():
            raise RuntimeError(
                f"the groups or states of this {type(self).__name__} were exchanged, or a momentum "
                "began or ended, and the compiled forward pass knows those before: zero_grad(), "
                "and run it again"
            )
        chosen = [self._slots[i] for i in slots]
        parameters = [slot.parameter for slot in chosen]
        self._check_turn(parameters)
        if self._masters is not None:
            for parameter, _, master, _ in chosen:
                if master is not None:
                    self._masters.follow(parameter, master)
        made = self._hypers(parameters, [slot.group for slot in chosen])
        self._write_rows(parameters)
        self._turn.applied = parameters
        self._turn.compiled = True
        for p in parameters:
            self.ledger.put(p, self._name_of).dense = None
        return made

    # What `FusedUpdate` defines ------------------------------------------------------------

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _master(self, parameter: Tensor) -> Tensor | None:
        raise NotImplementedError

    def _hypers(self, parameters: list[Tensor], groups: list[dict[str, Any]]) -> list[Any]:
        raise NotImplementedError

    def _write_rows(self, parameters: list[Tensor]) -> None:
        raise NotImplementedError

    def _follow_groups(self) -> bool:
        raise NotImplementedError

    def _counts_of(self, parameters: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _advance(self, parameters: list[Tensor], counts: list[Tensor]) -> None:
        raise NotImplementedError

    def _take(self, records: list[Record]) -> list[Tensor]:
        raise NotImplementedError


def _check_without_gradient(parameters: list[Tensor]) -> None:
    """What a backward pass has updated, or is about to, has no gradient beside, which would be
    stepped apart from it."""
    for p in parameters:
        if p.grad is not None:
            raise RuntimeError(
                f"a fused parameter of shape {tuple(p.shape)} has a gradient too, of another use "
                'or an earlier backward pass, which update="backward" cannot add to what it '
                'applies: set it to None before, as zero_grad() does, or use update="step"'
            )
