"""Whose each event of a profile is: from torch.profiler's Chrome trace to the time of every part.

An operation belongs to the innermost range around it. What autograd runs belongs to the layer, or
to the loss, whose forward pass made the node, which its sequence number tells. A kernel on a GPU
belongs where its launch does. On a CPU an operation's time is its own, without those inside; what
no operation covers is Python's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dfa_kernels.profiling.ranges import STEP, Range

#: A part, and the layer in it or "".
Unit = tuple[str, str]

_ON_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "hip_runtime"}
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
#: What torch's own machinery, and no operation, is called.
_ENGINE = ("autograd::engine", "torch::autograd")
#: Operations without a namespace: what torch.compile made.
_COMPILED = ("Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph")


class Span(NamedTuple):
    """A stretch of a step for the picture: milliseconds from the step's beginning."""

    start: float
    ms: float
    part: str
    layer: str
    name: str


@dataclass
class Step:
    """One step of a trace. ``ms``: by unit; ``whole``: from its range's beginning to its end,
    or to that of its last kernel."""

    whole: float
    ms: dict[Unit, float] = field(default_factory=lambda: defaultdict(float))
    spans: list[Span] = field(default_factory=list)

    def part(self, part: str) -> float:
        return sum(ms for (of, _), ms in self.ms.items() if of == part)

    @property
    def busy(self) -> float:
        return sum(self.ms.values())


def load(path: Path) -> dict[str, Any]:
    """A Chrome trace as torch.profiler wrote it, without what names the machine."""
    found = json.loads(path.read_text())
    for name in ("host_name", "traceName"):
        found.pop(name, None)
    return found


def steps(trace: Mapping[str, Any]) -> list[Step]:
    """Every step that was watched, in order."""
    events = [_Event(e) for e in trace["traceEvents"] if e.get("ph") == "X" and "dur" in e]
    host = _nested(e for e in events if e.category in _ON_HOST)
    marks = sorted((e for e in host if e.range == (STEP, "", "")), key=lambda e: e.start)
    made = [Step(mark.duration / 1e3) for mark in marks]
    forwards = _forwards(host)
    device = [e for e in events if e.category in _ON_DEVICE]
    launched = {e.correlation: e for e in host if e.correlation is not None}
    if device:
        for kernel in device:
            launch = launched.get(kernel.correlation)
            if launch is not None:
                _add(made, marks, kernel, _unit(launch, forwards), kernel.duration, launch.start)
        for step in made:  # the host is done long before the device
            step.whole = max([step.whole, *(span.start + span.ms for span in step.spans)])
    else:
        for event in host:
            if event.operation and event.own > 0:
                _add(made, marks, event, _unit(event, forwards), event.own, event.start)
    for step in made:
        step.spans.sort()
    return made


def _add(
    made: list[Step], marks: list[_Event], event: _Event, unit: Unit, us: float, when: float
) -> None:
    """To the step that was under way at ``when``, microseconds."""
    for step, mark in zip(made, marks, strict=True):
        if mark.start <= when < mark.end:
            step.ms[unit] += us / 1e3
            # The picture has whole operations: one inside another would be drawn over it.
            if event.category in _ON_DEVICE or not event.inside_operation:
                start, ms = (event.start - mark.start) / 1e3, event.duration / 1e3
                step.spans.append(Span(start, ms, *unit, event.name))
            return


class _Event:
    """A complete event of the trace; times in microseconds."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        arguments = found.get("args", {})
        self.name: str = found["name"]
        self.category: str = found.get("cat", "")
        self.start, self.duration = float(found["ts"]), float(found["dur"])
        self.own = self.duration
        self.thread = found.get("pid"), found.get("tid")
        self.correlation = arguments.get("correlation")
        self.sequence = arguments.get("Sequence number")
        self.backward = bool(arguments.get("Fwd thread id"))
        self.range = Range.read(self.name) if self.category == "user_annotation" else None
        self.operation = self._is_operation()
        self.parent: _Event | None = None

    @property
    def end(self) -> float:
        return self.start + self.duration

    def up(self) -> Iterator[_Event]:
        """Itself and what it is inside of, innermost first."""
        event: _Event | None = self
        while event is not None:
            yield event
            event = event.parent

    @property
    def inside_operation(self) -> bool:
        return any(outer.operation for outer in self.up() if outer is not self)

    def _is_operation(self) -> bool:
        if self.range is not None:
            return bool(self.range.kernel)  # a grouped backend's kernel is no operation of torch's
        if self.category != "cpu_op":
            return False
        if "::" in self.name:
            return not self.name.startswith(_ENGINE)
        return self.name.startswith(_COMPILED)


def _nested(events: Iterable[_Event]) -> list[_Event]:
    """The events, each with its parent, and with its own time without its children's."""
    threads: dict[Any, list[_Event]] = defaultdict(list)
    for event in events:
        threads[event.thread].append(event)
    for own in threads.values():
        own.sort(key=lambda e: (e.start, -e.duration))
        open_: list[_Event] = []
        for event in own:
            while open_ and open_[-1].end <= event.start:
                open_.pop()
            if open_:
                event.parent = open_[-1]
                open_[-1].own -= event.duration
            open_.append(event)
    return [event for own in threads.values() for event in own]


def _forwards(host: list[_Event]) -> dict[int, Range]:
    """The range in which each autograd node was made, by its sequence number: the last operation
    of a number made it, for those before only saw what the next would be."""
    found: dict[int, tuple[float, Range]] = {}
    for event in host:
        if event.sequence is None or event.backward or event.sequence < 0:
            continue
        range_ = _innermost(event)
        if range_ is None or range_.part not in ("forward", "error"):
            continue
        before = found.get(event.sequence)
        if before is None or before[0] <= event.start:
            found[event.sequence] = (event.start, range_)
    return {number: range_ for number, (_, range_) in found.items()}


def _innermost(event: _Event) -> Range | None:
    for outer in event.up():
        if outer.range is not None and outer.range.part != STEP:
            return outer.range
    return None


def _unit(event: _Event, forwards: Mapping[int, Range]) -> Unit:
    range_ = _innermost(event)
    if range_ is not None and range_.part != "backward":
        return range_.part, range_.layer
    for outer in event.up():
        if outer.backward and outer.sequence in forwards:
            made = forwards[outer.sequence]
            return ("error", "") if made.part == "error" else ("backward", made.layer)
    return "backward", ""
