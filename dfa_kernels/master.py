"""fp32 masters of an optimizer's bf16 and fp16 parameters.

A bf16 weight loses every change below 2⁻⁹ of itself. With ``master_weights=True`` the optimizer
steps an fp32 master, with fp32 states, and the parameter is its rounded copy: of a fused layer
written in the same pass, of anything else by torch.optim's step on the master and a copy after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dfa_kernels.capturable import refuse_while_capturing

#: The master's name in the parameter's optimizer state.
MASTER = "master"

_LOW = (torch.bfloat16, torch.float16)


class Masters:
    """Makes the masters, and keeps them true to their parameters.

    A parameter that somebody wrote to since the last step (a checkpoint that was loaded, weights
    that were clipped) is seen by its version, and its master follows it there. What is written
    through ``p.data`` leaves the version as it is.
    """

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}

    def of(self, parameter: Tensor, state: dict[str, Any]) -> Tensor | None:
        """The master in the parameter's ``state``, made where it is missing; None for a parameter
        that needs none."""
        if parameter.dtype not in _LOW:
            return None
        if MASTER not in state:
            refuse_while_capturing(parameter, "the master")
            state[MASTER] = parameter.detach().float()
            self._versions[id(parameter)] = parameter._version
        return state[MASTER]

    def follow(self, parameter: Tensor, master: Tensor) -> None:
        """Where the parameter is no longer its master rounded, it is the master."""
        if self._versions.get(id(parameter)) == parameter._version:
            return
        given = parameter.detach()
        same = master.to(given.dtype) == given
        master.copy_(torch.where(same, master, given.float()))
        self.wrote([parameter])

    def are_true(self, parameters: Iterable[Tensor]) -> bool:
        """Whether nobody has written to any of these since."""
        return all(self._versions.get(id(p)) == p._version for p in parameters)

    def wrote(self, parameters: Iterable[Tensor]) -> None:
        """The optimizer has written these."""
        for p in parameters:
            self._versions[id(p)] = p._version

    @contextmanager
    def stepped(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within, the masters are the optimizer's parameters, with the gradients that there are;
        after it, the parameters are their rounded copies."""
        by: dict[Tensor, Tensor] = {}
        for p in _parameters(optimizer):
            state = optimizer.state[p] if p.grad is not None else {}
            if p.grad is not None and (master := self.of(p, state)) is not None:
                self.follow(p, master)
                del state[MASTER]  # an empty state is how torch knows a first step
                master.grad = p.grad.float()
                by[p] = master
        try:
            with _replaced(optimizer, by):
                yield
        finally:
            for p, master in by.items():
                master.grad = None
                optimizer.state[p][MASTER] = master
                p.copy_(master)
            self.wrote(by)

    @contextmanager
    def loaded(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within, `load_state_dict` takes every bf16 and fp16 parameter for an fp32 one, and so
        casts none of its states to less."""
        self._versions.clear()
        low = [p for p in _parameters(optimizer) if p.dtype in _LOW]
        with _replaced(optimizer, {p: p.new_empty(0, dtype=torch.float32) for p in low}):
            yield


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@contextmanager
def _replaced(optimizer: torch.optim.Optimizer, by: dict[Tensor, Tensor]) -> Iterator[None]:
    """Within, ``by[p]`` is the optimizer's parameter in the place of p, and has its state."""
    _replace(optimizer, by)
    try:
        yield
    finally:
        _replace(optimizer, {stand_in: p for p, stand_in in by.items()})


def _replace(optimizer: torch.optim.Optimizer, by: dict[Tensor, Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"][:] = [by.get(p, p) for p in group["params"]]
    for p, stand_in in by.items():
        if p in optimizer.state:
            optimizer.state[stand_in] = optimizer.state.pop(p)
