"""What a part of `bench.gpu` works with: where it runs, how long it may, and where its rows go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from bench.gpu.rows import Row

_T = TypeVar("_T")


@dataclass
class Context:
    """``tiny``: a rehearsal on the CPU, where Triton's interpreter runs the kernels; ``seconds``:
    this part's; ``emit``: takes each row as soon as it is there."""

    device: torch.device
    tiny: bool
    seconds: float
    emit: Callable[[Row], None]
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    def pick(self, full: _T, tiny: _T) -> _T:
        """A shape, or the one that stands in for it in a rehearsal."""
        return tiny if self.tiny else full

    @property
    def least(self) -> int:
        """Rounds at the least."""
        return self.pick(9, 1)

    @property
    def compiler(self) -> str:
        """torch.compile's backend."""
        return self.pick("inductor", "aot_eager")

    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - self.clock())

    def share(self, among: int, most: float = 1.5) -> float:
        """Seconds for each of ``among`` measurements, half of the part's going into compilation."""
        return 0.0 if self.tiny else min(most, self.seconds / among / 2)

    def say(self, text: str) -> None:
        """A sentence for the report."""
        self.emit({"kind": "note", "text": text})
