"""A backend with a slowdown planted in it, to see that `dfa-kernels bench --compare` finds it.

    DFA_PLANTED=1.1 dfa-kernels bench --import bench.planted --contestant planted --out runs/new

The backend "planted" is the reference, and then it waits, busily, so that the whole step takes
DFA_PLANTED times as long (1 where it is not set): a share of the shortest step that it has seen,
from the end of one to the end of the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from dfa_kernels import backends
from dfa_kernels.backends.reference import Reference


class Planted(Reference):
    """``factor``: of the whole step's time."""

    def __init__(self, factor: float, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._factor, self._clock = factor, clock
        self._shortest: float | None = None
        self._ended: float | None = None

    def describe(self) -> str:
        return f"the reference, {self._factor:g} times as slow"

    def unavailable(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "it waits on the CPU's clock"

    def step_(self, *given: object) -> None:
        super().step_(*given)  # type: ignore[arg-type]
        now = self._clock()
        if self._ended is not None:
            took = now - self._ended
            self._shortest = took if self._shortest is None else min(took, self._shortest)
            until = now + (self._factor - 1) * self._shortest
            while now < until:
                now = self._clock()
        self._ended = now


backends.register("planted", Planted(float(os.environ.get("DFA_PLANTED", "1"))))
