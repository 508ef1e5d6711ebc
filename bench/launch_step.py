"""Whole steps' side of `python -m bench.launch`.

Layers are 8 wide and so is the batch: what a step takes is the host's part. Ours runs the CUDA
backend with launchers that start nothing (tests/emulated/nothing.cpp).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.launch import Run, shown, timed
from bench.launch_cuda import FLAGS, NOTHING
from dfa_kernels import backends
from dfa_kernels.backends.cuda import CUDA, rules
from dfa_kernels.throughput import by_hand, contestants
from dfa_kernels.throughput.contestants import Built, Setting
from dfa_kernels.throughput.networks import MLP, NeRF, Task
from tests import emulator

TASKS: dict[str, Task] = {
    "3 layers and a head": MLP(8, 8, 3, 8, 10),
    "8 layers and a head": MLP(8, 8, 8, 8, 10),
    "NeRF's MLP": NeRF(8, 8, 5, 3),
}
PRECISIONS = "float32", "autocast"

PAGE = "launch_step.md"
SUBJECT = "a whole step"
ABOUT = """\
Microseconds of the calling thread, median (quartiles), of zero_grad, forward pass, loss, backward
pass and AdamW, layers and batch being 8: next to nothing is the products' time. Ours runs the CUDA
backend, csrc/binding.cpp compiled by g++ -O3 with launchers that start nothing. Kernels: the calls
of operators that compute something, each of which takes the host some microseconds more on a GPU.
No update: forward pass without a graph, loss and its gradient at the output, written out where a
network is an MLP; what is left of a step whose backward pass and optimizer take no time at all.
No GPU: neither the driver's launches nor a device's time are in these."""
TITLES = ("network", "precision", "step", "kernels", "µs", "of ours")


#: Of `Nothing`, while it is registered.
NAME = "launches-nothing"


class Nothing(CUDA):
    """The CUDA backend, which starts nothing, on CPU tensors."""

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def _core(self) -> Any:
        return emulator.core((NOTHING,), FLAGS)


class Contestant(NamedTuple):
    """``own``: kernels that no operator of torch's is: a step's `update`. None: not to be counted,
    as they are compiled."""

    make: Callable[[Task, Setting], Built]
    own: int | None


CONTESTANTS = {
    "ours": Contestant(contestants.ours, 1),
    'ours, update="backward"': Contestant(contestants.in_backward, 1),
    'ours, torch.compile\'d, update="backward"': Contestant(contestants.ours_compiled, None),
    "eager backpropagation": Contestant(contestants.eager, 0),
    "torch.compile'd backpropagation": Contestant(contestants.compiled, None),
    "no update": Contestant(by_hand.without_update, 0),
}


def measure(repeats: int) -> list[tuple[str, ...]]:
    """The rows."""
    backends.register(NAME, Nothing())
    try:
        with (
            backends.use(NAME),
            mock.patch.object(rules, "device_of", lambda _: rules.Device(0, 132)),
        ):
            return _measure(repeats)
    finally:
        backends.unregister(NAME)


def _measure(repeats: int) -> list[tuple[str, ...]]:
    made = []
    for network, task in TASKS.items():
        for precision in PRECISIONS:
            setting = Setting(torch.device("cpu"), precision, "adamw")
            steps = dict(_built(task, setting))
            kernels = [_kernels(step, CONTESTANTS[who].own) for who, step in steps.items()]
            times = timed([Run(who, "", {}, step) for who, step in steps.items()], repeats)
            made += [
                (
                    network,
                    precision,
                    who,
                    count,
                    shown(took),
                    f"{took.median / times[0].median:.2f}",
                )
                for who, count, took in zip(steps, kernels, times, strict=True)
            ]
    return made


def _built(task: Task, setting: Setting) -> Iterator[tuple[str, Callable[[], object]]]:
    """The step of each contestant that is there for the task."""
    for who, contestant in CONTESTANTS.items():
        with contextlib.suppress(NotImplementedError):
            yield who, contestant.make(task, setting).run


class Counting(TorchDispatchMode):
    """Counts the calls of operators that compute something: no views, and nothing unwritten."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [r.alias_info for r in func._schema.returns]
        views = bool(returned) and all(info and not info.is_write for info in returned)
        if not views and not func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            self.count += 1
        return func(*args, **(kwargs or {}))


def _kernels(step: Callable[[], object], own: int | None) -> str:
    """Of a step, after others."""
    for _ in range(5):
        step()
    if own is None:
        return "—"
    with Counting() as counting:
        step()
    return str(counting.count + own)


def versions() -> str:
    return "g++"
