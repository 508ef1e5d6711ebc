"""AdamW's step counts: a tensor for each parameter, as torch.optim has them, counted in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_

import torch
from torch import Tensor


class Counts:
    """Counts on the CPU. Those that are made together are elements of one tensor: where a step
    counts all of them, as most steps do, it reads and adds once."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self._make(values)
        self._left: Iterator[Tensor] = iter(())

    def start(self, expected: int) -> Tensor:
        """One that is 0; ``expected``: how many parameters there are."""
        made = next(self._left, None)
        if made is None:
            self._make([0.0] * expected)
            self._left = iter(self.each)
            made = next(self._left)
        return made

    def read(self, counts: list[Tensor]) -> list[float]:
        """Their values."""
        return self._all.tolist() if self._are_all(counts) else list(map(float, counts))

    def add(self, counts: list[Tensor]) -> None:
        """Add 1 to each."""
        if self._are_all(counts):
            self._all.add_(1)
        else:
            torch._foreach_add_(counts, 1)

    def _are_all(self, counts: list[Tensor]) -> bool:
        return len(counts) == len(self.each) and all(map(is_, counts, self.each))

    def _make(self, values: Sequence[float]) -> None:
        self._all = torch.tensor(values, dtype=torch.float32)
        self.each = list(self._all.unbind())
