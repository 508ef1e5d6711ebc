"""Starting the kernels: tables and scratch on the device, and compilation before any of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dfa_kernels.backends.current import current
from dfa_kernels.backends.triton import tuning
from dfa_kernels.backends.triton.table import Tables


class Split(NamedTuple):
    """The scratch of a sum over N in ``parts``: tiles, parts, and a tile's height and width."""

    tiles: int
    parts: int
    height: int
    width: int


class Launch(NamedTuple):
    """A kernel, its programs, the entries of its table, and what it is compiled for; `update`'s
    hyperparameters and scratch; the trial that finds its tiles, where they are to be found; and
    what else an address in the table belongs to."""

    kernel: Any
    grid: int
    table: list[int]
    constants: Any
    options: dict[str, int]
    hyper: tuple[float, ...] | None = None
    split: Split | None = None
    trial: tuning.Trial | None = None
    kept: Any = None


class Ready(NamedTuple):
    """A launch whose kernel is compiled, and its table on the device."""

    launch: Launch
    table: Tensor


class Launcher:
    """Runs launches in their order, on the current stream of a device."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._compiled: set[tuple] = set()
        # Of every device and stream: zeros, which each launch leaves as it found them.
        self._arrived: dict[tuple[torch.device, int], Tensor] = {}
        self._nothing: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        """Compile whatever is new, and only then start the first.

        Raises:
            what Triton raises where a kernel cannot be compiled or started; nothing has been
            changed then by a launch that comes after.
        """
        with current(device):
            for ready, arguments in self._compiled_ones(launches, device):
                launch = ready.launch
                if launch.trial is None:
                    _start(launch, arguments)
                else:
                    prepare = functools.partial(self._prepared, device)
                    prepare(tuning.fastest(launch, device, prepare))()

    def first(self, launches: Sequence[Launch], device: torch.device) -> list[Ready]:
        """`run` launches without trials, to start them `again`."""
        with current(device):
            every = self._compiled_ones(launches, device)
            for (launch, _), arguments in every:
                _start(launch, arguments)
        return [ready for ready, _ in every]

    def again(self, every: Sequence[Ready], hyper: tuple[float, ...], device: torch.device) -> None:
        """Start them with other hyperparameters, on the stream that they were made ready on."""
        with current(device):
            if device.type == "cuda":
                triton.set_allocator(_allocate)
            for launch, table in every:
                if launch.hyper is not None:
                    padding = len(launch.hyper) - len(hyper)
                    launch = launch._replace(hyper=hyper + (0.0,) * padding)
                _start(launch, self._arguments(Ready(launch, table), device))

    def _compiled_ones(
        self, launches: Sequence[Launch], device: torch.device
    ) -> list[tuple[Ready, tuple]]:
        """Those that have programs, with their arguments."""
        every = [self._ready(launch, device) for launch in launches if launch.grid]
        made = [(ready, self._arguments(ready, device)) for ready in every]
        if device.type == "cuda":
            triton.set_allocator(_allocate)
            for (launch, _), arguments in made:
                self._compile(launch, arguments)
        return made

    def _ready(self, launch: Launch, device: torch.device) -> Ready:
        return Ready(launch, self._tables.get(launch.table, device))

    def _prepared(self, device: torch.device, launch: Launch) -> Callable[[], None]:
        """Starts it, compiled."""
        arguments = self._arguments(self._ready(launch, device), device)
        if device.type == "cuda":
            self._compile(launch, arguments)
        return functools.partial(_start, launch, arguments)

    def _arguments(self, ready: Ready, device: torch.device) -> tuple:
        launch, table = ready
        if launch.hyper is None or launch.split is None:
            return (table,)
        return (table, launch.hyper, *self._scratch(launch.split, device))

    def _scratch(self, split: Split, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        tiles, parts, height, width = split
        if parts == 1:
            if device not in self._nothing:
                kept = torch.zeros(1, device=device, dtype=torch.int32)
                self._nothing[device] = (torch.empty(1, device=device), kept)
            empty, zero = self._nothing[device]
            return empty, empty, zero
        slots = tiles * parts
        partial = torch.empty(slots * height * width, device=device)
        partial_bias = torch.empty(slots * height, device=device)
        return partial, partial_bias, self._counters(tiles, device)

    def _counters(self, tiles: int, device: torch.device) -> Tensor:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return torch.zeros(tiles, dtype=torch.int32, device=device)  # the graph's own
        stream = torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
        kept = self._arrived.get((device, stream))
        if kept is None or len(kept) < tiles:
            kept = torch.zeros(max(tiles, 256), dtype=torch.int32, device=device)
            self._arrived[device, stream] = kept
        return kept

    def _compile(self, launch: Launch, arguments: tuple) -> None:
        key = (launch.constants, *launch.options.values())
        if key not in self._compiled:
            launch.kernel.warmup(
                *arguments, launch.constants, grid=(launch.grid,), **launch.options
            )
            self._compiled.add(key)


def _start(launch: Launch, arguments: tuple) -> None:
    launch.kernel[(launch.grid,)](*arguments, launch.constants, **launch.options)


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where descriptors of bulk copies live."""
    return torch.empty(size, device="cuda", dtype=torch.int8)
