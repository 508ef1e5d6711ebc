"""What a part of `bench.gpu` finds out: rows of four kinds and notes, as they stand in the JSON.

Whether a target is reached is decided by the quartiles: where they straddle it, nothing is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from dfa_kernels.throughput import counting
from dfa_kernels.throughput.counting import Work
from dfa_kernels.throughput.spread import Spread, spread

Row = dict[str, Any]

REACHED, MISSED, UNDECIDED = "reached", "missed", "undecided"


def verdict(value: Spread, target: float) -> str:
    """More is better."""
    if not all(math.isfinite(v) for v in value):
        return UNDECIDED
    if value.low >= target:
        return REACHED
    return MISSED if value.high < target else UNDECIDED


def timed(
    name: str, ms: Sequence[float], work: Work, rate: str = "bf16", target: str | None = None
) -> Row:
    """A kernel's time and what it did. ``rate``: the products' ceiling that it is held against;
    ``target``: a name of `TARGETS`."""
    return {
        "kind": "timed",
        "name": name,
        "ms": list(spread(ms)),
        "rounds": len(ms),
        "flops": work.flops,
        "bytes": work.bytes,
        "rate": rate,
        "target": target,
    }


def compared(
    name: str, ours: Sequence[float], rival: Sequence[float], against: str, target: float | None
) -> Row:
    """The rival's time by ours, round by round; more is faster."""
    ratios = [b / a for a, b in zip(ours, rival, strict=True)]
    return {
        "kind": "compared",
        "name": name,
        "against": against,
        "ms": list(spread(ours)),
        "rival_ms": list(spread(rival)),
        "ratio": list(spread(ratios)),
        "rounds": len(ratios),
        "target": target,
        "verdict": verdict(spread(ratios), 1.0 if target is None else target),
    }


def fact(name: str, value: object, wanted: object = None, unit: str = "") -> Row:
    """Something that is so or is not; ``wanted`` None: only worth knowing."""
    row: Row = {"kind": "fact", "name": name, "value": value, "unit": unit, "wanted": wanted}
    if wanted is not None:
        row["verdict"] = REACHED if value == wanted else MISSED
    return row


#: `NO_TIME`: it was stopped, and shows nothing of what it tests.
PASSED, BROKEN, NOT_RUN, NO_TIME = "passed", "failed", "skipped", "not run: time"


def check(name: str, outcome: str, why: str = "", seconds: float = 0.0, output: str = "") -> Row:
    """A test, or a tool that looks for errors: ``outcome`` is `PASSED`, `BROKEN`, `NOT_RUN` or
    `NO_TIME`, and ``why`` a sentence."""
    return {
        "kind": "check",
        "name": name,
        "outcome": outcome,
        "why": why,
        "seconds": round(seconds, 1),
        "output": output[-12000:],
    }


def checked(rows: Sequence[Row], complete: bool) -> tuple[dict[str, int], str | None]:
    """How many checks came out how, and the verdict; None where too little ran to have one."""
    counts = Counter(r["outcome"] for r in rows if r["kind"] == "check")
    if counts[BROKEN]:
        return dict(counts), MISSED
    every = complete and not counts[NO_TIME]
    return dict(counts), REACHED if every and counts[PASSED] else None


class Target(NamedTuple):
    """Fractions of the ceiling that binds: of the copy bandwidth, of the products' rate."""

    memory: float
    products: float

    def __str__(self) -> str:
        if not self.memory:
            return f"≥ {self.products:.0%} of products"
        return f"≥ {self.memory:.0%} of copy, {self.products:.0%} of products"


#: `project`: 90 % of the copy bandwidth until arithmetic takes over, then 70 % of the products'
#: rate. `update`: 80 % of the products' rate, the optimizer included; 60 % through mma.sync, which
#: does not reach the rate of Hopper's own instructions.
TARGETS = {
    "project": Target(0.9, 0.7),
    "update": Target(0.0, 0.8),
    "update, mma.sync": Target(0.0, 0.6),
}


def ceilings(rows: Sequence[Row]) -> dict[str, float]:
    """What the rows of `bench.gpu.ceilings` say: "copy" in bytes a second, and products' rates in
    flops a second by dtype."""
    found = {}
    for row in rows:
        if row["kind"] == "timed":
            seconds = row["ms"][0] / 1e3
            if row["name"].startswith("copy"):
                found["copy"] = row["bytes"] / seconds
            else:
                found[row["rate"]] = row["flops"] / seconds
    return found


def against_ceilings(row: Row, ceilings: dict[str, float]) -> Row:
    """A timed row with GB/s, TFLOP/s, the floor, its percentage and the verdict; without the
    `ceilings` that it needs, it says nothing of them."""
    median, low, high = row["ms"]
    made = dict(row)
    made["gb_per_s"] = row["bytes"] / median / 1e6
    made["tflop_per_s"] = row["flops"] / median / 1e9
    copy, rate = ceilings.get("copy"), ceilings.get(row["rate"])
    if copy is None or rate is None:
        return made
    work = Work(row["flops"], row["bytes"])
    bound = counting.floor(work, copy, rate)
    if str(row["target"]).startswith("update"):  # against products alone: the step is on top
        bound = counting.Floor(work.flops / rate * 1e3, "products")
    made["floor_ms"], made["bound"] = bound
    share = Spread(bound.ms / median, bound.ms / high, bound.ms / low)
    made["share"] = list(share)
    if row["target"] is not None:
        target = TARGETS[row["target"]]
        wanted = target.memory if bound.bound == "memory" else target.products
        made["wanted_share"] = wanted
        made["verdict"] = verdict(share, wanted)
    return made
