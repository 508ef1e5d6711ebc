"""Starting the kernels: the stream, and the scratch of sums over N that are split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """A kernel's name, and the list that `csrc/binding.cpp` makes its table from, after the device,
    the stream and the multiprocessors; ``kept``: what the addresses in it belong to."""

    kernel: str
    device: int
    multiprocessors: int
    table: list[Any]
    kept: Any


class Launcher:
    """Runs launches in their order, on the current stream of a device."""

    def __init__(self, core: Any) -> None:
        self._project, self._update = core.project, core.update
        # Of every device and stream: zeros, which each launch leaves as it found them.
        self._arrived: dict[tuple[torch.device, int], Tensor] = {}

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        """Start them.

        Raises:
            ValueError: what csrc/binding.cpp refuses.
            RuntimeError: what CUDA says, by its name.
        """
        for kernel, index, multiprocessors, table, _ in launches:
            stream = stream_of(device, index)
            numbers = [index, stream, multiprocessors, *table]
            if kernel == "project":
                self._project(numbers)
            else:
                self._update(numbers, self.scratch(device, stream))

    def scratch(self, device: torch.device, stream: int) -> Callable[[int, int], tuple[int, int]]:
        """What gives a launch of `update` its scratch, and holds it until that is in the stream,
        which orders whatever uses the memory next."""
        held: list[Tensor] = []

        def give(floats: int, tiles: int) -> tuple[int, int]:
            partial = torch.empty(floats, device=device)
            arrived = self._counters(tiles, device, stream)
            held.extend((partial, arrived))
            return partial.data_ptr(), arrived.data_ptr()

        return give

    def _counters(self, tiles: int, device: torch.device, stream: int) -> Tensor:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return torch.zeros(tiles, dtype=torch.int32, device=device)  # the graph's own
        kept = self._arrived.get((device, stream))
        if kept is None or len(kept) < tiles:
            kept = torch.zeros(max(tiles, 256), dtype=torch.int32, device=device)
            self._arrived[device, stream] = kept
        return kept


def stream_of(device: torch.device, index: int) -> int:
    """The current stream's handle."""
    return torch._C._cuda_getCurrentRawStream(index) if device.type == "cuda" else 0
