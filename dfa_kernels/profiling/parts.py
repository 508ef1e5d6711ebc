"""Time, floor and gap of every part and layer of a step, from its trace, its work and the ceilings.

A floor is the longer of two times: the bytes over the copy's rate, and the flops over the rate of
large products, both measured in the same run. A floor that is longer than the time itself is none:
the operands came from a cache, which a large copy has none of. There is no gap then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dfa_kernels.profiling import PARTS
from dfa_kernels.profiling.trace import Step, Unit
from dfa_kernels.profiling.work import NONE, Work
from dfa_kernels.throughput.counting import Floor
from dfa_kernels.throughput.result import Ceilings
from dfa_kernels.throughput.spread import spread


def floor(work: Work, ceilings: Ceilings) -> Floor | None:
    """None where a ceiling is missing that it needs."""
    products = 0.0
    for dtype, flops in work.flops.items():
        rate = ceilings.tflops.get(dtype)
        if not rate:
            return None
        products += flops / rate / 1e9
    if not ceilings.gbps:
        return None
    memory = work.bytes / ceilings.gbps / 1e6
    return Floor(memory, "memory") if memory >= products else Floor(products, "products")


@dataclass(frozen=True)
class Line:
    """A part, or a layer in it: milliseconds a step (median and quartiles), what it must do, and
    the floor under it, null where nothing is known of that; it is none where it is ``beaten``."""

    part: str
    layer: str
    ms: float
    quartiles: tuple[float, float]
    flops: int
    bytes: int
    floor_ms: float | None
    bound: str | None

    @property
    def beaten(self) -> bool:
        """Whether it took less than its floor."""
        return self.floor_ms is not None and self.ms < self.floor_ms

    @property
    def gap_ms(self) -> float | None:
        return None if self.floor_ms is None or self.beaten else self.ms - self.floor_ms


#: The share of a floor of products from which down on the floor itself must be wrong.
_BEATEN = 0.9


class Apart(NamedTuple):
    """A step taken apart: its parts, its layers, and sentences for a reader."""

    parts: list[Line]
    layers: list[Line]
    notes: list[str]


def apart(steps: Sequence[Step], works: Mapping[Unit, Work], ceilings: Ceilings) -> Apart:
    """Every part that takes time or should; every layer that has a name."""
    units = dict.fromkeys(unit for step in steps for unit in step.ms)  # in the order of the step
    notes: list[str] = []
    if not any(part == "projection" for part, _ in units):
        works, note = _on_the_fly(works)
        notes += note
    layers = []
    for unit in sorted(units, key=lambda u: PARTS.index(u[0])):
        if unit[1]:
            times = [step.ms.get(unit, 0.0) for step in steps]
            work = works.get(unit)
            layers.append(
                _line(*unit, times, work, None if work is None else floor(work, ceilings))
            )
    parts = []
    for part in PARTS:
        own = [work for (of, _), work in works.items() if of == part]
        if own or any(of == part for of, _ in units):
            times = [step.part(part) for step in steps]
            work = sum(own, NONE) if own else None
            parts.append(_line(part, "", times, work, _sum([floor(w, ceilings) for w in own])))
    unknown = {d for w in works.values() for d in w.flops if not ceilings.tflops.get(d)}
    if unknown:
        rates = ", ".join(sorted(unknown))
        notes.append(f"no ceiling for products of {rates}: what multiplies them has no floor")
    cached = [x.part for x in parts if x.bound == "memory" and x.beaten]
    if cached:
        notes.append(
            f"{' and '.join(cached)} took less than a floor of memory: the copy's rate is of "
            "arrays far larger than the caches, and what lies in them is read faster"
        )
    beaten = [x.part for x in parts if x.bound == "products" and x.ms < _BEATEN * (x.floor_ms or 0)]
    if beaten:
        notes.append(
            f"{' and '.join(beaten)} took less than a floor of products, which no cache can help "
            "to: the ceiling was measured while the machine was disturbed, and floors are too high"
        )
    return Apart(parts, layers, notes)


def _line(
    part: str, layer: str, times: Sequence[float], work: Work | None, least: Floor | None
) -> Line:
    middle, low, high = spread(times)
    flops, bytes_ = (0, 0) if work is None else (work.total, work.bytes)
    if least is None:
        return Line(part, layer, middle, (low, high), flops, bytes_, None, None)
    return Line(part, layer, middle, (low, high), flops, bytes_, least.ms, least.bound)


def _sum(floors: Sequence[Floor | None]) -> Floor | None:
    """Of kernels one after another; bound by what most of it waits for."""
    known = [f for f in floors if f is not None]
    if not known or len(known) < len(floors):
        return None
    waiting = {
        bound: sum(f.ms for f in known if f.bound == bound) for bound in ("memory", "products")
    }
    return Floor(sum(waiting.values()), max(waiting, key=lambda bound: waiting[bound]))


def _on_the_fly(works: Mapping[Unit, Work]) -> tuple[Mapping[Unit, Work], list[str]]:
    """Where no projection was seen, the update made δ as it went: its products are the update's,
    and δ was never written."""
    projected = [unit for unit in works if unit[0] == "projection"]
    if not projected:
        return works, []
    moved = {unit: work for unit, work in works.items() if unit not in projected}
    products = sum((works[unit] for unit in projected), NONE)._replace(bytes=0)
    moved["update", ""] = moved.get(("update", ""), NONE) + products
    return moved, ["δ is made on the fly by the update: there is no projection to be timed"]
