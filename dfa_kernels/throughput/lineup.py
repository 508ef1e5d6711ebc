"""Who can take part, by the name that `--contestant` takes.

Fixed names are backpropagation, the hand-written steps and other packages. Every backend that is
registered is a contestant of its own name, through the public module with the fused optimizer;
NAME/torch.optim and NAME/backward are the same backend's other ways to step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import NamedTuple

import torch

from dfa_kernels import backends
from dfa_kernels.throughput import by_hand, contestants, rivals
from dfa_kernels.throughput.contestants import PRECISIONS, Built, Setting
from dfa_kernels.throughput.networks import Task
from dfa_kernels.throughput.result import BASELINE, EAGER
from dfa_kernels.training import InputError

#: Where an installed package names its backends: an object, or a class that is called.
ENTRY_POINTS = "dfa_kernels.backends"


class Contestant(NamedTuple):
    """``method``: "bp" or "dfa". ``build`` makes the step."""

    name: str
    method: str
    build: Callable[[Task, Setting], Built]


_FIXED = (
    Contestant(EAGER, "bp", contestants.eager),
    Contestant(BASELINE, "bp", contestants.compiled),
    Contestant("hand-written-bp", "bp", by_hand.backpropagation),
    Contestant("tinydfa", "dfa", rivals.tinydfa),
    Contestant("biotorch", "dfa", rivals.biotorch),
    Contestant("hand-written-dfa", "dfa", by_hand.direct_feedback),
)
FIXED = {contestant.name: contestant for contestant in _FIXED}
#: Those that are a package of their own name.
_PACKAGES = ("tinydfa", "biotorch")

_WAYS = {
    "torch.optim": contestants.plain_optimizer,
    "backward": contestants.in_backward,
}


def known() -> list[str]:
    """Every name without a way."""
    return [*FIXED, *backends.available("cpu")]


def named(name: str) -> Contestant:
    """The contestant of a name.

    Raises:
        InputError: there is none.
    """
    if name in FIXED:
        return FIXED[name]
    backend, slash, way = name.partition("/")
    build = _WAYS.get(way) if slash else contestants.ours
    if build is None or backend not in backends.available("cpu"):
        ways = " or ".join(f"BACKEND/{way}" for way in _WAYS)
        raise InputError(
            f"--contestant {name!r} is unknown: known are {', '.join(known())}, and {ways}"
        )
    return Contestant(name, "dfa", partial(contestants.on_backend, backend, build))


def refusal(name: str, device: torch.device, precisions: Sequence[str]) -> str | None:
    """Why the contestant of a name can run at none of the precisions, in one sentence; None where
    nothing speaks against it before it is built."""
    if name in FIXED:
        lacking = name in _PACKAGES and find_spec(name) is None
        return f"the package {name} is not installed" if lacking else None
    backend = backends.get(name.partition("/")[0])
    reason = backend.unavailable(device)
    takes = getattr(backend, "dtypes", None)
    if reason is None and takes is not None and not any(PRECISIONS[p] in takes for p in precisions):
        reason = f"it does not take {' or '.join(precisions)}"
    return reason


def usual(device: torch.device) -> tuple[list[str], list[str]]:
    """The names where none are given, and a sentence for each backend that cannot run there.

    The backend that is chosen automatically shows its other ways too.
    """
    names, notes = list(FIXED), []
    for backend, reason in backends.available(device).items():
        if reason is not None:
            notes.append(f"{backend} cannot run on {device}: {reason}.")
        else:
            names.append(backend)
    names += [f"{chosen(device)}/{way}" for way in _WAYS]
    return names, notes


def chosen(device: torch.device) -> str:
    """The backend that is chosen on a device.

    Raises:
        InputError: the one that DFA_KERNELS_BACKEND names cannot run there.
    """
    try:
        return backends.chosen(device)[0]
    except (ValueError, RuntimeError) as refused:
        raise InputError(str(refused)) from None


def bring(modules: Sequence[str]) -> list[str]:
    """Register third-party backends: those of installed packages, and those of ``modules``, which
    register theirs when they are imported.

    Returns:
        A sentence for each installed one that could not be had.

    Raises:
        InputError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as failed:
            raise InputError(f"--import {module} failed: {summary(failed)}") from None
    notes = []
    for found in entry_points(group=ENTRY_POINTS):
        if found.name in backends.available("cpu"):
            continue
        try:
            backend = found.load()
            backends.register(found.name, backend() if isinstance(backend, type) else backend)
        except Exception as failed:
            notes.append(f"backend {found.name} of {found.value} failed: {summary(failed)}.")
    return notes


def summary(failed: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(failed).splitlines() if line.strip()]
    said = lines[0][:300] if lines else ""
    return f"{type(failed).__name__}: {said}" if said else type(failed).__name__
