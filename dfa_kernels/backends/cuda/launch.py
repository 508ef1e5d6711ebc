"""Starting the kernels: the stream, and scratch for δ and for sums over N that are split."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dfa_kernels.backends.current import current

#: Floats that are kept from one step to the next: to allocate them costs a small step a fifth of
#: its time on the host.
KEPT = 1 << 20


class Launch(NamedTuple):
    """A kernel's name, and the list that `csrc/binding.cpp` makes its table from, after the device,
    the stream and the multiprocessors; ``kept``: what the addresses in it belong to."""

    kernel: str
    device: int
    multiprocessors: int
    table: list[Any]
    kept: Any


class Launcher(threading.local):
    """Runs launches in their order, on the current stream of a device. Each thread has its own
    scratch: another's launches may come between two of a step."""

    def __init__(self, core: Any) -> None:
        self._project, self._update = core.project, core.update
        self._scratch: dict[tuple[int, int], Scratch] = {}

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        """Start them.

        Raises:
            ValueError: what csrc/binding.cpp refuses.
            RuntimeError: what CUDA says, by its name.
        """
        with current(device):
            for kernel, index, multiprocessors, table, _ in launches:
                stream = stream_of(index) if device.type == "cuda" else 0
                numbers = [index, stream, multiprocessors, *table]
                if kernel == "project":
                    self._project(numbers)
                else:
                    self._update(numbers, self.scratch(device, index, stream))

    def scratch(self, device: torch.device, ordinal: int, stream: int) -> Scratch:
        """What gives launches on a stream of a device, by its number too, their scratch."""
        found = self._scratch.get((ordinal, stream))
        if found is None:
            found = self._scratch[ordinal, stream] = Scratch(device)
        return found


class Scratch:
    """Memory of launches on one stream, whose order lets each use what the last one did."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._floats = torch.empty(0, device=device, dtype=torch.float32)
        self.counters = torch.empty(0, device=device, dtype=torch.int32)
        self._sizes = self._addresses = (0, 0)

    def __call__(self, floats: int, counters: int) -> tuple[int, int, Any]:
        """Addresses of so many floats, and counters that are 0 before a launch and after it; and
        what is to be held until the launches are in the stream."""
        capturing = self._on_gpu and torch.cuda.is_current_stream_capturing()
        if floats > KEPT or capturing:  # a graph has its own
            made = torch.empty(floats, device=self._device, dtype=torch.float32)
            if not capturing:
                self._grow(0, counters)
                return made.data_ptr(), self._addresses[1], made
            zeros = torch.zeros(counters, device=self._device, dtype=torch.int32)
            return made.data_ptr(), zeros.data_ptr(), (made, zeros)
        if floats > self._sizes[0] or counters > self._sizes[1]:
            self._grow(floats, counters)
        return *self._addresses, None

    def _grow(self, floats: int, counters: int) -> None:
        if floats > len(self._floats):
            self._floats = torch.empty(floats, device=self._device, dtype=torch.float32)
        if counters > len(self.counters):
            count = max(counters, 256)
            self.counters = torch.zeros(count, device=self._device, dtype=torch.int32)
        self._sizes = len(self._floats), len(self.counters)
        self._addresses = self._floats.data_ptr(), self.counters.data_ptr()


def stream_of(gpu: int) -> int:
    """The current stream's handle, of a GPU by its number."""
    return torch._C._cuda_getCurrentRawStream(gpu)
