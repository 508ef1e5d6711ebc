"""The CUDA backend's side of `python -m bench.launch`.

csrc/binding.cpp is compiled by g++ with launchers that start nothing (tests/emulated/nothing.cpp).
What is timed is all from the call of `step_` or `gradients` to where the driver would launch:
checks, layouts, tables, scratch. Most steps are planned in C++; Python's way with the others is
shown on the same step, and what is left of it where the lists for C++ are there already.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.launch import DELTAS, OF_A_CALL, Case, Run, calls, shown, timed
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.feedback import Feedback
from tests import emulator

NOTHING = Path(__file__).parents[1] / "tests/emulated/nothing.cpp"

FLAGS = ("-O3",)  # setup.py's

PAGE = "launch_cuda.md"
SUBJECT = "a call of the CUDA backend"
ABOUT = f"""\
{OF_A_CALL}
csrc/binding.cpp is compiled by g++ -O3, with launchers that start nothing."""
TITLES = ("operation", "δ", "planned in", "µs")


class ByLists:
    """The compiled module without its own planning; it keeps the lists that Python makes for it."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.calls: dict[str, tuple] = {}

    def plain_step(self, *_: Any) -> bool:
        return False

    def project(self, *given: Any) -> None:
        self.calls["project"] = given
        self.core.project(*given)

    def update(self, *given: Any) -> None:
        self.calls["update"] = given
        self.core.update(*given)


def measure(repeats: int) -> list[tuple[str, ...]]:
    """The rows."""
    core = emulator.core((NOTHING,), FLAGS)
    case = Case.on(torch.device("cpu"))
    runs: list[tuple[str, Run]] = []
    with mock.patch.object(rules, "device_of", lambda _: rules.Device(0, 132)):
        for planner, kernels in (("C++", Kernels(core)), ("Python", Kernels(ByLists(core)))):
            runs += [(planner, run) for run in calls(kernels, case, rules.VARIABLE)]
        for delta in DELTAS:
            lists = ByLists(core)
            with mock.patch.dict(os.environ, {rules.VARIABLE: delta}):
                Kernels(lists).step_(Feedback(), "adamw", case.updates)
            for name, given in lists.calls.items():
                call = partial(getattr(core, name), *given)
                runs.append(("—", Run(f"`{name}` of the step's list", delta, {}, call)))
        times = timed([run for _, run in runs], repeats)
    return [
        (run.operation, run.delta, planner, shown(took))
        for (planner, run), took in zip(runs, times, strict=True)
    ]


def versions() -> str:
    return "g++"
