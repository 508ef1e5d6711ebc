"""The half of a fused optimizer that ``update="backward"`` is about: the error node asks `plan` in
the forward pass what it needs, and in the backward pass `hyper` for the numbers of the step."""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels import ops
from dfa_kernels.autograd import Plan
from dfa_kernels.backends.contract import RULES
from dfa_kernels.master import Masters
from dfa_kernels.pending import check_unhooked


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
    that its backward pass has updated. An object of its own, since dynamo of torch 2.11 sets no
    attribute of an optimizer."""

    def __init__(self) -> None:
        self.awaiting = False
        self.applied: list[Tensor] = []


def _momenta(groups: list[dict[str, Any]]) -> list[bool]:
    """Of which groups the rule needs a momentum."""
    return [bool(group.get("momentum")) for group in groups]


class UpdatesInBackward(torch.optim.Optimizer):
    """See `fused_update.FusedUpdate`, which has the rest."""

    rule: str
    update: str
    capturable: bool
    _masters: Masters | None
    _fused: set[Tensor]

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
        self._every = list(self.state.values())
        self._held = [
            (own, name, own[name])
            for own in self._every
            for name in RULES[self.rule].states
            if name in own
        ]
        self._momenta = _momenta(self.param_groups)

    def _slot_of(self, parameter: Tensor, group: dict[str, Any]) -> _Slot:
        return _Slot(parameter, group, self._master(parameter), self._states(parameter, group))

    def _leave_turn(self) -> None:
        """No backward pass will come of the forward pass before: there may be another."""
        if not self._turn.applied:
            self._turn.awaiting = False

    def _end_turn(self) -> list[Tensor]:
        """The parameters that the backward pass has updated, whose step this is."""
        applied, self._turn.applied = self._turn.applied, []
        self._turn.awaiting = False
        return applied

    def plan(self, plan: Plan, parameters: list[Tensor]) -> tuple[Plan, list[Tensor | None]]:
        """What the node of a forward pass needs to update ``parameters`` in its backward.

        Raises:
            RuntimeError: a second forward pass since the last `step` or `zero_grad`; a weight
                that comes with two biases, or a bias with two weights; a compiler of a torch before
                2.12.
        """
        if torch.compiler.is_compiling():
            if not UPDATES_COMPILE:
                raise RuntimeError(
                    'update="backward" under torch.compile needs torch 2.12, and this is '
                    f"{torch.__version__}: run it uncompiled, or use torch.optim"
                )
        else:
            self._check_alone()
            self._follow_states()
        if self._turn.awaiting:
            raise RuntimeError(
                'update="backward" allows one forward pass a step, and this is the second since '
                f"{type(self).__name__}.step(): evaluate under torch.no_grad(), leave a pass by "
                'zero_grad(), or use update="step"'
            )
        pairs = {(layer.weight, layer.bias) for layer in plan.layers}
        biases = [bias for _, bias in pairs if bias >= 0]
        if len({weight for weight, _ in pairs}) < len(pairs) or len(set(biases)) < len(biases):
            raise RuntimeError(
                'update="backward" steps a bias with its weight, and here fused layers of '
                "different weights share one, or fused layers of one weight have different biases: "
                'use update="step"'
            )
        self._turn.awaiting = True
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
                if not torch.compiler.is_compiling():
                    self._masters.follow(p, master)
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

    def _follow_states(self) -> None:
        """Notice states that somebody has exchanged, and momentum that began or ended."""
        states = self.state
        if len(states) == len(self._every) and all(map(is_, states.values(), self._every)):
            for own, name, state in self._held:
                if own.get(name) is not state:
                    break
            else:
                if self._momenta == _momenta(self.param_groups):
                    return
        self._prepare_slots()

    def hyper(self, slots: list[int]) -> list[Any]:
        """The rule's table for a backward pass that steps these parameters now.

        Raises:
            RuntimeError: a second backward since the last `step`; a parameter with a hook.
        """
        if self._turn.applied:
            raise RuntimeError(
                'update="backward" applies one backward pass a step, and this is the second '
                f"since {type(self).__name__}.step()"
            )
        chosen = [self._slots[i] for i in slots]
        parameters = [slot.parameter for slot in chosen]
        check_unhooked(parameters)
        made = self._hypers(parameters, [slot.group for slot in chosen])
        self._write_rows(parameters)
        self._turn.applied = parameters
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

    def _check_alone(self) -> None:
        raise NotImplementedError
