"""Whether torch compiles anything while it is timed: whoever it compiles for then is no figure.

A rival that is compiled anew at every step is eager from the ninth on, which looks like a slow one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch._dynamo.utils import counters

from bench.gpu.context import Context
from dfa_kernels.throughput import timing
from dfa_kernels.throughput.timing import Run


def to_the_end() -> AbstractContextManager:
    """In it, what torch has compiled too often raises, and does not become eager in silence."""
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


class Watch:
    """Sees whose turn it is that torch compiles in; ``anew``: who that was, by now."""

    def __init__(self) -> None:
        self.anew: set[str] = set()
        self._turn: str | None = None
        self._graphs = _graphs()

    def begin(self, name: str | None) -> None:
        """A turn, or with None none any more."""
        graphs = _graphs()
        if graphs != self._graphs and self._turn is not None:
            self.anew.add(self._turn)
        self._turn, self._graphs = name, graphs


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


def rounds(
    runs: Mapping[str, Run], context: Context, seconds: float, what: str
) -> dict[str, list[float]]:
    """`timing.rounds` of what is warm; ``what`` is named in a note for each run that was compiled
    anew, or failed, and is left out.

    Raises:
        RuntimeError: one was, in a rehearsal.
    """
    watch = Watch()
    left_out: dict[str, str] = {}

    def died(name: str, failed: Exception) -> None:
        if context.tiny:
            raise failed
        if context.device.type == "cuda":
            torch.cuda.synchronize()  # raises where the device itself has failed
        left_out[name] = said(failed)

    times = timing.rounds(
        runs, context.device, seconds, least=context.least, before=watch.begin, died=died
    )
    watch.begin(None)
    left_out |= dict.fromkeys(watch.anew - set(left_out), "it was compiled anew while it was timed")
    for name, why in left_out.items():
        if context.tiny:
            raise RuntimeError(f"{what}: {name}: {why}")
        context.say(f"{what}: {name} is left out: {why}")
    return {name: own for name, own in times.items() if name not in left_out}


def said(failed: Exception) -> str:
    """An exception in a line."""
    lines = str(failed).strip().splitlines() or [""]
    return f"{type(failed).__name__}: {lines[0][:300]}"
